"""The command: quick help, one clear line for every error that a user can fix, and exact exit statuses."""

import gzip
import json
import logging
import os
import pathlib
import resource
import subprocess
import sys

import pytest
from prepare_jobs import without_progress

import lengthwise

COMMAND = [str(pathlib.Path(sys.executable).parent / "lengthwise")]
HEAVY = ("apache_beam", "tensorflow", "keras", "pyarrow", "numpy")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Runs a command in this process, in an empty folder; returns (exit status, stdout, lines of stderr)."""
    monkeypatch.chdir(tmp_path)
    disabled = logging.root.manager.disable

    def run(*arguments):
        try:
            status = lengthwise.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    yield run
    logging.disable(disabled)


@pytest.mark.parametrize("name", lengthwise.COMMANDS)
def test_help_is_quick_and_complete(name):
    seconds = []
    # Processor time, so a busy machine hardly matters, and a second try makes up for the rest.
    while len(seconds) < 3 and (not seconds or min(seconds) >= 0.5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*COMMAND, name, "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: lengthwise {name} ")
        assert "examples:\n" in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("name", [*lengthwise.COMMANDS, "--version", "--help", "trian"])
def test_help_imports_nothing_heavy(name):
    program = (
        "import sys, lengthwise\n"
        f"try: lengthwise.main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        f"print(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr, end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1:] in ([], ["lengthwise: unknown command 'trian'; did you mean 'train'?"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_the_commands_are_listed(call, arguments):
    status, out, err = call(*arguments)
    assert (status, err) == (0, [])
    for name, (_, text) in lengthwise.COMMANDS.items():
        assert f"  {name:<10}{text}\n" in out


def test_version_prints_the_version(call):
    assert call("--version") == (0, f"lengthwise {lengthwise.__version__}\n", [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prepair", "unknown command 'prepair'; did you mean 'prepare'?"),
        ("xyz", f"unknown command 'xyz'; expected one of {', '.join(lengthwise.COMMANDS)}."),
        ("schema", "the command 'schema' is planned, but version 0.1.0 does not have it yet."),
        ("--overwrite", "unknown command '--overwrite'; expected one of"),
    ],
)
def test_an_unknown_or_planned_command_exits_2(call, name, message):
    status, out, (line,) = call(name)
    assert (status, out) == (2, "")
    assert line.startswith(f"lengthwise: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_reject", "0.1"], "unknown flag --max_reject; did you mean --max_rejected?"),
        (["--overwrit"], "unknown flag --overwrit; did you mean --overwrite?"),
        (["--num-shards=4"], "unknown flag --num-shards; did you mean --num_shards?"),
        (["--direct_num_worker", "2"], "unknown flag --direct_num_worker; did you mean --direct_num_workers?"),
        (["--direct_running=in_memory"], "unknown flag --direct_running; did you mean --direct_running_mode?"),
        (["--qwxqwx"], "unknown flag --qwxqwx; see --help for all flags."),
        (["-z"], "unknown flag -z; see --help for all flags."),
        (["--num_shards", "0"], "argument --num_shards: 0 is too small, expected an integer of at least 1"),
        (["--num_shards", "many"], "argument --num_shards: many is no integer, expected one of at least 1"),
        (["--max_rejected", "5%"], "argument --max_rejected: 5% is not a fraction, expected a number from 0 to 1"),
        (["--max_rejected", "1.5"], "argument --max_rejected: 1.5 is not a fraction, expected a number from 0 to 1"),
        (["--max_rejected", "nan"], "argument --max_rejected: nan is not a fraction, expected a number from 0 to 1"),
        (["--direct_num_workers", "two"], "argument --direct_num_workers: invalid int value: 'two'"),
        (["--overwrite", "raw.jsonl"], "unexpected argument 'raw.jsonl'"),
    ],
)
def test_a_wrong_flag_exits_2_and_names_the_nearest_right_one(call, arguments, message):
    status, out, (line,) = call("prepare", "raw", "--schema", "s.yaml", "--output", "out", *arguments)
    assert (status, out, line) == (2, "", f"lengthwise prepare: {message}")


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_other_commands_refuse_wrong_flags_too(call, name):
    assert call(name, "dataset", "--jsn") == (2, "", [f"lengthwise {name}: unknown flag --jsn; did you mean --json?"])
    assert call(name) == (2, "", [f"lengthwise {name}: the following arguments are required: DATASET"])


def test_a_missing_flag_exits_2(call):
    status, _, (line,) = call("prepare", "raw.jsonl", "--output", "out")
    assert (status, line) == (2, "lengthwise prepare: the following arguments are required: --schema")


@pytest.fixture
def files(tmp_path, raw_file, schema_file, dataset):
    (tmp_path / "bad.yaml").write_text("steps: {x: {dtype: float64}}\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(pathlib.Path(raw_file).read_bytes())[:-9])
    (tmp_path / "blank").write_bytes(b"\n\n")
    (tmp_path / "no-json").write_bytes(b"a\nb\n")
    (tmp_path / "file").write_bytes(b"")
    return {"raw": raw_file, "schema": schema_file, "dataset": dataset}


@pytest.mark.parametrize(
    ("raw", "schema", "output", "message"),
    [
        ("gone*.jsonl", "{schema}", "out", "{here}/gone*.jsonl: matches no file. Expected a file, a glob, or a folder"),
        (".", "{schema}", "out", "{here}: matches no file."),
        ("{raw}", "gone.yaml", "out", "gone.yaml: cannot be read: No such file or directory."),
        ("{raw}", ".", "out", ".: cannot be read: Is a directory."),
        ("{raw}", "bad.yaml", "out", 'bad.yaml: steps.x.dtype: "float64": should be'),
        ("{raw}", "{schema}", "{dataset}", "{dataset}: a dataset is there already. Choose another --output, add to"),
        ("{raw}", "{schema}", "file", "{here}/file: a file is in the way, expected a folder or nothing."),
        ("{raw}", "{schema}", "file/out", "A file could not be read or written: [Errno 20] Not a directory: "),
        ("cut.gz", "{schema}", "out", "{here}/cut.gz: not a complete gzip file: Compressed file ended before"),
        (
            "blank",
            "{schema}",
            "out",
            "The input contains no records: its files are empty, or all lines are blank. Nothing was published.",
        ),
        (
            "no-json",
            "{schema}",
            "out",
            "2 of 2 records (100.00%) were rejected: 2 not_json; at most 1.00% may be. The first one is line 1 of "
            "{here}/no-json, not_json: unexpected character",
        ),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exits_1(call, files, tmp_path, raw, schema, output, message):
    places = files | {"here": tmp_path}
    status, out, err = call(
        "prepare", raw.format(**places), "--schema", schema.format(**places), "--output", output.format(**places)
    )
    # A job that has started prints where it runs, and its progress on a slow machine.
    (line,) = without_progress(err)
    assert (status, out) == (1, "")
    assert line.startswith(f"lengthwise prepare: {message.format(**places)}")


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_a_folder_without_a_dataset_is_one_line_and_exits_1(call, name, tmp_path):
    status, out, (line,) = call(name, tmp_path)
    assert (status, out) == (1, "")
    assert line.startswith(f"lengthwise {name}: {tmp_path}")


def test_prepare_inspect_and_verify_agree(call, files, dataset):
    common = ("prepare", files["raw"], "--schema", files["schema"], "--num_shards", "4", "--output")
    status, out, err = call(*common, "out", "--json", "--runner=DirectRunner", "--direct_runner_bundle_repeat", "2")
    # On a slow machine, progress lines follow.
    assert (status, err[:1]) == (0, ["Running in this process (FnApiRunner)."])
    assert all(line.startswith("prepare: ") for line in err[1:])
    summary = json.loads(out)
    manifest = json.loads(pathlib.Path(dataset, "manifest.json").read_text())
    assert summary["fingerprint"] == manifest["fingerprint"]
    status, out, err = call("inspect", "out", "--json")
    assert (status, json.loads(out), err) == (0, summary, [])
    assert call("verify", "out")[0] == 0
    status, out, _ = call(*common, "again")
    assert status == 0
    assert "train" in out


@pytest.mark.proof
def test_an_error_in_a_worker_process_is_the_last_line(files, tmp_path):
    done = subprocess.run(
        [*COMMAND, "prepare", "cut.gz", "--schema", files["schema"], "--output", "out"]
        + ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"lengthwise prepare: {tmp_path}/cut.gz: not a complete gzip file: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["pipeline", "trainer"])
def test_a_package_of_another_distribution_with_our_name_is_reported(tmp_path, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    done = subprocess.run(
        [*COMMAND, "prepare", "--help"], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lengthwise: the package '{package}' is {tmp_path}/{package}/__init__.py, expected it in ")
