"""Parses the flags of the commands on models and batches; each command then calls one function."""

import argparse
import json
import os
import time
import typing
from types import UnionType
from typing import Annotated, Any, Literal

from pipeline.beam.options import parse_with_beam
from pipeline.errors import UserError
from pipeline.flags import FlagParser, add_commit_flag, add_limit_flags, duration, fraction, positive
from trainer.devices.tensorflow_errors import explain_tensorflow_errors
from trainer.devices.tensorflow_setup import start_tensorflow


def train(arguments: list[str]) -> int:
    from trainer.config import TrainConfig, make_config, read_config
    from trainer.devices.local_workers import exit_with_parent, run_local_workers
    from trainer.devices.signals import exit_on_sigterm

    parser = _make_train_parser()
    values = parser.parse(arguments)
    config_values = {name: values.pop(name) for name in TrainConfig.model_fields if name in values}
    dataset, output, commit = values["dataset"], values["output"], values["commit"]
    file_values = read_config(values["config"]) if values["config"] else {}
    try:
        config = make_config(file_values | config_values, origin="flags")
    except UserError as error:  # read_config has already checked the file, so a flag is wrong
        parser.error(str(error))
    if config.follow and commit is not None:
        parser.error(f"argument --commit: {commit} is not allowed with --follow, which reads the newest commit")
    from trainer.runs.contents import refuse_unwritable_store

    refuse_unwritable_store(output)
    if config.local_workers > 1 and not os.environ.get("TF_CONFIG"):
        from trainer.data.dataset import open_dataset

        open_dataset(dataset, commit=commit)  # reports a missing dataset once and early, instead of once in each worker
        return run_local_workers(config.local_workers, ["train", *arguments])
    exit_with_parent()
    with exit_on_sigterm():
        start_tensorflow(deterministic=config.deterministic)
        from trainer.report import print_result
        from trainer.training.train import train as run

        with explain_tensorflow_errors(dataset):
            result = run(dataset, output, config, overwrite=values["overwrite"], commit=commit)
    if values["json"]:
        print(json.dumps(result))
    else:
        print_result(result, output)
    return 0


