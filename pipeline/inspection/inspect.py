"""Shows the contents of a dataset by split, label and length, and its rejects. Reads the manifest only."""

import collections
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.filesize import decimal

from pipeline.errors import counted
from pipeline.files import join
from pipeline.format.manifest import Manifest
from pipeline.format.models import TRAIN, FeatureStatistics, Split
from pipeline.inspection.histogram import bar, length_bands, length_range
from pipeline.inspection.inspect_windows import print_windows, summarize_windows
from pipeline.inspection.warnings import find_warnings
from pipeline.schema.features import Feature
from pipeline.schema.labels import MULTILABEL
from pipeline.schema.schema import NamedSplits, Schema, SplitFromField
from pipeline.tables import buffered_console, print_table

# Most classes that the table of labels shows.
_MAX_CLASSES = 20
# Most names of generations that are printed, and the number from which on a compaction is worth it: each generation
# takes a few milliseconds of each append.
_MAX_GENERATIONS, _MANY_GENERATIONS = 3, 100


def summarize(manifest: Manifest) -> dict[str, Any]:
    """Returns the contents of a dataset as plain values for JSON. Lengths are in steps, None without any record."""
    schema = manifest.record_schema
    splits = manifest.splits
    return {
        "format_version": manifest.format_version,
        "commit": manifest.commit,
        "fingerprint": manifest.fingerprint,
        "vocabularies_of": manifest.vocabularies_of,
        "generations": list(manifest.generations),
        "seed": manifest.seed,
        "records": sum(split.records for split in splits.values()),
        **_parts(splits.values()),
        "steps": sum(split.steps for split in splits.values()),
        "copies": sum(split.copies for split in splits.values()),
        "lengths": length_range(_all_lengths(manifest)),
        "split_rule": schema.canonical()["splits"],
        "group": schema.group,
        "splits": {name: _summarize_split(split, schema) for name, split in splits.items()},
        "label": schema.label.model_dump(mode="json", exclude_none=True, by_alias=True)
        | _statistics(manifest, schema.label.name),
        "features": {name: _summarize_feature(manifest, name, feature) for name, feature in schema.steps.items()},
        "context": {name: _summarize_feature(manifest, name, feature) for name, feature in schema.context.items()},
        "windows": summarize_windows(manifest),
        "rejected": manifest.rejected.model_dump(mode="json"),
        "warnings": find_warnings(manifest),
    }


def _parts(splits: Iterable[Split]) -> dict[str, int]:
    """Returns the number of parts of the records under the key "parts", or nothing if the schema stores none."""
    parts = [split.parts for split in splits if split.parts is not None]
    return {"parts": sum(parts)} if parts else {}


def _summarize_feature(manifest: Manifest, name: str, feature: Feature) -> dict[str, Any]:
    summary = feature.model_dump(mode="json", exclude_none=True, by_alias=True) | _statistics(manifest, name)
    vocabulary = manifest.vocabularies.get(name)
    return summary if vocabulary is None else summary | {"vocabulary_size": vocabulary.size}


def _summarize_split(split: Split, schema: Schema) -> dict[str, Any]:
    gaps: dict[str, dict[str, Any]] = {"missing": {}, "unknown": {}}
    for gap in _gaps(split, schema):
        gaps[gap.kind][gap.feature] = {"count": gap.number, "share": gap.number / max(gap.total, 1)}
    return {
        "records": split.records,
        **_parts([split]),
        "steps": split.steps,
        "lengths": length_range(split.length_counts),
        "labels": split.labels,
        "label_counts": split.label_counts,
        **gaps,
        "truncated": split.truncated,
        "copies": split.copies,
        "shards": len(split.shards),
        "bytes": sum(shard.bytes for shard in split.shards),
    }


class _Gap(NamedTuple):
    """The number of values of a feature that are missing, or unknown to its vocabulary.

    Attributes:
        feature: Name of the feature.
        kind: Which of the two.
        number: Number of these values.
        total: Number of values that were counted: all for missing ones, those that are not missing for unknown ones.
    """

    feature: str
    kind: Literal["missing", "unknown"]
    number: int
    total: int


