"""Warnings about the contents of a dataset that a model cannot learn from. Reads the manifest only."""

from rich.filesize import decimal

from pipeline.errors import show
from pipeline.format.manifest import Manifest
from pipeline.format.models import TRAIN
from pipeline.format.scaling import SCALED_BOUND, largest_scaled
from pipeline.inspection.precision import CoarseColumn, find_coarse_columns
from pipeline.schema.labels import ONE_CLASS
from pipeline.schema.schema import VALIDATION, NamedSplits, SplitFromField

# Most names that a warning lists.
_MAX_NAMES = 10
# From this number of windows on, and below this number of bytes of a window on average, a larger window is better.
_MANY_WINDOWS, _SMALL_WINDOW = 1000, 10**6


def find_warnings(manifest: Manifest) -> list[str]:
    """Returns a line for each warning, without a period at its end.

    - No step or record of the train split has a label.
    - The train split lacks a class, which a model then never predicts.
    - The label has a single class.
    - The vocabulary of a feature has all strings of the train split, so the category of unknown strings is not trained.
    - The vocabulary of a feature has no string, so all strings are the same to a model.
    - The field or the inputs that name the splits never name validation, so a run has no best checkpoint.
    - A column has values so far from its mean that a model reads them as nearer.
    - A column has values so close together that float32 may not tell them apart.
    - There are many windows of event time with few records each.
    """
    train = manifest.splits.get(TRAIN)
    if train is None or not train.records:
        return []
    warnings, label = [], manifest.record_schema.label
    lacking = [name for name, count in train.label_counts.items() if not count]
    if not train.labels:
        what = "step" if label.per_step else "record"
        warnings.append(f"label {label.title}: no {what} of the train split has one, so that there is nothing to learn")
    elif lacking:
        more = f" and {len(lacking) - _MAX_NAMES:,} more" if len(lacking) > _MAX_NAMES else ""
        count, them = ("1 class is", "it") if len(lacking) == 1 else (f"{len(lacking):,} classes are", "them")
        names = ", ".join(map(show, lacking[:_MAX_NAMES]))
        warnings.append(
            f"label {label.title}: {count} not in the train split, so that a model cannot learn "
            f"to predict {them}: {names}{more}"
        )
    if label.kind in ONE_CLASS and len(label.classes) == 1:
        warnings.append(f"label {label.title}: has one class only, so that there is nothing to learn")
    for name, vocabulary in manifest.vocabularies.items():
        if train.unknown.get(name) == 0 and vocabulary.size:
            size, min_count = f"{vocabulary.size:,}", (manifest.record_schema.features[name].min_count or 1) + 1
            warnings.append(
                f"feature {name}: its vocabulary has all {size} strings of the train split, so that a model cannot "
                f"learn what to do with an unknown string; if new strings may come, choose vocabulary: {{min_count: "
                f"{min_count}}}, or a size of less than {size}"
            )
        if not vocabulary.size:
            least = manifest.record_schema.features[name].min_count or 1
            often, way_out = (f" at least {least:,} times", "; choose a smaller min_count") if least > 1 else ("", "")
            warnings.append(
                f"feature {name}: its vocabulary is empty, because the train split has no string{often}, so that all "
                f"strings are the same to a model{way_out}"
            )
    warnings += _find_no_validation(manifest) + _find_outliers(manifest) + _find_coarse(manifest)
    return warnings + _find_small_windows(manifest)


def _find_no_validation(manifest: Manifest) -> list[str]:
    splits = manifest.record_schema.splits
    if not isinstance(splits, NamedSplits) or manifest.splits[VALIDATION].records:
        return []
    way_out, source = "to", ""
    if isinstance(splits, SplitFromField):
        source = f"from: {splits.field}, "
    else:
        way_out = f"give files with --{VALIDATION}, or to"
    return [
        f"no record is in the split {VALIDATION}, so that a run keeps its last checkpoint instead of the best one; "
        f"{way_out} take a tenth of the train records, choose splits: {{{source}{VALIDATION}: 0.1}} in the schema"
    ]


def _find_small_windows(manifest: Manifest) -> list[str]:
    """Returns a line about the windows of event time if there are many small ones."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards if shard.window is not None]
    number, num_bytes = len({shard.window for shard in shards}), sum(shard.bytes for shard in shards)
    if manifest.windows is None or number < _MANY_WINDOWS or num_bytes >= number * _SMALL_WINDOW:
        return []
    return [
        f"{number:,} {manifest.windows.describe()} have {decimal(num_bytes // number)} each on average, and a shard "
        "for each split, so that every job opens many small files; choose a larger --window for a new dataset"
    ]


def _find_outliers(manifest: Manifest) -> list[str]:
    """Returns a line about the columns of features with values beyond the bound of a model's normalization, if any."""
    found: dict[str, float] = {}
    for name, statistics in manifest.statistics.items():
        if name in manifest.record_schema.features:
            columns = largest_scaled(statistics)
            coarse = {column.number for column in find_coarse_columns(statistics)}  # have a warning of their own
            for number, largest in enumerate(columns):
                if largest > SCALED_BOUND and number not in coarse:
                    found[f"{name} column {number}" if len(columns) > 1 else name] = largest
    if not found:
        return []
    names = sorted(found, key=lambda name: -found[name])[:_MAX_NAMES]
    more = f" and {len(found) - _MAX_NAMES:,} more" if len(found) > _MAX_NAMES else ""
    listed = ", ".join(f"{name} ({found[name]:,.0f})" for name in names)
    bound = f"{SCALED_BOUND:.0f}"
    return [
        f"features with values more than {bound} standard deviations from their mean: {listed}{more}; a model reads "
        f"them as {bound}, so correct these values, or take the logarithm of a feature that has them by nature"
    ]


def _find_coarse(manifest: Manifest) -> list[str]:
    """Returns a line about the columns whose values float32 may not tell apart, if any."""
    found = [
        f"{name}{f' column {column.number}' if len(statistics.mean) > 1 else ''} ({_describe_coarse(column)})"
        for name, statistics in manifest.statistics.items()
        for column in find_coarse_columns(statistics)
    ]
    if not found:
        return []
    more = f", and {len(found) - _MAX_NAMES:,} more" if len(found) > _MAX_NAMES else ""
    return [
        f"float32 loses small differences of the values in {', '.join(found[:_MAX_NAMES])}{more}; if they matter, "
        "subtract an offset such as the start time in the raw data, or take the differences of successive values; if "
        "the numbers are categories, choose dtype: int64 with num_values"
    ]


def _describe_coarse(column: CoarseColumn) -> str:
    least, most = _number(column.least), _number(column.most)
    values = least if column.least == column.most else f"{least} to {most}"
    return f"{values}, where float32 numbers are {_number(column.spacing, digits=3)} apart"


def _number(value: float, *, digits: int = 9) -> str:
    """Returns a float32 as text. With 9 digits, it differs from that of the next float32."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
