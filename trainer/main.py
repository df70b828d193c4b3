"""Flags of the commands on models and batches: each parses them and calls one function."""

import argparse
import json
import os
import time
import types
import typing
from typing import Annotated, Any, Literal

from pipeline.beam.options import parse_with_beam
from pipeline.errors import UserError
from pipeline.flags import FlagParser, positive, share
from trainer.devices.tensorflow_setup import explain_tensorflow_errors, start_tensorflow


def train(arguments: list[str]) -> int:
    from trainer.config import PLANNED_KEYS, TrainConfig, make_config, read_config
    from trainer.devices.local_workers import exit_with_parent, run_local_workers
    from trainer.devices.signals import exit_on_sigterm

    parser = FlagParser(
        "train",
        "Trains the masked stacked LSTM on a dataset.\n"
        "An unfinished run that is there goes on from its last checkpoint, a finished one prints its result.\n"
        "Exit status 75: SIGTERM came, and the run is saved. 69: another process trains into that folder.",
        examples="  lengthwise train dataset --output run --epochs 30\n"
        "  lengthwise train dataset --output run --units 200 --bidirectional --dropout 0.2 --early_stopping 5\n"
        "  lengthwise train dataset --output run --config train.yaml --seed 1\n"
        "  lengthwise train dataset --output run --local_workers 2",
        planned=[f"--{key}" for key in PLANNED_KEYS],
    )
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--config", help="YAML file with any of the keys below; flags go over it")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever is there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    for name, field in TrainConfig.model_fields.items():
        _add_field(parser, name, field)
    values = parser.parse(arguments)
    ours = {name: values.pop(name) for name in ("dataset", "output", "config", "overwrite", "json")}
    chosen = read_config(ours["config"]) if ours["config"] else {}
    try:
        config = make_config(chosen | values, origin="flags")
    except UserError as error:  # the file was checked, so it is a flag
        parser.error(str(error))
    if config.local_workers > 1 and not os.environ.get("TF_CONFIG"):
        from trainer.data.dataset import open_dataset

        open_dataset(ours["dataset"])  # if there is none, that is told once, and at once
        return run_local_workers(config.local_workers, ["train", *arguments])
    exit_with_parent()
    with exit_on_sigterm():
        start_tensorflow(deterministic=config.deterministic)
        from trainer.report import print_result
        from trainer.training.train import train as run

        with explain_tensorflow_errors(ours["dataset"]):
            result = run(ours["dataset"], ours["output"], config, overwrite=ours["overwrite"])
    if ours["json"]:
        print(json.dumps(result))
    else:
        print_result(result, ours["output"])
    return 0