def _gaps(split: Split, schema: Schema) -> Iterator[_Gap]:
    """Yields the gaps of each feature that may have any."""
    for name, feature in schema.features.items():
        values = (split.steps if schema.is_per_step(name) else split.records) * feature.width
        if name in split.missing:
            yield _Gap(name, "missing", split.missing[name], values)
        if name in split.unknown:
            yield _Gap(name, "unknown", split.unknown[name], values - split.missing.get(name, 0))


def _statistics(manifest: Manifest, name: str | None) -> dict[str, Any]:
    statistics = manifest.statistics.get(name or "")
    return {} if statistics is None else {"statistics": statistics.model_dump(mode="json")}


def _all_lengths(manifest: Manifest) -> dict[int, int]:
    total: collections.Counter[int] = collections.Counter()
    for split in manifest.splits.values():
        total.update(split.length_counts)
    return dict(total)


def print_summary(manifest: Manifest, output: str) -> None:
    """Prints the result of `prepare` to stdout in a few lines."""
    width = max(map(len, manifest.splits))
    print(f"{output}: {counted(sum(s.records for s in manifest.splits.values()), 'record')}")
    for name, split in manifest.splits.items():
        print(f"  {name:<{width}}  {_describe_split(split)}")
    truncated = sum(split.truncated for split in manifest.splits.values())
    if truncated:
        print(f"{counted(truncated, 'record')} cut to {counted(manifest.record_schema.max_length or 0, 'step')}")
    for line in [*_describe_parts(manifest), *_describe_copies(manifest)]:
        print(line)
    print(_describe_rejects(manifest, output))
    if len(manifest.generations) >= _MANY_GENERATIONS:
        print(_describe_generations(manifest, output))
    print(f"fingerprint {manifest.fingerprint}")


def _describe_generations(manifest: Manifest, dataset: str) -> str:
    names = manifest.generations
    if len(names) < _MANY_GENERATIONS:
        more = f" and {len(names) - _MAX_GENERATIONS} more" if len(names) > _MAX_GENERATIONS else ""
        return f"generations {', '.join(names[:_MAX_GENERATIONS])}{more}"
    return (
        f"{len(names):,} generations: `lengthwise compact {dataset}` merges those with small shards, so that the next "
        "append and every reader have fewer files to open"
    )


def _describe_split(split: Split) -> str:
    ends = length_range(split.length_counts)
    if ends is None:
        return "no record"
    lengths = f"{ends['min']:,}" if ends["min"] == ends["max"] else f"{ends['min']:,} to {ends['max']:,}"
    return f"{counted(split.records, 'record')}, {counted(split.steps, 'step')} ({lengths} per record)"


def _describe_rule(schema: Schema) -> str:
    """Returns a line about what decides the split of a record."""
    splits, key = schema.splits, "id" if schema.group is None else f"group ({schema.group})"
    if not isinstance(splits, NamedSplits):
        return f"The split of a record depends on a hash of its {key}."
    shares = " and ".join(f"{share:.4g} to {name}" for name, share in splits.moved.items())
    moved = f" Of those in train, a hash of the {key} moves {shares}." if shares else ""
    if isinstance(splits, SplitFromField):
        return f"The field {splits.field} of a record names its split.{moved}"
    return f"The input of its raw file (--train, --validation or --test) names the split of a record.{moved}"


def _describe_parts(manifest: Manifest) -> Iterator[str]:
    """Yields a line if the schema stores long records in parts."""
    parts = _parts(manifest.splits.values())
    if parts:
        limit = counted(manifest.record_schema.max_length or 0, "step")
        by_split = ", ".join(f"{split.parts:,} in {name}" for name, split in manifest.splits.items() if split.parts)
        yield f"stored as {counted(parts['parts'], 'part')} of at most {limit}" + (f": {by_split}" if by_split else "")


def _describe_copies(manifest: Manifest) -> Iterator[str]:
    """Yields a line if there are equal records."""
    records = sum(split.records for split in manifest.splits.values())
    copies = sum(split.copies for split in manifest.splits.values())
    if copies:
        are = "is a copy" if copies == 1 else "are copies"
        yield f"{copies:,} of {counted(records, 'record')} {are} of another record"


