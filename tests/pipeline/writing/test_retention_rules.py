"""Which files of a dataset are too old to keep: what is decided step by step equals what the whole history says."""

import types

from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import FileDetails
from pipeline.format.commit import AddedGeneration, Commit
from pipeline.format.manifest import Manifest
from pipeline.format.models import Vocabulary
from pipeline.writing.paths import generation_of, is_written_by_prepare
from pipeline.writing.retention_rules import CLOSED, UNNAMED, Log, RetentionRules

HOUR = 3600
BEGIN = 1_767_225_600  # 2026-01-01T00:00:00Z
DIGEST = "0" * 64
TEMPORARY = f".{'9a' * 16}.tmp"
# A generation of format version 1, which the first commit may replace.
OLDEST = "20251231T000000-ffffffff"


def generation(number):
    return f"20260101T000000-{number:08x}"


def vocabulary(number):
    return f"vocabulary/{number:032x}/page.txt"


def rejects(name):
    return f"rejected/{name}.jsonl"


def files_of(name):
    return [
        f"data/{name}/summary.json",
        f"data/{name}/sources.parquet",
        f"data/{name}/strings/page.parquet",
        f"data/{name}/train-00000-of-00001.tfrecord",
        f"data/{name}/train-00000-of-00001.index.parquet",
        rejects(name),
    ]


class History:
    """A dataset that commits are added to. Times are in hours."""

    def __init__(self):
        self.commits, self.files, self.summaries, self.live = [], {}, {}, []
        self.at_work, self.read = set(), 0

    def store(self, paths, hour):
        self.files |= {path: FileDetails(path, 1, BEGIN + hour * HOUR) for path in paths}

    def commit(self, hour, name, *, removed=(), pages=0, listed=None):
        """Adds a generation; its summary lists the rejects of `listed`."""
        self.store([*files_of(name), vocabulary(pages)], hour)
        names = [name] if listed is None else listed
        self.summaries[name] = types.SimpleNamespace(
            rejected=types.SimpleNamespace(files=[types.SimpleNamespace(path=rejects(name)) for name in names])
        )
        self.live = [other for other in self.live if other not in removed] + [name]
        self.commits.append(
            Commit(
                number=len(self.commits) + 1,
                previous_sha256=DIGEST,
                time=f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:00:00Z",
                operation="append",
                added=(AddedGeneration(generation=name, summary_sha256=DIGEST),),
                removed=tuple(removed),
                vocabularies={"page": Vocabulary(path=vocabulary(pages), sha256=DIGEST, size=1)},
            )
        )

    def forget(self, *names):
        """Removes the files of generations, as an earlier commit did."""
        self.files = {path: file for path, file in self.files.items() if generation_of(path) not in names}

    def read_commit(self, number):
        self.read += 1
        return self.commits[number - 1]

    def read_removed(self, name):
        return self.summaries.get(name) if f"data/{name}/summary.json" in self.files else None

    def choose(self, hour, retain, *, thorough=True):
        """Returns (path, reason, generation) of each file to remove."""
        shards = [
            types.SimpleNamespace(path=path, index_path=path.replace(".tfrecord", ".index.parquet"))
            for name in self.live
            for path in files_of(name)
            if path.endswith(".tfrecord")
        ]
        manifest = Manifest.model_construct(
            commit=len(self.commits),
            generations=tuple(self.live),
            splits={"train": types.SimpleNamespace(shards=shards)},
            vocabularies=self.commits[-1].vocabularies,
            # The manifest leaves out files whose rejects were taken back, but the summaries do not.
            rejected=types.SimpleNamespace(files=()),
        )
        log = Log(self.read_commit, lambda: [self.summaries[name] for name in self.live], self.read_removed)
        now, seconds = BEGIN + hour * HOUR, retain * HOUR
        rules = RetentionRules(manifest, log, self.at_work, now, seconds, thorough)
        return [(path, reason, name) for path, _, reason, name in rules.choose(list(self.files.values()))]

    def removed_paths(self, hour, retain, *, thorough=True):
        """Returns what `choose` must choose, from the whole history."""
        limit = BEGIN + (hour - retain) * HOUR
        old = {path for path, file in self.files.items() if file.modified <= limit}
        removed_at = {name: commit for commit in self.commits for name in commit.removed}
        hours = {commit.number: int(commit.time[8:10]) * 24 - 24 + int(commit.time[11:13]) for commit in self.commits}
        listed = {file.path for name in self.live for file in self.summaries[name].rejected.files}
        dead = {generation_of(path) for path in self.files if is_written_by_prepare(path)} - {None, *self.live}
        expired, kept = set(), set(dead)
        for name in dead - self.at_work:
            commit = removed_at.get(name)
            files = {path for path in self.files if generation_of(path) == name and is_written_by_prepare(path)}
            if files - listed <= old and (commit is None or hours[commit.number] <= hour - retain):
                expired |= files - listed
                kept -= {name} if files - listed else set()
        # What a generation names stays as long as the generation.
        expired -= {
            file.path for name in kept if self.read_removed(name) for file in self.summaries[name].rejected.files
        }
        named = set()
        for number in range(1, len(self.commits) + 1):
            live = set()
            for commit in self.commits[:number]:
                live = live - set(commit.removed) | {added.generation for added in commit.added}
            left = self.files.keys() - expired
            if all(f"data/{name}/summary.json" in left for name in live):
                named |= {vocabulary.path for vocabulary in commit.vocabularies.values()}
        # The paths of a live generation that its summary does not name.
        unnamed = {path for path in old if path.endswith((".tmp", ".rows")) and generation_of(path) not in dead}
        unnamed = {path for path in unnamed if generation_of(path) not in self.at_work}
        removed = expired | unnamed
        if expired or thorough:
            removed |= {path for path in old - named if path.startswith("vocabulary/") and len(path) > 50}
        if any(path.startswith("vocabulary/") and not path.endswith(".tmp") for path in removed):
            if not any(path.endswith("/page.txt") for path in self.files.keys() - removed if path.count("/") == 2):
                removed |= {"vocabulary/page.txt"} & self.files.keys()
        return removed


