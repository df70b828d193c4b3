"""The windows of event time that the shards of a dataset are labelled with, and the event time of a raw record."""

import datetime
import math
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from pipeline.errors import UserError

Unit = Literal["s", "ms", "us", "ns"]
# Numbers of each unit in a second.
_PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Microseconds in a second: event times are whole microseconds.
MICROSECONDS = 1_000_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
# The years 1 to 9999, in seconds since 1970.
MIN_SECOND = (datetime.datetime.min.replace(tzinfo=datetime.UTC) - _EPOCH) // datetime.timedelta(seconds=1)
END_SECOND = (datetime.datetime.max.replace(tzinfo=datetime.UTC) - _EPOCH) // datetime.timedelta(seconds=1) + 1
# The largest window: ten years.
MAX_SECONDS = 3660 * 86400
_EXPECTED = "a time as a number, or as an ISO 8601 string"


class EventWindows(pydantic.BaseModel):
    """The windows of a dataset. A window is [start, start + seconds), and windows begin at multiples of `seconds`.

    Attributes:
        field: Field of a raw record that has its event time: a number, or an ISO 8601 string. A string without a time
            zone is UTC.
        seconds: Size of a window.
        unit: Unit of a number, which counts from 1970 in UTC.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    field: Annotated[str, pydantic.Field(min_length=1)]
    seconds: Annotated[int, pydantic.Field(ge=1, le=MAX_SECONDS)]
    unit: Unit = "s"

    def start_of(self, event_time: int) -> int:
        """Returns the start of the window of an event time in microseconds, in seconds since 1970.

        >>> EventWindows(field="time", seconds=3600).start_of(7_199_999_999)
        3600
        """
        return event_time // MICROSECONDS // self.seconds * self.seconds

    def starts_of(self, event_times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Returns `start_of` for int64[records]."""
        starts: np.ndarray[Any, Any] = event_times // (MICROSECONDS * self.seconds) * self.seconds
        return starts

    def describe(self) -> str:
        """Returns the windows in words.

        >>> EventWindows(field="time", seconds=3600, unit="ms").describe()
        "windows of 1h by the field 'time' (ms)"
        """
        return f"windows of {format_duration(self.seconds)} by the field {self.field!r}" + (
            "" if self.unit == "s" else f" ({self.unit})"
        )


class EventTimeError(ValueError):
    """A value is no event time. The message says what was expected instead.

    Attributes:
        is_finite: False for a number that is not finite.
    """

    def __init__(self, expected: str, is_finite: bool = True) -> None:
        super().__init__(expected, is_finite)  # with these arguments, pickle makes the error again
        self.is_finite = is_finite

    def __str__(self) -> str:
        return f"expected {self.args[0]}"


def parse_event_time(value: Any, windows: EventWindows) -> int:
    """Returns an event time in microseconds since 1970, in UTC. Its second is exact.

    >>> hours = EventWindows(field="time", seconds=3600)
    >>> parse_event_time(1.5, hours), parse_event_time("1970-01-01T01:00:01+01:00", hours)
    (1500000, 1000000)

    Args:
        value: A Python number, string or datetime.

    Raises:
        EventTimeError: The value is of another type, is not finite, or its window is not in the years 1 to 9999.
    """
    if isinstance(value, str):
        time = _parse_text(value)
    elif isinstance(value, datetime.datetime):
        time = _since_epoch(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise EventTimeError("a finite number", is_finite=False)
        per_second = _PER_SECOND[windows.unit]
        second, rest = divmod(value, per_second)
        # Of a number that is not whole, the fraction is rounded, but never to the next second.
        fraction = rest * MICROSECONDS // per_second if isinstance(value, int) else round(rest / per_second * 1e6)
        time = int(second) * MICROSECONDS + min(int(fraction), MICROSECONDS - 1)
    else:
        raise EventTimeError(_EXPECTED)
    start = windows.start_of(time)
    if not MIN_SECOND <= start or not start + windows.seconds <= END_SECOND:
        raise EventTimeError(f"a time whose window is in the years 1 to 9999 (unit: {windows.unit})")
    return time


def _parse_text(text: str) -> int:
    try:
        return _since_epoch(datetime.datetime.fromisoformat(text))
    except ValueError:
        raise EventTimeError(_EXPECTED) from None


def _since_epoch(time: datetime.datetime) -> int:
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - _EPOCH) // _MICROSECOND


def missing_time(record_id: str, windows: EventWindows) -> ValueError:
    """Returns the error for a record of a program that has no event time, but needs one."""
    return ValueError(
        f"Record {record_id!r} has no event time, but the dataset has {windows.describe()}. Give ParseRecords the same "
        "windows, or set `event_time` of the record."
    )


def check_same_windows(dataset: str, of_dataset: EventWindows, found: EventWindows) -> None:
    """Raises a UserError if records are to be added to a dataset with other windows than it has."""
    if found != of_dataset:
        raise UserError(
            f"{dataset}: has {of_dataset.describe()}, so records with {found.describe()} cannot be added. Leave "
            "--window and --event_time out, or prepare all raw files again with --overwrite."
        )


def format_time(seconds: int) -> str:
    """Returns a time in seconds since 1970 as a string in ISO 8601.

    >>> format_time(0)
    '1970-01-01T00:00:00Z'
    """
    time = _EPOCH + datetime.timedelta(seconds=seconds)
    return f"{time.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def format_event_time(event_time: int) -> str:
    """Returns an event time in microseconds since 1970 as a string in ISO 8601.

    >>> format_event_time(1_500_000), format_event_time(2_000_000)
    ('1970-01-01T00:00:01.500000Z', '1970-01-01T00:00:02Z')
    """
    time = _EPOCH + event_time * _MICROSECOND
    return f"{time.replace(tzinfo=None).isoformat()}Z"


def format_duration(seconds: float) -> str:
    """Returns a duration with the largest unit in which it is whole.

    >>> format_duration(7200), format_duration(90), format_duration(0.5)
    ('2h', '90s', '0.5s')
    """
    for name, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size:.0f}{name}"
    return f"{seconds:g}s"