def _make_train_parser() -> FlagParser:
    from trainer.config import TrainConfig

    parser = FlagParser(
        "train",
        "Trains the masked stacked LSTM on a dataset.\n"
        "If RUN is unfinished, training resumes from its last checkpoint; if it is finished, its result is printed.\n"
        "Exit status 75: stopped by SIGTERM, and the run is saved. 69: another process trains into the same folder.",
        examples="  lengthwise train dataset --output run --epochs 30\n"
        "  lengthwise train dataset --output run --units 200 --bidirectional --dropout 0.2 --early_stopping 5\n"
        "  lengthwise train dataset --output run --config train.yaml --seed 1\n"
        "  lengthwise train dataset --output run --local_workers 2\n"
        "  lengthwise train new_dataset --output new_run --warm_start run\n"
        "  lengthwise train dataset --output run --follow --idle 10m\n"
        "  lengthwise train dataset --output run --newest 7d",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the keys below; flags override it")
    parser.add_argument("--overwrite", action="store_true", help="delete an existing run and train from the start")
    add_commit_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    for name, field in TrainConfig.model_fields.items():
        _add_field(parser, name, field)
    return parser


def evaluate(arguments: list[str]) -> None:
    parser = FlagParser(
        "evaluate",
        "Computes the loss and the metrics of a run on a split, without padding: over all records, by length, and by\n"
        "group and source if the dataset has them. For classes, also precision, recall and F1 of each class, and a\n"
        "confusion table. The row `baseline` is that of always answering the most frequent class, or the mean.\n"
        "A note points at the length of records on which the model is clearly worse than on all records.\n"
        "Writes RUN/evaluation-<split>.json.",
        examples="  lengthwise evaluate run dataset\n  lengthwise evaluate run dataset --split validation --json",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    parser.add_argument("--split", default="test", help="split to evaluate; default: test")
    add_commit_flag(parser)
    _add_checkpoint(parser)
    _add_chunk_steps(parser)
    parser.add_argument(
        "--reset_state",
        choices=("record", "chunk"),
        help="where the state is set to zero if records are read in chunks: at the start of each record, or of each "
        "chunk, for comparison; default: as the run was trained",
    )
    _add_parts(parser, "as the run was trained")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = parser.parse(arguments)
    start_tensorflow()
    from trainer.data.dataset import open_dataset
    from trainer.evaluation.evaluate import evaluate as run
    from trainer.report import print_evaluation

    with explain_tensorflow_errors(values["dataset"]):
        dataset = open_dataset(values["dataset"], commit=values["commit"])
        options = {name: values[name] for name in ("split", "checkpoint", "chunk_steps", "reset_state", "parts")}
        evaluation = run(values["run"], dataset, **options)
    if values["json"]:
        print(json.dumps(evaluation))
    else:
        print_evaluation(evaluation, values["run"])


def predict(arguments: list[str]) -> None:
    values, beam_options = parse_with_beam(_make_predict_parser(), arguments)
    as_json = values.pop("json")
    begin = time.monotonic()
    start_tensorflow()
    from trainer.serving.predict import predict as run
    from trainer.serving.publish import print_summary

    with explain_tensorflow_errors(values["run"]):
        summary = run(**values, beam_options=beam_options)
    summary |= {"seconds": time.monotonic() - begin}
    if as_json:
        print(json.dumps(summary))
    else:
        print_summary(summary, values["output"])


def _make_predict_parser() -> FlagParser:
    parser = FlagParser(
        "predict",
        "Predicts raw records (JSON Lines, plain or compressed) in bulk: one line with id and prediction for each\n"
        "record. Records are parsed and checked as in `lengthwise prepare`, but need no label, and\n"
        "may have the same id: each gets a line, and a line on stderr counts them. All flags of Beam are accepted.",
        examples="  lengthwise predict run new.jsonl --output predictions\n"
        "  lengthwise predict run 'logs/*.jsonl.gz' --output predictions --max_rejected 0.05 --keep_raw --overwrite\n"
        "  lengthwise predict run raw/ --output predictions --direct_running_mode=multi_processing \\\n"
        "      --direct_num_workers=2",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "raw", metavar="RAW", nargs="+", help="a file, a glob or a folder, on any file system that Beam supports"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of the predictions: part-*.jsonl and predictions.json"
    )
    parser.add_argument(
        "--max_rejected",
        type=fraction,
        default=0.01,
        metavar="X",
        help="largest fraction of rejected records, 0 to 1; if more are rejected, nothing is published; default: 0.01",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing predictions")
    parser.add_argument("--keep_raw", action="store_true", help="store the raw record in each reject")
    add_limit_flags(parser)
    _add_checkpoint(parser)
    parser.add_argument(
        "--batch_steps",
        type=positive,
        metavar="N",
        help="largest number of padded steps of a batch; default: chosen from the width of the records",
    )
    _add_chunk_steps(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def export(arguments: list[str]) -> None:
    parser = FlagParser(
        "export",
        "Exports a finished run for serving: a SavedModel, which does not need Lengthwise, and a .keras file, which\n"
        "Keras reads after `from lengthwise import build_model`, which registers the layers.\n"
        "The export is published only after another process has loaded it and got the same predictions.",
        examples="  lengthwise export run --output export\n"
        "  lengthwise export run --output export --checkpoint last --overwrite --json",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the export")
    _add_checkpoint(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
    parser.add_argument("--json", action="store_true", help="print the contents of export.json, as JSON")
    values = parser.parse(arguments)
    from trainer.serving.export import export as run
    from trainer.serving.export import summarize

    as_json = values.pop("json")
    about = run(values.pop("run"), values["output"], checkpoint=values["checkpoint"], overwrite=values["overwrite"])
    print(json.dumps(about) if as_json else f"{values['output']}: {summarize(about)}")


def plan(arguments: list[str]) -> None:
    values = _make_plan_parser().parse(arguments)
    from trainer.batching.plan import Plan
    from trainer.batching.plan_epoch import plan_epoch
    from trainer.batching.stateful import make_stateful_plan
    from trainer.config import BATCHING_METHODS
    from trainer.data.dataset import open_dataset
    from trainer.data.parts import choose_parts, has_parts
    from trainer.data.select_windows import select_newest
    from trainer.report import print_plans

    dataset = choose_parts(open_dataset(values["dataset"], commit=values["commit"]), values["parts"] or "whole")
    dataset = select_newest(dataset, values["split"], values["newest"])
    limits = {name: values[name] for name in ("batch_steps", "batch_size")}
    options = {way: ("pad_to_multiple",) for way in ("window", "bucket")} | {"pad": ("pad_length", "truncate")}
    split = values["split"]
    # Whole records cannot be read from their parts, except by `stateful`.
    methods = () if has_parts(dataset, split) else BATCHING_METHODS
    try:
        plans: list[Plan] = [
            plan_epoch(
                dataset,
                split,
                batching=way,
                **limits,
                **{name: values[name] for name in options.get(way, ())},
            )
            for way in methods
        ]
        chunks = {name: values[name] for name in ("chunk_steps", "lanes")}
        plans.append(make_stateful_plan(dataset.lengths(split), **chunks))
    except ValueError as error:  # a record is longer than --pad_length
        raise UserError(str(error)) from None
    parts = dataset.split(split).parts
    if values["json"]:
        more = {} if parts is None else {"parts": parts}
        print(json.dumps({plan.batching: plan.to_dict() | more for plan in plans}))
    else:
        print_plans(plans, values["dataset"], split, parts=parts)


def _make_plan_parser() -> FlagParser:
    parser = FlagParser(
        "plan",
        "Shows the cost of an epoch for each batching method. Reads only the manifest and the indexes of the dataset.",
        examples="  lengthwise plan dataset\n  lengthwise plan dataset --batch_steps 20000 --split train --json",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    parser.add_argument("--split", default="train", help="split to plan; default: train")
    parser.add_argument(
        "--newest",
        type=duration,
        metavar="TIME",
        help="plan only the windows of event time of this time before the newest event time, for example 7d",
    )
    add_commit_flag(parser)
    parser.add_argument(
        "--batch_steps",
        type=positive,
        metavar="N",
        help="largest number of padded steps of a batch; default: the default of `lengthwise train`",
    )
    parser.add_argument("--batch_size", type=positive, metavar="N", help="largest number of records of a batch")
    parser.add_argument(
        "--pad_to_multiple",
        type=positive,
        default=1,
        metavar="N",
        help="pad batches of `window` and `bucket` to a multiple of this number of steps, for fewer distinct shapes; "
        "default: 1",
    )
    parser.add_argument(
        "--pad_length",
        type=positive,
        metavar="N",
        help="number of steps that `pad` pads to; default: the longest record",
    )
    parser.add_argument(
        "--truncate", choices=("head", "tail"), help="end at which `pad` cuts records longer than --pad_length"
    )
    parser.add_argument(
        "--chunk_steps", type=positive, metavar="N", help="steps of a chunk of `stateful`; default: 100"
    )
    parser.add_argument(
        "--lanes", type=positive, metavar="N", help="records that `stateful` reads at the same time; default: 64"
    )
    _add_parts(parser, "whole, which only `stateful` can read")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _add_checkpoint(parser: FlagParser) -> None:
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="checkpoint to use; default: the best by validation loss, or the last without a validation split",
    )


def _add_parts(parser: FlagParser, default: str) -> None:
    from trainer.config import Parts

    parser.add_argument(
        "--parts",
        choices=typing.get_args(Parts),
        default=None,
        help="for a dataset that stores long records in parts: whole, or independent, where each part is a record of "
        f"its own; default: {default}",
    )


def _add_chunk_steps(parser: FlagParser) -> None:
    parser.add_argument(
        "--chunk_steps",
        type=positive,
        metavar="N",
        help="read records in chunks of N steps and carry the state from chunk to chunk, which takes less memory for "
        "very long records and changes no result; default: that of a run with batching stateful, else whole records",
    )


def _add_field(parser: FlagParser, name: str, field: Any) -> None:
    """Adds a flag for a key of the configuration. Only a flag that the user passes is among the parsed values."""
    from trainer.config import Duration

    details: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": f"{field.description} Default: {_format_default(field.default)}",
    }
    types = [member for member in _union_members(field.annotation) if member is not type(None)]
    if types == [bool]:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **details)
        return
    if typing.get_origin(types[0]) is tuple:
        details |= {"nargs": "+", "type": int, "metavar": "N"}
    elif types == [Duration]:
        details |= {"type": duration, "metavar": "TIME"}
    elif typing.get_origin(types[0]) is Literal:
        details["choices"] = typing.get_args(types[0])
    else:
        number = typing.get_args(types[0])[0] if typing.get_origin(types[0]) is Annotated else types[0]
        details |= {"type": number, "metavar": {int: "N", float: "X", str: "PATH"}[number]}
    parser.add_argument(f"--{name}", **details)


def _union_members(annotation: Any) -> list[Any]:
    # `Annotated[int, …] | None` is a typing.Union; `float | None` is a types.UnionType.
    union = typing.get_origin(annotation) in (typing.Union, UnionType)
    return list(typing.get_args(annotation)) if union else [annotation]


def _format_default(default: Any) -> str:
    if default is None or default is False:
        return "no" if default is False else "not set"
    return " ".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
