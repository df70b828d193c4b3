"""Reads a document that a user writes (YAML) into a pydantic model; what is wrong comes out as one line."""

import difflib
import json
import re
from typing import Any, TypeVar

import pydantic
import yaml

from pipeline.errors import UserError

# What later versions will read. Naming it beats "unknown key", and beats accepting and ignoring it by far.
PLANNED = "is planned, but this version does not have it yet"


class Document(pydantic.BaseModel):
    """A model whose keys are all known: an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, populate_by_name=True)


Model = TypeVar("Model", bound=Document)


class _Loader(yaml.SafeLoader):
    """YAML with the words of YAML 1.2, so that the classes `yes`, `no`, `010` and `1:30` stay strings; no key twice.

    No aliases either: a few lines of them can stand for more values than fit into any memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor}: write it out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        entries = node.value if isinstance(node, yaml.MappingNode) else []  # else: `!!map word`, refused below
        keys = [self.construct_object(key, deep=True) for key, _ in entries]
        for key in keys:
            if isinstance(key, list | dict):
                raise yaml.MarkedYAMLError(problem=f"a key must be a word, not {key!r}", problem_mark=node.start_mark)
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=node.start_mark)
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
    """The mapping that a YAML document holds.

    Raises:
        UserError: no YAML, or no mapping; names `origin`, line and column.
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes no objects
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{origin}{place}: not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{origin}: not valid YAML: nested too deep.") from None
    if not isinstance(document, dict):
        raise UserError(f"{origin}: holds {_show(document)}, expected keys and values (key: value).")
    return document


def validate(model: type[Model], values: dict[str, Any], *, origin: str) -> Model:
    """`values` as a `model`.

    Raises:
        UserError: the first thing wrong, with the path of the key, the value and what was expected.
    """
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        # An unknown key explains the "missing" one beside it, so it is told first.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise UserError(f"{origin}: {_explain(model, values, faults[0])}") from None


# What pydantic says of Python, said of the document.
_EXPECTED = {
    "tuple_type": "should be a list: [a, b]",
    "dict_type": "should be keys and values: {key: value}",
    "model_type": "should be keys and values: {key: value}",
    "string_too_short": "should have at least one character",
}


def _explain(model: type[Document], values: dict[str, Any], fault: Any) -> str:
    path = ".".join(_show_key(part) for part in _key_path(fault["loc"], values))
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        return f"{path}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{path}: this key is missing."
    message = _EXPECTED.get(fault["type"]) or fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.removesuffix(".") + "."
    return message if fault["type"] == "value_error" and not path else f"{path}: {_show(fault['input'])}: {message}"


def _key_path(loc: tuple[Any, ...], values: Any) -> list[Any]:
    """The parts of a fault's place that are really keys of the document (pydantic adds names of union members)."""
    path, here = [], values
    for position, part in enumerate(loc):
        if part == "[key]":  # pydantic's word for: the key itself
            continue
        last = position == len(loc) - 1
        if isinstance(here, dict) and (part in here or last):
            path.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path.append(part)
            here = here[part]
    return path


def _known_keys(model: Any, loc: tuple[Any, ...]) -> list[str]:
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
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
