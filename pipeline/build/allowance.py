"""Decides whether so few records were rejected that what the others became may be published."""

from pipeline.errors import UserError
from pipeline.format.manifest import Rejected
from pipeline.files import join

# Share of the records that may be rejected unless one says otherwise.
DEFAULT_MAX_REJECTED = 0.01


def check_rejected(rejected: Rejected, records: int, *, max_rejected: float, output: str, generation: str) -> None:
    """Raises a UserError with the reasons if more than a share of `max_rejected` was, or no record is left."""
    total = records + rejected.total
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())
    where = join(output, rejected.files[0] if len(rejected.files) == 1 else f"rejected/{generation}-*.jsonl")
    if total == 0:
        raise UserError("The input holds no record: its files are empty, or all lines blank. Nothing was published.")
    # Divided, so that 29 of 100 are 0.29 and not a rounding error more.
    if rejected.total / total > max_rejected:
        raise UserError(
            f"{rejected.total:,} of {total:,} records ({rejected.total / total:.2%}) were rejected: {reasons}; "
            f"at most {max_rejected:.2%} may be. Nothing was published. The rejects are in {where}; "
            "mend the records or the schema, or allow more with --max_rejected."
        )
    if records == 0:
        raise UserError(
            f"All {total:,} records were rejected: {reasons}. Nothing was published. The rejects are in {where}."
        )
