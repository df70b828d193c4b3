"""Many records whose step features are arrays over all of them: the output of parsing, and the input of encoding."""

from typing import NamedTuple

from pipeline.schema.record import Array, ParsedRecord


class RecordBatch(NamedTuple):
    """Records that fit the schema, without a missing value in a step feature.

    Attributes:
        records: The records. Their `features` are empty.
        features: Step features by name: float32[values] or int64[values], the num_steps × width values of the first
            record, then those of the second, and so on.
    """

    records: list[ParsedRecord]
    features: dict[str, Array]