@st.composite
def histories(draw):
    history, hour, number = History(), 0, 0
    if draw(st.booleans()):
        shard = f"data/{OLDEST}/train-00000-of-00001.tfrecord"
        history.store([shard, f"rejected/{OLDEST}-{'0f' * 8}.jsonl", f"vocabulary/{OLDEST}/page.txt"], 0)
        history.live = [OLDEST]
    for _ in range(draw(st.integers(1, 6))):
        hour += draw(st.integers(0, 4))
        number += 1
        kind = draw(st.sampled_from(["append", "replace", "compact"]))
        removed, listed = [], [generation(number)]
        if kind == "replace" or history.live == [OLDEST]:
            removed = history.live
        elif kind == "compact" and history.live:
            removed = draw(st.lists(st.sampled_from(history.live), unique=True))
            listed = [*removed, *draw(st.sampled_from([[], listed]))]
        history.commit(hour, generation(number), removed=removed, pages=draw(st.integers(0, 2)), listed=listed)
    gone = draw(st.lists(st.sampled_from([OLDEST, *map(generation, range(1, number + 1))]), unique=True))
    history.forget(*(name for name in gone if name not in history.live))
    for orphan in range(100, 100 + draw(st.integers(0, 3))):
        for path in draw(st.lists(st.sampled_from(files_of(generation(orphan))), unique=True)):
            history.store([path], draw(st.integers(0, 12)))
        if draw(st.booleans()):
            history.at_work.add(generation(orphan))
    history.at_work |= set(draw(st.lists(st.sampled_from(history.live), max_size=1)))
    more = [
        f"data/{history.live[-1]}/{'0f' * 16}.rows",
        f"data/{history.live[-1]}/train-00000-of-00001.tfrecord{TEMPORARY}",
        f"data/{generation(101)}/train-00000-of-00001.tfrecord{TEMPORARY}",
        f"data/{history.live[-1]}/notes.txt",
        f"vocabulary/page.txt{TEMPORARY}",
        f"commits/00000009.json{TEMPORARY}",
        "commits/00000001.json",
        "commits/lock",
        "vocabulary/page.txt",
        "vocabulary/mine/page.md",
        "data/raw.jsonl",
        vocabulary(3),
    ]
    for path in draw(st.lists(st.sampled_from(more), unique=True)):
        history.store([path], draw(st.integers(0, 12)))
    return history


