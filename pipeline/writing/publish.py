"""Publishes a generation: decides whether it may become the dataset, and replaces the manifest in one step."""

import dataclasses
import os
from collections.abc import Iterable

from pipeline.errors import UserError
from pipeline.files import (
    exists,
    is_local,
    join,
    list_files,
    list_temporary,
    remove,
    remove_folder,
    replace,
    size,
)
from pipeline.format.manifest import FILE_NAME, Manifest, Source, read_manifest
from pipeline.format.models import Rejected
from pipeline.format.sources import SourcesFile, read_sources
from pipeline.format.vocabulary import serialize_terms
from pipeline.schema.schema import Schema
from pipeline.writing.build_manifest import build_manifest
from pipeline.writing.merge_strings import merge_strings
from pipeline.writing.paths import (
    FOLDERS,
    is_strings_of,
    is_vocabulary,
    is_written_by_prepare,
    sources_path,
    vocabulary_copy_path,
)
from pipeline.writing.rejects import RejectsFile
from pipeline.writing.shards import ShardSummary

# Default of --max_rejected: the share of the records that may be rejected.
DEFAULT_MAX_REJECTED = 0.01


def check_output(output: str, *, overwrite: bool) -> None:
    """Raises a UserError if `output` is a file, or contains a dataset that must not be replaced."""
    if is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: a file is in the way, expected a folder or nothing. Choose another --output.")
    if exists(join(output, FILE_NAME)) and not overwrite:
        raise UserError(
            f"{output}: a dataset is there already. Choose another --output, or replace it with --overwrite."
        )


@dataclasses.dataclass(frozen=True)
class Publisher:
    """Publishes one generation.

    Attributes:
        output: Folder of the dataset.
        generation: Name of the generation, which no other generation has.
        max_rejected: Share of the records, from 0 to 1, that may be rejected.
        overwrite: Whether to replace a dataset in `output`.
    """

    schema: Schema
    output: str
    generation: str
    seed: int
    max_rejected: float
    overwrite: bool

    def publish(
        self, shards: Iterable[ShardSummary], rejects: Iterable[RejectsFile], sources: Iterable[SourcesFile]
    ) -> Manifest:
        """Checks the generation, writes the manifest last, and removes the files that the manifest does not list.

        A call that is retried finds its own manifest, and writes the same manifest again.

        Raises:
            UserError: Too many records were rejected, there is no record, a shard has changed, or another job published
                a dataset in the meantime. Nothing is published then, and the rejects files remain.
        """
        shards = sorted(shards, key=lambda shard: shard.number)
        strings = merge_strings(self.schema, shards, output=self.output, generation=self.generation)
        manifest = build_manifest(
            self.schema,
            shards,
            list(rejects),
            self._read_sources(sources),
            strings,
            seed=self.seed,
            generation=self.generation,
        )
        check_rejected(
            manifest.rejected,
            sum(split.records for split in manifest.splits.values()),
            max_rejected=self.max_rejected,
            output=self.output,
        )
        self._check_shard_sizes(manifest)
        if not self.overwrite:
            self._check_no_other_dataset()
        files = {manifest.vocabularies[name].path: serialize_terms(merged.terms) for name, merged in strings.items()}
        for path, data in files.items():
            self._replace(path, data)
        self._replace(FILE_NAME, manifest.to_json())
        remove_unlisted(self.output, manifest)
        # The copies come last, for they belong to the published dataset: a job that is refused or killed before this
        # line must not leave copies of its own vocabularies.
        for path, data in files.items():
            self._replace(vocabulary_copy_path(path), data)
        return manifest

    def _check_shard_sizes(self, manifest: Manifest) -> None:
        for split in manifest.splits.values():
            for shard in split.shards:
                if size(join(self.output, shard.path)) != shard.bytes:
                    raise UserError(
                        f"{self.output}: {shard.path} changed while the dataset was made. Run prepare again."
                    )

    def _read_sources(self, files: Iterable[SourcesFile]) -> list[Source]:
        return [
            Source(path=row["path"], bytes=row["bytes"], sha256=row["sha256"].hex())
            for file in files
            for block in read_sources(self.output, file)
            for row in block.to_pylist()
        ]

    def _check_no_other_dataset(self) -> None:
        if exists(join(self.output, FILE_NAME)) and self.generation not in read_manifest(self.output).generations:
            raise UserError(
                f"{self.output}: another job published a dataset there in the meantime. Choose another --output."
            )

    def _replace(self, path: str, data: bytes) -> None:
        with replace(join(self.output, path)) as file:
            file.write(data)


def check_rejected(rejected: Rejected, records: int, *, max_rejected: float, output: str) -> None:
    """Enforces `--max_rejected`.

    Args:
        records: Number of records that were not rejected.
        max_rejected: Share of all records, from 0 to 1, that may be rejected.

    Raises:
        UserError: More than `max_rejected` of the records were rejected, or no record is left.
    """
    total = records + rejected.total
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())
    where = ", ".join(join(output, path) for path in rejected.files)
    if total == 0:
        raise UserError(
            "The input contains no records: its files are empty, or all lines are blank. Nothing was published."
        )
    # A quotient: 29 of 100 gives exactly the float 0.29, but 0.29 × 100 gives less than 29.
    if rejected.total / total > max_rejected:
        raise UserError(
            f"{rejected.total:,} of {total:,} records ({rejected.total / total:.2%}) were rejected: {reasons}; "
            f"at most {max_rejected:.2%} may be. Nothing was published. The rejects are in {where}; "
            "correct the records or the schema, or allow more with --max_rejected."
        )
    if records == 0:
        raise UserError(
            f"All {total:,} records were rejected: {reasons}. Nothing was published. The rejects are in {where}."
        )


def remove_unlisted(output: str, manifest: Manifest) -> None:
    """Removes the files of older generations and of killed jobs: those that the manifest does not list."""
    listed = {*manifest.rejected.files, *(vocabulary.path for vocabulary in manifest.vocabularies.values())}
    listed |= set(map(sources_path, manifest.generations))
    for split in manifest.splits.values():
        listed.update(path for shard in split.shards for path in (shard.path, shard.index_path))
    inside = {path.removeprefix(join(output, "")) for folder in FOLDERS for path in list_files(join(output, folder))}
    unlisted = {path for path in inside - listed if is_written_by_prepare(path)}
    unlisted -= {path for path in unlisted if is_strings_of(path, manifest.generations)}
    copies = {vocabulary_copy_path(path) for path in unlisted if is_vocabulary(path)}
    remove(
        [join(output, path) for path in sorted(unlisted | copies & inside)] + list_temporary(join(output, FILE_NAME))
    )


def discard_generation(output: str, generation: str) -> None:
    """Removes the files of a generation that was not published, except its rejects files, which users may read."""
    for folder in ("data", "vocabulary"):
        remove_folder(join(output, folder, generation))
