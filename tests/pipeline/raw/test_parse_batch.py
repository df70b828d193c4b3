"""Lines that are parsed and encoded together give the same runs and rejects as lines that are parsed one by one."""

import hashlib
import json
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.raw import parse_batch
from pipeline.raw.json_lines import LineBatch
from pipeline.raw.parse_batch import BatchParser
from pipeline.raw.records import Limits
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.encoded_records import RECORDS, from_rows, from_run_block
from pipeline.shuffle.merge_runs import merge_runs
from pipeline.shuffle.reject_runs import merge_reject_runs
from pipeline.writing.stages import parse_into_runs

STEPS = """\
id: id
steps:
  x: {dtype: float32, shape: [2]}
  n: {dtype: float32, missing: fill}
  deep: {dtype: float32, shape: [1, 2]}
  page: {dtype: int64, num_values: 300}
"""
LABEL = "label: {name: y, kind: class, classes: [a, b]}\n"
GOOD = {"x": [[1, 2.5], [0, -0.0]], "n": [1, 2], "deep": [[[1, 2]], [[3, 4e-3]]], "page": [3, 7], "y": "a"}


class Case(types.SimpleNamespace):
    """A schema, the values of a record besides those of GOOD, and the windows of the dataset."""

    def __init__(self, text, *, windows=None, **fields):
        super().__init__(schema=Schema.parse(text), windows=windows, record=GOOD | fields)


CASES = {
    "class": Case(STEPS + LABEL),
    "regression": Case(STEPS + "label: {name: y, kind: regression}\n", y=2.5),
    "distribution": Case(STEPS + "label: {name: y, kind: distribution, classes: [a, b]}\n", y=[0.25, 0.75]),
    "multilabel": Case(STEPS + "label: {name: y, kind: multilabel, classes: [a, b]}\n", y=["b", "a"]),
    "context": Case(
        STEPS + LABEL + "context: {age: {dtype: float32}, city: {dtype: string, vocabulary: 3}, "
        "plan: {dtype: int64, num_values: 9, shape: [2]}}\n",
        age=2.5,
        city="b",
        plan=[1, 2],
    ),
    "group": Case(STEPS + LABEL + "group: who\n", who=3),
    "split": Case(STEPS + LABEL + "group: who\nsplits: {from: part}\n", who="a", part="test"),
    "moved": Case(STEPS + LABEL + "splits: {from: part, validation: 0.5}\n", part="train"),
    "shares": Case(STEPS + LABEL + "splits: {train: 0.5, test: 0.5}\n"),
    "parts": Case(STEPS + LABEL + "max_length: 1\nover_length: parts\n"),
    "other fields": Case(STEPS + LABEL, more=[[1], {"[": 2}], note="[[", nothing=None),
    "field of another name": Case(STEPS.replace("shape: [1, 2]", "shape: [1, 2], from: d") + LABEL, d=GOOD["deep"]),
    "null character": Case(STEPS + LABEL + 'group: "who\\0"\n', who="a", **{"who\0": "b"}),
    "windows": Case(STEPS + LABEL, windows=EventWindows(field="at", seconds=3600), at="2026-01-01T00:30:00Z"),
}


def to_lines(rows, split=None):
    """Returns one batch of lines: strings as they are, and records as JSON, each with an id of its own."""
    lines = []
    for number, row in enumerate(rows):
        line = row if isinstance(row, str) else json.dumps({"id": f"id-{number}"} | row)
        lines.append(line.encode())
    digests = [hashlib.sha256(line).digest() for line in lines]
    offsets = [1000 * number for number in range(len(lines))]
    return LineBatch("raw", 0, offsets, list(range(len(lines))), lines, digests, 10**6, split)


