"""The configuration of a training run: what train.yaml may say, and the flags that go over it."""

from typing import Annotated, Any, Literal

import pydantic

from pipeline.yaml_document import PLANNED, Document, parse_yaml, validate

Batching = Literal["window", "bucket", "pad", "exact"]
BATCHING_METHODS: tuple[Batching, ...] = ("window", "bucket", "pad", "exact")
# The counts of each length are enough to plan these; `window` needs the length of every record.
PLANNED_FROM_COUNTS = BATCHING_METHODS[1:]

Strategy = Literal["auto", "one", "mirrored", "multi_worker"]

# Sizes in TensorFlow are int32 or int64; no machine has more.
Positive = Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]


# Named by the design, built by a later version.
PLANNED_KEYS = ("chunk_steps", "lanes")


class TrainConfig(Document):
    """Every field is a key of train.yaml and a flag of the same name."""

    epochs: Annotated[int, pydantic.Field(ge=0, description="Passes over the train split.")] = 20
    # NumPy's old generator, which Keras seeds too, takes no more.
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32, description="Of the weights, the order and dropout.")] = 0
    batching: Annotated[Batching, pydantic.Field(description="How records are put into batches; see `plan`.")] = (
        "window"
    )
    batch_steps: Annotated[
        Positive | None,
        pydantic.Field(
            description="Budget of padded steps of an update, all workers together; by default such that an epoch has "
            "20 updates."
        ),
    ] = None
    batch_size: Annotated[Positive | None, pydantic.Field(description="Records of an update, at most.")] = None
    pad_to_multiple: Annotated[
        Positive, pydantic.Field(description="Steps to a multiple of which batches are padded, by window and bucket.")
    ] = 1
    pad_length: Annotated[
        Positive | None, pydantic.Field(description="Steps, for batching pad. Evaluation reads whole records.")
    ] = None
    truncate: Annotated[
        Literal["head", "tail"] | None, pydantic.Field(description="What is cut off records beyond pad_length.")
    ] = None
    units: Annotated[
        tuple[Positive, ...], pydantic.Field(min_length=1, description="Units of each recurrent layer.")
    ] = (100, 100)
    cell: Annotated[Literal["lstm", "gru"], pydantic.Field(description="Kind of recurrent layer.")] = "lstm"
    bidirectional: Annotated[bool, pydantic.Field(description="Read the steps from both ends.")] = False
    pooling: Annotated[
        Literal["last", "mean", "max"],
        pydantic.Field(description="What the head reads of a record's steps, for a label that is one a record."),
    ] = "last"
    dropout: Annotated[
        float, pydantic.Field(ge=0, lt=1, description="Share of the units dropped after each recurrent layer.")
    ] = 0.0
    optimizer: Annotated[Literal["rmsprop", "adam"], pydantic.Field(description="Which one.")] = "rmsprop"
    # Keras's default of 0.001 is slower, and on small data worse: Japanese Vowels 0.964 in 20 epochs, 0.973 with 0.002.
    learning_rate: Annotated[float, pydantic.Field(gt=0, description="Of the optimizer.")] = 0.002
    clip_norm: Annotated[float | None, pydantic.Field(gt=0, description="Largest global norm of the gradient.")] = None
    early_stopping: Annotated[
        Positive | None, pydantic.Field(description="Stop after so many epochs without a better validation loss.")
    ] = None
    loss_scale: Annotated[
        Literal["epoch", "batch"],
        pydantic.Field(description="epoch: every record counts the same; batch: every batch does."),
    ] = "epoch"
    strategy: Annotated[
        Strategy,
        pydantic.Field(
            description="Who computes. auto: all workers of TF_CONFIG, or all GPUs of this machine, or its CPU; one: "
            "one device; mirrored: all GPUs; multi_worker: all workers."
        ),
    ] = "auto"
    local_workers: Annotated[
        int,
        pydantic.Field(ge=1, le=256, description="Processes on this machine that share each update; not of a cluster."),
    ] = 1
    deterministic: Annotated[
        bool | None,
        pydantic.Field(description="The same bits every time; slower on a GPU. By default where there is no GPU."),
    ] = None
    checkpoint_minutes: Annotated[
        float,
        pydantic.Field(gt=0, description="Minutes between checkpoints, beside those at the end of an epoch."),
    ] = 0.5
    checkpoint_updates: Annotated[
        Positive | None, pydantic.Field(description="Updates between checkpoints, at most.")
    ] = None
    keep_checkpoints: Annotated[
        Positive, pydantic.Field(description="How many of the last are kept; and the best.")
    ] = 2
    warm_start: Annotated[
        str | None,
        pydantic.Field(min_length=1, description="Run whose weights to begin with, where names and shapes agree."),
    ] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_planned(cls, values: Any) -> Any:
        for key in PLANNED_KEYS:
            if isinstance(values, dict) and key in values:
                raise ValueError(f"{key}: this key {PLANNED}")
        return values

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.batching != "pad" and (self.pad_length is not None or self.truncate is not None):
            raise ValueError(f"pad_length and truncate belong to batching pad, not to {self.batching}")
        if self.batching not in ("window", "bucket") and self.pad_to_multiple != 1:
            raise ValueError(f"pad_to_multiple belongs to batching window or bucket, not to {self.batching}")
        if self.local_workers > 1 and self.strategy not in ("auto", "multi_worker"):
            raise ValueError(f"local_workers belongs to strategy auto or multi_worker, not to {self.strategy}")
        return self


def make_config(values: dict[str, Any], *, origin: str = "The configuration") -> TrainConfig:
    """A configuration of plain values.

    Raises:
        UserError: the first thing wrong; an unknown key with the nearest known one.
    """
    return validate(TrainConfig, values, origin=origin)


def read_config(path: str) -> dict[str, Any]:
    """What a train.yaml says, checked, without the defaults."""
    from pipeline.files import read_bytes

    values = parse_yaml(read_bytes(path), origin=path)
    make_config(values, origin=path)
    return values
