"""Says what a model gives out as lines of JSON, with the names of the classes."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from pipeline.errors import UserError
from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import Array
from trainer.data.target import Target

# From this probability on, one of several labels is named.
_THRESHOLD = 0.5
# NumPy's float32 comes out in the fewest digits that give it back.
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class LineWriter:
    """Makes lines of the outputs for a target; the names are turned into JSON once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # Not orjson: a class may be an integer beyond 64 bits.
        self._names = [orjson.Fragment(json.dumps(name)) for name in target.names]
        self._describe = self._describe_steps if target.per_step else self._describe_records

    def write(self, ids: Sequence[str], lengths: Array, outputs: Array) -> list[bytes]:
        """A line for each record.

        Args:
            lengths: int32[batch].
            outputs: float32, as the model gives it: [batch, …], or [batch, time, …] where labels are per step.

        Raises:
            UserError: an output is not finite; JSON has no word for that.
        """
        _check_finite(ids, lengths, outputs, per_step=self._target.per_step)
        rows = zip(ids, self._describe(outputs, lengths), strict=True)
        return [orjson.dumps({"id": record_id, **described}, option=_OPTIONS) for record_id, described in rows]

    def _describe_records(self, outputs: Array, _: Array) -> Iterator[dict[str, Any]]:
        if self._target.kind in REGRESSION:
            yield from ({"value": value} for value in outputs)
        elif self._target.kind in MULTILABEL:
            for row in outputs:
                yield {"labels": self._present(row), "probabilities": row}
        else:
            for label, row in zip(outputs.argmax(axis=-1).tolist(), outputs, strict=True):
                yield {"label": self._names[label], "probabilities": row}

    def _describe_steps(self, outputs: Array, lengths: Array) -> Iterator[dict[str, Any]]:
        for steps, length in zip(outputs, lengths.tolist(), strict=True):
            real = steps[:length]
            if self._target.kind in REGRESSION:
                yield {"values": real}
            elif self._target.kind in MULTILABEL:
                yield {"labels": [self._present(row) for row in real], "probabilities": real}
            else:
                yield {"labels": [self._names[n] for n in real.argmax(axis=-1).tolist()], "probabilities": real}

    def _present(self, row: Array) -> list[orjson.Fragment]:
        return [self._names[n] for n in np.flatnonzero(row >= _THRESHOLD).tolist()]


def _check_finite(ids: Sequence[str], lengths: Array, outputs: Array, *, per_step: bool) -> None:
    finite = np.isfinite(outputs).reshape(*outputs.shape[: 2 if per_step else 1], -1).all(axis=-1)
    if per_step:  # what comes out for padding is read by no one
        finite = (finite | (np.arange(finite.shape[1]) >= lengths[:, None])).all(axis=1)
    if not finite.all():
        record_id = ids[int(np.argmin(finite))]
        raise UserError(
            f"The model gives a number that is not finite for the record {record_id!r}. Look for values in it that are "
            "far from all that the run was trained on."
        )
