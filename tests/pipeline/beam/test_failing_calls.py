"""Whichever call to the file system fails or is the last, the dataset is at the old commit or at the new one."""

import errno
import os
import shutil

import pytest
from datasets import call
from file_faults import ALL, WRITES, Faults, Kill, watch_file_system
from prepare_jobs import (
    SCHEMA,
    age_marks,
    contents,
    listed_files,
    load,
    openable_vocabularies,
    read_whole,
    snapshot,
    without_progress,
    write_parts,
)

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.format.manifest import FILE_NAME
from pipeline.inspection.verify import verify
from pipeline.writing.commit_log import read_head
from pipeline.writing.paths import LOCK, is_vocabulary

OPTIONS = ("--schema", "schema.yaml", "--output", "dataset", "--max_rejected", "0.6", "--num_shards", "1")
PREPARE = ("prepare", *OPTIONS, "--processes", "0", "--retain", "0")
# Each begins with a dataset of two generations, which replaced another one; `create` begins with none.
OPERATIONS = {
    "create": (*PREPARE, "0.jsonl"),
    "replace": (*PREPARE, "0.jsonl", "--overwrite", "--seed", "1"),
    "append": (*PREPARE, "2.jsonl", "--append"),
    "compact": ("compact", "dataset", "--retain", "0"),
    "clean": ("clean", "dataset", "--retain", "0"),
}


class Place:
    """A folder with raw files, a schema, and the dataset that each operation begins with."""

    def __init__(self, folder):
        self.dataset, self._template, self._undisturbed = folder / "dataset", folder / "template", {}
        write_parts(folder / "parts", 2e4)
        for path in (folder / "parts").iterdir():
            shutil.move(path, folder)
        schema = folder / "schema.yaml"
        schema.write_text(SCHEMA)
        for raw, options in (("3", {}), ("0", {"overwrite": True}), ("1", {"append": True})):
            options |= {"max_rejected": 0.6, "num_shards": 1, "processes": 0}
            prepare(PrepareOptions((str(folder / f"{raw}.jsonl"),), str(schema), str(self._template), **options))

    def begin(self, operation):
        """Makes the dataset that an operation begins with. Returns the bytes of its files."""
        shutil.rmtree(self.dataset, ignore_errors=True)
        if operation != "create":
            shutil.copytree(self._template, self.dataset)
        return files_of(self.dataset)

    def undisturbed(self, capsys, operation):
        """Returns the names of the calls that an operation makes, and the contents that it leaves."""
        if operation not in self._undisturbed:
            self.begin(operation)
            names = []
            with watch_file_system(lambda name, path: names.append(name)):
                assert call(capsys, *OPERATIONS[operation])[0] == 0
            self._undisturbed[operation] = names, contents(self.dataset)
        return self._undisturbed[operation]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("failing"))


@pytest.fixture
def place(made, monkeypatch):
    """The place, whose folder is the working folder."""
    monkeypatch.chdir(made.dataset.parent)
    return made


def files_of(dataset):
    return {path: data for path, data in snapshot(dataset).items() if path != LOCK}


def check_readable(dataset, number):
    """Checks that readers find a whole dataset at the old commit or the new one. Returns whether there is a new one."""
    head = read_head(str(dataset))
    assert head.number in (number, number + 1)
    if (dataset / FILE_NAME).exists():
        report = verify(str(dataset))
        found = load(dataset).commit
        assert report.faults == [] and found in (number, head.number)
        assert bool(report.notes) == (found != head.number), report.notes
    else:
        assert number == 0
    return head.number > number


def check_failed(operation, faults, status, err, before, after, is_new):
    """Checks what a command says and leaves when it ended by itself."""
    command, (name, path) = OPERATIONS[operation][0], faults.failed
    if status == 0:
        # Only a file that does no harm may stay without an error.
        assert name == "unlink" and path.endswith((".tmp", "/writer.json"))
        assert is_new or operation == "clean"
        return
    (line,) = without_progress(err, command)
    assert status == 1
    assert line.startswith(f"lengthwise {command}: ") and os.strerror(faults.code) in line
    assert any(path in line for path in faults.paths)
    published = {"compact": ": was compacted, but "}.get(operation, ": was published, but ")
    assert (published in line) == is_new
    if not is_new:
        # Rejects stay, because the message names them. A vocabulary may be that of another commit, whose contents are
        # the same: only the rules of retention remove it.
        more = {path for path in after.keys() - before.keys() if not path.startswith("rejected/")}
        assert all(map(is_vocabulary, more)), more
        assert operation == "clean" or before.items() <= after.items()


