"""Publishes predictions: parts written aside become the predictions of a folder in one step, or nothing does."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.build.publish import check_rejected
from pipeline.errors import UserError
from pipeline.files import (
    exists,
    is_local,
    join,
    list_files,
    list_named,
    list_temporary,
    move,
    read_bytes,
    remove,
    remove_folder,
    replace,
    size,
)
from pipeline.format.manifest import FILE_NAME as MANIFEST
from pipeline.format.manifest import Rejected

# What makes predictions of a folder: it lists the parts, and is replaced at once when all of them are there.
SUMMARY = "predictions.json"
# Parts are written here, where no one who reads part-*.jsonl sees them.
_STAGING = ".staging"
_FOLDERS = (_STAGING, "rejected")

_GENERATION = r"\d{8}T\d{6}-[0-9a-f]{8}"
# What a run of predict writes, by path inside the folder; what is called otherwise is someone else's.
_OURS = re.compile(
    rf"part-{_GENERATION}-\d{{5,}}\.jsonl"
    rf"|{re.escape(_STAGING)}/{_GENERATION}/[0-9a-f]{{32}}\.(jsonl|rejects)(\.[0-9a-f]{{32}}\.tmp)?"
    rf"|rejected/{_GENERATION}-[0-9a-f]{{16}}\.jsonl(\.[0-9a-f]{{32}}\.tmp)?"
)


class Part(NamedTuple):
    """A file of predictions that was written aside."""

    name: str
    records: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Delivery:
    """The predictions of one job.

    Attributes:
        output: Folder of the predictions, on any file system that Beam knows.
        generation: Name of the job that no other has.
        max_rejected: Share of the records, from 0 to 1, that may be rejected.
        overwrite: Replace the predictions that are there; without it, that is an error.
        origin: What the summary says of the model.
    """

    output: str
    generation: str
    max_rejected: float
    overwrite: bool
    origin: dict[str, Any]

    @property
    def staging(self) -> str:
        return join(self.output, _STAGING, self.generation)

    def check(self) -> None:
        """Raises a UserError if something is in the way, or predictions that may not be replaced."""
        output = self.output
        if is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
            raise UserError(f"{output}: a file is in the way, expected a folder or nothing. Choose another --output.")
        if exists(join(output, MANIFEST)):
            raise UserError(f"{output}: a dataset or a run is there. Choose another --output.")
        if exists(join(output, SUMMARY)) and not self.overwrite:
            raise UserError(
                f"{output}: predictions are there already. Choose another --output, or replace them with --overwrite."
            )
        strange = [name for name in map(self._inside, self._parts()) if not _OURS.fullmatch(name)]
        if strange:
            raise UserError(
                f"{output}: holds {strange[0]}, which is no prediction of ours and would be taken for one. Choose "
                "another --output."
            )

    def publish(self, parts: Iterable[Part], rejected: Rejected) -> dict[str, Any]:
        """Moves the parts to where they are read, writes the summary, then removes what it does not list.

        Raises:
            UserError: too much was rejected, there is no record at all, or a part is missing. Nothing is published
                then; the rejects stay where they are.
        """
        if not self.overwrite and exists(join(self.output, SUMMARY)) and self.summary() is None:
            raise UserError(f"{self.output}: others were published there meanwhile. Choose another --output.")
        ordered = sorted(parts)
        records = sum(part.records for part in ordered)
        check_rejected(
            rejected, records, max_rejected=self.max_rejected, output=self.output, generation=self.generation
        )
        names = {part: f"part-{self.generation}-{number:05d}.jsonl" for number, part in enumerate(ordered)}
        for part, name in names.items():
            self._move(part, name)
        summary = {
            "records": records,
            "rejected": rejected.model_dump(mode="json"),
            **self.origin,
            "generation": self.generation,
            "parts": [{"path": name, "records": part.records, "bytes": part.num_bytes} for part, name in names.items()],
        }
        with replace(join(self.output, SUMMARY)) as file:
            file.write(json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
        self._remove_unlisted({*names.values(), *rejected.files})
        return summary

    def summary(self) -> dict[str, Any] | None:
        """What was published, if it is this job's.

        Raises:
            UserError: there is something, but it cannot be read.
        """
        path = join(self.output, SUMMARY)
        if not exists(path):
            return None
        try:
            summary = json.loads(read_bytes(path))
        except ValueError:
            return None
        return summary if isinstance(summary, dict) and summary.get("generation") == self.generation else None

    def discard(self) -> None:
        """Removes what there is of predictions that were not published; their rejects stay."""
        remove(list_named(join(self.output, f"part-{self.generation}-"), ".jsonl"))
        remove_folder(self.staging)

    def _move(self, part: Part, name: str) -> None:
        staged, final = join(self.staging, part.name), join(self.output, name)
        # A bundle that is tried again finds its parts moved.
        if exists(staged):
            move(staged, final)
        if not exists(final) or size(final) != part.num_bytes:
            raise UserError(f"{self.output}: {name} changed while predictions were made. Run predict again.")

    def _remove_unlisted(self, listed: set[str]) -> None:
        """Removes older predictions and rejects, and what killed jobs left."""
        found = [*self._parts(), *(path for folder in _FOLDERS for path in list_files(join(self.output, folder)))]
        names = {path: self._inside(path) for path in found}
        stale = [path for path, name in names.items() if _OURS.fullmatch(name) and name not in listed]
        remove(stale + list_temporary(join(self.output, SUMMARY)))
        remove_folder(self.staging)

    def _parts(self) -> list[str]:
        return list_named(join(self.output, "part-"), ".jsonl")

    def _inside(self, path: str) -> str:
        return path.removeprefix(join(self.output, ""))


def print_summary(summary: dict[str, Any], output: str) -> None:
    """Prints what was predicted, in a few lines.

    Args:
        summary: What `publish` returned, and `seconds` that the whole took.
    """
    records, seconds, rejected = summary["records"], summary["seconds"], summary["rejected"]
    print(f"{records:,} records predicted in {seconds:,.1f} s ({records / seconds:,.0f} records/s, start included).")
    if rejected["total"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected["by_reason"].items())
        print(f"{rejected['total']:,} records rejected: {reasons}; see {join(output, 'rejected')}.")
    print(f"By the {summary['checkpoint']} checkpoint of {summary['run']}.")
    files = "1 file" if len(summary["parts"]) == 1 else f"{len(summary['parts']):,} files"
    print(f"Predictions: {join(output, 'part-*.jsonl')} ({files}).")
