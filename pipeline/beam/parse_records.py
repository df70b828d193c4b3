"""Parses raw records into sequences and rejects."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.raw.content_id import canonical_json
from pipeline.raw.early_stop import EarlyStop, FirstRecords
from pipeline.raw.json_lines import LineBatch, parse_lines
from pipeline.raw.records import LIMITS, Limits, parse_line, parse_record
from pipeline.raw.rejects import Origin, RecordError, Reject
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows

REJECTS = "rejects"


@dataclasses.dataclass
class ParseRecords(beam.PTransform):
    """Parses raw records: raw records -> {"sequences": lists of (ParsedRecord, Origin), "rejects": Reject}.

    An element is one line of JSON (str or bytes; a blank line is skipped), one record as a dict of JSON values (NumPy
    arrays may take the place of lists), or one batch of lines from `ReadLines`. Each record becomes either one sequence
    or one reject.

    Attributes:
        schema: Features and label of a record.
        keep_raw: Stores the raw line in each reject.
        labelled: False reads no label, group or split. Use it for records that are only predicted.
        limits: Largest record. A larger record is rejected as `too_large`. `ReadLines` needs the same limits.
        stop: When to end the job because the first records of a file are all rejected. By default, never.
        windows: The windows of the dataset to write, for which each record needs an event time. By default it has none.
        keep_lines: False removes the lines of a batch from memory as they are parsed. Use it if no other step reads the
            output of `ReadLines`.
    """

    schema: Schema
    keep_raw: bool = False
    labelled: bool = True
    limits: Limits = LIMITS
    stop: EarlyStop | None = None
    windows: EventWindows | None = None
    keep_lines: bool = True

    def expand(self, records: Any) -> Any:
        options = {"labelled": self.labelled, "limits": self.limits, "windows": self.windows}
        parse = _Parse(self.schema, options, self.keep_raw, self.stop, self.keep_lines)
        outputs = records | "Parse" >> beam.ParDo(parse).with_outputs(REJECTS, main="sequences")
        return {"sequences": outputs["sequences"], "rejects": outputs[REJECTS]}


class _Parse(beam.DoFn):
    """Raw records -> lists of (ParsedRecord, Origin), and a Reject under the tag REJECTS.

    Args:
        options: Keyword arguments of `parse_record`.
    """

    def __init__(
        self, schema: Schema, options: dict[str, Any], keep_raw: bool, stop: EarlyStop | None, keep_lines: bool = True
    ) -> None:
        self._schema = schema
        self._options = options
        self._keep_raw = keep_raw
        self._stop = stop
        self._keep_lines = keep_lines
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def start_bundle(self) -> None:
        self._first_records = FirstRecords(self._stop)

    def process(self, element: Any) -> Iterable[Any]:
        sequences = []
        for result in self._parse(element):
            if isinstance(result, Reject):
                self._rejected.inc()
                yield beam.pvalue.TaggedOutput(REJECTS, result)
            else:
                sequences.append(result)
        self._parsed.inc(len(sequences))
        if sequences:
            yield sequences

    def _parse(self, element: Any) -> Iterator[tuple[ParsedRecord, Origin] | Reject]:
        if isinstance(element, LineBatch):
            # Several steps may get the same element, and `parse_lines` removes the lines.
            batch = element._replace(lines=list(element.lines)) if self._keep_lines else element
            results = parse_lines(batch, self._schema, keep_raw=self._keep_raw, **self._options)
            self._first_records.begin(batch)
            yield from self._first_records.watch(results)
        elif not isinstance(element, str | bytes) or element.strip():
            raw = _raw_bytes(element)
            origin = Origin(None, 0, 0, 0, hashlib.sha256(raw).digest(), raw if self._keep_raw else None)
            parse: Callable[..., ParsedRecord] = parse_line if isinstance(element, str | bytes) else parse_record
            try:
                yield parse(element, self._schema, **self._options), origin
            except RecordError as error:
                yield Reject(error.reason, error.message, error.id, origin)


def _raw_bytes(element: Any) -> bytes:
    """Returns the bytes of a line, or the canonical JSON of any other record."""
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8", "surrogatepass")
    try:
        return canonical_json(element)
    except RecordError:  # nested too deeply to be written as JSON; the parser decides whether to reject the record
        return b""