def _describe_rejects(manifest: Manifest, dataset: str) -> str:
    rejected = manifest.rejected
    if not rejected.total:
        return "no record rejected"
    records = sum(split.records for split in manifest.splits.values()) + rejected.total
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())
    files = [join(dataset, path) for path in rejected.files]
    more = f" and {counted(len(files) - 1, 'other file')} in its folder" if len(files) > 1 else ""
    return f"rejected {rejected.total:,} of {counted(records, 'record')}: {reasons}; listed in {files[0]}{more}"


def print_details(manifest: Manifest, dataset: str) -> None:
    """Prints the contents of a dataset to stdout as tables."""
    with buffered_console() as console:
        _print_all(console, manifest, dataset)


def _print_all(console: Console, manifest: Manifest, dataset: str) -> None:
    lengths = _all_lengths(manifest)
    records = sum(lengths.values())
    commit = "" if manifest.commit is None else f", commit {manifest.commit:,}"
    console.print(
        f"{dataset}: {counted(records, 'record')}, format version {manifest.format_version}{commit}", soft_wrap=True
    )
    console.print(f"fingerprint {manifest.fingerprint}, seed {manifest.seed}")
    console.print(_describe_generations(manifest, dataset), soft_wrap=True)
    print_table(console, "Splits", _SPLIT_COLUMNS, _split_rows(manifest.splits))
    console.print(_describe_rule(manifest.record_schema), soft_wrap=True)
    for line in [*_describe_parts(manifest), *_describe_copies(manifest)]:
        console.print(line, soft_wrap=True)
    print_windows(console, manifest)
    print_table(console, "Lengths", ("steps", "records", ""), _length_rows(lengths, console))
    _print_label(console, manifest)
    schema = manifest.record_schema
    for title, features in (("Features", schema.steps), ("Context, one value per record", schema.context)):
        rows = [_feature_row(manifest, name, feature) for name, feature in features.items()]
        if rows:
            print_table(console, f"{title} (statistics of {TRAIN})", _FEATURE_COLUMNS, rows)
    gaps = list(_gap_rows(manifest))
    if gaps:
        columns = ("feature", "", *manifest.splits, "all", "share")
        print_table(console, "Missing values, and strings outside the vocabulary", columns, gaps)
    if manifest.vocabularies_of is not None:
        console.print(
            f"The vocabularies are those of commit {manifest.vocabularies_of:,}: a stream chooses them again after "
            "--refresh, and when it ends.",
            soft_wrap=True,
        )
    reasons = [(reason, f"{count:,}") for reason, count in manifest.rejected.by_reason.items()]
    print_table(console, f"Rejected: {manifest.rejected.total:,}", ("reason", "records"), reasons)
    for path in manifest.rejected.files:
        console.print(f"  {join(dataset, path)}", soft_wrap=True)
    warnings = find_warnings(manifest)
    if warnings:
        print_table(console, f"Warnings: {len(warnings):,}", (), [])
    for warning in warnings:
        console.print(
            textwrap.fill(f"{warning}.", console.width, initial_indent="  ", subsequent_indent=4 * " ", tabsize=1)
        )


def _print_label(console: Console, manifest: Manifest) -> None:
    label, splits = manifest.record_schema.label, manifest.splits
    classes = f", {counted(len(label.classes), 'class')}" if label.classes else ""
    title = f"Label {_clean(label.title)}: {label.kind}{classes}"
    if label.name in manifest.statistics:
        row = (_clean(label.title), "float32", "-", "-", *_ranges(manifest.statistics[label.name]))
        print_table(console, title, _FEATURE_COLUMNS, [row])
    elif label.classes and label.kind != "distribution":
        print_table(console, title, ("class", *splits, "all", "share"), _class_rows(manifest))
    else:
        print_table(console, title, (), [])
    if label.per_step:
        print_table(console, "Steps with a label", ("", *splits, "all", "share"), [_labelled_row(splits)])


