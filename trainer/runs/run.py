"""The folder of a run: its configuration, the manifest of its dataset, its statistics, its metrics and its result."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import tensorflow as tf
import yaml

from pipeline.errors import UserError
from pipeline.format.manifest import FILE_NAME as MANIFEST
from pipeline.format.manifest import Manifest
from pipeline.format.scaling import ScaledStatistics
from pipeline.format.vocabulary import serialize_terms
from pipeline.schema.schema import VALIDATION
from pipeline.yaml_document import parse_yaml
from trainer.config import TrainConfig, make_config
from trainer.data.dataset import Dataset, read_vocabularies
from trainer.data.dataset_files import open_file
from trainer.runs.contents import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    FAILED_UPDATE,
    METRICS,
    RESULT,
    STATISTICS,
    VALIDATION_COPY,
    is_partly_created,
    names_to_clear,
)
from trainer.runs.statistics import RunStatistics, keep_statistics

# Bytes that are copied at once.
_COPY_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        path: Its folder, local or on any file system that TensorFlow supports.
    """

    path: str

    def file(self, name: str) -> str:
        """Returns the path of a file of the run."""
        return f"{self.path}/{name}"

    def exists(self) -> bool:
        """Returns whether the folder is a run, which is so as soon as it has a configuration."""
        return tf.io.gfile.exists(self.file(CONFIG))

    def is_foreign(self) -> bool:
        """Returns whether the folder is not a run and holds files of another origin, which must not be changed."""
        if self.exists() or not tf.io.gfile.exists(self.path):
            return False
        return not is_partly_created(self.names())

    def has_checkpoints(self) -> bool:
        """Returns whether training has begun: the first checkpoint is written before the first update."""
        return tf.io.gfile.exists(self.file(CHECKPOINTS))

    def create(self, config: TrainConfig, dataset: Dataset, *, source: "Run | None" = None) -> None:
        """Writes the files of a new run. The configuration comes last, because it makes the folder a run.

        Args:
            source: Another run whose statistics and vocabularies this run keeps, where both have the same feature. By
                default all are those of the dataset.
        """
        manifest, terms = dataset.manifest, dataset.vocabularies()
        own = RunStatistics.of_dataset(manifest, origin=f"{dataset.path}/{MANIFEST}")
        if source is not None:
            source_schema, source_terms = source.manifest().record_schema, source.vocabularies()
            own, not_kept = keep_statistics(source.own_statistics(), source_schema, own, manifest.record_schema)
            terms = {name: found if name in not_kept else source_terms[name] for name, found in terms.items()}
        tf.io.gfile.makedirs(self.path)
        for name, vocabulary in own.vocabularies.items():
            tf.io.gfile.makedirs(os.path.dirname(self.file(vocabulary.path)))
            self.write(vocabulary.path, serialize_terms(terms[name]))
        if config.follow:
            self._copy_validation(dataset)
        self.write(STATISTICS, own.to_json())
        self.write(MANIFEST, manifest.to_json())
        self.write(METRICS, b"")
        self.write_config(config)

    def resume(self, config: TrainConfig) -> None:
        """Prepares the folder for more training: removes the previous result, and stores the new configuration."""
        for name in (RESULT, FAILED_UPDATE):
            if tf.io.gfile.exists(self.file(name)):
                tf.io.gfile.remove(self.file(name))
        if not self._has_statistics():
            self.write(STATISTICS, self.own_statistics().to_json())
        self.write_config(config)

    def clear(self) -> None:
        """Removes all files that a run writes, and no others."""
        for name in names_to_clear(self.names()) if self.exists() else []:
            path = self.file(name)
            (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)

    def config(self) -> TrainConfig:
        """Returns the configuration. Raises a UserError if it cannot be read."""
        return make_config(parse_yaml(self.read(CONFIG), origin=self.file(CONFIG)), origin=self.file(CONFIG))

    def write_config(self, config: TrainConfig) -> None:
        self.write(CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())

    def manifest(self) -> Manifest:
        """Returns the manifest of the dataset that the run trains on. Raises a UserError if it cannot be read."""
        return Manifest.parse(self.read(MANIFEST), origin=self.file(MANIFEST))

    def commit(self) -> int | None:
        """Returns the number of the dataset's commit that the run started on; None for format version 1."""
        return self.manifest().commit

    def own_statistics(self) -> RunStatistics:
        """Returns the contents of statistics.json; for a run of an older version without it, those of its dataset.

        Raises:
            UserError: The file is missing or damaged.
        """
        manifest = self.manifest()
        if not self._has_statistics():
            return RunStatistics.of_dataset(manifest, origin=self.file(MANIFEST), is_scaled=False)
        return RunStatistics.parse(self.read(STATISTICS), manifest, origin=self.file(STATISTICS))

    def statistics(self) -> dict[str, ScaledStatistics]:
        """Returns the statistics that the run's model is built with, by name of the feature or label.

        They are those of the commit that the run started on, or of the run that it started from (`warm_start`).

        Raises:
            UserError: The file is missing or damaged.
        """
        return self.own_statistics().statistics

    def vocabularies(self) -> dict[str, tuple[bytes, ...]]:
        """Returns the vocabularies that the run's model is built with, by feature name.

        Raises:
            UserError: A file is missing, or it is not the one that statistics.json lists.
        """
        return read_vocabularies(self.path, self.own_statistics().vocabularies)

    def validation(self) -> Dataset:
        """Returns a dataset of which only the validation split can be read: the copy of a run with `follow`."""
        return Dataset(self.file(VALIDATION_COPY), self.manifest())

    def _copy_validation(self, dataset: Dataset) -> None:
        """Copies the validation split, because a dataset that is followed may be compacted.

        So the losses of all epochs are those of the same records, and a resumed run measures the same bits.
        """
        split = dataset.manifest.splits.get(VALIDATION)
        for shard in split.shards if split is not None else ():
            for path in (shard.path, shard.index_path):
                copy = self.file(f"{VALIDATION_COPY}/{path}")
                tf.io.gfile.makedirs(os.path.dirname(copy))
                with open_file(f"{dataset.path}/{path}") as stored, tf.io.gfile.GFile(copy, "wb") as file:
                    while data := stored.read(_COPY_BYTES):
                        file.write(data)

    def inputs_sha256(self) -> str:
        """Returns the SHA-256 of everything that the model is built from: manifest, configuration and statistics."""
        statistics = self.read(STATISTICS) if self._has_statistics() else b""
        return hashlib.sha256(self.read(MANIFEST) + self.read(CONFIG) + statistics).hexdigest()

    def _has_statistics(self) -> bool:
        """Returns whether the run has a statistics.json, or should have one, because its configuration is as new."""
        return "statistics" in self.config().model_fields_set

    def result(self) -> dict[str, Any] | None:
        """Returns the contents of result.json, or None if the run is not finished.

        Raises:
            UserError: The file is damaged.
        """
        if not tf.io.gfile.exists(self.file(RESULT)):
            return None
        try:
            result = json.loads(self.read(RESULT))
        except (ValueError, RecursionError):
            raise UserError(f"{self.file(RESULT)}: not JSON. Train again with --overwrite.") from None
        if not isinstance(result, dict) or not isinstance(result.get("epochs"), int):
            raise UserError(f"{self.file(RESULT)}: not the result of a run: it has no epochs. Was this file edited?")
        return result

    def environment(self) -> dict[str, Any] | None:
        """Returns the environment in which the run was last started, or None if that is not known."""
        try:
            found = json.loads(self.read(ENVIRONMENT))
        except (UserError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def read(self, name: str) -> bytes:
        """Returns the contents of a file. Raises a UserError if it cannot be read."""
        try:
            with tf.io.gfile.GFile(self.file(name), "rb") as file:
                return file.read()
        except (tf.errors.OpError, OSError):
            raise UserError(
                f"{self.path}: not a run: it has no {name} that can be read. Make one with `lengthwise train`."
            ) from None

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file atomically: a reader sees the old contents or the new ones."""
        temporary = self.file(f"{name}.tmp")
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(data)
        tf.io.gfile.rename(temporary, self.file(name), overwrite=True)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1).encode() + b"\n")

    def names(self) -> list[str]:
        """Returns the names of the files and folders at the top of the run's folder."""
        return [name.rstrip("/") for name in tf.io.gfile.listdir(self.path)]
