"""Keeps the summaries of the generations of a dataset in memory, so that a stream reads each of them once."""

from collections.abc import Mapping

from pipeline.format.history import read_summary, reader
from pipeline.format.summary import GenerationSummary
from pipeline.writing.groups import KnownGroups


class SummaryCache:
    """The summaries of the generations of one dataset. They never change. One takes about 10 kB of memory.

    Attributes:
        groups: The groups of the dataset, if they must be checked.
    """

    def __init__(self) -> None:
        self.groups = KnownGroups()
        # The SHA-256 of each summary, and the summary.
        self._known: dict[str, tuple[str, GenerationSummary]] = {}

    def read(self, output: str, digests: Mapping[str, str]) -> list[GenerationSummary]:
        """Returns the summaries of generations, and forgets all others.

        Args:
            output: Folder of the dataset.
            digests: The name of each generation, and the SHA-256 of its summary.

        Raises:
            UserError: A summary cannot be read, or is not the one that the commit names.
        """
        before, self._known = self._known, {}
        for name, sha256 in digests.items():
            found = before.get(name)
            if found is None or found[0] != sha256:
                found = sha256, self._share_schema(read_summary(reader(output), name, sha256, origin=output))
            self._known[name] = found
        return [summary for _, summary in self._known.values()]

    def _share_schema(self, summary: GenerationSummary) -> GenerationSummary:
        """Returns the summary with the schema object of another one, if that is equal: it is most of its memory."""
        _, other = next(iter(self._known.values()), ("", summary))
        is_same = other.record_schema == summary.record_schema
        return summary.model_copy(update={"record_schema": other.record_schema}) if is_same else summary
