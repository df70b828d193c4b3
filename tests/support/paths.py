"""The folders that tests need, independent of the folder of the test."""

import pathlib

# The root of the project.
ROOT = pathlib.Path(__file__).parents[2]
