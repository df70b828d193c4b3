"""`predict --chunk_steps` writes the predictions of whole records, whatever the way in which the run was trained."""

import json
import tracemalloc

import datasets
import numpy as np
import pytest
from export_runs import run_of
from older_runs import remove_statistics
from predict_runs import assert_close, by_id, check_complete, lines_of, numbers_of, snapshot

import trainer.serving.predictor as predictor_module
from pipeline.errors import UserError
from pipeline.raw.records import parse_record
from trainer.config import TrainConfig
from trainer.data.target import Target
from trainer.serving import predictions, step_lines
from trainer.serving.chunk_predictor import ChunkPredictor
from trainer.serving.predict import predict
from trainer.serving.predictions import BatchOutputs, LineEncoder, PartWriter
from trainer.serving.predictor import BatchBuffer, load_predictor
from trainer.serving.step_lines import StepLines
from trainer.training.train import train

KINDS = [kind for kind in [*datasets.LABELS, *datasets.NEXT_LABELS] if kind != "class"]  # that run is bidirectional


def read_all(predictor, records, batch_steps, chunk_steps):
    """Returns the lines of all records, parsed, by id."""
    chunks, encoder = ChunkPredictor(predictor, chunk_steps=chunk_steps), LineEncoder(predictor.target)
    buffer, lines = BatchBuffer(predictor.schema, batch_steps, chunk_steps), []
    for batch in [*(batch for record in records for batch in buffer.add(record)), *buffer.flush()]:
        assert len(batch) * min(max(record.num_steps for record in batch), chunk_steps) <= max(batch_steps, chunk_steps)
        found = chunks(batch)
        if isinstance(found, BatchOutputs):
            lines += encoder.encode(found)
        else:
            lines += [b"".join(found.read(row)) for row in range(len(found.ids))]
    return by_id([json.loads(line) for line in lines])


def whole(kind):
    """Returns (predictor, parsed test records, predictions of whole records by id)."""
    predictor = load_predictor(run_of(kind))
    records = [parse_record(record, predictor.schema) for record in datasets.of_every_feature(kind).of("test")]
    lengths = np.array([record.num_steps for record in records])
    lines = LineEncoder(predictor.target).encode(
        BatchOutputs([record.id for record in records], lengths, predictor(records))
    )
    return predictor, records, by_id([json.loads(line) for line in lines])


def check_same(found, expected):
    largest = max(np.abs(numbers_of(line)).max() for line in expected.values())
    assert_close(found, expected, atol=1e-6 * max(1, largest))
    for key, line in expected.items():
        assert [found[key].get(name) for name in ("label", "labels")] == [
            line.get(name) for name in ("label", "labels")
        ]


LIMITS = [(30, 5), (10**6, 1), (20, 100)]
CASES = [(kind, *limits) for kind in KINDS for limits in LIMITS]


@pytest.mark.parametrize(
    ("kind", "batch_steps", "chunk_steps"), datasets.some(CASES, [("regression", 30, 5)], unpack=True)
)
def test_predictions_in_chunks_are_those_of_whole_records(kind, batch_steps, chunk_steps):
    predictor, records, expected = whole(kind)
    check_same(read_all(predictor, records, batch_steps, chunk_steps), expected)


def test_memory_holds_a_record_and_a_chunk_besides(monkeypatch):
    """That of Python and NumPy, with outputs of each step in a file."""
    monkeypatch.setattr(step_lines, "_MEMORY_BYTES", 2**12)
    predictor = load_predictor(run_of("next_word"))
    (raw,) = datasets.every_feature_records([1], split="test", kind="next_word")
    chunks = ChunkPredictor(predictor, chunk_steps=200)
    for steps in (200, 20_000):  # the first traces the model
        longer = {name: raw[name] * steps for name in predictor.schema.steps}
        record = parse_record(raw | longer, predictor.schema, labelled=False)
        tracemalloc.start()
        chunks([record]).close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < sum(values.nbytes for values in record.features.values() if isinstance(values, np.ndarray)) / 2


@pytest.mark.parametrize("kind", datasets.some(KINDS, ["next_word"]))
def test_the_command_reads_chunks(kind, capsys, write_raw, tmp_path, monkeypatch):
    monkeypatch.setattr(step_lines, "_MEMORY_BYTES", 100)
    raw = write_raw(datasets.of_every_feature(kind).of("test"))
    monkeypatch.setattr(predictor_module, "_BUFFER_RECORDS", 13)
    flags = ("--output", tmp_path / "out", "--chunk_steps", 4, "--batch_steps", 12)
    status, _, err = datasets.call(capsys, "predict", run_of(kind), raw, *flags)
    assert status == 0, err
    assert check_complete(tmp_path / "out")["records"] == 30
    check_same(by_id(lines_of(tmp_path / "out")), whole(kind)[2])


@pytest.mark.parametrize(
    ("chunk_steps", "error", "message"),
    [(5, UserError, "it cannot read a record in chunks. Leave --chunk_steps out"), (0, ValueError, "chunk_steps is 0")],
)
@pytest.mark.proof
def test_a_bidirectional_model_and_chunks_without_steps_are_refused(chunk_steps, error, message, write_raw, tmp_path):
    raw = write_raw(datasets.of_every_feature("class").of("test"))
    with pytest.raises(error, match=message):
        predict(run_of("class"), raw, tmp_path / "out", chunk_steps=chunk_steps)
    assert not (tmp_path / "out").exists()


