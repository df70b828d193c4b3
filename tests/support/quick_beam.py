"""Lets Beam build pipelines faster: the tests build hundreds of small ones, and each took a second of processor time.

The functions give the same results as before. They are private to Beam: if a later version of Beam has none of the
name, the tests do not start, and the call of `install` in tests/conftest.py can go.
"""

import types
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate


def install() -> None:
    """Lets Beam inspect each method and each DoFn, and build each view of a pipeline's options, only once."""
    core.get_function_args_defaults = _remember_arguments(core.get_function_args_defaults)
    userstate.get_dofn_specs = _remember_specs(userstate.get_dofn_specs)
    PipelineOptions.view_as = _remember_views(PipelineOptions.view_as)


def _remember_arguments(function: Any) -> Any:
    """Returns `get_function_args_defaults`, which calls inspect.signature once for a method, not once for each use."""
    known: dict[Any, tuple[list[str], list[Any]]] = {}

    def get_function_args_defaults(f: Any) -> tuple[list[str], list[Any]]:
        if not isinstance(f, types.MethodType):
            return function(f)
        if f.__func__ not in known:
            known[f.__func__] = function(f)
        arguments, defaults = known[f.__func__]
        return list(arguments), list(defaults)

    return get_function_args_defaults


def _remember_specs(function: Any) -> Any:
    """Returns `get_dofn_specs`, which looks for states and timers in a class of DoFns once, not in each DoFn."""
    known: dict[type, Any] = {}

    def get_dofn_specs(dofn: Any) -> Any:
        if any(isinstance(value, types.MethodType) for value in vars(dofn).values()):
            return function(dofn)  # it has a method that its class has not
        if type(dofn) not in known:
            known[type(dofn)] = function(dofn)
        return tuple(map(set, known[type(dofn)]))

    return get_dofn_specs


def _remember_views(function: Any) -> Any:
    """Returns `view_as`, which builds a parser of command line arguments once for each view, not once for each use."""
    known: dict[tuple[int, type], Any] = {}

    def view_as(options: Any, view_class: type) -> Any:
        # All views of the same options share this dictionary. A view keeps it alive, and so its id is not used again.
        key = id(options._all_options), view_class
        if key not in known:
            known[key] = function(options, view_class)
        return known[key]

    return view_as