def check_killed(operation, faults, status, err, before, after, is_new):
    """Checks that a killed command has removed nothing before its commit."""
    if not is_new and operation != "clean":
        assert before.items() <= after.items()


def check_repeated(dataset, capsys, operation, is_new, expected):
    """Checks that the same command completes the work, and that nothing else is left after `clean`."""
    age_marks(dataset)
    status, _, err = call(capsys, *OPERATIONS[operation])
    if operation == "create" and is_new:
        assert status == 1 and "a dataset is there already" in err[-1]
    else:
        assert status == (3 if operation == "append" and is_new else 0), err
    assert load(dataset).commit == read_head(str(dataset)).number
    assert call(capsys, "clean", "dataset", "--retain", "0")[0] == 0
    read_whole(dataset)
    assert contents(dataset) == expected
    assert set(snapshot(dataset)) - set(listed_files(dataset)) <= openable_vocabularies(dataset)


def check_cleaned(dataset, capsys, before):
    """Checks that `clean` makes a dataset that nothing was published to what it was before."""
    age_marks(dataset)
    assert call(capsys, "clean", "dataset", "--retain", "0")[0] == (0 if before else 1)
    after = files_of(dataset)
    assert after.items() <= before.items() if before else FILE_NAME not in after


def try_all(place, capsys, operation, make_faults, check, every):
    """Repeats an operation, each time with another call that fails, and checks what is left.

    If nothing was published, the dataset is compared with the one before. The command is repeated for each tenth of
    them, and for all that were published.
    """
    names, expected = place.undisturbed(capsys, operation)
    count = make_faults(0)
    for name in names:
        count.before_call(name, None)
    place.begin(operation)
    number, problems, failed, repeated, published = read_head(str(place.dataset)).number, [], 0, 0, 0
    tried = range(1 + (count.calls - 1) % every, count.calls + 1, every)
    for rounds, first in enumerate(tried):
        before, faults = place.begin(operation), make_faults(first)
        with watch_file_system(faults.before_call):
            status, _, err = call(capsys, *OPERATIONS[operation])
        if faults.failed is None:
            # The first run of all opens some indexes once more.
            assert (status, faults.calls < first) == (0, True)
            break
        failed += 1
        try:
            is_new = check_readable(place.dataset, number)
            check(operation, faults, status, err, before, files_of(place.dataset), is_new)
            published += is_new
            if is_new or operation in ("compact", "clean") or rounds % 10 == 0:
                repeated += 1
                check_repeated(place.dataset, capsys, operation, is_new, expected)
            elif not (before and files_of(place.dataset) == before):
                check_cleaned(place.dataset, capsys, before)
        except Exception as error:
            problems.append(f"call {first}, {faults.failed}, {status}, {err}: {type(error).__name__}: {error}")
    print(f"{operation}: {failed} of {count.calls} calls failed, {published} after the commit; {repeated} repeated")
    assert failed >= len(tried) - 3
    assert not problems, f"{len(problems)} of {len(tried)}:\n" + "\n\n".join(problems)


def some(**every):
    """Returns the parameters (operation, every): the given ones, and as proofs each operation with every call."""
    proofs = [pytest.param(name, 1, marks=pytest.mark.proof) for name in OPERATIONS]
    return pytest.mark.parametrize(("operation", "every"), [*every.items(), *proofs])


@some(replace=80, compact=20)
def test_a_disk_that_is_full_from_some_call_on(place, capsys, operation, every):
    def make(first):
        return Faults(WRITES, errno.ENOSPC, first=first, lasting=True)

    try_all(place, capsys, operation, make, check_failed, every)


@some(compact=45, clean=20)
def test_a_call_that_is_refused(place, capsys, operation, every):
    def make(first):
        return Faults(ALL, errno.EACCES, first=first, lasting=False)

    try_all(place, capsys, operation, make, check_failed, every)


@some(compact=33, clean=20)
def test_a_kill_at_some_call(place, capsys, operation, every):
    def make(first):
        return Kill(first=first)

    try_all(place, capsys, operation, make, check_killed, every)
