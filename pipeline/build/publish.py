"""Makes a generation the dataset: gathers what was written, decides, and replaces the manifest in one step."""

import collections
import dataclasses
import datetime
import hashlib
import os
import platform
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TypeAlias, TypeVar


from pipeline.errors import UserError
from pipeline.raw.json_lines import ReadChunk
from pipeline.format.manifest import (
    FILE_NAME,
    TRAIN,
    FeatureStatistics,
    Manifest,
    Rejected,
    Source,
    Split,
    Vocabulary,
    fingerprint,
)
from pipeline.build.rejects import RejectsFile
from pipeline.schema.schema import Schema
from pipeline.schema.labels import class_name
from pipeline.build.shards import ShardSummary
from pipeline.format.statistics import merge
from pipeline.files import (
    exists,
    is_local,
    join,
    list_files,
    list_temporary,
    read_bytes,
    remove,
    remove_folder,
    replace,
    size,
)
from pipeline.format.vocabulary import choose_terms, count_unknown, name_files, write_terms

Key = TypeVar("Key", int, str)
# The vocabulary of each feature that has one.
_Terms: TypeAlias = Mapping[str, Sequence[bytes]]

_FOLDERS = ("data", "rejected", "vocabulary")
# The files that a run writes, by path inside the output folder. What is called otherwise is someone else's: an output
# folder may well be one that has a folder `data` with raw records in it.
_GENERATION = r"\d{8}T\d{6}-[0-9a-f]{8}"
_OURS = re.compile(
    rf"data/{_GENERATION}/\w+-\d+-of-\d+\.(tfrecord|index\.parquet)(\.[0-9a-f]{{32}}\.tmp)?"
    rf"|data/{_GENERATION}/[0-9a-f]{{32}}\.(rows|examples|rejects)"
    rf"|rejected/{_GENERATION}-[0-9a-f]{{16}}\.jsonl(\.[0-9a-f]{{32}}\.tmp)?"
    rf"|vocabulary/{_GENERATION}/([\w-]{{1,64}}|sha256\.[0-9a-f]{{32}})\.txt(\.[0-9a-f]{{32}}\.tmp)?"
    r"|vocabulary/([\w-]{1,64}|sha256\.[0-9a-f]{32})\.txt\.[0-9a-f]{32}\.tmp",
    re.ASCII,
)


