"""`verify` names parts of files that were read twice, and a summary that counts parts wrongly."""

import types

import pytest

from pipeline.files import file_sha256
from pipeline.format.sources import SourceRow, SourcesFile, write_sources
from pipeline.inspection.verify_log import Log, known_sources
from pipeline.inspection.verify_report import Report


def part(path, start, end, rewrites=0):
    return SourceRow(path, end - start, end - start, bytes(32), None, start, 0, rewrites, bytes(32))


@pytest.fixture
def find_faults(tmp_path):
    def find(*generations, **wrong):
        summaries = {}
        for number, rows in enumerate(generations):
            path = tmp_path / f"{number}.parquet"
            with open(path, "wb") as file:
                counts = write_sources(file, rows)._asdict() | wrong
            file = SourcesFile(path=path.name, sha256=file_sha256(str(path)), **counts)
            summaries[str(number)] = types.SimpleNamespace(sources=file)
        report = Report()
        known_sources(str(tmp_path), Log([], summaries), report)
        return [(fault.file, fault.message) for fault in report.faults]

    return find


def test_parts_that_follow_one_another_have_no_fault(find_faults):
    whole = SourceRow("whole", 9, 9, bytes(32))
    first = [part("a", 0, 10), part("b", 0, 5)]
    second = [part("a", 10, 30), part("b", 0, 7, 1), part("renamed", 10, 12)]
    assert find_faults(first, second, [whole], [part("a", 30, 30)]) == []
    # A merged generation comes after others.
    assert find_faults(second, sorted([*first, part("a", 30, 31)])) == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_part_that_begins_before_another_one_ended_is_named(find_faults, order):
    generations = [[part("a", 0, 10), part("b", 0, 5)], [part("a", 10, 30)], [part("a", 29, 40), part("b", 5, 6)]][
        ::order
    ]
    later, earlier = (2, 1) if order == 1 else (0, 1)
    assert find_faults(*generations) == [
        (
            f"{later}.parquet",
            f"lists a part of a from byte 29 on, but a part in {earlier}.parquet ends at byte 30: records between them "
            "were read twice",
        )
    ]


@pytest.mark.parametrize(("name", "noun"), [("parts", "2 parts of files"), ("later_parts", "1 later parts")])
def test_a_summary_with_other_counts_of_parts_is_named(find_faults, name, noun):
    rows = [part("a", 0, 10), part("b", 5, 10)]
    assert find_faults(rows, **{name: 7}) == [("0.parquet", f"lists {noun}, but the summary says 7")]
