"""A pipeline on an unbounded source publishes each pane of each window in a commit of its own, once."""

import json
import os
import pathlib
import shutil
import subprocess

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.testing import test_stream
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows, SlidingWindows, TimestampedValue
from prepare_jobs import PLAIN, load

import pipeline.writing.publish
from pipeline.beam.parse_records import ParseRecords
from pipeline.beam.write_dataset import WriteDataset
from pipeline.errors import UserError
from pipeline.format.history import read_commit, reader
from pipeline.inspection.verify import verify
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.compact import compact

SCHEMA = Schema.parse(PLAIN + "splits: {train: 1}\n")
LATE = beam.WindowInto(
    FixedWindows(10),
    trigger=AfterWatermark(late=AfterCount(1)),
    accumulation_mode=AccumulationMode.DISCARDING,
    allowed_lateness=1000,
)


def record(number):
    return {"id": f"r{number:03}", "y": "a", "x": [[number] * 8]}


def at(*numbers):
    """Records whose event times are their numbers."""
    return [TimestampedValue(record(number), number) for number in numbers]


def stream_of(*parts):
    """Elements in the order of their arrival; a number moves the watermark."""
    stream = test_stream.TestStream()
    for part in parts:
        stream = stream.advance_watermark_to(part) if isinstance(part, int) else stream.add_elements(part)
    return stream.advance_watermark_to_infinity()


def write(stream, output, windows, **options):
    job = beam.Pipeline(runner=BundleBasedDirectRunner(), options=StandardOptions(streaming=True))
    with job:
        _ = job | stream | windows | ParseRecords(SCHEMA) | WriteDataset(SCHEMA, str(output), append=True, **options)


def ids_by_commit(output):
    """The ids that each commit added."""
    manifest = load(output)
    found = []
    for number in range(1, manifest.commit + 1):
        commit = read_commit(reader(str(output)), number, origin="").commit
        assert commit.operation in ("create", "stream")
        (added,) = commit.added
        shards = pathlib.Path(output, "data", added.generation).glob("train-*.index.parquet")
        found.append(sorted(name for shard in shards for name in pq.read_table(shard)["id"].to_pylist()))
    return found


def test_shards_have_the_windows_of_event_time_that_records_name(tmp_path):
    """These windows do not depend on those of the pipeline, which decide about the commits."""
    windows = EventWindows(field="hour", seconds=3600)
    elements = [TimestampedValue(record(n) | {"hour": 3600 * (n % 2)}, n) for n in range(4)]
    job = beam.Pipeline(runner=BundleBasedDirectRunner(), options=StandardOptions(streaming=True))
    with job:
        parsed = job | stream_of(elements[:2], 12, elements[2:]) | LATE | ParseRecords(SCHEMA, windows=windows)
        _ = parsed | WriteDataset(SCHEMA, str(tmp_path), append=True, windows=windows)
    found = [(shard.window, shard.records) for shard in load(tmp_path).splits["train"].shards]
    assert sorted(found) == [(0, 1), (0, 1), (3600, 1), (3600, 1)]
    assert verify(str(tmp_path)).faults == []


def names(*numbers):
    return [record(number)["id"] for number in numbers]


def test_each_pane_is_a_commit_and_late_panes_are_further_commits(tmp_path):
    out = tmp_path / "out"
    write(stream_of(at(1, 12, 3), 10, at(15), 20, at(4), at(27)), out, LATE)
    assert ids_by_commit(out) == [names(1, 3), names(12, 15), names(4), names(27)]
    assert verify(str(out)).faults == []
    compact(str(out))
    assert load(out).splits["train"].records == 6
    assert verify(str(out)).faults == []


def test_a_trigger_in_the_global_window_gives_a_commit_for_each_pane(tmp_path):
    windows = beam.WindowInto(
        GlobalWindows(), trigger=Repeatedly(AfterCount(2)), accumulation_mode=AccumulationMode.DISCARDING
    )
    write(stream_of(at(1), at(2), at(3), at(4)), tmp_path / "out", windows)
    assert ids_by_commit(tmp_path / "out") == [names(1, 2), names(3, 4)]


@pytest.mark.parametrize("after_commit", [True, False])
def test_a_pane_whose_step_is_repeated_is_published_once(tmp_path, monkeypatch, after_commit):
    """The direct runner repeats a step that fails, as an engine does."""
    real, failed = pipeline.writing.publish.commit, []

    def fails_once_each(output, change, **options):
        if change.pane is not None and change.pane not in failed:
            failed.append(change.pane)
            if after_commit:
                real(output, change, **options)
            raise OSError("the worker was killed")
        return real(output, change, **options)

    monkeypatch.setattr(pipeline.writing.publish, "commit", fails_once_each)
    out = tmp_path / "out"
    write(stream_of(at(1, 12, 3), 10, at(15), 20, at(4)), out, LATE)
    assert len(failed) == 3
    assert ids_by_commit(out) == [names(1, 3), names(12, 15), names(4)]
    assert load(out).rejected.total == 0
    assert {path.name for path in (out / "data").iterdir()} == set(load(out).generations)


