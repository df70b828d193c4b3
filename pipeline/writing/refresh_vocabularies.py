"""Chooses the vocabularies of a dataset again, which the commits of a stream keep for a time."""

from pipeline.files import join, remove_folder
from pipeline.format.manifest import Manifest
from pipeline.writing.commit_log import next_commit, publish_commit, recover
from pipeline.writing.lock import lock_dataset
from pipeline.writing.paths import new_generation, runs_folder
from pipeline.writing.summary_cache import SummaryCache
from pipeline.writing.vocabularies import choose_and_write


def refresh_vocabularies(
    output: str, *, lock_timeout: float, retain: float, known: SummaryCache | None = None
) -> Manifest | None:
    """Chooses the vocabularies from all strings, in a commit without a generation, and returns the new manifest.

    Returns None, and adds no commit, if the newest commit chose them.

    Args:
        lock_timeout, retain, known: See `commit`.

    Raises:
        UserError: The log, a summary or a file of counts is damaged. Nothing is published.
        TryAgain: Another job published a commit meanwhile.
        LockTimeout: The lock could not be had in time.
    """
    with lock_dataset(output, timeout=lock_timeout):
        head = recover(output)
        if head.manifest is None or head.manifest.vocabularies_of is None:
            return None
        digests = head.manifest.summaries
        known = SummaryCache() if known is None else known
        parts = list(zip(known.read(output, digests), digests.values(), strict=True))
        generation = new_generation()  # only names a folder for temporary files
        try:
            chosen = choose_and_write(output, [part for part, _ in parts], folder=runs_folder(output, generation))
        finally:
            remove_folder(join(output, "data", generation))
        made = next_commit(output, head, "stream", added=(), removed=(), **chosen._asdict())
        return publish_commit(output, made, parts, retain=retain)
