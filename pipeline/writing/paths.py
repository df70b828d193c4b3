"""Names the files that a job writes below its output folder, and recognises these names.

Each function that builds a path stands beside the pattern that matches it: a later job may delete a file only if its
path matches. All other files belong to someone else. (An output folder may hold a folder `data` with raw records.)
"""

import datetime
import re
import uuid

from pipeline.files import join
from pipeline.format.manifest import FILE_NAME as MANIFEST
from pipeline.format.merge_counts import COUNTS_RUN_ENDING
from pipeline.raw.spooled_messages import SPOOL_ENDING
from pipeline.schema.windows import format_time
from pipeline.shuffle.chunk_runs import CHUNK_RUN_ENDING
from pipeline.shuffle.reject_runs import REJECT_RUN_ENDING
from pipeline.shuffle.runs import PAYLOADS_ENDING, ROWS_ENDING

# The folders of a dataset that hold the files of its generations.
FOLDERS = ("data", "rejected", "vocabulary")
# What `uuid4().hex` gives.
HEX32_PATTERN = r"[0-9a-f]{32}"
# The ending that `files.replace` adds to a name until the file is complete.
TEMPORARY_PATTERN = rf"\.{HEX32_PATTERN}\.tmp"


def paths_pattern(*patterns: str) -> re.Pattern[str]:
    """Returns the pattern of all paths that match one of `patterns`. Use `fullmatch`; paths are inside the output."""
    return re.compile("|".join(patterns), re.ASCII)


GENERATION_PATTERN = r"\d{8}T\d{6}-[0-9a-f]{8}"
_OF_GENERATION = re.compile(rf"(?:{'|'.join(FOLDERS)})/({GENERATION_PATTERN})(?![^/.-])", re.ASCII)


