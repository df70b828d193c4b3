"""Makes a generation the dataset: gathers what was written, decides, and replaces the manifest in one step."""

import collections
import dataclasses
import datetime
import hashlib
import os
import platform
import re
import uuid
from collections.abc import Iterable
from importlib import metadata
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.lines import ReadChunk
from pipeline.manifest import FILE_NAME, FeatureStatistics, Manifest, Rejected, Source, Split, fingerprint
from pipeline.rejects import RejectsFile
from pipeline.schema import Schema, class_name
from pipeline.shards import ShardSummary
from pipeline.statistics import merge
from pipeline.storage import exists, is_local, join, list_files, list_temporary, read_bytes, remove, replace, size

Key = TypeVar("Key", int, str)


# The files that a run writes, by path inside the output folder. What is called otherwise is someone else's: an output
# folder may well be one that has a folder `data` with raw records in it.
_GENERATION = r"\d{8}T\d{6}-[0-9a-f]{8}"
_OURS = re.compile(
    rf"data/{_GENERATION}/\w+-\d+-of-\d+\.(tfrecord|index\.parquet)(\.[0-9a-f]{{32}}\.tmp)?"
    rf"|rejected/{_GENERATION}-[0-9a-f]{{16}}\.jsonl(\.[0-9a-f]{{32}}\.tmp)?"
)


def new_generation() -> str:
    """A name that no other generation has: the time, for people, and chance."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def check_output(output: str, *, overwrite: bool) -> None:
    """Raises a UserError if a file is in the way, or a dataset that may not be replaced."""
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
        max_rejected: Share of the records, from 0 to 1, that may be rejected.
    """

    schema: Schema
    output: str
    generation: str
    seed: int
    max_rejected: float
    overwrite: bool

    def publish(
        self, shards: Iterable[ShardSummary], rejects: Iterable[RejectsFile], chunks: Iterable[ReadChunk]
    ) -> Manifest:
        """Checks that this may become the dataset, writes the manifest last, then removes what no manifest lists.

        Raises:
            UserError: too much was rejected, there is no record at all, or another dataset came in between. Nothing is
                published then; the rejects stay where they are.
        """
        manifest = self._build(list(shards), list(rejects), list(chunks))
        records = sum(split.records for split in manifest.splits.values())
        self._check_rejects(manifest.rejected, records)
        for split in manifest.splits.values():
            for shard in split.shards:
                if size(join(self.output, shard.path)) != shard.bytes:
                    raise UserError(
                        f"{self.output}: {shard.path} changed while the dataset was made. Run prepare again."
                    )
        path = join(self.output, FILE_NAME)
        if not self.overwrite and exists(path):
            # A bundle that is tried again finds its own manifest, and writes the same once more.
            theirs = Manifest.parse(read_bytes(path), origin=path)
            if self.generation not in theirs.generations:
                raise UserError(
                    f"{self.output}: another dataset was published there meanwhile. Choose another --output."
                )
        with replace(path) as file:
            file.write(manifest.to_json())
        remove_unlisted(self.output, manifest)
        return manifest

    def _check_rejects(self, rejected: Rejected, records: int) -> None:
        total = records + rejected.total
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())
        where = join(
            self.output, rejected.files[0] if len(rejected.files) == 1 else f"rejected/{self.generation}-*.jsonl"
        )
        if total == 0:
            raise UserError("The input holds no record: all its lines are blank. Nothing was published.")
        # Divided, so that 29 of 100 are 0.29 and not a rounding error more.
        if rejected.total / total > self.max_rejected:
            raise UserError(
                f"{rejected.total:,} of {total:,} records ({rejected.total / total:.2%}) were rejected: {reasons}; "
                f"at most {self.max_rejected:.2%} may be. Nothing was published. The rejects are in {where}; "
                "mend the records or the schema, or allow more with --max_rejected."
            )
        if records == 0:
            raise UserError(
                f"All {total:,} records were rejected: {reasons}. Nothing was published. The rejects are in {where}."
            )

    def _build(self, shards: list[ShardSummary], rejects: list[RejectsFile], chunks: list[ReadChunk]) -> Manifest:
        shards.sort(key=lambda shard: shard.number)
        splits = {name: self._build_split([s for s in shards if s.split == name]) for name in self.schema.split_names}
        by_reason = _add_up(file.by_reason for file in rejects)
        return Manifest(
            record_schema=self.schema,
            seed=self.seed,
            fingerprint=fingerprint(
                self.schema,
                seed=self.seed,
                shards={name: [shard.sha256 for shard in split.shards] for name, split in splits.items()},
            ),
            generations=(self.generation,),
            splits=splits,
            statistics=_build_statistics(shards),
            rejected=Rejected(
                total=sum(by_reason.values()), by_reason=by_reason, files=tuple(sorted(file.path for file in rejects))
            ),
            sources=_build_sources(chunks),
            software=_software(),
        )

    def _build_split(self, shards: list[ShardSummary]) -> Split:
        records = sum(s.shard.records for s in shards)
        labels = _add_up(s.label_counts for s in shards)
        return Split(
            records=records,
            steps=sum(s.shard.steps for s in shards),
            labels=sum(s.labels for s in shards),
            truncated=sum(s.truncated for s in shards),
            # A split without a record has no shard; its empty files are removed with the rest that is not listed.
            shards=tuple(s.shard for s in shards) if records else (),
            length_counts=_add_up(s.length_counts for s in shards),
            label_counts={n: labels.get(n, 0) for n in map(class_name, self.schema.label.classes)} if labels else {},
        )


def remove_unlisted(output: str, manifest: Manifest) -> None:
    """Removes generations and rejects that the manifest does not list: older ones, and what killed runs left."""
    listed = set(manifest.rejected.files)
    for split in manifest.splits.values():
        listed.update(path for shard in split.shards for path in (shard.path, shard.index_path))
    found = list_files(join(output, "data")) + list_files(join(output, "rejected"))
    inside = {path: path.removeprefix(join(output, "")) for path in found}
    stale = [path for path, name in inside.items() if _OURS.fullmatch(name) and name not in listed]
    remove(stale + list_temporary(join(output, FILE_NAME)))


def _build_statistics(shards: list[ShardSummary]) -> dict[str, FeatureStatistics]:
    names = sorted({name for shard in shards for name in shard.moments})
    statistics = {}
    for name in names:
        moments = merge(shard.moments.get(name) for shard in shards)
        assert moments is not None
        statistics[name] = FeatureStatistics(
            count=moments.count,
            mean=tuple(moments.mean.tolist()),
            variance=tuple(moments.variance.tolist()),
            min=tuple(moments.minimum.tolist()),
            max=tuple(moments.maximum.tolist()),
        )
    return statistics


def _build_sources(chunks: list[ReadChunk]) -> tuple[Source, ...]:
    by_path: dict[str, list[ReadChunk]] = collections.defaultdict(list)
    for chunk in sorted(chunks):
        by_path[chunk.path].append(chunk)
    return tuple(
        Source(
            path=path,
            bytes=sum(chunk.num_bytes for chunk in parts),
            sha256=hashlib.sha256(b"".join(chunk.sha256 for chunk in parts)).hexdigest(),
        )
        for path, parts in by_path.items()
    )


def _add_up(counts: Iterable[dict[Key, int]]) -> dict[Key, int]:
    total: collections.Counter[Key] = collections.Counter()
    for part in counts:
        total.update(part)
    return {key: total[key] for key in sorted(total)}


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("lengthwise", "apache-beam", "numpy", "pyarrow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a worker that runs from a folder without installing it
            continue
    return versions