def evaluate(arguments: list[str]) -> None:
    parser = FlagParser(
        "evaluate",
        "Measures a run on a split: loss and metrics over real steps and records, whole, by length, and by group and\n"
        "source where the dataset has them; for classes a confusion table.\n"
        "Writes RUN/evaluation-<split>.json.",
        examples="  lengthwise evaluate run dataset\n  lengthwise evaluate run dataset --split validation --json",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="default: the best by validation loss where there is one"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    values = parser.parse(arguments)
    start_tensorflow()
    from trainer.evaluation.evaluate import evaluate as run
    from trainer.report import print_evaluation

    with explain_tensorflow_errors(values["dataset"]):
        evaluation = run(values["run"], values["dataset"], split=values["split"], checkpoint=values["checkpoint"])
    if values["json"]:
        print(json.dumps(evaluation))
    else:
        print_evaluation(evaluation, values["run"])


def predict(arguments: list[str]) -> None:
    parser = FlagParser(
        "predict",
        "Predicts raw records (JSON Lines, plain or .gz) in bulk: a line with id and prediction for each of them.\n"
        "They are read and checked as `prepare` does, but need no label. Any flag of Beam's serves too.",
        examples="  lengthwise predict run new.jsonl --output predictions\n"
        "  lengthwise predict run 'logs/*.jsonl.gz' --output predictions --max_rejected 0.05 --keep_raw --overwrite\n"
        "  lengthwise predict run raw/ --output predictions --direct_running_mode=multi_processing \\\n"
        "      --direct_num_workers=2",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "raw", metavar="RAW", nargs="+", help="a file, a glob or a folder, on any file system of Beam's"
    )
    parser.add_argument("--output", required=True, help="folder of the predictions: part-*.jsonl, predictions.json")
    parser.add_argument(
        "--max_rejected",
        type=share,
        default=0.01,
        help="share of the records, 0 to 1, that may be rejected; above it nothing is published; default: 0.01",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the predictions that are there")
    parser.add_argument("--keep_raw", action="store_true", help="rejects carry the raw record")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="default: the best by validation loss where there is one"
    )
    parser.add_argument(
        "--batch_steps", type=positive, help="budget of padded steps a batch; default: as wide as the records allow"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values, beam_options = parse_with_beam(parser, arguments)
    as_json, values["raw"] = values.pop("json"), tuple(values["raw"])
    begin = time.monotonic()
    start_tensorflow()
    from trainer.serving.predict import PredictOptions
    from trainer.serving.predict import predict as run
    from trainer.serving.publish import print_summary

    with explain_tensorflow_errors(values["run"]):
        summary = run(PredictOptions(**values), beam_options)
    summary |= {"seconds": time.monotonic() - begin}
    if as_json:
        print(json.dumps(summary))
    else:
        print_summary(summary, values["output"])


def export(arguments: list[str]) -> None:
    parser = FlagParser(
        "export",
        "Makes of a finished run a model that serves anywhere: a SavedModel, which needs no Lengthwise, and a .keras\n"
        "file, which Keras reads after `import trainer.model.layers`.\n"
        "It is there only once another process has read it back and got the model's own answers.",
        examples="  lengthwise export run --output export\n"
        "  lengthwise export run --output export --checkpoint last --overwrite --json",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the export, on a local disk")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="default: the best by validation loss where there is one"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument("--json", action="store_true", help="print what export.json says as JSON")
    values = parser.parse(arguments)
    from trainer.serving.export import export as run
    from trainer.serving.export import summarize

    as_json = values.pop("json")
    about = run(values.pop("run"), values["output"], checkpoint=values["checkpoint"], overwrite=values["overwrite"])
    print(json.dumps(about) if as_json else f"{values['output']}: {summarize(about)}")


def plan(arguments: list[str]) -> None:
    parser = FlagParser(
        "plan",
        "Shows what each way of batching would cost an epoch, from manifest and indexes alone.",
        examples="  lengthwise plan dataset\n  lengthwise plan dataset --batch_steps 20000 --split train --json",
    )
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument(
        "--batch_steps", type=positive, help="budget of padded steps a batch; default: as train would choose"
    )
    parser.add_argument("--batch_size", type=positive, help="records a batch, at most")
    parser.add_argument(
        "--pad_to_multiple",
        type=positive,
        default=1,
        help="steps to a multiple of which `window` and `bucket` pad; default: 1",
    )
    parser.add_argument("--pad_length", type=positive, help="steps to which `pad` pads; default: the longest record")
    parser.add_argument("--truncate", choices=("head", "tail"), help="what `pad` cuts off records beyond --pad_length")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    values = parser.parse(arguments)
    from trainer.batching.plan_epoch import plan_epoch
    from trainer.config import BATCHING_METHODS
    from trainer.data.dataset import open_dataset
    from trainer.report import print_plans

    dataset = open_dataset(values["dataset"])
    limits = {name: values[name] for name in ("batch_steps", "batch_size")}
    of_way = {way: ("pad_to_multiple",) for way in ("window", "bucket")} | {"pad": ("pad_length", "truncate")}
    try:
        plans = [
            plan_epoch(
                dataset,
                values["split"],
                batching=way,
                **limits,
                **{name: values[name] for name in of_way.get(way, ())},
            )
            for way in BATCHING_METHODS
        ]
    except ValueError as error:  # records beyond --pad_length
        raise UserError(str(error)) from None
    if values["json"]:
        print(json.dumps({plan.batching: plan.to_dict() for plan in plans}))
    else:
        print_plans(plans, values["dataset"], values["split"])


def _add_field(parser: FlagParser, name: str, field: Any) -> None:
    """A flag for a key of the configuration; absent from the values unless it is given."""
    details: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": f"{field.description} Default: {_told(field.default)}",
    }
    kinds = [k for k in _members(field.annotation) if k is not type(None)]
    if kinds == [bool]:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **details)
        return
    if typing.get_origin(kinds[0]) is tuple:
        details |= {"nargs": "+", "type": int, "metavar": "N"}
    elif typing.get_origin(kinds[0]) is Literal:
        details["choices"] = typing.get_args(kinds[0])
    else:
        number = typing.get_args(kinds[0])[0] if typing.get_origin(kinds[0]) is Annotated else kinds[0]
        details |= {"type": number, "metavar": {int: "N", float: "X", str: "PATH"}[number]}
    parser.add_argument(f"--{name}", **details)


def _members(annotation: Any) -> list[Any]:
    # `Annotated[int, …] | None` is a typing.Union, `float | None` a types.UnionType.
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return list(typing.get_args(annotation)) if union else [annotation]


def _told(default: Any) -> str:
    if default is None or default is False:
        return "no" if default is False else "none"
    return " ".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