def results(folder, lines, case, *, alone=False, **options):
    """Returns the sorted records with their Examples, and the rejects, that a batch gives."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if alone:
            patch.setattr(BatchParser, "can_parse", lambda schema: False)
        parsed = parse_into_runs(
            [lines._replace(lines=list(lines.lines))],
            case.schema,
            seed=3,
            folder=str(folder),
            windows=case.windows,
            **{"keep_raw": False} | options,
        )
    records = []
    for block in map(from_run_block, merge_runs(parsed.runs, 0, 2**64, RECORDS)):
        rows = from_rows(block.rows)
        records += [row._replace(example=data) for row, data in zip(rows, block.payloads, strict=True)]
    totals = [run.totals for run in parsed.runs]
    with merge_reject_runs(parsed.reject_runs) as rejects:
        return records, [*rejects], totals, (parsed.parsed, parsed.rejected)


@pytest.mark.parametrize("keep_raw", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_records_of_plain_numbers_are_parsed_together(tmp_path, name, keep_raw):
    case = CASES[name]
    rows = [case.record | {"page": [n, 299 - n], "n": [n, n / 7]} for n in range(140)]
    batch, lines, rest = BatchParser(case.schema, windows=case.windows).parse(to_lines(rows))
    parsed = 0 if name == "null character" else 140
    assert (len(batch.records), len(lines.lines), len(rest.lines)) == (parsed, parsed, 140 - parsed)
    found, expected = (
        results(tmp_path / kind, to_lines(rows), case, keep_raw=keep_raw, alone=kind == "alone")
        for kind in ("together", "alone")
    )
    assert found == expected
    assert found[3] == (140, 0)


# Lines that do not fit, or that only the parser of single lines takes, and lines that look as if they did not fit.
OTHERS = [
    {"x": [[1, 2], [3]]},
    {"x": [[1, 2, 3], [4]]},
    {"x": [[1, 2], [3, [4]]]},
    {"x": [1, 2]},
    {"x": ["ab", "cd"]},
    {"x": [{"a": 1, "b": 2}, [1, 2]]},
    {"x": [[1, 2], None]},
    {"x": [[1, "2"], [3, 4]]},
    {"x": [[1, True], [3, 4]]},
    {"x": [[1, 4e38], [3, 4]]},
    {"x": [[1, -3.5e38], [3, 4]], "page": [3, 300]},
    {"x": [[1, 2**64], [3, 4]]},
    {"x": [[1, 16777217], [3, 1e-46]]},
    {"x": None},
    {"x": []},
    {"x": [[]] * 2},
    {"x": [[1, 2]]},
    {"n": [1, None]},
    {"n": [[1], [2]]},
    {"n": "ab"},
    {"deep": [[[1, 2]], [[3, 4], [5, 6]]]},
    {"deep": [[1, 2], [3, 4]]},
    {"page": [3, 300]},
    {"page": [-1, 2]},
    {"page": [1, 2.0]},
    {"page": [1, 2**63]},
    {key: GOOD[key] * 2 for key in ("x", "n", "deep", "page")},
    {"y": "c"},
    {"y": None},
    {"y": 1},
    {"y": ["a", ["b"]]},
    {"id": 7},
    {"id": -(2**63)},
    {"id": None},
    {"id": "\ud800"},
    {"id": "é" * 300},
    {"id": "[[["},
    {"id": {"a": 1}},
    {"": 1, "x\0": 2},
    {"more": [[1]]},
    {"x\0more": [[1]]},
    {f"name {n}": n for n in range(300)},
    "{}",
    "[]",
    "nothing",
    '{"id": "cut", "x": [[1, 2]',
    "\ufeff" + json.dumps({"id": "a"} | GOOD),
    json.dumps({"id": "a"} | GOOD).replace("2.5", "NaN"),
    json.dumps({"id": "a"} | GOOD).replace("2.5", "Infinity"),
    json.dumps({"id": "a"} | GOOD).replace("2.5", "2.50000000000000000000000000000001"),
    json.dumps({"id": "a"} | GOOD)[:-1] + ', "id": "b"}',
    json.dumps({"id": "a"} | GOOD)[:-1] + ', "x": [[7, 7], [7, 7]]}',
    json.dumps({"id": "a"} | GOOD)[:-1] + ', "unused": 1, "unused": 2}',
    f" {json.dumps({'id': 'space'} | GOOD)} ",
    json.dumps({name: value for name, value in GOOD.items() if name != "y"}),
]


@pytest.mark.parametrize("name", ["class", "regression", "moved", "windows"])
def test_each_other_line_has_the_same_result_among_plain_ones(tmp_path, name, monkeypatch):
    if name == "moved":  # counts brackets as in long lines
        monkeypatch.setattr(parse_batch, "_LONG_BYTES", 0)
    case = CASES[name]
    rows = [case.record]
    for other in OTHERS:
        rows += [other if isinstance(other, str) else case.record | other, case.record]
    found, expected = (
        results(tmp_path / kind, to_lines(rows), case, keep_raw=True, alone=kind == "alone")
        for kind in ("together", "alone")
    )
    assert found == expected
    assert min(found[3]) > 20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.one_of(st.just({}), st.sampled_from(OTHERS)), min_size=1, max_size=9),
    name=st.sampled_from(sorted(CASES)),
    max_length=st.sampled_from([None, 1, 2]),
    over_length=st.sampled_from(["reject", "truncate_head", "truncate_tail", "parts"]),
    limits=st.sampled_from([Limits(), Limits(record_bytes=120), Limits(record_steps=3)]),
)
def test_any_lines_have_the_same_results(tmp_path_factory, rows, name, max_length, over_length, limits):
    case = CASES[name]
    schema = case.schema.model_copy(update={"max_length": max_length, "over_length": over_length})
    case = types.SimpleNamespace(schema=schema, windows=case.windows)
    lines = to_lines([row if isinstance(row, str) else CASES[name].record | row for row in rows])
    found, expected = (
        results(tmp_path_factory.mktemp(kind) / "runs", lines, case, limits=limits, alone=kind == "alone")
        for kind in ("together", "alone")
    )
    assert found == expected


def test_records_of_files_that_are_given_by_split(tmp_path):
    case = Case(STEPS + LABEL + "splits: {inputs: true}\n")
    lines = to_lines([case.record] * 3, split="validation")
    found, expected = (results(tmp_path / kind, lines, case, alone=kind == "alone") for kind in ("together", "alone"))
    assert found == expected
    assert {record.split for record in found[0]} == {"validation"}


@pytest.mark.parametrize(
    "text",
    [
        LABEL + "steps: {x: {dtype: float32}}\n",
        LABEL + "id: id\nsteps: {x: {dtype: float32}, word: {dtype: string, num_values: 9}}\n",
        LABEL + "id: id\nsteps: {x: {dtype: float32}, w: {dtype: float32, from: x}}\n",
        "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: step_class, classes: [a]}\n",
        "id: id\nsteps: {x: {dtype: float32}}\nlabel: {next_of: x}\n",
    ],
)
def test_lines_of_other_schemas_are_parsed_alone(text):
    assert not BatchParser.can_parse(Schema.parse(text))


def test_a_parser_that_leaves_most_lines_does_not_try_again():
    case = CASES["class"]
    good, others = to_lines([case.record] * 70), to_lines([case.record | {"n": [1, None]}] * 70)
    parser = BatchParser(case.schema)
    for batch, number in ((good, 70), (others, 0), (good, 0)):
        batch = batch._replace(lines=list(batch.lines))
        found, lines, rest = parser.parse(batch)
        assert (len(found.records), len(lines.lines), len(rest.lines)) == (number, number, 70 - number)
