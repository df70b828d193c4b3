"""A job never reads what it writes: its output is not in the folder of the raw files, nor matched by their glob."""

import pytest

from pipeline.errors import UserError
from pipeline.raw.find_files import find_files
from pipeline.raw.refuse_output import refuse_output
from pipeline.writing.paths import is_of_dataset, new_generation


def test_files_that_a_job_writes_are_never_its_raw_files(tmp_path, monkeypatch):
    generation = new_generation()
    for name in ("raw/a.jsonl", "raw/out/manifest.json", f"raw/out/rejected/{generation}.jsonl", "raw/out/mine.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("raw/out")
    monkeypatch.chdir(tmp_path)

    def refused(patterns, output):
        with pytest.raises(UserError) as error:
            refuse_output(patterns, find_files(patterns), f"{tmp_path}/{output}", is_written=is_of_dataset)
        return str(error.value)

    for output in ("raw/out", "raw/new", "raw/new/out", "raw", "link"):
        for patterns in ("raw", ["raw/a.jsonl", "./raw/"], tmp_path):
            assert "the folder of the raw files, so the next job would read it as raw records." in refused(
                patterns, output
            )
    for output in ("raw/out", "link"):
        for patterns in ("raw/*/*", f"raw/*/*/{generation}.jsonl", ["raw/out/manifest.json"], "link/*"):
            assert f"is not a raw file, but a file of the output {tmp_path}/{output}." in refused(patterns, output)
    for patterns, output in [
        ("raw", "out"),
        ("raw", "raw-out"),
        ("raw", "raw/_out"),  # a folder of raw files is read without such folders
        ("raw/*.jsonl", "raw/out"),
        (["raw/a.jsonl"], "raw"),
        ("raw/out/mine.jsonl", "raw/out"),
        ("raw/*/*", "out"),
    ]:
        refuse_output(patterns, find_files(patterns), f"{tmp_path}/{output}", is_written=is_of_dataset)
