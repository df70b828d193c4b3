"""Removes the files of a dataset that are too old to keep."""

from pipeline.format.manifest import Manifest

# Default of --retain, in seconds.
DEFAULT_RETAIN = 24 * 3600.0


def remove_old(output: str, manifest: Manifest, *, retain: float, finished: str | None = None) -> None:
    """Removes the files that are too old to keep, after a commit."""
