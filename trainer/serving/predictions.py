"""Writes the outputs of a model as lines of JSON, with the names of the classes, and the ids of each file of lines."""

import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.files import join, replace
from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import Array
from trainer.data.target import Target
from trainer.serving.duplicate_ids import pack_ids, write_ids
from trainer.serving.publish import Part
from trainer.serving.step_lines import StepLines

# A multilabel prediction names the classes whose probability is at least this.
_THRESHOLD = 0.5
# orjson writes a float32 of NumPy with the fewest digits that give the same float32 when read.
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
# A part is written when its lines have this size.
_PART_BYTES = 32 * 2**20


class BatchOutputs(NamedTuple):
    """The outputs of a model for a batch of records.

    Attributes:
        ids: Keys of the records.
        lengths: int32[batch], steps of the records.
        outputs: float32[batch, …], or float32[batch, time, …] for labels per step.
    """

    ids: list[str]
    lengths: Array
    outputs: Array


class LineEncoder:
    """Encodes outputs for a target as lines of JSON.

    The names of the classes are converted to JSON once.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        # json instead of orjson: a class may be an integer of more than 64 bits.
        self._names = [orjson.Fragment(json.dumps(name)) for name in target.names]
        self._describe = self._describe_steps if target.per_step else self._describe_records

    def encode(self, batch: BatchOutputs) -> list[bytes]:
        """Returns a line for each record.

        Raises:
            UserError: An output is not finite. JSON has no such number.
        """
        rows = zip(batch.ids, self.describe(batch), strict=True)
        return [orjson.dumps({"id": record_id, **prediction}, option=_OPTIONS) for record_id, prediction in rows]

    def describe(self, batch: BatchOutputs) -> Iterator[dict[str, Any]]:
        """Returns the keys and values of each line except the id, for `orjson`.

        Raises:
            UserError: An output is not finite. JSON has no such number.
        """
        _check_finite(batch, per_step=self._target.per_step)
        return self._describe(batch.outputs, batch.lengths)

    def _describe_records(self, outputs: Array, _: Array) -> Iterator[dict[str, Any]]:
        if self._target.kind in REGRESSION:
            yield from ({"value": value} for value in outputs)
        elif self._target.kind in MULTILABEL:
            for row in outputs:
                yield {"labels": self._choose_labels(row), "probabilities": row}
        else:
            for label, row in zip(outputs.argmax(axis=-1).tolist(), outputs, strict=True):
                yield {"label": self._names[label], "probabilities": row}

    def _describe_steps(self, outputs: Array, lengths: Array) -> Iterator[dict[str, Any]]:
        for steps, length in zip(outputs, lengths.tolist(), strict=True):
            real = steps[:length]
            if self._target.kind in REGRESSION:
                yield {"values": real}
            elif self._target.kind in MULTILABEL:
                yield {"labels": [self._choose_labels(row) for row in real], "probabilities": real}
            else:
                yield {"labels": [self._names[n] for n in real.argmax(axis=-1).tolist()], "probabilities": real}

    def _choose_labels(self, row: Array) -> list[orjson.Fragment]:
        return [self._names[n] for n in np.flatnonzero(row >= _THRESHOLD).tolist()]


def _check_finite(batch: BatchOutputs, *, per_step: bool) -> None:
    outputs = batch.outputs
    finite = np.isfinite(outputs).reshape(*outputs.shape[: 2 if per_step else 1], -1).all(axis=-1)
    if per_step:  # outputs for padding are never written
        finite = (finite | (np.arange(finite.shape[1]) >= batch.lengths[:, None])).all(axis=1)
    if not finite.all():
        record_id = batch.ids[int(np.argmin(finite))]
        raise UserError(
            f"The output of the model for the record {record_id!r} is not finite, expected finite numbers. Look for "
            "values in this record that are far from those that the run was trained on."
        )


class PartWriter:
    """Buffers lines of predictions and writes a file of about 32 MB at a time.

    Args:
        target: What the model predicts.
        folder: Folder of the files. Each file has a unique name, so a retried call does not replace it.
    """

    def __init__(self, target: Target, folder: str) -> None:
        self._encoder = LineEncoder(target)
        self._folder = folder
        self._clear()

    def _clear(self) -> None:
        self._blocks: list[bytes] = []
        self._ids: list[pa.Array] = []
        self._records = self._bytes = 0

    def add(self, batch: BatchOutputs) -> Iterator[Part]:
        """Adds the predictions for a batch, and yields a part if the buffer is full."""
        # Lines are joined immediately: orjson allocates about 4,000 bytes for each line, however short.
        yield from self._append(batch.ids, b"".join(self._encoder.encode(batch)))

    def add_lines(self, lines: StepLines) -> Iterator[Part]:
        """Adds lines, and yields parts as `add` does. A long line is a part of its own, which is not buffered."""
        for row, record_id in enumerate(lines.ids):
            if lines.num_bytes(row) < _PART_BYTES // 4:
                yield from self._append([record_id], b"".join(lines.read(row)))
            else:
                yield from self.flush()
                yield self._write([pack_ids([record_id])], 1, lines.read(row))

    def _append(self, ids: list[str], block: bytes) -> Iterator[Part]:
        self._blocks.append(block)
        self._ids.append(pack_ids(ids))
        self._records += len(ids)
        self._bytes += len(block)
        if self._bytes >= _PART_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[Part]:
        """Writes the lines in the buffer and yields their part, or nothing if the buffer is empty."""
        if self._blocks:
            part = self._write(self._ids, self._records, self._blocks)
            self._clear()
            yield part

    def _write(self, ids: list[pa.Array], records: int, blocks: Iterable[bytes]) -> Part:
        name, num_bytes = f"{uuid.uuid4().hex}.jsonl", 0
        with replace(join(self._folder, name)) as file:
            for block in blocks:
                file.write(block)
                num_bytes += len(block)
        return Part(name, records, num_bytes, write_ids(ids, self._folder))
