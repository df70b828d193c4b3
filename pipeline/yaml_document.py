"""Parses a YAML document into a pydantic model, and reports an error in the document as one line."""

import difflib
import re
from typing import Any, TypeVar

import pydantic
import pydantic_core
import yaml

from pipeline.errors import UserError, show

# For values that a later version will support. It explains more than "unknown key", and ignoring them would be worse.
PLANNED = "is planned, but this version does not have it yet"


class Document(pydantic.BaseModel):
    """Base class of the models. An unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, populate_by_name=True)


Model = TypeVar("Model", bound=Document)


class _Loader(yaml.SafeLoader):
    """Loads YAML with the scalars of YAML 1.2, so that the classes `yes`, `no`, `010` and `1:30` stay strings.

    Duplicate keys are errors. Aliases are errors too: a few lines of them can expand to more values than memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"the alias *{event.anchor} is not supported; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        entries = node.value if isinstance(node, yaml.MappingNode) else []  # else `!!map word`, an error below
        keys = [self.construct_object(key, deep=True) for key, _ in entries]
        for key in keys:
            if isinstance(key, list | dict):
                raise yaml.MarkedYAMLError(problem=f"a key must be a string, not {key!r}", problem_mark=node.start_mark)
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is a duplicate", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,18})$"), list("-+0123456789")
)


def parse_yaml(text: str | bytes, *, origin: str) -> dict[str, Any]:
    """Parses a YAML document whose top level is a mapping.

    Raises:
        UserError: The text is not valid YAML or not a mapping. The message has `origin`, line and column.
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # a SafeLoader, which creates no Python objects
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{origin}{place}: not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{origin}: not valid YAML: nested too deeply.") from None
    if not isinstance(document, dict):
        raise UserError(f"{origin}: contains {_show(document)}, expected keys and values (key: value).")
    return document


def validate(model: type[Model], values: dict[str, Any], *, origin: str) -> Model:
    """Returns `values` as a `model`.

    Raises:
        UserError: A value is wrong. The message has the path of the key, the value and what was expected.
    """
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        # An unknown key is often a misspelt key, which is reported as missing too. So unknown keys come first.
        errors = sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
        raise UserError(f"{origin}: {_describe(model, values, errors[0])}") from None


_ERROR_WITH_PATH = "error_with_path"


def error_with_path(message: str) -> pydantic_core.PydanticCustomError:
    """Returns an error for a validator to raise, whose message already has the path of the key and the value."""
    return pydantic_core.PydanticCustomError(_ERROR_WITH_PATH, "{message}", {"message": message})


# Messages in terms of YAML that replace pydantic's messages in terms of Python.
_EXPECTED = {
    "bool_type": "should be true or false",
    "tuple_type": "should be a list: [a, b]",
    "dict_type": "should be keys and values: {key: value}",
    "model_type": "should be keys and values: {key: value}",
    "string_too_short": "should have at least one character",
}


def _describe(model: type[Document], values: dict[str, Any], error: Any) -> str:
    """Returns one line for an error of pydantic: the path of the key, the value and what was expected."""
    path = ".".join(_show_key(part) for part in _key_path(error["loc"], values))
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: this key is missing."
    message = _EXPECTED.get(error["type"]) or error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.removesuffix(".") + "."
    has_path = error["type"] == _ERROR_WITH_PATH or (error["type"] == "value_error" and not path)
    return message if has_path else f"{path}: {_show(error['input'])}: {message}"


def _key_path(loc: tuple[Any, ...], values: Any) -> list[Any]:
    """Returns the parts of an error's location that are keys of the document. Pydantic adds names of union members."""
    path, inner = [], values
    for position, part in enumerate(loc):
        if part == "[key]":  # pydantic's mark for an error of the key itself
            continue
        last = position == len(loc) - 1
        if isinstance(inner, dict) and (part in inner or last):
            path.append(part)
            inner = inner.get(part)
        elif isinstance(inner, list) and isinstance(part, int) and part < len(inner):
            path.append(part)
            inner = inner[part]
    return path


def _known_keys(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """Returns the keys of the model at the location `loc` within `model`."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field else model
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)]
        model = models[0] if models else annotation
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _show_key(key: Any) -> str:
    return key if isinstance(key, str) and key.isprintable() else _show(key)


def _show(value: Any) -> str:
    return show(value, max_characters=80)
