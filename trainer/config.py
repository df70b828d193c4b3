"""The configuration of a training run: the keys of train.yaml, which are also flags of `lengthwise train`."""

import argparse
from typing import Annotated, Any, Literal, TypeAlias

import pydantic

from pipeline.flags import duration
from pipeline.yaml_document import Document, parse_yaml, validate

# The ways of batching whole records.
Batching = Literal["window", "bucket", "pad", "exact"]
BATCHING_METHODS: tuple[Batching, ...] = ("window", "bucket", "pad", "exact")
# Planning these needs only the number of records of each length; `window` needs the length of every record.
PLANNED_FROM_COUNTS = BATCHING_METHODS[1:]
# The way that reads records in chunks and carries the state from chunk to chunk.
STATEFUL: Literal["stateful"] = "stateful"

Strategy = Literal["auto", "one", "mirrored", "multi_worker"]

# TensorFlow stores many sizes as int32.
Positive = Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]


def _parse_duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return duration(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


# Seconds. A file or a flag may also have a number and a unit, for example 60s.
Duration = Annotated[float, pydantic.BeforeValidator(_parse_duration), pydantic.Field(ge=0)]

# How a dataset with records in parts is read.
Parts: TypeAlias = Literal["whole", "independent"]
# Keys that only `stateful` has, and their defaults.
_OF_STATEFUL = {
    "chunk_steps": None,
    "lanes": None,
    "backprop_chunks": 1,
    "label_every_chunk": False,
    "reset_state": "record",
}
# Keys that `stateful` does not have.
_NOT_OF_STATEFUL = ("batch_steps", "batch_size")


class TrainConfig(Document):
    """The configuration of a training run. Every field is a key of train.yaml and a flag with the same name.

    A step is a time step. The limits of a batch or an update apply to all workers together.

    Raises:
        ValueError: A key is unknown, a value is out of range, or two values exclude each other.
    """

    epochs: Annotated[
        Annotated[int, pydantic.Field(ge=0)] | None,
        pydantic.Field(
            description="Number of passes over the train split. With follow, it is not set by default: see there."
        ),
    ] = 20
    # Keras also seeds NumPy's legacy generator, which accepts only 32 bits.
    seed: Annotated[
        int,
        pydantic.Field(
            ge=0, lt=2**32, description="Seed of the initial weights, the order of the records and dropout."
        ),
    ] = 0
    batching: Annotated[
        Literal["window", "bucket", "pad", "exact", "stateful"],
        pydantic.Field(
            description="How records are grouped into batches; `lengthwise plan` compares the methods. stateful: read "
            "very long records in chunks, and carry the state from chunk to chunk."
        ),
    ] = "window"
    batch_steps: Annotated[
        Positive | None,
        pydantic.Field(
            description="Largest number of padded steps (rows x padded length) of an update, over all workers. If "
            "it is not set, it is chosen so that an epoch has at least 20 updates."
        ),
    ] = None
    batch_size: Annotated[Positive | None, pydantic.Field(description="Largest number of records of an update.")] = None
    pad_to_multiple: Annotated[
        Positive,
        pydantic.Field(
            description="Pad batches to a multiple of this number of steps, so that they have fewer distinct lengths; "
            "for window and bucket. It does not make training faster: one compiled update serves all shapes."
        ),
    ] = 1
    pad_length: Annotated[
        Positive | None,
        pydantic.Field(
            description="Number of steps that batching pad pads to; default: the longest record. Evaluation always "
            "reads whole records."
        ),
    ] = None
    truncate: Annotated[
        Literal["head", "tail"] | None,
        pydantic.Field(description="End at which records longer than pad_length are cut."),
    ] = None
    chunk_steps: Annotated[
        Positive | None,
        pydantic.Field(description="Steps of a chunk, for batching stateful; default: 100. An update reads one chunk."),
    ] = None
    lanes: Annotated[
        Positive | None,
        pydantic.Field(
            description="Records that batching stateful reads at the same time, over all workers; default: 64."
        ),
    ] = None
    backprop_chunks: Annotated[
        Positive,
        pydantic.Field(
            description="Chunks that the gradient of an update goes back through, for batching stateful. The work of "
            "an update grows with it."
        ),
    ] = 1
    label_every_chunk: Annotated[
        bool,
        pydantic.Field(
            description="Let the label of a record train in each of its chunks, with a weight of 1 / their number, and "
            "not in the last one alone; for batching stateful. Only for labels per record."
        ),
    ] = False
    reset_state: Annotated[
        Literal["record", "chunk"],
        pydantic.Field(
            description="Where batching stateful sets the state to zero: at the start of each record, or of each "
            "chunk, for comparison."
        ),
    ] = "record"
    parts: Annotated[
        Parts,
        pydantic.Field(
            description="For a dataset that stores long records in parts (over_length: parts): independent reads each "
            "part as a record of its own, for comparison. Only batching stateful reads whole records from their parts."
        ),
    ] = "whole"
    units: Annotated[
        tuple[Positive, ...], pydantic.Field(min_length=1, description="Number of units of each recurrent layer.")
    ] = (100, 100)
    cell: Annotated[Literal["lstm", "gru"], pydantic.Field(description="Type of the recurrent layers.")] = "lstm"
    bidirectional: Annotated[bool, pydantic.Field(description="Read the steps in both directions.")] = False
    pooling: Annotated[
        Literal["last", "mean", "max"],
        pydantic.Field(
            description="How the outputs at all steps become one vector: last step, mean or maximum. Only for "
            "labels per record."
        ),
    ] = "last"
    dropout: Annotated[
        float,
        pydantic.Field(
            ge=0, lt=1, description="Fraction of the outputs of each recurrent layer that is dropped in training."
        ),
    ] = 0.0
    optimizer: Annotated[Literal["rmsprop", "adam"], pydantic.Field(description="Optimizer.")] = "rmsprop"
    # Keras's default of 0.001 trains slower and is worse on small data: after 20 epochs on Japanese Vowels, accuracy is
    # 0.964 with 0.001 and 0.973 with 0.002.
    learning_rate: Annotated[float, pydantic.Field(gt=0, description="Learning rate of the optimizer.")] = 0.002
    clip_norm: Annotated[
        float | None,
        pydantic.Field(
            gt=0,
            description="Scale the gradient down if the global norm of the gradient of the batch's mean loss is larger "
            "than this, whatever the number of its records.",
        ),
    ] = None
    early_stopping: Annotated[
        Positive | None, pydantic.Field(description="Stop after this number of epochs without a lower validation loss.")
    ] = None
    loss_scale: Annotated[
        Literal["epoch", "batch"],
        pydantic.Field(description="epoch: every record has the same weight in the loss; batch: every batch has."),
    ] = "epoch"
    strategy: Annotated[
        Strategy,
        pydantic.Field(
            description="Devices that train. auto: all workers in TF_CONFIG if it is set, else all GPUs of this "
            "machine, else its CPU; one: one device; mirrored: all GPUs of this machine; multi_worker: all workers in "
            "TF_CONFIG."
        ),
    ] = "auto"
    local_workers: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=256,
            description="Number of worker processes to start on this machine, without a cluster. If it has GPUs, each "
            "worker gets the same number of them, at least one.",
        ),
    ] = 1
    deterministic: Annotated[
        bool | None,
        pydantic.Field(
            description="Use TensorFlow's deterministic operations, which are slower on a GPU. On a CPU, the same run "
            "then gives the same bits. On a GPU that is not promised: cuDNN's recurrent kernels have no deterministic "
            "form. If it is not set: only without a GPU."
        ),
    ] = None
    tf32: Annotated[
        bool,
        pydantic.Field(
            description="Let a GPU round the factors of matrix products to TF32, which keeps 10 of 23 bits of the "
            "fraction. That is faster for wide layers (from compute capability 8.0 on), but outputs and gradients "
            "differ from those of a CPU by about 1e-3 instead of 1e-6. evaluate and predict use the setting of the run."
        ),
    ] = False
    checkpoint_minutes: Annotated[
        float,
        pydantic.Field(
            gt=0, description="Minutes between checkpoints within an epoch; the end of an epoch always saves one."
        ),
    ] = 0.5
    checkpoint_updates: Annotated[
        Positive | None, pydantic.Field(description="Largest number of updates between checkpoints.")
    ] = None
    keep_checkpoints: Annotated[
        Positive, pydantic.Field(description="Number of most recent checkpoints to keep, besides the best one.")
    ] = 2
    warm_start: Annotated[
        str | None,
        pydantic.Field(
            min_length=1,
            description="Run whose weights initialize those with the same name, shape and meaning. Its statistics and "
            "vocabularies are kept too (see statistics).",
        ),
    ] = None
    statistics: Annotated[
        Literal["run", "dataset"],
        pydantic.Field(
            description="Statistics and vocabularies of a run with warm_start. run: those that its weights were "
            "trained with; dataset: those of the dataset, and what changes is printed, for example --warm_start "
            "old_run --statistics dataset. Without warm_start, they are always those of the dataset."
        ),
    ] = "run"
    follow: Annotated[
        bool,
        pydantic.Field(
            description="Train on a dataset that grows: each epoch reads the newest commit at its start. Without "
            "epochs, an epoch starts whenever a commit has changed the records, until SIGTERM or idle; with it, that "
            "many epochs follow one another. Statistics, vocabularies and the validation split stay those of the first "
            "commit."
        ),
    ] = False
    idle: Annotated[
        Duration | None,
        pydantic.Field(
            description="End a run with follow when no commit has changed the records for this time, for example 60s, "
            "30m or 0, and finish it. It is looked at between epochs."
        ),
    ] = None
    newest: Annotated[
        Duration | None,
        pydantic.Field(
            description="Train only on the windows of event time that overlap this time before the newest event time "
            "of the dataset, for example 7d; with follow, of the commit that the epoch reads. It selects in the train "
            "split: statistics, vocabularies and the validation split are those of the whole dataset."
        ),
    ] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _set_epochs(cls, values: Any) -> Any:
        """Leaves the number of epochs open with `follow`, unless it is given."""
        if isinstance(values, dict) and values.get("follow") is True:
            return {"epochs": None} | values
        return values

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.batching != "pad" and (self.pad_length is not None or self.truncate is not None):
            raise ValueError(f"pad_length and truncate belong to batching pad, not to {self.batching}")
        if self.batching not in ("window", "bucket") and self.pad_to_multiple != 1:
            raise ValueError(f"pad_to_multiple belongs to batching window or bucket, not to {self.batching}")
        self._check_stateful()
        if self.local_workers > 1 and self.strategy not in ("auto", "multi_worker"):
            raise ValueError(f"local_workers belongs to strategy auto or multi_worker, not to {self.strategy}")
        if not self.follow and self.epochs is None:
            raise ValueError("epochs is null, expected a number: only with follow, a run has no last epoch")
        if not self.follow and self.idle is not None:
            raise ValueError("idle belongs to follow: another run does not wait for commits")
        return self

    def _check_stateful(self) -> None:
        is_stateful = self.batching == STATEFUL
        for key, default in _OF_STATEFUL.items():
            if not is_stateful and getattr(self, key) != default:
                raise ValueError(f"{key} belongs to batching {STATEFUL}, not to {self.batching}")
        for key in _NOT_OF_STATEFUL:
            if is_stateful and getattr(self, key) is not None:
                raise ValueError(f"{key} does not belong to batching {STATEFUL}; choose lanes and chunk_steps")
        if is_stateful and self.bidirectional:
            raise ValueError(
                f"bidirectional: such a model reads each record from its end, too, but batching {STATEFUL} reads it in "
                "chunks from its start"
            )

    def has_epoch(self, number: int) -> bool:
        """Returns whether a run has this epoch, counted from 1."""
        return self.epochs is None or number <= self.epochs


def make_config(values: dict[str, Any], *, origin: str = "The configuration") -> TrainConfig:
    """Returns the configuration with these keys and values.

    Args:
        origin: Name of the source of the values, for error messages.

    Raises:
        UserError: A value is wrong or a key is unknown. The message names the first such key, and for an unknown key
            the most similar known one.
    """
    return validate(TrainConfig, values, origin=origin)


def read_config(path: str) -> dict[str, Any]:
    """Returns the keys and values in a train.yaml, without the defaults.

    Raises:
        UserError: The file cannot be read, or `make_config` refuses its values.
    """
    from pipeline.files import read_bytes

    values = parse_yaml(read_bytes(path), origin=path)
    make_config(values, origin=path)
    return values
