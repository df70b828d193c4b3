"""Adds commits to datasets without a job: each adds a copy of a generation that a job wrote."""

import datetime
import pathlib
import shutil
import types

from pipeline.format.manifest import Manifest, read_manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.writing import commit_log, retention
from pipeline.writing.base import Base
from pipeline.writing.commit_log import Change, commit, newest_commit, write_summary


def copy_generation(folder: pathlib.Path, name: str) -> GenerationSummary:
    """Copies the newest generation of a dataset under another name, and returns its summary, which is written."""
    old = read_manifest(str(folder)).generations[-1]
    text = (folder / summary_path(old)).read_text()
    summary = GenerationSummary.parse(text.replace(old, name).encode(), origin=name)
    for path in summary.paths() - {summary_path(name)}:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path.replace(name, old), target)
    write_summary(str(folder), summary)
    return summary


def add_commit(folder: pathlib.Path, name: str, operation: str = "replace", *, retain: float = 86400) -> Manifest:
    """Commits a copy of the newest generation under another name."""
    output = str(folder)
    base = Base("append", newest_commit(output), summaries=read_manifest(output).summaries)
    change = Change(operation, base, copy_generation(folder, name))
    return commit(output, change, lock_timeout=0, retain=retain)


class Clock:
    """The time of commits, and the time that the age of a file is measured to."""

    def __init__(self, monkeypatch):
        self._later = datetime.timedelta()
        datetimes = types.SimpleNamespace(datetime=types.SimpleNamespace(now=self._now), UTC=datetime.UTC)
        monkeypatch.setattr(commit_log, "datetime", datetimes)
        monkeypatch.setattr(retention, "time", types.SimpleNamespace(time=lambda: self._now(datetime.UTC).timestamp()))

    def _now(self, zone):
        return datetime.datetime.now(zone) + self._later

    def forward(self, *, hours):
        self._later += datetime.timedelta(hours=hours)