def test_a_pane_that_another_try_published_meanwhile_is_dropped(tmp_path, monkeypatch):
    """The pane has only rejects, so that its ids do not show that it is published."""
    real, first = pipeline.writing.publish.commit, []

    def late(output, change, **options):
        if not change.added.rejected.total:
            return real(output, change, **options)
        if not first:  # the try that was taken for dead is at the same place now, with a generation of its own
            first.append(change)
            raise OSError("taken for dead")
        if len(first) == 1:
            first.append(real(output, first[0], **options))
        return real(output, change, **options)

    monkeypatch.setattr(pipeline.writing.publish, "commit", late)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.writing.publish_pane.discard_generation", lambda *_: None)
        write(stream_of(at(1, 2), 10, [TimestampedValue({"id": "wrong"}, 12)], 20), out, LATE)
    assert load(out).commit == 2
    assert load(out).rejected.total == 1
    assert load(out).generations[1] == first[0].added.generation


def test_two_runs_of_a_pipeline_are_not_taken_for_each_other(tmp_path):
    for numbers in ((1, 2), (11, 12)):
        write(stream_of(at(*numbers), 10), tmp_path / "out", LATE)
    write(stream_of(at(1, 13), 10), tmp_path / "out", beam.WindowInto(FixedWindows(1000)), max_rejected=0.5)
    assert ids_by_commit(tmp_path / "out") == [names(1, 2), names(11, 12), names(13)]
    assert load(tmp_path / "out").rejected.by_reason == {"duplicate_id": 1}


def test_rejects_are_in_the_commit_of_their_pane(tmp_path):
    wrong = [TimestampedValue({"id": "wrong"}, 14), TimestampedValue("{", 15)]
    write(stream_of(at(1), 10, [*at(12), *wrong], 20), tmp_path / "out", LATE)
    assert ids_by_commit(tmp_path / "out") == [names(1), names(12)]
    (file,) = load(tmp_path / "out").rejected.files
    rows = [json.loads(row) for row in (tmp_path / "out" / file).read_text().splitlines()]
    assert sorted(row["reason"] for row in rows) == ["missing_field", "not_json"]


def test_too_many_rejects_in_the_newest_commits_end_the_pipeline(tmp_path):
    wrong = [TimestampedValue({"id": number}, 11) for number in range(20)]
    parts = [TimestampedValue(record(number), 5) for number in range(986)]
    with pytest.raises(Exception, match=r"20 of the last 1,006 records \(1\.99%\) were rejected: 20 missing_field"):
        write(stream_of(parts, 10, wrong, 20), tmp_path / "out", LATE)
    assert load(tmp_path / "out").commit == 1


def test_a_first_pane_without_a_record_makes_no_dataset(tmp_path, caplog):
    caplog.set_level("WARNING")  # a command that ran in this process before may have disabled warnings
    write(stream_of([TimestampedValue({"id": "wrong"}, 1)], 10, at(12), 20), tmp_path / "out", LATE)
    assert "does not exist yet, and no record was accepted" in caplog.text
    assert ids_by_commit(tmp_path / "out") == [names(12)]


@pytest.mark.parametrize(
    ("windows", "options", "message"),
    [
        (beam.Map(lambda x: x), {"append": True}, "is unbounded and has no windows"),
        (beam.WindowInto(FixedWindows(10)), {}, "set append=True"),
        (beam.WindowInto(SlidingWindows(10, 5)), {"append": True}, "has sliding windows"),
        (
            beam.WindowInto(GlobalWindows(), trigger=AfterCount(1), accumulation_mode=AccumulationMode.ACCUMULATING),
            {"append": True},
            "Set accumulation_mode=AccumulationMode.DISCARDING",
        ),
    ],
)
def test_an_input_that_cannot_be_divided_is_an_error_when_the_transform_is_applied(tmp_path, windows, options, message):
    elements = beam.Pipeline() | stream_of(at(1)) | windows
    with pytest.raises(UserError, match=f"^WriteDataset: its input .*{message}"):
        _ = elements | WriteDataset(SCHEMA, str(tmp_path / "out"), **options)


def test_raw_files_cannot_be_a_part_of_a_stream(tmp_path):
    job = beam.Pipeline()
    parsed = job | stream_of(at(1)) | LATE | ParseRecords(SCHEMA)
    with pytest.raises(UserError, match="^WriteDataset: its input chunks belongs to raw files"):
        _ = {**parsed, "chunks": job | beam.Create([])} | WriteDataset(SCHEMA, str(tmp_path / "out"), append=True)


@pytest.mark.proof
@pytest.mark.skipif(shutil.which("go") is None, reason="Prism, Beam's portable local runner, is built with Go")
def test_prism_publishes_the_same_commits(tmp_path):
    target = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}"
    subprocess.run(["go", "install", target], env=os.environ | {"GOBIN": str(tmp_path / "bin")}, check=True)
    flags = ["--runner=PrismRunner", f"--prism_location={tmp_path}/bin/prism", "--environment_type=LOOPBACK"]
    with beam.Pipeline(options=PipelineOptions([*flags, "--streaming"])) as job:
        parsed = job | stream_of(at(1, 12, 3), 10, at(15), 20, at(4), at(27)) | LATE | ParseRecords(SCHEMA)
        _ = parsed | WriteDataset(SCHEMA, str(tmp_path / "out"), append=True)
    assert ids_by_commit(tmp_path / "out") == [names(1, 3), names(12, 15), names(4), names(27)]
    assert verify(str(tmp_path / "out")).faults == []
