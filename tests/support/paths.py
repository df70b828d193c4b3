"""The folders that tests need, wherever the tests lie."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
