"""Shared fixtures: a schema, raw records of many lengths, and the dataset that the pipeline writes from them."""

import gc
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest

# `make test` tries the same examples in each run. `make proof` tries more, and others each time.
hypothesis.settings.register_profile("test", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("proof", max_examples=400, deadline=None)
hypothesis.settings.load_profile("test")

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [3]}
  page: {dtype: int64, num_values: 50}
  word: {dtype: string, num_values: 100, shape: [2]}
label: {name: y, kind: class, classes: [a, b, no]}
"""


# Importing TensorFlow makes 300,000 objects and no garbage. `pytest_collection_finish` starts the collector.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Lets the garbage collector skip the modules and the tests from now on: it would scan them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()
    if session.config.option.markexpr == "not proof" and "tensorflow" in sys.modules:
        import quick_tensorflow

        quick_tensorflow.install()


@pytest.fixture(scope="session", autouse=True)
def quick_beam() -> None:
    """Lets Beam build pipelines faster in this process."""
    import quick_beam

    quick_beam.install()


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Flink cluster, for the tests that are marked `cluster`."""
    from flink_cluster import FlinkCluster

    cluster = FlinkCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def schema_text() -> str:
    return SCHEMA


@pytest.fixture(scope="session")
def records() -> list[dict[str, Any]]:
    """200 records of 1 to 40 steps. The numbers are exact in float32, so that a round trip through JSON keeps them."""
    random = np.random.default_rng(7)
    result = []
    for i, num_steps in enumerate(random.integers(1, 41, 200)):
        result.append(
            {
                "id": f"record-{i}",
                "x": random.normal(size=(num_steps, 3)).astype(np.float32).tolist(),
                "page": random.integers(0, 50, num_steps).tolist(),
                "word": [[f"w{a}", f"ü{b}"] for a, b in random.integers(0, 9, (num_steps, 2))],
                "y": "a b no".split()[i % 3],
            }
        )
    return result


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def schema_file(shared_folder: pathlib.Path) -> str:
    path = shared_folder / "schema.yaml"
    path.write_text(SCHEMA)
    return str(path)


@pytest.fixture(scope="session")
def raw_file(shared_folder: pathlib.Path, records: list[dict[str, Any]]) -> str:
    path = shared_folder / "raw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="session")
def dataset(shared_folder: pathlib.Path, raw_file: str, schema_file: str) -> str:
    """Folder of a dataset of `records` with four shards per split. Tests must not change it."""
    from pipeline.beam.prepare import PrepareOptions, prepare

    output = str(shared_folder / "dataset")
    prepare(PrepareOptions(raw=(raw_file,), schema=schema_file, output=output, num_shards=4))
    return output


LOG_SCHEMA = """\
id: id
steps: {x: {dtype: float32}, word: {dtype: string, vocabulary: 3}}
label: {name: y, kind: class, classes: [a, b]}
"""


@pytest.fixture(scope="session")
def three_commits(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[bytes]]:
    """A dataset of three commits, each with 20 records and one reject, and its manifest after each of them.

    Tests must not change it.
    """
    from pipeline.beam.prepare import PrepareOptions, prepare

    place = tmp_path_factory.mktemp("log")
    (place / "schema.yaml").write_text(LOG_SCHEMA)
    manifests = []
    for part in range(3):
        rows = []
        for n in range(20 * part, 20 * part + 20):
            steps = range(n % 4 + 1)
            words = [f"w{(n + step) % 5}" for step in steps]
            rows.append({"id": n, "x": [n + step / 7 for step in steps], "word": words, "y": "ab"[n % 3 == 0]})
        (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
        raw, schema, output = (str(place / name) for name in (f"{part}.jsonl", "schema.yaml", "dataset"))
        prepare(PrepareOptions((raw,), schema, output, append=True, max_rejected=0.1))
        manifests.append((place / "dataset" / "manifest.json").read_bytes())
    return place / "dataset", manifests


@pytest.fixture
def log_copy(three_commits: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the dataset of three commits that a test may change."""
    return pathlib.Path(shutil.copytree(three_commits[0], tmp_path / "dataset"))


@pytest.fixture
def write_raw(tmp_path: pathlib.Path) -> Callable[..., str]:
    """Returns a function that writes records or raw lines to a JSON Lines file and returns its path."""

    def write(rows: Iterable[dict[str, Any] | str | bytes], name: str = "raw.jsonl") -> str:
        lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def run_prepare(tmp_path: pathlib.Path) -> Callable[..., Any]:
    """Returns a function that runs the pipeline in this process on raw files, and returns the manifest.

    With plain=True it makes the same dataset without Beam, which takes a fifth of the time.
    """

    def run(
        *raw: str, schema: str = SCHEMA, output: str = "dataset", beam: Any = None, plain: bool = False, **options: Any
    ) -> Any:
        import plain_prepare

        from pipeline.beam.prepare import PrepareOptions, prepare

        path = tmp_path / "schema.yaml"
        path.write_text(schema)
        job = PrepareOptions(raw=raw, schema=str(path), output=str(tmp_path / output), **options)
        return plain_prepare.prepare(job) if plain else prepare(job, beam)

    return run


@pytest.fixture(scope="session")
def read_records() -> Callable[..., list[dict[str, Any]]]:
    """Returns a function that checks and decodes the examples of a dataset or a split, in the order of the manifest."""

    def read(folder: str | pathlib.Path, split: str | None = None) -> list[dict[str, Any]]:
        from pipeline.format.examples import decode_example
        from pipeline.format.manifest import FILE_NAME, Manifest
        from pipeline.format.tfrecord import walk

        path = pathlib.Path(folder, FILE_NAME)
        manifest = Manifest.parse(path.read_bytes(), origin=str(path))
        examples = []
        for name, contents in manifest.splits.items():
            for shard in contents.shards if split in (None, name) else ():
                with open(pathlib.Path(folder, shard.path), "rb") as file:
                    examples += [decode_example(record.data) for record in walk(file, num_bytes=shard.bytes)]
        return examples

    return read
