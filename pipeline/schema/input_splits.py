"""Reads a schema for raw files that are given by split, so that the input of a record names its split."""

from pipeline.errors import UserError, show
from pipeline.schema.schema import Schema, SplitFromInputs


def use_inputs(schema: Schema, *, origin: str = "schema") -> Schema:
    """Returns the schema of a dataset whose splits are those of its inputs.

    Args:
        schema: Has no `splits`, or those of inputs.
        origin: Path of the schema, for messages.

    Raises:
        UserError: The schema has other splits.
    """
    if isinstance(schema.splits, SplitFromInputs):
        return schema
    if "splits" in schema.model_fields_set:
        raise UserError(
            f"{origin}: splits: {show(schema.canonical()['splits'])}: the inputs (--train, --validation, --test) name "
            "the splits; expected no splits, or only shares of train to move, such as {validation: 0.1}. To use these "
            "splits, give all raw files in one input."
        )
    return schema.model_copy(update={"splits": SplitFromInputs(inputs=True)})
