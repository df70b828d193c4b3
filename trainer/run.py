"""The folder of a run: its configuration, the manifest it was trained on, what was measured, checkpoints."""

import dataclasses
import json
from typing import Any

import tensorflow as tf
import yaml

from pipeline.documents import parse_yaml
from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME, Manifest
from trainer.config import TrainConfig, make_config

CONFIG, METRICS, RESULT = "config.yaml", "metrics.jsonl", "result.json"
CHECKPOINTS, LOGS = "checkpoints", "logs"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run by its folder, local or on any file system that TensorFlow knows."""

    path: str

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self) -> bool:
        return tf.io.gfile.exists(self.file(CONFIG))

    def begin(self, config: TrainConfig, manifest: Manifest) -> None:
        """Makes the folder; the configuration comes last, since it is what makes a run of it."""
        tf.io.gfile.makedirs(self.path)
        self.write(FILE_NAME, manifest.to_json())
        self.write(METRICS, b"")
        self.write_config(config)

    def write_config(self, config: TrainConfig) -> None:
        self.write(CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())

    def clear(self) -> None:
        """Removes what a run writes, and nothing else that may lie there; the configuration first."""
        for name in (CONFIG, RESULT, METRICS, FILE_NAME):
            if tf.io.gfile.exists(self.file(name)):
                tf.io.gfile.remove(self.file(name))
        for path in tf.io.gfile.glob(self.file("evaluation-*.json")):
            tf.io.gfile.remove(path)
        for folder in (CHECKPOINTS, LOGS):
            if tf.io.gfile.exists(self.file(folder)):
                tf.io.gfile.rmtree(self.file(folder))

    def config(self) -> TrainConfig:
        return make_config(parse_yaml(self.read(CONFIG), origin=self.file(CONFIG)), origin=self.file(CONFIG))

    def manifest(self) -> Manifest:
        return Manifest.parse(self.read(FILE_NAME), origin=self.file(FILE_NAME))

    def result(self) -> dict[str, Any] | None:
        """What the run reached; None while it is not finished."""
        if not tf.io.gfile.exists(self.file(RESULT)):
            return None
        try:
            return json.loads(self.read(RESULT))
        except ValueError:
            raise UserError(f"{self.file(RESULT)}: not JSON. Train anew with --overwrite.") from None

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

    def cut_metrics(self, *, epoch: int) -> list[dict[str, Any]]:
        """Keeps the lines up to `epoch`, whose checkpoint is resumed from, and returns those of whole epochs."""
        kept = []
        for text in self.read(METRICS).splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # cut off by a crash: it was being written, so it is of a later epoch
                break
            if line["epoch"] <= epoch:
                kept.append(line)
        self.write(METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return [line for line in kept if "train" in line]