@pytest.mark.proof
@pytest.mark.parametrize("reset_state", ["record", "chunk"])
def test_a_stateful_run_predicts_in_its_own_chunks_by_default(reset_state, run_predict, tmp_path):
    made = datasets.of_kind("step_class")
    config = TrainConfig(epochs=0, units=(4,), batching="stateful", chunk_steps=3, reset_state=reset_state)
    train(made.path, tmp_path / "run", config)
    _, lines = run_predict(str(tmp_path / "run"), made.of("test"))
    found = by_id(lines)
    predictor = load_predictor(str(tmp_path / "run"))
    for raw in made.of("test"):
        record = parse_record(raw, predictor.schema)
        starts = range(0, record.num_steps, 3 if reset_state == "chunk" else record.num_steps)
        # Each chunk is a record of its own if the state is reset.
        parts = [raw | {"x": raw["x"][first:][: starts.step], "y": raw["y"][first:][: starts.step]} for first in starts]
        outputs = [predictor([parse_record(part, predictor.schema)])[0] for part in parts]
        np.testing.assert_allclose(numbers_of(found[record.id]), np.concatenate(outputs), atol=1e-6)


@pytest.mark.proof
@pytest.mark.parametrize(
    "beam_options",
    [
        {"direct_running_mode": "multi_processing", "direct_num_workers": 2},
        {"direct_running_mode": "multi_threading", "direct_num_workers": 2},
        {"direct_runner_bundle_repeat": 3},
    ],
)
def test_every_runner_writes_each_prediction_once(beam_options, run_predict, write_raw, tmp_path):
    records = datasets.of_every_feature("next_word").of("test")
    for number in range(5):
        write_raw(records[number::5], f"raw/{number}.jsonl")
    _, lines = run_predict(run_of("next_word"), str(tmp_path / "raw"), beam_options=beam_options, chunk_steps=4)
    check_same(by_id(lines), whole("next_word")[2])
    check_complete(tmp_path / "predictions")


@pytest.mark.proof
def test_nothing_is_published_if_an_output_per_step_overflows(run_predict, tmp_path):
    records = datasets.random_records([9] * 20, kind="step_regression")
    for record in records:
        record["x"] = (np.array(record["x"]) * 1e-3).tolist()
    made = datasets.make(tmp_path / "made", records, datasets.schema_text("step_regression"))
    result = train(made.path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))
    remove_statistics(tmp_path / "run", result)  # a run of an earlier version does not limit normalized numbers
    wild = {"id": "wild", "x": [*records[0]["x"], [3e38, -3e38]]}
    with pytest.raises(UserError, match=r"^The output of the model for the record 'wild' is not finite, [^\n]*$"):
        run_predict(str(tmp_path / "run"), [*records, wild], chunk_steps=4)
    assert snapshot(tmp_path / "predictions") == {}


TARGETS = [
    Target("step_class", 3, ("a", True, 10**30)),
    Target("step_multilabel", 3, ("a", "b", "c")),
    Target("step_regression", 1),
    Target("step_regression", 2, next_of="x"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_lines_in_pieces_have_the_bytes_of_whole_lines(target, monkeypatch, tmp_path):
    """In memory or in a temporary file, in parts of several lines or of one."""
    lengths, ids = np.array([7, 5, 1], np.int32), ["ü", 'a"b', "\n"]
    shape = (3, 7) if target.kind == "step_regression" and not target.is_vector else (3, 7, target.size)
    outputs = np.random.default_rng(0).random(shape).astype(np.float32)
    encoder = LineEncoder(target)
    expected = encoder.encode(BatchOutputs(ids, lengths, outputs))
    for memory_bytes, part_bytes in ((1, 1), (10**6, 10**6), (10**6, 300)):
        monkeypatch.setattr(step_lines, "_MEMORY_BYTES", memory_bytes)
        monkeypatch.setattr(predictions, "_PART_BYTES", part_bytes)
        lines = StepLines(ids)
        for first in range(0, 7, 3):
            rows = int((lengths > first).sum())
            piece = np.minimum(lengths[:rows] - first, 3)
            for row, values in enumerate(
                encoder.describe(BatchOutputs(ids[:rows], piece, outputs[:rows, first:][:, :3]))
            ):
                lines.add(row, values)
        assert [b"".join(lines.read(row)) for row in range(3)] == expected
        assert [lines.num_bytes(row) for row in range(3)] == pytest.approx([len(line) for line in expected], abs=60)
        folder = tmp_path / str((memory_bytes, part_bytes))
        folder.mkdir()
        writer = PartWriter(target, str(folder))
        parts = [*writer.add_lines(lines), *writer.flush()]
        written = [(folder / part.name).read_bytes() for part in parts]
        assert b"".join(written) == b"".join(expected)
        assert [part.num_bytes for part in parts] == list(map(len, written))
        assert sum(part.records for part in parts) == 3 and (part_bytes == 10**6) == (len(parts) == 1)
        lines.close()
