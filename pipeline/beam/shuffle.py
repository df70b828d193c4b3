"""What a way of sorting records into shards must provide: through files in this process, or by the engine's shuffle."""

import abc
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from apache_beam.runners.portability.fn_api_runner import FnApiRunner

ShuffleName = Literal["files", "engine"]


class Written(NamedTuple):
    """The PCollections of what was written.

    Attributes:
        shards: ShardSummary.
        lists: One WrittenLists.
    """

    shards: Any
    lists: Any


class Shuffle(abc.ABC):
    """Sorts parsed records into shards. What `parse` and `encode` return is for `write` of the same shuffle."""

    @abc.abstractmethod
    def parse(self, chunks: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Parses and sorts a PCollection of chunks.

        Args:
            options: The result of `parse_options`.
        """

    @abc.abstractmethod
    def encode(self, sequences: Any, rejects: Any, chunks: Any) -> dict[str, Any]:
        """Encodes and sorts a PCollection of records, with PCollections of Reject and of ChunkSummary."""

    @abc.abstractmethod
    def write(self, parsed: Mapping[str, Any], num_shards: int | None) -> Written:
        """Writes the shards, the rejects and the list of raw files.

        Args:
            num_shards: Number of shards of each split. None chooses it by the bytes of the records.
        """


def choose_shuffle(pipeline: Any) -> ShuffleName:
    """Returns how the records of a pipeline are sorted: in this process through files, on any other runner by it."""
    return "files" if isinstance(pipeline.runner, FnApiRunner) else "engine"
