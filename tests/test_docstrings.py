"""The examples in docstrings are correct."""

import doctest
import importlib

import pytest
from paths import ROOT

WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("pipeline", "trainer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_hold(module):
    failed, tried = doctest.testmod(
        importlib.import_module(module), extraglobs={"np": importlib.import_module("numpy")}
    )
    assert tried and not failed
