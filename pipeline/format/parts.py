"""Divides a record that is longer than `max_length` into parts. Each part is an Example of its own."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.format.examples import decode_example, encode_example
from pipeline.format.stored_fields import stored_fields
from pipeline.schema.record import ParsedRecord, Values, num_labels
from pipeline.schema.schema import NEXT_STEP, Schema


class Part(NamedTuple):
    """A part of a record, or a whole one.

    Attributes:
        example: A serialized Example with the steps of the part. `length` is their number; the id, the context and a
            label per record are those of the record. NEXT_STEP is the first step of the next part.
        num_steps: Number of steps. All parts but the last have `max_length`.
        num_labels: Number of labelled steps. The label of a record counts in its first part.
    """

    example: bytes
    num_steps: int
    num_labels: int


def divide(record: Part, schema: Schema) -> Iterator[Part]:
    """Yields the parts of a whole record. A record that is not longer than `max_length` is one part."""
    num_steps = record.num_steps
    if schema.count_parts(num_steps) == 1:
        yield record
        return
    values = decode_example(record.example)
    assert schema.max_length is not None
    widths = {field.name: field.width for field in stored_fields(schema) if field.per_step}
    for first in range(0, num_steps, schema.max_length):
        stop = min(first + schema.max_length, num_steps)
        part: dict[str, Values] = dict(values)
        for name, width in widths.items():
            part[name] = values[name][first * width : stop * width]
        part["length"] = np.array([stop - first])
        if schema.stores_next_step and stop < num_steps:
            name = str(schema.label.next_of)
            part[NEXT_STEP] = values[name][stop * widths[name] : (stop + 1) * widths[name]]
        yield Part(encode_example(part), stop - first, count_labels(part, stop - first, schema, is_first=not first))


def cut_blocks(parts: Iterable[Part], num_bytes: int) -> Iterator[list[Part]]:
    """Yields parts in blocks that end at this number of bytes of Examples, or with the last part."""
    block: list[Part] = []
    size = 0
    for part in parts:
        block.append(part)
        size += len(part.example)
        if size >= num_bytes:
            yield block
            block, size = [], 0
    if block:
        yield block


def count_labels(example: dict[str, Values], num_steps: int, schema: Schema, *, is_first: bool = True) -> int:
    """Returns the number of labelled steps of a decoded Example; for a label per record, 1 if it is the first part."""
    if schema.label.next_of is None and not schema.label.per_step:
        return int(is_first)
    label = None if schema.label.name is None else np.asarray(example[schema.label.name])
    return num_labels(ParsedRecord("", num_steps, example, label), schema)
