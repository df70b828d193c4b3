"""The dataset that a job adds to or replaces, as it was when the job began."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.schema.windows import EventWindows
from pipeline.writing.published_ids import PublishedShard

# `create` makes a new dataset, `replace` also replaces one that is there, `append` also adds to one that is there.
Mode = Literal["create", "replace", "append"]


class Base(NamedTuple):
    """The dataset that a job adds to or replaces, as it was when the job began.

    Attributes:
        mode: What may be done to it.
        number: Number of its newest commit; 0 if there was none.
        seed: Seed of the splits and of the order of the records.
        summaries: For `append`, the names of its generations and the SHA-256 of their summaries.
        published: For `append`, its shards. A new record whose id they hold is rejected.
        windows: The windows that the new shards are labelled with: those of the dataset, if it has any. None for shards
            without windows.
        vocabularies_of: For `append`, the commit that chose its vocabularies, if that is not the newest one.
    """

    mode: Mode
    number: int = 0
    seed: int = 0
    summaries: Mapping[str, str] = {}  # never changed
    published: tuple[PublishedShard, ...] = ()
    windows: EventWindows | None = None
    vocabularies_of: int | None = None


def choose_mode(*, append: bool, overwrite: bool) -> Mode:
    """Returns the mode that two flags choose. They exclude each other."""
    return "append" if append else "replace" if overwrite else "create"
