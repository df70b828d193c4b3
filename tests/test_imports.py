"""The data flows one way and so do the imports: what each module pulls in, seen in a process of its own."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What both packages must agree on, and the trainer may import of `pipeline`.
CONTRACT = {
    "allowance",
    "arrays",
    "beam_flags",
    "decode",
    "documents",
    "errors",
    "examples",
    "fields",
    "flags",
    "index",
    "manifest",
    "progress",
    "reasons",
    "records",
    "schema",
    "storage",
    "tables",
    "tfrecord",
    "values",
    "vocabulary",
}
# The one module of the trainer that runs a Beam job, and what it takes of that of `prepare`.
BEAM_JOB = "trainer.serving.predict"
JOB = {"encoded", "lines", "publish", "rejects", "runners", "shards", "transforms"}
# Only what prints tables needs it, and it takes a moment.
NEED_RICH = {"tables"}


def modules(package):
    paths = sorted((ROOT / package).glob("**/*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


# Each module is imported in a fork of its own, so that what is heavy and allowed is imported only once for all.
LOADER = """
import importlib, json, os, sys, traceback
allowed, *ours = sys.argv[1:]
for module in allowed.split():
    importlib.import_module(module)
for module in ours:
    if not os.fork():
        try:
            importlib.import_module(module)
            print(json.dumps([module, sorted({name.split(".")[0] for name in sys.modules})]), flush=True)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.wait()
"""


def load(ours, *, allowed):
    """For each module, the top-level modules that are there after its import; one that failed is missing."""
    command = [sys.executable, "-W", "ignore", "-c", LOADER, allowed, *ours]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {module: set(names) for module, names in map(json.loads, done.stdout.splitlines())}
    assert sorted(found) == sorted(ours), done.stderr
    return found


def imported(path):
    """Every module that a file names in an import, wherever in the file; `from a import b` as a and as a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_module_of_pipeline_imports_tensorflow_or_the_trainer():
    found = load(modules("pipeline"), allowed="apache_beam apache_beam.io pyarrow.parquet")
    assert {module: names & {"tensorflow", "keras", "trainer"} for module, names in found.items()} == {
        module: set() for module in modules("pipeline")
    }


def test_only_the_bulk_predictions_of_trainer_import_beam():
    found = load(modules("trainer"), allowed="tensorflow keras pyarrow.parquet")
    assert [module for module, names in found.items() if "apache_beam" in names] == [BEAM_JOB]


def test_the_contract_and_the_parsing_of_flags_are_light():
    contract = [f"pipeline.{name}" for name in sorted(CONTRACT - NEED_RICH)]
    ours = ["lengthwise", "pipeline.main", "trainer.main", *contract]
    heavy = {"apache_beam", "tensorflow", "keras", "rich"}
    assert {module: names & heavy for module, names in load(ours, allowed="sys").items()} == {
        module: set() for module in ours
    }


@pytest.mark.parametrize("path", sorted((ROOT / "trainer").glob("**/*.py")), ids=lambda path: path.stem)
def test_trainer_imports_only_the_contract_of_pipeline(path):
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")}
    assert ours - CONTRACT - (JOB if path.stem == "predict" else set()) == set(), (
        "an import of pipeline that is not of the contract, or of a name in it"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").glob("**/*.py")), ids=lambda path: path.stem)
def test_pipeline_names_no_import_of_the_trainer_or_tensorflow_even_inside_functions(path):
    assert {name.split(".")[0] for name in imported(path)} & {"trainer", "tensorflow", "keras"} == set()


@pytest.mark.parametrize("package", ["pipeline", "trainer"])
def test_a_package_is_a_docstring_only(package):
    (statement,) = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value.value, str)


@pytest.mark.proof
def test_a_bare_worker_can_import_all_of_pipeline(tmp_path):
    """What `--setup_file` gives a Beam worker: our sdist with its base requirements, and Beam."""

    def run(*command, cwd=tmp_path):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    # setup.py writes beside itself, so it runs in a copy.
    for name in ("setup.py", "pyproject.toml", "README.md", "lengthwise.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for package in ("pipeline", "trainer"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    run(sys.executable, "setup.py", "-q", "sdist")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")

    empty = tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv/bin/python")
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(sdist), "apache-beam", cwd=empty)
    program = (
        "import importlib, sys\n"
        f"for name in {modules('pipeline')!r}: importlib.import_module(name)\n"
        "import pipeline; print(pipeline.__file__)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    where = run(python, "-c", program, cwd=empty)
    assert where.startswith(str(tmp_path / "venv"))
    installed = run(python, "-m", "pip", "list", "--disable-pip-version-check", cwd=empty).lower()
    assert "tensorflow" not in installed
    assert run(str(tmp_path / "venv/bin/lengthwise"), "--version", cwd=empty).startswith("lengthwise ")
