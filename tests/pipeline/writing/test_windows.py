"""Every shard of a dataset with windows holds the records of one window, whatever their order and however many."""

import collections
import contextlib
import hashlib
import json
import pathlib

import numpy as np
import plain_prepare
import pyarrow as pa
import pytest
from damage import edit, edit_manifest
from datasets import some
from prepare_jobs import load, read_whole

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import TryAgain, UserError
from pipeline.format.index import read_index, serialize_index
from pipeline.format.view import find_windows
from pipeline.inspection.verify import verify
from pipeline.raw.find_files import find_files
from pipeline.raw.json_lines import split_file
from pipeline.raw.records import parse_record
from pipeline.raw.rejects import Origin
from pipeline.schema.auto_classes import parse_schema
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.encoded_records import encode_for_shuffle
from pipeline.shuffle.hashing import choose_split
from pipeline.shuffle.record_runs import RunBuffer
from pipeline.writing import choose_generations, many_files, shards
from pipeline.writing.collect_classes import collect_classes
from pipeline.writing.commit_log import read_summaries
from pipeline.writing.compact import compact
from pipeline.writing.job import begin_job
from pipeline.writing.stages import _MAX_SHARDS_BYTES, choose_num_shards

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
label: {name: y, kind: step_class, classes: [a, b]}
splits: {train: 0.6, validation: 0.2, test: 0.2}
"""
HOURS = EventWindows(field="at", seconds=3600)
START = 1_767_225_600


def record(number, at, **fields):
    length = number % 5 + 1
    x = [[number / 7, None if number % 9 == 0 else n * 1e20 / 3] for n in range(length)]
    labels = [[None, "a", "b"][(number + n) % 3] for n in range(length)]
    return {"id": f"id-{number}", "x": x, "word": [f"w{number * n % 11}" for n in range(length)], "y": labels} | {
        "at": at,
        **fields,
    }


def random_records(first, count, *, num_hours, seed=0):
    """Returns records whose event times are in any order, as numbers and as strings."""
    random = np.random.default_rng([seed, first])
    times = random.integers(0, num_hours * 3600, count).tolist()
    texts = np.datetime_as_string(np.array(times, "datetime64[s]") + np.timedelta64(START, "s"), timezone="UTC")
    return [
        record(first + n, str(text) if n % 3 == 0 else START + time + n % 2 / 4)
        for n, (time, text) in enumerate(zip(times, texts, strict=True))
    ]


def second_of(record):
    at = record["at"]
    return int(np.datetime64(at.removesuffix("Z"), "s").astype(int)) if isinstance(at, str) else int(at)


def by_hand(records, size=3600):
    """Returns the ids of raw records by (split, window), the slow way."""
    found = collections.defaultdict(set)
    for each in records:
        split = choose_split(each["id"], Schema.parse(SCHEMA).splits, seed=0)
        found[split, second_of(each) // size * size].add(each["id"])
    return dict(found)


def in_shards(dataset):
    """Returns the ids of a dataset by (split, window), after a check of its indexes."""
    found = collections.defaultdict(set)
    for name, split in load(dataset).splits.items():
        for shard in split.shards:
            rows = read_index(pathlib.Path(dataset, shard.index_path).read_bytes(), shard).to_pydict()
            found[name, shard.window] |= set(rows["id"])
            if shard.window is not None:
                assert (min(rows["event_time"]), max(rows["event_time"])) == (shard.oldest, shard.newest)
    return dict(found)


def prepare(run_prepare, raw, **options):
    return run_prepare(raw, **{"schema": SCHEMA, "append": True, "windows": HOURS, "plain": True, **options})


@pytest.fixture
def dataset(tmp_path):
    return tmp_path / "dataset"


def test_late_and_early_records_are_in_the_windows_of_their_event_times(run_prepare, write_raw, dataset):
    records, before = [], set()
    for number in range(3):
        some = random_records(100 * number, 60, num_hours=4)
        records += some
        prepare(run_prepare, write_raw(some, f"{number}.jsonl"), num_shards=number + 1)
        paths = {shard.path for split in load(dataset).splits.values() for shard in split.shards}
        assert before < paths  # a late record is in a new shard
        before = paths
    assert in_shards(dataset) == by_hand(records)
    manifest = read_whole(dataset)
    assert manifest.windows == HOURS
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    assert all(shard.records and shard.window % 3600 == 0 for shard in shards)


@pytest.mark.parametrize("num_shards", some([1, 2, None], often=[2]))
def test_compaction_keeps_every_record_in_its_window(run_prepare, write_raw, dataset, tmp_path, num_shards):
    records = [random_records(100 * number, 60, num_hours=3) for number in range(3)]
    raw = [write_raw(some, f"{number}.jsonl") for number, some in enumerate(records)]
    for number, path in enumerate(raw):
        prepare(run_prepare, path, num_shards=number + 1)
    assert len(compact(str(dataset), num_shards=num_shards).generations) == 3
    merged = read_whole(dataset)
    assert in_shards(dataset) == by_hand(sum(records, []))
    # The same bytes as one job writes.
    whole = run_prepare(*raw, schema=SCHEMA, output="whole", windows=HOURS, num_shards=num_shards or 1, plain=True)
    assert merged.fingerprint == whole.fingerprint
    same = [[s.model_dump(exclude={"path", "index_path"}) for s in m.splits["train"].shards] for m in (merged, whole)]
    assert same[0] == same[1]
    assert compact(str(dataset)).generations == (() if num_shards != 2 else merged.generations)


@pytest.mark.proof
def test_a_stream_does_not_merge_old_windows_whenever_a_new_one_has_several_shards(run_prepare, write_raw, dataset):
    def append(name, *records):
        prepare(run_prepare, write_raw(records, name), max_rejected=1.0)
        return load(dataset).generations[-1]

    append("a", *(record(n, START + 3600 * (n % 7)) for n in range(100)))
    append("b", *(record(n, START + 3600 * (n % 7)) for n in range(400, 500)))
    old = compact(str(dataset), min_share=0.5).manifest.generations
    new = [append(f"c{k}", *(record(n, START + 90_000) for n in range(k, k + 40))) for k in range(1000, 1300, 100)]
    assert choose_generations.count_surplus(load(dataset).splits) == 6
    assert compact(str(dataset), min_share=0.5).generations == tuple(new)
    late = append("d", record(2000, START), *(record(n, START + 180_000) for n in range(2001, 2040)))
    assert compact(str(dataset), min_share=0.5).generations == ()
    # The command merges all that has a surplus. Old and late records of the first window are in these two.
    assert set(compact(str(dataset)).generations) == {*old, late}
    # Many windows have late records: more than half of the shards can be merged with others.
    append("e", *(record(n, START + 3600 * (n % 7)) for n in range(3000, 3100)))
    assert len(compact(str(dataset), min_share=0.5).generations) == 2
    assert choose_generations.count_surplus(read_whole(dataset).splits) == 0
    assert compact(str(dataset)).generations == ()


@pytest.mark.proof
def test_a_single_generation_whose_windows_have_many_shards_is_merged(run_prepare, write_raw, dataset):
    records = random_records(0, 300, num_hours=2)
    prepare(run_prepare, write_raw(records), num_shards=7)
    assert len(compact(str(dataset)).generations) == 1
    assert in_shards(dataset) == by_hand(records)
    assert sum(len(split.shards) for split in read_whole(dataset).splits.values()) == 6
    assert compact(str(dataset)).generations == ()


def test_more_windows_than_open_files_give_the_same_bytes(run_prepare, write_raw, dataset, tmp_path, monkeypatch):
    raw = write_raw([record(n, START + 3600 * (n * 7919 % 30)) for n in range(180)])
    whole = prepare(run_prepare, raw, output="whole")
    now, most, replace = [], [0], many_files.replace

    @contextlib.contextmanager
    def count_open(path):
        with replace(path) as file:
            now.append(path)
            most.append(len(now))
            yield file
        now.remove(path)

    monkeypatch.setattr(many_files, "replace", count_open)
    monkeypatch.setattr(many_files, "_MAX_OPEN", 5)
    monkeypatch.setattr(many_files, "_THREADS", 2)
    monkeypatch.setattr(many_files, "_COPY_BYTES", 100)
    monkeypatch.setattr(shards, "_WAITING_BYTES", 2000)  # shards are written in many parts
    few = prepare(run_prepare, raw)
    assert len([shard for split in few.splits.values() for shard in split.shards]) > 60
    assert 6 <= max(most) <= 7  # those that are written at the end
    assert few.fingerprint == whole.fingerprint
    assert few.statistics == whole.statistics
    assert not list(tmp_path.rglob("*.parts"))
    assert in_shards(dataset) == by_hand(map(json.loads, pathlib.Path(raw).read_text().splitlines()))


@pytest.mark.proof
@pytest.mark.parametrize("processes", [0, 2])
def test_beam_and_worker_processes_write_the_same_shards(run_prepare, write_raw, dataset, processes):
    raw = write_raw(random_records(0, 300, num_hours=4))
    plain = prepare(run_prepare, raw, output="plain", num_shards=3)
    assert prepare(run_prepare, raw, plain=False, processes=processes, num_shards=3).fingerprint == plain.fingerprint


def test_a_job_that_fails_leaves_no_file_of_many_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(many_files, "_MAX_OPEN", 1)
    with pytest.raises(ValueError, match="stop"), many_files.ManyFiles(str(tmp_path)) as files:
        for name in "ab":
            files.open(f"{tmp_path}/{name}").write(b"data")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_shards_get_the_windows_of_the_dataset_or_none(run_prepare, write_raw, dataset):
    first = [record(n, START) for n in range(50)]
    prepare(run_prepare, write_raw(first, "a.jsonl"), windows=None)
    assert load(dataset).windows is None
    # A dataset without windows may get them. The records that it has are in no window.
    more = random_records(100, 50, num_hours=3)
    prepare(run_prepare, write_raw(more, "b.jsonl"))
    # Without an argument, the windows are those of the dataset.
    last = random_records(200, 50, num_hours=3)
    prepare(run_prepare, write_raw(last, "c.jsonl"), windows=None)
    expected = by_hand(more + last)
    for each in first:
        expected.setdefault((choose_split(each["id"], Schema.parse(SCHEMA).splits, seed=0), None), set()).add(
            each["id"]
        )
    assert in_shards(dataset) == expected
    read_whole(dataset)
    compact(str(dataset), num_shards=1)
    assert in_shards(dataset) == expected
    assert read_whole(dataset).windows == HOURS
    other = EventWindows(field="time", seconds=60)
    with pytest.raises(UserError, match="has windows of 1h by the field 'at', so records with windows of 1m"):
        prepare(run_prepare, write_raw(first, "d.jsonl"), windows=other)


def test_records_without_an_event_time_are_rejected(run_prepare, write_raw, dataset):
    wrong = [None, "noon", True, 1e300, float("nan"), float("inf")]
    records = [record(n, START) for n in range(20)] + [record(100 + n, at) for n, at in enumerate(wrong)]
    records.append({name: value for name, value in record(200, 0).items() if name != "at"})
    manifest = prepare(run_prepare, write_raw(records), max_rejected=1.0)
    assert manifest.rejected.by_reason == {"missing_field": 1, "not_finite": 2, "wrong_type": 4}
    lines = [json.loads(line) for line in (dataset / manifest.rejected.files[0]).read_text().splitlines()]
    assert 'at: "noon", expected a time as a number, or as an ISO 8601 string' in [line["message"] for line in lines]


@pytest.mark.parametrize("shift", some([0, 4000], often=[4000]))
def test_of_records_with_one_id_the_window_does_not_depend_on_their_order(run_prepare, write_raw, tmp_path, shift):
    # Equal but for their event time: the one that is kept must be the same.
    pair = [record(1, START + 10), record(1, START + 10 + shift)]
    files = [[*pair, record(2, START)], [record(2, START), *reversed(pair)]]
    made = [
        prepare(run_prepare, write_raw(records, f"{k}/a.jsonl"), output=f"{k}", max_rejected=0.5)
        for k, records in enumerate(files)
    ]
    assert made[0].rejected.total == made[1].rejected.total == 1
    assert made[0].fingerprint == made[1].fingerprint
    assert in_shards(tmp_path / "0") == in_shards(tmp_path / "1")


def test_jobs_that_begin_at_once_do_not_give_a_dataset_two_kinds_of_windows(run_prepare, write_raw, dataset, tmp_path):
    raw = [write_raw([record(n, START) for n in range(k, k + 20)], f"{k}.jsonl") for k in range(0, 80, 20)]
    prepare(run_prepare, raw[0], windows=None)
    minutes = EventWindows(field="at", seconds=60)
    schema, path = Schema.parse(SCHEMA), str(tmp_path / "schema.yaml")
    jobs = {windows: begin_job(str(dataset), "append", schema, None, windows) for windows in (HOURS, minutes, None)}

    def publish(windows, number):
        options = PrepareOptions((raw[number],), path, str(dataset), append=True)
        return plain_prepare.run_job(options, schema, find_files(raw[number]), jobs[windows])

    publish(HOURS, 1)
    with pytest.raises(
        UserError, match="has windows of 1h by the field 'at', so records with windows of 1m by the field"
    ):
        publish(minutes, 2)
    with pytest.raises(TryAgain, match="another job added windows of 1h by the field 'at' meanwhile. Nothing was publ"):
        publish(None, 3)
    assert read_whole(dataset).windows == HOURS
    (_, *parts) = read_summaries(str(dataset), load(dataset).summaries)
    with pytest.raises(ValueError, match="windows of 1h by the field 'at' and windows of 1m by the field 'at'"):
        find_windows([*parts, parts[0].model_copy(update={"windows": minutes})])


def test_records_without_an_event_time_name_no_class(write_raw):
    schema = parse_schema(SCHEMA.replace("[a, b]", "auto"))
    records = [record(1, START) | {"y": ["a", "a"]}, {"id": 2, "x": [[1, 2]], "word": ["a"], "y": ["other"]}]
    (chunk,) = split_file(find_files(write_raw(records))[0])
    found = collect_classes([chunk], schema, seed=0, windows=HOURS)
    assert (found.records, found.rejected) == (1, 1)
    assert "other" not in found.classes
    assert collect_classes([chunk], schema, seed=0).records == 2


def test_a_window_with_fewer_records_than_shards_has_no_empty_shard(run_prepare, write_raw, dataset):
    records = random_records(0, 20, num_hours=2)
    for number in range(2):
        prepare(run_prepare, write_raw(records[number::2], f"{number}.jsonl"))
    compact(str(dataset), num_shards=12)
    assert in_shards(dataset) == by_hand(records)
    assert all(shard.records for split in read_whole(dataset).splits.values() for shard in split.shards)


def change_index(dataset, column, change):
    """Changes a column in the index of the first shard, and its digest in the manifest."""
    shard = load(dataset).splits["train"].shards[0]
    path = dataset / shard.index_path
    rows = read_index(path.read_bytes(), shard)
    number = rows.schema.get_field_index(column)
    field = rows.schema.field(number)
    data = serialize_index(rows.set_column(number, field, pa.array(change(rows[column].to_numpy()), field.type)))
    path.write_bytes(data)
    edit_manifest(dataset, edit("splits", "train", "shards", 0, "index_sha256", to=hashlib.sha256(data).hexdigest()))
    return shard


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("num_labels", lambda counts: counts + 1, "the record's num_labels is"),
        (
            "event_time",
            lambda times: times + 3_600_000_000,
            "but the shard has the window 1767225600 s to",
        ),
        ("event_time", lambda times: np.where(times == times.min(), times + 1, times), "the oldest event time is"),
        ("event_time", lambda times: np.where(times == times.max(), times - 1, times), "the newest event time is"),
        ("event_time", lambda times: [None, *times[1:].tolist()], "the index has the event time None"),
    ],
)
def test_verify_finds_a_wrong_index(run_prepare, write_raw, dataset, column, change, message):
    prepare(run_prepare, write_raw(random_records(0, 40, num_hours=2)))
    shard = change_index(dataset, column, change)
    faults = [fault for fault in verify(str(dataset)).faults if fault.file == shard.path]
    assert [message in fault.message for fault in faults] == [True]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("window", {"by": 3600}, "but its event times"),
        ("window", {"to": None}, "has the window None of event times"),
        ("newest", {"by": 3_600_000_000}, "but its event times"),
        ("oldest", {"to": None}, "but the windows are"),
    ],
)
def test_a_manifest_with_contradicting_windows_is_refused(run_prepare, write_raw, dataset, key, change, message):
    prepare(run_prepare, write_raw(random_records(0, 40, num_hours=2)))
    edit_manifest(dataset, edit("splits", "train", "shards", 0, key, **change))
    with pytest.raises(UserError, match=message):
        load(dataset)


def test_a_record_of_a_program_needs_an_event_time(tmp_path):
    buffer = RunBuffer(str(tmp_path), HOURS)
    schema = Schema.parse(SCHEMA)
    origin = Origin(None, 0, 0, 0, b"", None)
    buffer.add(encode_for_shuffle(parse_record(record(1, START), schema, windows=HOURS), origin, schema, seed=0))
    with pytest.raises(ValueError, match="'id-1' has no event time, but the dataset has windows of 1h"):
        buffer.add(encode_for_shuffle(parse_record(record(1, START), schema), origin, schema, seed=0))


@pytest.mark.parametrize(
    ("by_window", "expected"),
    [
        ({}, 10),
        ({("train", 0): 640 * 2**20}, 10),
        ({("train", n): 64 * 2**20 for n in range(10)}, 2),
        ({("train", n): 128 * 2**20 for n in range(5)}, 2),
        ({("train", n): 2**20 for n in range(640)}, 2),
    ],
)
def test_the_number_of_shards_follows_from_the_largest_window(by_window, expected):
    total = 640 * 2**20
    assert choose_num_shards([by_window or {("train", None): total}]) == expected
    assert total / expected <= _MAX_SHARDS_BYTES
