"""The table of `inspect --commits` shows the newest commits."""

import pytest

from pipeline.inspection.commits import print_commits


def commits(number):
    return [
        {
            "commit": n,
            "time": "2026-01-31T12:00:00Z",
            "operation": "append",
            "added": [f"g{n}"],
            "removed": [],
            "records": 10_000 * n,
            "available": n > 1 or number == 1,
        }
        for n in range(1, number + 1)
    ]


@pytest.mark.parametrize(
    ("number", "shown", "older"), [(1, 1, None), (2, 2, None), (100, 100, None), (1234, 100, "1,134")]
)
def test_the_newest_hundred_commits_are_shown_the_newest_first(capsys, number, shown, older):
    print_commits(commits(number), "dataset")
    output = capsys.readouterr().out
    found = [int(line.split()[0]) for line in output.splitlines() if "append" in line]
    assert found == list(range(number, number - shown, -1))
    assert f"dataset: {number:,} commit{'s' if number > 1 else ''}." in output
    assert ("older commits are not shown" in output) == (older is not None)
    assert older is None or f"\n{older} older commits" in output
    assert f"{10_000 * number:,}" in output
    assert ("files removed" in output) == (1 < shown == number)
