"""The state of a stream as a text file in the format of Prometheus, for a collector of text files."""

import dataclasses
from collections.abc import Iterator, Mapping

from pipeline.files import replace

# Most sources with a lag of their own: each is a time series.
_MAX_SOURCES = 100


@dataclasses.dataclass
class StreamMetrics:
    """What a stream has done since it started, and what it has to do.

    Attributes:
        records: Records that were read.
        rejected: Those of them that were rejected, by reason.
        bytes: Bytes that were read.
        rounds: Rounds, also those that found nothing new.
        commits: Rounds that were published.
        last_commit: When the last of them was, in seconds since 1970; the start of the stream if there was none.
        lags: Bytes that are not read yet, by file; or offsets, by partition.
        unit: What the lags are counted in: byte or offset.
        nulls: Messages without a value, which were skipped. None for files.
    """

    last_commit: float
    records: int = 0
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    rounds: int = 0
    commits: int = 0
    lags: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unit: str = "byte"
    nulls: int | None = None

    def write(self, path: str, *, now: float) -> None:
        """Replaces the file atomically."""
        with replace(path) as file:
            file.write("".join(f"{line}\n" for line in self._lines(now)).encode())

    def _lines(self, now: float) -> Iterator[str]:
        yield from _metric("records_total", "counter", "Records read, also rejected ones.", self.records)
        yield from _metric("bytes_total", "counter", "Bytes read.", self.bytes)
        yield from _describe("rejected_total", "counter", "Records rejected, by reason.")
        for reason, count in sorted(self.rejected.items()):
            yield f'lengthwise_stream_rejected_total{{reason="{_escape(reason)}"}} {count}'
        if self.nulls is not None:
            yield from _metric("nulls_total", "counter", "Messages without a value, which were skipped.", self.nulls)
        yield from _metric("rounds_total", "counter", "Rounds, also those that found nothing new.", self.rounds)
        yield from _metric("commits_total", "counter", "Commits published.", self.commits)
        total, units = sum(self.lags.values()), f"{self.unit}s"
        yield from _metric(
            f"lag_{units}_total", "gauge", f"{units.capitalize()} of all sources that are not read yet.", total
        )
        yield from _describe(f"lag_{units}", "gauge", f"The same by source, for the {_MAX_SOURCES} with the most.")
        for source, lag in sorted(self.lags.items(), key=lambda item: (-item[1], item[0]))[:_MAX_SOURCES]:
            yield f'lengthwise_stream_lag_{units}{{source="{_escape(source)}"}} {lag}'
        seconds = round(max(0.0, now - self.last_commit), 3)
        yield from _metric("seconds_since_commit", "gauge", "Seconds since the last commit, or the start.", seconds)


def _describe(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP lengthwise_stream_{name} {text}"
    yield f"# TYPE lengthwise_stream_{name} {kind}"


def _metric(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    yield from _describe(name, kind, text)
    yield f"lengthwise_stream_{name} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