def new_generation() -> str:
    """Returns a unique name for a generation: the time in UTC, for people, and eight random digits."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def generation_of(path: str) -> str | None:
    """Returns the generation that a file or folder belongs to, or None if its path names none.

    >>> generation_of("rejected/20260101T000000-00000000.jsonl")
    '20260101T000000-00000000'
    """
    found = _OF_GENERATION.match(path)
    return found[1] if found else None


# The ending of a temporary file of sources.
SOURCES_RUN_ENDING = ".sources"
# The ending of a temporary file of collected classes.
CLASSES_ENDING = ".classes"
# The ending of a temporary file with the parts of many shards.
PARTS_ENDING = ".parts"
_ENDINGS = (
    ROWS_ENDING,
    PAYLOADS_ENDING,
    REJECT_RUN_ENDING,
    CHUNK_RUN_ENDING,
    COUNTS_RUN_ENDING,
    SOURCES_RUN_ENDING,
    CLASSES_ENDING,
    PARTS_ENDING,
    SPOOL_ENDING,
)
_RUN_ENDINGS = "|".join(map(re.escape, _ENDINGS))
_RUN_PATTERN = rf"data/{GENERATION_PATTERN}/{HEX32_PATTERN}({_RUN_ENDINGS})"


def runs_folder(output: str, generation: str) -> str:
    """Returns the folder for the runs of a generation, which hold the records until they are in its shards.

    It also holds the counts of the strings of its shards, until they are added up.
    """
    return join(output, "data", generation)


LOCK = "commits/lock"
_COMMIT_PATTERN = r"commits/\d{8}\.json"
_MARKER_PATTERN = rf"data/{GENERATION_PATTERN}/writer\.json"


def marker_path(generation: str) -> str:
    """Returns the path of the file that marks a generation as being written, inside the output folder."""
    return f"data/{generation}/writer.json"


# The files in the folder of a job that runs on an engine: see fence.py.
FENCE, DECISION, REFUSAL = "fence.json", "decision.json", "refusal.json"
FENCE_PATTERN = rf"({re.escape(FENCE)}|{re.escape(DECISION)}|{re.escape(REFUSAL)})({TEMPORARY_PATTERN}){{0,2}}"
_FENCE_PATTERN = rf"data/{GENERATION_PATTERN}/{FENCE_PATTERN}"


_SHARD_PATTERN = rf"data/{GENERATION_PATTERN}/\w+-(\d{{8}}T\d{{6}}Z-)?\d+-of-\d+\.(tfrecord|index\.parquet)"


def shard_paths(
    generation: str, split: str, number: int, *, num_shards: int, window: int | None = None
) -> tuple[str, str]:
    """Returns the paths of a shard's TFRecord file and of its index, inside the output folder.

    Args:
        window: Start of the shard's window, in seconds since 1970.

    >>> shard_paths("20260101T000000-00000000", "train", 0, num_shards=2, window=3600)[0]
    'data/20260101T000000-00000000/train-19700101T010000Z-00000-of-00002.tfrecord'
    """
    # Without the characters of the extended form, some of which are not allowed in the names of files everywhere.
    of_window = "" if window is None else format_time(window).replace("-", "").replace(":", "")
    stem = f"data/{generation}/{split}{of_window and f'-{of_window}'}-{number:05d}-of-{num_shards:05d}"
    return f"{stem}.tfrecord", f"{stem}.index.parquet"


# The names that `vocabulary_file_names` gives, without `.txt`.
_FEATURE_PATTERN = rf"([\w-]{{1,64}}|sha256\.{HEX32_PATTERN})"
_STRINGS_PATTERN = rf"data/{GENERATION_PATTERN}/strings/{_FEATURE_PATTERN}\.parquet"


def strings_path(generation: str, file_name: str) -> str:
    """Returns the path of the counts of the strings of a feature, inside the output folder.

    Args:
        file_name: Name of the vocabulary file of the feature.

    >>> strings_path("20260101T000000-00000000", "page.txt")
    'data/20260101T000000-00000000/strings/page.parquet'
    """
    return f"data/{generation}/strings/{file_name.removesuffix('.txt')}.parquet"


_SUMMARY_PATTERN = rf"data/{GENERATION_PATTERN}/summary\.json"
_SOURCES_PATTERN = rf"data/{GENERATION_PATTERN}/sources\.parquet"


def sources_path(generation: str) -> str:
    """Returns the path of the list of the raw files of a generation, inside the output folder."""
    return f"data/{generation}/sources.parquet"


_GROUPS_PATTERN = rf"data/{GENERATION_PATTERN}/groups\.parquet"


def groups_path(generation: str) -> str:
    """Returns the path of the counts of the groups of a generation, inside the output folder."""
    return f"data/{generation}/groups.parquet"


# Earlier versions wrote one file for each raw file, with a hash of the raw file's path in its name.
REJECTS_PATTERN = rf"rejected/{GENERATION_PATTERN}(-[0-9a-f]{{16}})?\.jsonl"


def rejects_path(generation: str) -> str:
    """Returns the path of the rejects of a generation, inside the output folder.

    >>> rejects_path("20260101T000000-00000000")
    'rejected/20260101T000000-00000000.jsonl'
    """
    return f"rejected/{generation}.jsonl"


_VOCABULARY_FILE = rf"{_FEATURE_PATTERN}\.txt"
# In format version 1, the folder of a vocabulary is named after a generation.
_VOCABULARY_PATTERN = rf"vocabulary/({HEX32_PATTERN}|{GENERATION_PATTERN})/{_VOCABULARY_FILE}"
_VOCABULARY_COPY_PATTERN = rf"vocabulary/{_VOCABULARY_FILE}"


def vocabulary_path(sha256: str, file_name: str) -> str:
    """Returns the path of a vocabulary file with this digest, inside the output folder."""
    return f"vocabulary/{sha256[:32]}/{file_name}"


def vocabulary_copy_path(path: str) -> str:
    """Returns the path of the copy of a vocabulary file without its digest, for people.

    No code reads the copy: a file that a manifest lists is never replaced, so that a reader never mixes commits.

    >>> vocabulary_copy_path("vocabulary/d6b96a97d147daaae49eb87a5ca7bfbc/page.txt")
    'vocabulary/page.txt'
    """
    folder, _, name = path.split("/")
    return f"{folder}/{name}"


# A finished copy of a vocabulary is not among them: its name is too plain to prove that a job wrote it. It is
# removed together with the vocabulary files that it may be a copy of.
_WRITTEN = paths_pattern(
    _RUN_PATTERN,
    # A second ending: a probe for hard links is a temporary file, too.
    f"{_COMMIT_PATTERN}({TEMPORARY_PATTERN}){{1,2}}",
    f"{_MARKER_PATTERN}({TEMPORARY_PATTERN})?",
    _FENCE_PATTERN,
    f"{_SHARD_PATTERN}({TEMPORARY_PATTERN})?",
    f"{_STRINGS_PATTERN}({TEMPORARY_PATTERN})?",
    f"{_SUMMARY_PATTERN}({TEMPORARY_PATTERN})?",
    f"{_SOURCES_PATTERN}({TEMPORARY_PATTERN})?",
    f"{_GROUPS_PATTERN}({TEMPORARY_PATTERN})?",
    f"{REJECTS_PATTERN}({TEMPORARY_PATTERN})?",
    f"{_VOCABULARY_PATTERN}({TEMPORARY_PATTERN})?",
    f"{_VOCABULARY_COPY_PATTERN}{TEMPORARY_PATTERN}",
)


def is_written_by_prepare(path: str) -> bool:
    """Returns whether the name of a file shows that a `prepare` job wrote it. `path` is inside the output folder."""
    return _WRITTEN.fullmatch(path) is not None


_COMMIT = paths_pattern(_COMMIT_PATTERN)


def is_commit(path: str) -> bool:
    """Returns whether a path inside the output folder is that of a commit."""
    return _COMMIT.fullmatch(path) is not None


def is_of_dataset(path: str) -> bool:
    """Returns whether a file inside the output folder may be one of a dataset, by its path there."""
    return path == MANIFEST or is_written_by_prepare(path)


# Of each of these, the summary of a generation names all that there are.
_NAMED_BY_SUMMARY = paths_pattern(
    _SUMMARY_PATTERN, _SOURCES_PATTERN, _STRINGS_PATTERN, _GROUPS_PATTERN, rf"rejected/{GENERATION_PATTERN}\.jsonl"
)


def is_named_by_summary(path: str) -> bool:
    """Returns whether a path is that of a summary, of a file of which each generation has one, or of strings."""
    return _NAMED_BY_SUMMARY.fullmatch(path) is not None


def is_vocabulary(path: str) -> bool:
    """Returns whether a path that a `prepare` job wrote is that of a vocabulary file of a generation."""
    return path.startswith("vocabulary/") and path.count("/") == 2