def new_generation() -> str:
    """A name that no other generation has: the time, for people, and chance."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def runs_folder(output: str, generation: str) -> str:
    """Where the records of a generation lie until they are in its shards."""
    return join(output, "data", generation)


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
        shards = sorted(shards, key=lambda shard: shard.number)
        terms = {
            name: choose_terms(_count_strings(name, [s for s in shards if s.split == TRAIN]), feature.vocabulary)
            for name, feature in self.schema.features.items()
            if feature.vocabulary is not None
        }
        manifest = self._build(shards, list(rejects), list(chunks), terms)
        check_rejected(
            manifest.rejected,
            sum(split.records for split in manifest.splits.values()),
            max_rejected=self.max_rejected,
            output=self.output,
            generation=self.generation,
        )
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
        for name, vocabulary in manifest.vocabularies.items():
            with replace(join(self.output, vocabulary.path)) as file:
                file.write(write_terms(terms[name]))
        with replace(path) as file:
            file.write(manifest.to_json())
        remove_unlisted(self.output, manifest)
        for name, vocabulary in manifest.vocabularies.items():
            with replace(join(self.output, _plain_path(vocabulary.path))) as file:
                file.write(write_terms(terms[name]))
        return manifest

    def _build(
        self, shards: list[ShardSummary], rejects: list[RejectsFile], chunks: list[ReadChunk], terms: _Terms
    ) -> Manifest:
        splits = {
            name: self._build_split([s for s in shards if s.split == name], terms) for name in self.schema.split_names
        }
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
            vocabularies=self._build_vocabularies(terms),
            rejected=Rejected(
                total=sum(by_reason.values()), by_reason=by_reason, files=tuple(sorted(file.path for file in rejects))
            ),
            sources=_build_sources(chunks),
            software=_software(),
        )

    def _build_vocabularies(self, terms: _Terms) -> dict[str, Vocabulary]:
        return {
            name: Vocabulary(
                path=f"vocabulary/{self.generation}/{file_name}",
                sha256=hashlib.sha256(write_terms(terms[name])).hexdigest(),
                size=len(terms[name]),
            )
            for name, file_name in name_files(terms).items()
        }

    def _build_split(self, shards: list[ShardSummary], terms: _Terms) -> Split:
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
            missing={n: sum(s.missing[n] for s in shards) for n, f in self.schema.features.items() if f.may_miss},
            unknown={name: count_unknown(_count_strings(name, shards), known) for name, known in terms.items()},
        )


def remove_unlisted(output: str, manifest: Manifest) -> None:
    """Removes generations and rejects that the manifest does not list: older ones, and what killed runs left."""
    listed = {*manifest.rejected.files, *(vocabulary.path for vocabulary in manifest.vocabularies.values())}
    for split in manifest.splits.values():
        listed.update(path for shard in split.shards for path in (shard.path, shard.index_path))
    found = [path for folder in _FOLDERS for path in list_files(join(output, folder))]
    inside = {path: path.removeprefix(join(output, "")) for path in found}
    stale = {path: name for path, name in inside.items() if _OURS.fullmatch(name) and name not in listed}
    plain = {_plain_path(name) for name in stale.values() if name.startswith("vocabulary/") and name.count("/") == 2}
    remove(
        [*stale, *(path for path, name in inside.items() if name in plain), *list_temporary(join(output, FILE_NAME))]
    )


def _plain_path(path: str) -> str:
    """vocabulary/<generation>/page.txt -> vocabulary/page.txt: a copy for people, of the dataset as it is now.

    No reader of ours opens it: what the manifest lists is never replaced, so that old and new are never mixed.
    """
    folder, _, name = path.split("/")
    return f"{folder}/{name}"


def discard_generation(output: str, generation: str) -> None:
    """Removes what a run wrote that published nothing; its rejects stay, to be read."""
    for folder in ("data", "vocabulary"):
        remove_folder(join(output, folder, generation))


def _count_strings(name: str, shards: Iterable[ShardSummary]) -> dict[bytes, int]:
    """How often each string of a feature occurs in these shards."""
    total: collections.Counter[bytes] = collections.Counter()
    for shard in shards:
        total.update(shard.strings[name])
    return total


def _build_statistics(shards: list[ShardSummary]) -> dict[str, FeatureStatistics]:
    statistics = {}
    for name in sorted({name for shard in shards for name in shard.moments}):
        moments = merge(shard.moments.get(name) for shard in shards)
        assert moments is not None
        statistics[name] = moments.statistics()
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

# Share of the records that may be rejected unless one says otherwise.
DEFAULT_MAX_REJECTED = 0.01


def check_rejected(rejected: Rejected, records: int, *, max_rejected: float, output: str, generation: str) -> None:
    """Raises a UserError with the reasons if more than a share of `max_rejected` was, or no record is left."""
    total = records + rejected.total
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())
    where = join(output, rejected.files[0] if len(rejected.files) == 1 else f"rejected/{generation}-*.jsonl")
    if total == 0:
        raise UserError("The input holds no record: its files are empty, or all lines blank. Nothing was published.")
    # Divided, so that 29 of 100 are 0.29 and not a rounding error more.
    if rejected.total / total > max_rejected:
        raise UserError(
            f"{rejected.total:,} of {total:,} records ({rejected.total / total:.2%}) were rejected: {reasons}; "
            f"at most {max_rejected:.2%} may be. Nothing was published. The rejects are in {where}; "
            "mend the records or the schema, or allow more with --max_rejected."
        )
    if records == 0:
        raise UserError(
            f"All {total:,} records were rejected: {reasons}. Nothing was published. The rejects are in {where}."
        )
