"""What a round asks of a source of raw records: to look what is new, and to cut a part of it for one commit."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pipeline.raw.find_files import RawFile
from pipeline.streaming.positions import Positions
from pipeline.writing.job import JobFiles

# What to do if what was read is no longer there: stop, or read from the start of what is there.
OnRewrite = Literal["error", "reread"]


class Source(Protocol):
    """A source of raw records that keep arriving.

    Attributes:
        noun: What a part belongs to, for messages: file or partition.
        unit: What a lag is counted in: byte or offset.
        awaited: What must end before more can be read, for messages: the line or a transaction.
    """

    @property
    def noun(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def awaited(self) -> str: ...

    def look(self, positions: Positions) -> None:
        """Finds out what is new.

        Args:
            positions: Up to where the source was read.

        Raises:
            UserError: What was read before is no longer there, so that it is unknown what is new.
        """

    def forget(self) -> None:
        """Lets the next look ask again for all that it knows: the dataset was replaced or compacted."""

    def plan(self, files: JobFiles, *, max_bytes: int, max_records: int | None) -> Sequence[RawFile]:
        """Returns the parts to read in the next commit: whole records, of about these limits; empty if nothing is new.

        Each part begins where the last one of the same file ended. If the last plan was not published, the next one
        begins where that one did.

        Args:
            files: The names of what the round writes. A source may put temporary files into their folder.
        """

    def has_more(self) -> bool:
        """Whether the last plan left something that could be read."""

    def is_settling(self) -> bool:
        """Whether there is something new that may not be complete yet, and may be in a moment."""

    def lags(self) -> Mapping[str, int]:
        """Returns the number of bytes or offsets that are not read yet, by file, for those that have any."""

    def num_nulls(self) -> int | None:
        """Returns the number of messages without a value, which were skipped; None for files."""

    def waiting(self) -> Mapping[str, int]:
        """Returns the number of bytes of lines that are not complete, by file; or of offsets in open transactions."""

    def close(self) -> None:
        """Ends what the source holds open."""