def _labelled_row(splits: Mapping[str, Split]) -> tuple[str, ...]:
    labels, steps = sum(s.labels for s in splits.values()), sum(s.steps for s in splits.values())
    return "steps", *(f"{split.labels:,}" for split in splits.values()), f"{labels:,}", f"{labels / max(steps, 1):.1%}"


_SPLIT_COLUMNS = ("split", "records", "steps", "shortest", "median", "longest", "truncated", "shards", "size")


def _split_rows(splits: Mapping[str, Split]) -> Iterator[tuple[str, ...]]:
    for name, split in splits.items():
        ends = length_range(split.length_counts)
        yield (
            name,
            f"{split.records:,}",
            f"{split.steps:,}",
            *((f"{ends[key]:,}" for key in ("min", "median", "max")) if ends else ("-", "-", "-")),
            f"{split.truncated:,}",
            f"{len(split.shards):,}",
            decimal(sum(shard.bytes for shard in split.shards)),
        )


def _length_rows(counts: Mapping[int, int], console: Console) -> Iterator[tuple[str, ...]]:
    bands = length_bands(counts)
    most = max((records for *_, records in bands), default=0)
    blocks = console.encoding.lower().startswith("utf")
    for first, last, records in bands:
        name = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        yield name, f"{records:,}", bar(records / most, blocks=blocks)


def _class_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    """Yields a row for each class, with its labels by split. If there are many classes, yields the most frequent ones.

    The last column is the share of all labels. A multilabel names several classes, so the shares may add up to more
    than 1.
    """
    splits = manifest.splits.values()
    totals: collections.Counter[str] = collections.Counter()
    for split in splits:
        totals.update(split.label_counts)
    total = sum(split.labels for split in splits)
    # A few classes are shown in the order of the schema, which is the order of the model's probabilities.
    shown = list(totals) if len(totals) <= _MAX_CLASSES else [name for name, _ in totals.most_common(_MAX_CLASSES)]
    for name in shown:
        counts = [f"{split.label_counts.get(name, 0):,}" for split in splits]
        yield _clean(name), *counts, f"{totals[name]:,}", f"{totals[name] / max(total, 1):.1%}"
    if len(totals) > len(shown):
        rest = sum(totals.values()) - sum(totals[name] for name in shown)
        share = "" if manifest.record_schema.label.kind in MULTILABEL else f"{rest / max(total, 1):.1%}"
        yield f"{len(totals) - len(shown):,} more", *[""] * len(splits), f"{rest:,}", share


def _gap_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    """Yields a row for each feature and kind of gap, with the counts by split."""
    by_split = [list(_gaps(split, manifest.record_schema)) for split in manifest.splits.values()]
    for gaps in zip(*by_split, strict=True):
        count, total = sum(gap.number for gap in gaps), sum(gap.total for gap in gaps)
        counts = (f"{gap.number:,}" for gap in gaps)
        yield _clean(gaps[0].feature), gaps[0].kind, *counts, f"{count:,}", f"{count / max(total, 1):.1%}"


_FEATURE_COLUMNS = ("name", "dtype", "shape", "values", "mean", "std", "min", "max")


def _feature_row(manifest: Manifest, name: str, feature: Feature) -> tuple[str, ...]:
    shape = " x ".join(map(str, feature.shape)) or "-"
    vocabulary = manifest.vocabularies.get(name)
    values = feature.num_values if vocabulary is None else vocabulary.size
    num_values = "-" if values is None else f"{values:,}"
    return _clean(name), feature.dtype, shape, num_values, *_ranges(manifest.statistics.get(name))


def _ranges(statistics: FeatureStatistics | None) -> tuple[str, ...]:
    """Returns the cells for mean, standard deviation, minimum and maximum, each over all columns of a feature."""
    if statistics is None:
        return ("-",) * 4
    deviations = [variance**0.5 for variance in statistics.variance]
    return (
        _range(statistics.mean),
        _range(deviations),
        f"{min(statistics.min):.4g}",
        f"{max(statistics.max):.4g}",
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _clean(text: str) -> str:
    """Returns a name from the data with its control characters escaped, safe to print on a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
