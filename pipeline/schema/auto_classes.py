"""Reads a schema with `classes: auto`, whose classes are not known before they are collected from the records."""

from collections.abc import Iterable

from pipeline.errors import UserError
from pipeline.files import read_bytes
from pipeline.schema.labels import AUTO
from pipeline.schema.schema import Schema
from pipeline.yaml_document import parse_yaml, validate


def read_schema(path: str) -> Schema:
    """Reads the schema in the YAML file `path`. With `classes: auto`, its label is open: it has no classes yet.

    Raises:
        UserError: The file cannot be read, or the schema is invalid (see `Schema.parse`).
    """
    return parse_schema(read_bytes(path), origin=path)


def parse_schema(text: str | bytes, *, origin: str = "schema") -> Schema:
    """Parses the YAML text of a schema. See `read_schema`."""
    values = parse_yaml(text, origin=origin)
    label = values.get("label")
    if not isinstance(label, dict) or label.get("classes") != AUTO:
        return validate(Schema, values, origin=origin)
    if label.get("kind") == "distribution":
        raise UserError(
            f'{origin}: label.classes: "{AUTO}": a distribution does not name its classes; expected a list, in the '
            "order of the probabilities."
        )
    schema = validate(Schema, values | {"label": label | {"classes": [AUTO]}}, origin=origin)
    return schema.model_copy(update={"label": schema.label.model_copy(update={"classes": ()})})


def fix_classes(schema: Schema, classes: Iterable[bool | int | str], *, hint: str) -> Schema:
    """Returns a schema with these classes. It equals the schema whose file lists them.

    Args:
        hint: Why any other class is unknown, for messages.
    """
    values = schema.canonical()
    fixed = Schema.model_validate(values | {"label": values["label"] | {"classes": list(classes)}})
    fixed.label.__dict__["unknown_class_hint"] = hint
    return fixed
