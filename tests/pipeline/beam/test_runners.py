"""A job's errors: an error that the user can fix becomes a UserError, any other exception stays what it is."""

import logging
import pickle

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.beam.options import complete_options, runs_in_this_process
from pipeline.beam.run_job import _errors_not_logged
from pipeline.beam.runners import make_pipeline
from pipeline.beam.worker_errors import user_error
from pipeline.errors import LockTimeout, NothingNew, TryAgain, UserError

FRAMES = 'Traceback (most recent call last):\n  File "common.py", line 1, in process\n    function(element)\n'
HANDLED = "\nDuring handling of the above exception, another exception occurred:\n\n"
STEP = " [while running 'Prepare/MakeRuns']"
USER_ERROR = "pipeline.errors.UserError: raw.jsonl: the value is 3, expected 4."
NO_FILE = "FileNotFoundError: [Errno 2] No such file or directory: 'raw.jsonl'"


@pytest.mark.parametrize(
    "error",
    [
        UserError("raw.jsonl: the value is 3, expected 4."),
        UserError(f"raw.jsonl: the value is 3, expected 4.{STEP}"),
        RuntimeError(f"{FRAMES}{USER_ERROR}\n"),
        RuntimeError(f"{FRAMES}{USER_ERROR}\n{HANDLED}{FRAMES}{USER_ERROR}{STEP}\n"),
        RuntimeError(f"{FRAMES}KeyError: 'x'\n{HANDLED}{FRAMES}{USER_ERROR}\n\n\tat Worker.run(Worker.java:3)\n"),
    ],
    ids=["exception", "exception_of_a_step", "traceback", "chained_traceback", "inside_another_log"],
)
def test_a_user_error_of_a_worker_keeps_its_message(error):
    found = user_error(error)
    assert isinstance(found, UserError)
    assert str(found) == "raw.jsonl: the value is 3, expected 4."


@pytest.mark.parametrize(("kind", "status"), [(UserError, 1), (NothingNew, 3), (LockTimeout, 69), (TryAgain, 75)])
def test_a_user_error_of_a_worker_keeps_its_class_and_status(kind, status):
    text = f"pipeline.errors.{kind.__name__}: raw.jsonl: wrong.{STEP}"
    errors = [
        kind(f"raw.jsonl: wrong.{STEP}"),
        RuntimeError(text),
        RuntimeError(f"{FRAMES}KeyError: 'x'\n{HANDLED}{FRAMES}{text}\n"),
        RuntimeError(f"{FRAMES}{text}\n{HANDLED}{FRAMES}RuntimeError: {text}\n"),
    ]
    for error in errors:
        found = user_error(error)
        assert (type(found), found.status, str(found)) == (kind, status, "raw.jsonl: wrong.")


def test_a_runner_in_this_process_keeps_the_class_of_an_error():
    def fail(element):
        raise TryAgain("dataset: changed.")

    pipeline = beam.Pipeline(runner=FnApiRunner())
    pipeline | beam.Create([1]) | beam.Map(fail)
    with pytest.raises(Exception) as raised:
        pipeline.run().wait_until_finish()
    found = user_error(raised.value)
    assert (type(found), str(found)) == (TryAgain, "dataset: changed.")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "raw.jsonl"),
        RuntimeError(f"{NO_FILE}{STEP}"),
        RuntimeError(f"{FRAMES}{NO_FILE}\n"),
        RuntimeError(f"{FRAMES}{NO_FILE}\n{HANDLED}{FRAMES}RuntimeError: {NO_FILE}{STEP}\n"),
    ],
    ids=["exception", "exception_of_a_step", "traceback", "chained_traceback"],
)
def test_a_file_error_of_a_worker_becomes_a_user_error(error):
    assert str(user_error(error)) == (
        "A file could not be read or written: [Errno 2] No such file or directory: 'raw.jsonl'. Nothing was published."
    )


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RuntimeError(""),
        RuntimeError(f"{FRAMES}KeyError: 'x'\n"),
        # The bug was raised after an OSError was handled.
        RuntimeError(f'{FRAMES}{NO_FILE}\n{HANDLED}{FRAMES}KeyError: "x{STEP}"\n'),
        RuntimeError(f"{FRAMES}{USER_ERROR}\n{HANDLED}{FRAMES}TypeError: not a number{STEP}\n"),
        # A message quotes a line that looks like another exception.
        ValueError(f"cannot parse\n{NO_FILE}\nas a number"),
        RuntimeError(f"{FRAMES}ValueError: cannot parse\n{NO_FILE}\nas a number\n"),
    ],
    ids=["exception", "empty", "traceback", "after_a_file_error", "after_a_user_error", "message", "traceback_message"],
)
def test_any_other_exception_is_not_a_user_error(error):
    assert user_error(error) is None


def test_jobs_in_several_threads_leave_the_log_as_it_was():
    """The first job that starts is also the first that ends."""
    before = logging.root.manager.disable
    first, second = _errors_not_logged(), _errors_not_logged()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.root.manager.disable == logging.ERROR
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == before


@pytest.mark.parametrize("runner", [{}, {"runner": "DirectRunner"}])
def test_several_local_workers_run_in_processes_unless_another_mode_is_given(runner, capsys):
    for given, mode in [
        ({"direct_num_workers": 4}, "multi_processing"),
        ({"direct_num_workers": 0}, "multi_processing"),
        ({"direct_num_workers": 4, "direct_running_mode": "multi_threading"}, "multi_threading"),
        ({"direct_num_workers": 1}, "in_memory"),
        ({}, "in_memory"),
    ]:
        options = make_pipeline(runner | given).options.view_as(DirectOptions)
        assert (options.direct_running_mode, options.direct_num_workers) == (mode, given.get("direct_num_workers", 1))
        assert runs_in_this_process(runner | given) == (mode == "in_memory")
        where = {"multi_processing": "processes of this machine", "multi_threading": "threads of this process"}
        assert capsys.readouterr().err == f"Running in {where.get(mode, 'this process')} (FnApiRunner).\n"
    assert complete_options({"runner": "FlinkRunner", "direct_num_workers": 4}).get("direct_running_mode") is None


def test_a_view_of_the_options_of_a_pipeline_is_made_once_and_shows_their_values():
    options = make_pipeline({"direct_num_workers": 3}).options
    view = options.view_as(DirectOptions)
    assert view is options.view_as(DirectOptions) and view.direct_num_workers == 3
    view.direct_num_workers = 5
    options.view_as(StandardOptions).streaming = True
    copy = pickle.loads(pickle.dumps(options))
    for same in (options, copy):
        assert {"direct_num_workers": 5, "streaming": True}.items() <= same.get_all_options().items()
        assert same.view_as(DirectOptions).direct_num_workers == 5
    copy.view_as(DirectOptions).direct_num_workers = 7
    assert view.direct_num_workers == 5
