"""A value in a message is cut before it is converted; every error of this project can be pickled."""

import ast
import builtins
import importlib
import inspect
import json
import pickle
import tracemalloc
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from pipeline.errors import counted, quote, rate, show

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=6) | st.tuples(inner) | st.dictionaries(st.text(max_size=9), inner),
)


def show_slowly(value: Any, *, max_characters: int) -> str:
    """Returns the same text as `show`, from the whole value."""
    text = json.dumps(value, ensure_ascii=False)
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= max_characters else text[: max_characters - 3] + "..."


@given(VALUES, st.integers(3, 70))
def test_a_value_is_shown_as_its_json_cut_to_a_length(value, max_characters):
    assert show(value, max_characters=max_characters) == show_slowly(value, max_characters=max_characters)


def test_numbers_are_followed_by_their_noun_and_rates_have_two_digits():
    assert [
        counted(n, noun) for n, noun in ((0, "record"), (1, "class"), (2, "class"), (1000, "batch"), (2, "epoch"))
    ] == [
        "0 records",
        "1 class",
        "2 classes",
        "1,000 batches",
        "2 epochs",
    ]
    assert [rate(n, "step", 4) for n in (0, 1, 30, 39, 40, 1_234_567)] == [
        "0 steps/s",
        "0.25 steps/s",
        "7.5 steps/s",
        "9.8 steps/s",
        "10 steps/s",
        "308,642 steps/s",
    ]
    assert rate(3, "record", 0) == "3,000,000,000 records/s"


def test_only_the_part_of_a_value_that_is_shown_is_converted():
    many = 1_000_000
    circle: list[Any] = []
    circle.append(circle)
    values: list[Any] = ["x" * many, b"x" * many, [0] * many, [["x" * many]], dict.fromkeys(range(many)), circle]
    text = "x" * many
    tracemalloc.start()
    try:
        for value in values:
            assert len(show(value)) == 60
        assert len(quote(text)) == 62
        assert tracemalloc.get_traced_memory()[1] < many / 10
    finally:
        tracemalloc.stop()


# An argument for each type in the signature of an error.
ARGUMENTS = {
    "Literal": "not_json",
    "dict": {"loss": 1.5},
    "str": "a message",
    "int": 7,
    "bool": False,
    "ndarray": np.arange(3),
}


def all_errors() -> set[type[BaseException]]:
    """Returns the classes of errors that the modules of both packages define. Imports only these modules."""
    paths = [path for package in ("pipeline", "trainer") for path in (ROOT / package).rglob("*.py")]
    classes = [
        (path, node, {base.id for base in node.bases if isinstance(base, ast.Name)})
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    names = {name for name, value in vars(builtins).items() if inspect.isclass(value) and issubclass(value, Exception)}
    while not {node.name for _, node, bases in classes if bases & names} <= names:
        names |= {node.name for _, node, bases in classes if bases & names}
    modules = {
        node.name: ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path, node, bases in classes
        if bases & names
    }
    return {getattr(importlib.import_module(module), name) for name, module in modules.items()}


def test_every_error_is_the_same_after_pickling():
    kinds = all_errors()
    assert {"UserError", "RecordError", "CorruptRecord", "FaultError", "NonFiniteUpdate"} <= {k.__name__ for k in kinds}
    for kind in kinds:
        own = inspect.isfunction(kind.__init__)  # else it takes a message, as Exception does
        types = (
            [str(p.annotation) for p in inspect.signature(kind.__init__).parameters.values()][1:] if own else ["str"]
        )
        error = kind(*(next(value for name, value in ARGUMENTS.items() if name in text) for text in types))
        error.add_note("a note")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (str(again), repr(vars(again)), repr(again.args)) == (str(error), repr(vars(error)), repr(error.args))
