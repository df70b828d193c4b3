"""The folder of a run: its configuration, the manifest it was trained on, what was measured, checkpoints."""

import dataclasses
import fnmatch
import hashlib
import json
import os
from typing import Any

import tensorflow as tf
import yaml

from pipeline.errors import UserError
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.vocabulary import serialize_terms
from pipeline.yaml_document import parse_yaml
from trainer.config import TrainConfig, make_config
from trainer.data.dataset import Dataset, read_vocabularies
from trainer.runs.lock import LOCK

CONFIG, METRICS, RESULT = "config.yaml", "metrics.jsonl", "result.json"
CHECKPOINTS, LOGS, VOCABULARY = "checkpoints", "logs", "vocabulary"
ENVIRONMENT, FAILED_UPDATE = "environment.json", "failed-update.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run by its folder, local or on any file system that TensorFlow knows."""

    path: str

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self) -> bool:
        return tf.io.gfile.exists(self.file(CONFIG))

    def is_foreign(self) -> bool:
        """Whether the folder is no run and holds what is not a run's: nothing in it may be touched."""
        if self.exists() or not tf.io.gfile.exists(self.path):
            return False
        # A run that was stopped while it was begun has these and no configuration yet.
        own = {LOCK, FILE_NAME, METRICS, VOCABULARY} | {f"{name}.tmp" for name in (FILE_NAME, METRICS, CONFIG)}
        return not {name.rstrip("/") for name in tf.io.gfile.listdir(self.path)} <= own

    def create(self, config: TrainConfig, dataset: Dataset) -> None:
        """Makes the folder; the configuration comes last, since it is what makes a run of it."""
        tf.io.gfile.makedirs(self.path)
        manifest = dataset.manifest
        for name, terms in dataset.vocabularies().items():
            path = manifest.vocabularies[name].path
            tf.io.gfile.makedirs(os.path.dirname(self.file(path)))
            self.write(path, serialize_terms(terms))
        self.write(FILE_NAME, manifest.to_json())
        self.write(METRICS, b"")
        self.write_config(config)

    def write_config(self, config: TrainConfig) -> None:
        self.write(CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())

    def resume(self, config: TrainConfig) -> None:
        """Takes a run up again: what it came to before is its result no more."""
        for name in (RESULT, FAILED_UPDATE):
            if tf.io.gfile.exists(self.file(name)):
                tf.io.gfile.remove(self.file(name))
        self.write_config(config)

    def clear(self) -> None:
        """Removes what a run writes, and nothing else that may lie there; the configuration last: what is left of a
        run is one still, and can be cleared again."""
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(self.path)] if self.exists() else []
        first, last = (RESULT, CHECKPOINTS, LOGS, ENVIRONMENT, FAILED_UPDATE), (METRICS, VOCABULARY, FILE_NAME, CONFIG)
        for pattern in (*first, "evaluation-*.json", *last):
            for name in [*fnmatch.filter(names, f"{pattern}.tmp"), *fnmatch.filter(names, pattern)]:
                path = self.file(name)
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)

    def config(self) -> TrainConfig:
        return make_config(parse_yaml(self.read(CONFIG), origin=self.file(CONFIG)), origin=self.file(CONFIG))

    def manifest(self) -> Manifest:
        return Manifest.parse(self.read(FILE_NAME), origin=self.file(FILE_NAME))

    def vocabularies(self) -> dict[str, tuple[bytes, ...]]:
        """Those of the dataset that it was trained on, by the feature's name.

        Raises:
            UserError: a file is missing, or not the one that the manifest lists.
        """
        return read_vocabularies(self.path, self.manifest())

    def inputs_sha256(self) -> str:
        """SHA-256 of what the model is built from: the manifest with its statistics, and the configuration."""
        return hashlib.sha256(self.read(FILE_NAME) + self.read(CONFIG)).hexdigest()

    def result(self) -> dict[str, Any] | None:
        """What the run reached; None while it is not finished."""
        if not tf.io.gfile.exists(self.file(RESULT)):
            return None
        try:
            result = json.loads(self.read(RESULT))
        except (ValueError, RecursionError):
            raise UserError(f"{self.file(RESULT)}: not JSON. Train anew with --overwrite.") from None
        if not isinstance(result, dict) or not isinstance(result.get("epochs"), int):
            raise UserError(f"{self.file(RESULT)}: not the result of a run: it has no epochs. Was this file edited?")
        return result

    def read(self, name: str) -> bytes:
        """Raises a UserError if the folder is no run."""
        try:
            with tf.io.gfile.GFile(self.file(name), "rb") as file:
                return file.read()
        except (tf.errors.OpError, OSError):
            raise UserError(
                f"{self.path}: not a run: it has no {name} that can be read. Make one with `lengthwise train`."
            ) from None

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file at once: a reader sees the old one or the new one, whole."""
        temporary = self.file(f"{name}.tmp")
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(data)
        tf.io.gfile.rename(temporary, self.file(name), overwrite=True)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1).encode() + b"\n")

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        with tf.io.gfile.GFile(self.file(METRICS), "ab") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def environment(self) -> dict[str, Any] | None:
        """What `trainer.devices.environment` said when the run was last taken up; None where it is not known."""
        try:
            found = json.loads(self.read(ENVIRONMENT))
        except (UserError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def truncate_metrics(self, *, epoch: int, update: int) -> list[dict[str, Any]]:
        """Keeps the lines of a checkpoint that is resumed from, those of `epoch` whole epochs and of updates up to
        `update`, and returns those of epochs."""
        kept = []
        for text in self.read(METRICS).splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # cut off by a crash: it was being written, so it is of later
                break
            if line["update"] <= update if "update" in line else line["epoch"] <= epoch:
                kept.append(line)
        self.write(METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return [line for line in kept if "train" in line]