def test_rejects_stay_as_long_as_a_generation_whose_summary_names_them():
    """The first generation was compacted long ago. The second one names its rejects, and is kept for a time."""
    history = History()
    history.commit(0, generation(1))
    history.commit(1, generation(2), removed=[generation(1)], listed=[generation(1)])
    history.commit(20, generation(3), removed=[generation(2)])
    paths = {path for path, _, _ in history.choose(25, 10)}
    assert f"data/{generation(1)}/summary.json" in paths
    assert not {rejects(generation(1)), rejects(generation(2))} & paths
    history.forget(generation(2))
    assert rejects(generation(1)) in {path for path, _, _ in history.choose(31, 10)}


@given(histories(), st.integers(0, 30), st.integers(0, 20), st.booleans())
def test_the_files_to_remove_are_those_that_the_whole_history_gives(history, later, retain, thorough):
    hour = 12 + later
    chosen = history.choose(hour, retain, thorough=thorough)
    paths = [path for path, _, _ in chosen]
    assert sorted(paths) == sorted(history.removed_paths(hour, retain, thorough=thorough))
    summaries = [path.endswith("/summary.json") for path in paths]
    assert summaries == sorted(summaries, reverse=True)


def test_the_reasons_say_which_commit_removed_a_generation():
    history = History()
    history.commit(0, generation(1), pages=1)
    history.commit(1, generation(2), removed=[generation(1)], pages=2)
    history.store([f"data/{generation(9)}/{'0f' * 16}.rows", f"commits/00000003.json{TEMPORARY}"], 0)
    assert {reason for _, reason, _ in history.choose(30, 24)} == {
        f"generation {generation(1)}, removed by commit 2 (2026-01-01T01:00:00Z)",
        f"generation {generation(9)}, which no commit names",
        UNNAMED,
        CLOSED,
    }


def test_a_file_of_unknown_age_stays():
    history = History()
    history.commit(0, generation(1))
    orphan = f"data/{generation(9)}/summary.json"
    history.files[orphan] = FileDetails(orphan, 1, None)
    assert history.choose(1000, 0) == []


def test_a_generation_stays_for_the_retention_time():
    history = History()
    history.commit(0, generation(1))
    history.commit(1, generation(2), removed=[generation(1)])
    for thorough in (False, True):
        assert history.choose(24, 24, thorough=thorough) == []
        assert {name for *_, name in history.choose(25, 24, thorough=thorough)} == {generation(1)}


def test_a_vocabulary_stays_as_long_as_a_commit_that_names_it_can_be_opened():
    history = History()
    for hour in range(3):
        history.commit(hour, generation(hour), removed=history.live, pages=hour)
    paths = [path for path, *_ in history.choose(25, 24)]
    assert sorted(paths) == sorted([*files_of(generation(0)), vocabulary(0)])


def test_a_generation_that_no_commit_names_stays_until_its_newest_file_is_old():
    history = History()
    history.commit(0, generation(0))
    history.store(files_of(generation(9)), 0)
    history.store([f"data/{generation(9)}/{'0f' * 16}.rows"], 1)
    assert history.choose(24, 24) == []
    assert len(history.choose(25, 24)) == len(files_of(generation(9))) + 1


def test_a_commit_reads_few_others_to_find_that_there_is_nothing_to_remove():
    history = History()
    for number in range(1, 201):
        history.commit(number, generation(number), pages=number)
    assert (history.choose(201, 24, thorough=False), history.read) == ([], 0)
    # The files of a killed job, which are not old enough to be looked up.
    history.store(files_of(generation(900)), 190)
    assert (history.choose(201, 24, thorough=False), history.read) == ([], 0)


def test_the_commits_of_a_compacted_stream_read_few_others():
    history, most = History(), []
    for number in range(1, 151):
        removed = history.live if number % 10 == 0 else []
        history.commit(number, generation(number), removed=removed, pages=number)
        history.read = 0
        removals = history.choose(number, 60, thorough=False)
        most.append((bool(removals), history.read))
        for path, _, _ in removals:
            del history.files[path]
    # Until the generations are found that were removed first of those that stay.
    assert max(read for is_removed, read in most if not is_removed) < 20
    # All commits of the retention time, and those whose vocabularies may still be needed.
    assert 60 < max(read for is_removed, read in most if is_removed) < 150
    assert len({generation_of(path) for path in history.files} - {None, *history.live}) < 80
    assert history.choose(150, 60) == []
