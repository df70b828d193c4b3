"""Collects the classes that the records of the train split name, for a schema with `classes: auto`."""

import dataclasses
from collections.abc import Iterable

from pipeline.errors import UserError, show
from pipeline.format.models import TRAIN
from pipeline.raw.early_stop import EarlyStop, FirstRecords
from pipeline.raw.json_lines import Chunk, ChunkSummary, LineBatch, parse_lines, read_chunk
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.rejects import Reject
from pipeline.schema.labels import class_name
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.encoded_records import find_split

# More classes, or more characters in their names, are probably ids or texts. They also bound the memory.
_MAX_CLASSES, _MAX_CHARACTERS = 100_000, 16 * 2**20


@dataclasses.dataclass
class FoundClasses:
    """The classes that some raw records name, and counts of the records.

    Attributes:
        classes: The classes of the train split by canonical name. If records write one class in two ways, such as 1 and
            "1", it is the string.
        records: Number of records that were accepted, of any split.
        rejected: Number of records that were rejected.
        example: Message of one of these; empty if there is none.
    """

    classes: dict[str, bool | int | str] = dataclasses.field(default_factory=dict)
    records: int = 0
    rejected: int = 0
    example: str = ""
    _characters: int = 0

    def add(self, value: bool | int | str) -> None:
        """Adds a class.

        Raises:
            UserError: There are too many classes.
        """
        name = value if type(value) is str else class_name(value)
        if name not in self.classes:
            self._characters += len(name)
            if len(self.classes) == _MAX_CLASSES or self._characters > _MAX_CHARACTERS:
                raise UserError(
                    f"classes: auto: the label has more than {len(self.classes):,} different values in the train "
                    f"split, for example {show(value)}; expected at most {_MAX_CLASSES:,}, with at most "
                    f"{_MAX_CHARACTERS:,} characters together. It is probably an id or a text. Choose another label, "
                    "or list the classes in the schema."
                )
        elif type(value) is not str:
            return
        self.classes[name] = value

    def ordered(self) -> list[bool | int | str]:
        """Returns the classes, sorted by canonical name."""
        return [self.classes[name] for name in sorted(self.classes)]


def collect_classes(
    items: list[Chunk | LineBatch],
    schema: Schema,
    *,
    seed: int,
    limits: Limits = LIMITS,
    stop: EarlyStop | None = None,
    windows: EventWindows | None = None,
) -> FoundClasses:
    """Returns the classes that the accepted records in some lines name, as far as they are in the train split.

    A label on a step that `max_length` cuts off does not count. Of several records with the same id all count, although
    only one of them will be accepted: which one is not known before the records are sorted.

    Args:
        schema: Its label is open.
        seed, limits, stop, windows: As for `parse_into_runs`.

    Raises:
        UserError: A file cannot be read, there are too many classes, or `stop` applies.
    """
    found = FoundClasses()
    first_records = FirstRecords(stop)
    for item in items:
        for lines in read_chunk(item, record_bytes=limits.record_bytes) if isinstance(item, Chunk) else [item]:
            if isinstance(lines, ChunkSummary):
                continue
            first_records.begin(lines)
            for result in first_records.watch(parse_lines(lines, schema, limits=limits, windows=windows)):
                if isinstance(result, Reject):
                    found.rejected += 1
                    found.example = found.example or f"{result.reason}: {result.message}"
                    continue
                record, _ = result
                found.records += 1
                if record.label is not None and find_split(record, schema, seed=seed) == TRAIN:
                    for named in record.label:
                        for value in named:
                            found.add(value)
                del result, record  # frees the record before the next one is parsed
    return found


def merge_classes(parts: Iterable[FoundClasses]) -> FoundClasses:
    """Returns the classes of all parts, in an order that does not depend on theirs.

    Raises:
        UserError: There are too many classes.
    """
    merged = FoundClasses()
    for part in parts:
        merged.records += part.records
        merged.rejected += part.rejected
        merged.example = min(filter(None, (merged.example, part.example)), default="")
        for value in part.classes.values():
            merged.add(value)
    return merged
