"""The public API: the names that users write, their documentation, and an import that loads nothing heavy."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import lengthwise as lw

NAMES = (
    "Schema ReadLines ParseRecords WriteDataset PrepareFiles open_dataset batches plan_epoch foreign_batches "
    "build_model TrainConfig train evaluate predict export UserError Limits EventWindows"
).split()


def test_the_public_names_are_the_promised_ones():
    assert lw.__all__ == sorted(NAMES)
    assert set(NAMES) <= set(dir(lw))


def test_editors_see_the_same_names_as_the_interpreter():
    """The imports under TYPE_CHECKING and the table that `__getattr__` reads name the same modules."""
    tree = ast.parse(pathlib.Path(lw.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == lw._PUBLIC
    assert sorted(seen) == lw.__all__


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name):
    value = getattr(lw, name)
    documentation = inspect.getdoc(value)
    assert documentation and documentation.splitlines()[0].endswith(".")
    if inspect.isfunction(value):
        assert "Raises:" in documentation
        # Every parameter that has no obvious meaning is described; all have types.
        parameters = inspect.signature(value).parameters.values()
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lengthwise' has no attribute 'trian'; the public names are in"):
        lw.trian  # noqa: B018


def test_the_import_takes_milliseconds_and_loads_nothing_heavy():
    program = (
        "import sys, time; begin = time.process_time(); import lengthwise; seconds = time.process_time() - begin; "
        "print(seconds, *(name for name in ('numpy', 'apache_beam', 'tensorflow', 'pydantic') if name in sys.modules))"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        taken, *heavy = done.stdout.split()
        seconds.append(float(taken))
        assert heavy == []
    assert min(seconds) < 0.05  # processor time, so a busy machine does not matter


def test_the_names_are_imported_one_by_one():
    """A name of the pipeline does not load TensorFlow, and a name of the trainer does not load Beam."""
    program = (
        "import sys, lengthwise as lw; lw.Schema, lw.ParseRecords; assert 'tensorflow' not in sys.modules; "
        "lw.TrainConfig, lw.UserError; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
