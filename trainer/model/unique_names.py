"""Names of layers that no feature of a schema has.

Without imports of our layers: the check of an export calls a SavedModel in a process that must not have them.
"""

import itertools
from collections.abc import Callable

from pipeline.schema.schema import Schema

# Returns the name itself, or a variant that no feature has: all names in a Keras model differ, including its inputs'.
UniqueName = Callable[[str], str]


def make_unique_name(schema: Schema) -> UniqueName:
    """Returns a function that appends underscores to a name until no feature of the schema has it."""

    def unique_name(name: str) -> str:
        return next(free for free in (name + "_" * n for n in itertools.count()) if free not in schema.features)

    return unique_name
