"""Data flows one way through the packages, and so do imports; each module is imported in a process of its own."""

import ast
import json
import subprocess
import sys

import pytest
from paths import ROOT

# What each package may import of ours, beside itself and the modules at the top of its own side. Data flows down this
# list, and so do imports.
TOP = {"pipeline.errors", "pipeline.files", "pipeline.flags", "pipeline.locks", "pipeline.progress", "pipeline.tables"}
TOP |= {"pipeline.beam_files", "pipeline.create_once", "pipeline.gcs", "pipeline.s3", "pipeline.s3_client"}
TOP |= {"pipeline.yaml_document"}
CONTRACT = {"pipeline.schema", "pipeline.format"}
MAY_IMPORT = {
    "pipeline.schema": set(),
    "pipeline.raw": {"pipeline.schema"},
    "pipeline.format": {"pipeline.schema"},
    "pipeline.shuffle": {"pipeline.schema", "pipeline.raw", "pipeline.format"},
    "pipeline.writing": {"pipeline.schema", "pipeline.raw", "pipeline.format", "pipeline.shuffle"},
    "pipeline.beam": {"pipeline.schema", "pipeline.raw", "pipeline.format", "pipeline.shuffle", "pipeline.writing"},
    "pipeline.streaming": {
        *("pipeline.schema", "pipeline.raw", "pipeline.format", "pipeline.shuffle", "pipeline.writing", "pipeline.beam")
    },
    "pipeline.inspection": {"pipeline.schema", "pipeline.format", "pipeline.shuffle"},
    "trainer.config": set(),
    "trainer.devices": {"trainer.config"},
    "trainer.data": {*CONTRACT},
    "trainer.batching": {*CONTRACT, "trainer.config", "trainer.data"},
    "trainer.reading": {*CONTRACT, "trainer.config", "trainer.data", "trainer.batching"},
    "trainer.model": {*CONTRACT, "trainer.config", "trainer.devices", "trainer.data"},
    "trainer.runs": {*CONTRACT, "trainer.config", "trainer.devices", "trainer.data", "trainer.model"},
}
MAY_IMPORT["trainer.evaluation"] = MAY_IMPORT["trainer.runs"] | {"trainer.batching", "trainer.reading", "trainer.runs"}
MAY_IMPORT["trainer.training"] = MAY_IMPORT["trainer.evaluation"] | {"trainer.devices", "trainer.evaluation"}
# Predictions in bulk read and parse raw records as `prepare` does, on Beam; they never train or evaluate.
MAY_IMPORT["trainer.serving"] = MAY_IMPORT["trainer.runs"] | {"trainer.batching", "trainer.devices", "trainer.runs"}
MAY_IMPORT["trainer.serving"] |= MAY_IMPORT["pipeline.beam"] | {"pipeline.beam"}
MAY_IMPORT["trainer.report"] = {"pipeline.schema", "trainer.batching"}
MAY_IMPORT["trainer.reader"] = {"trainer.reading"}
MAY_IMPORT["pipeline.prepare_flags"] = {"pipeline.beam"}  # for the flags of Beam
# The parsers of flags: each imports the function that it calls, when it calls it.
MAINS = {"pipeline.main", "trainer.main"}
# The one module of the trainer that runs a Beam job.
BEAM_JOB = "trainer.serving.predict"


def modules(package):
    paths = sorted((ROOT / package).glob("**/*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


# What most modules of ours import: loaded once, not in each fork. `yaml_document` makes pydantic load all of itself.
LIGHT = "annotated_types filelock google_crc32c multiprocessing numpy orjson pyarrow.parquet pydoc simdjson zoneinfo "
LIGHT += "pipeline.yaml_document"

# Imports the allowed modules once, then each module of ours in a fork, one on each core.
LOADER = """
import importlib, json, os, sys, traceback
allowed, *ours = sys.argv[1:]
for module in allowed.split():
    importlib.import_module(module)
for number, module in enumerate(ours):
    if number >= os.cpu_count():
        os.wait()
    if not os.fork():
        try:
            importlib.import_module(module)
            names = [name for name in ("apache_beam", "keras", "rich", "tensorflow", "trainer") if name in sys.modules]
            # One short write, which a pipe does not mix with those of other processes.
            os.write(1, (json.dumps([module, names]) + "\\n").encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def load(ours, *, allowed):
    """Returns the heavy modules that are loaded after the import of each module; fails if an import fails."""
    command = [sys.executable, "-W", "ignore", "-c", LOADER, allowed, *ours]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {module: set(names) for module, names in map(json.loads, done.stdout.splitlines())}
    assert sorted(found) == sorted(ours), done.stderr
    return found


def imported(path):
    """Returns every module that a file imports, also inside functions; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_module_of_pipeline_imports_tensorflow_or_the_trainer():
    found = load(modules("pipeline"), allowed=f"apache_beam apache_beam.io {LIGHT}")
    assert {module: names & {"tensorflow", "keras", "trainer"} for module, names in found.items()} == {
        module: set() for module in modules("pipeline")
    }


def test_only_the_bulk_predictions_of_trainer_import_beam():
    found = load(modules("trainer"), allowed=f"tensorflow keras {LIGHT}")
    assert [module for module, names in found.items() if "apache_beam" in names] == [BEAM_JOB]


def test_the_contract_and_the_parsing_of_flags_are_light():
    light = [
        name
        for name in modules("pipeline")
        if not name.startswith(("pipeline.beam.", "pipeline.inspection.")) and name != "pipeline.tables"
    ]
    ours = ["lengthwise", "trainer.main", "trainer.config", "pipeline.beam.options", *light]
    heavy = {"apache_beam", "tensorflow", "keras", "rich"}
    assert {module: names & heavy for module, names in load(ours, allowed=LIGHT).items()} == {
        module: set() for module in ours
    }


PATHS = [path for package in ("pipeline", "trainer") for path in sorted((ROOT / package).glob("**/*.py"))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(path.relative_to(ROOT).with_suffix("").parts))
def test_a_package_imports_only_the_packages_before_it(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = ".".join(parts[:2])
    ours = {".".join(name.split(".")[:2]) for name in imported(path) if name.startswith(("pipeline.", "trainer."))}
    if own in MAINS or path.name == "__init__.py":
        return
    assert ours - TOP - MAY_IMPORT.get(own, set()) - {own} == set()


def test_the_packages_have_no_circle_and_every_one_has_a_rule():
    packages = {f"{path.parent.parent.name}.{path.parent.name}" for path in PATHS if path.parent.parent != ROOT}
    assert packages <= set(MAY_IMPORT)
    seen = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= seen, f"{name} imports what comes after it"
        seen.add(name)


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path.name == "__init__.py"], ids=lambda path: path.parent.name
)
def test_a_package_is_a_docstring_only(path):
    (statement,) = ast.parse(path.read_text()).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value.value, str)


@pytest.mark.proof
def test_a_bare_worker_can_import_all_of_pipeline(tmp_path):
    """Installs what `--setup_file` gives to a Beam worker: our sdist with its base requirements, and Beam."""

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
