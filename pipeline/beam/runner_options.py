"""The options of a runner itself, which Beam for Python does not have: those that the job server names, or a list."""

import argparse
import contextlib
from collections.abc import Iterable
from typing import Any

from pipeline.flags import FlagParser, natural

# Seconds that a job server has to name its options.
_TIMEOUT = 3

# The options of Beam's job server for Flink, without those that Beam for Python has, too. These take a string.
_FLINK = (
    "auto_watermark_interval checkpointing_mode execution_mode_for_batch flink_conf_dir report_checkpoint_duration "
)
_FLINK += "savepoint_path state_backend state_backend_factory state_backend_storage_path"
_FLINK_INTEGERS = (
    "checkpoint_timeout_millis checkpointing_interval execution_retry_delay file_input_split_max_size_m_b "
)
_FLINK_INTEGERS += "job_check_interval_in_secs latency_tracking_interval max_bundle_size max_bundle_time_mills "
_FLINK_INTEGERS += "max_parallelism min_pause_between_checkpoints num_concurrent_checkpoints parallelism "
_FLINK_INTEGERS += "number_of_execution_retries shutdown_sources_after_idle_ms"
_FLINK_BOOLEANS = "allow_non_restored_state attached_mode auto_balance_write_files_sharding_enabled disable_metrics "
_FLINK_BOOLEANS += (
    "enable_stable_input_drain externalized_checkpoints_enabled fail_on_checkpointing_errors faster_copy "
)
_FLINK_BOOLEANS += (
    "finish_bundle_before_checkpointing force_unaligned_checkpoint_enabled object_reuse operator_chaining "
)
_FLINK_BOOLEANS += "re_iterable_group_by_key_result retain_externalized_checkpoints_on_cancellation "
_FLINK_BOOLEANS += "unaligned_checkpoint_enabled use_data_stream_for_batch"
# Those of the job server for Spark 3.
_SPARK = "checkpoint_dir read_time_percentage spark_master storage_level"
_SPARK_INTEGERS = "batch_interval_millis bundle_size checkpoint_duration_millis max_records_per_batch "
_SPARK_INTEGERS += "min_read_time_millis streaming_timeout_ms"
_SPARK_BOOLEANS = "cache_disabled enable_spark_metric_sinks uses_provided_spark_context"
# Those of both.
_PORTABLE_INTEGERS = "environment_expiration_millis"
_PORTABLE_BOOLEANS = "enable_heap_dumps load_balance_bundles retain_docker_containers"


def add_runner_flags(parser: FlagParser, arguments: list[str], local_runners: Iterable[str | None]) -> None:
    """Adds the flags of the runner itself, if the arguments name a runner that is not local.

    Java's names of the options are accepted, too: --faster_copy and --fasterCopy.
    """
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    given.add_argument("--runner")
    given.add_argument("--job_endpoint")
    try:
        values, _ = given.parse_known_args(arguments)
    except argparse.ArgumentError:  # a value is missing, which the parser reports
        return
    if values.runner in local_runners:
        return
    options = ask_job_server(values.job_endpoint) if values.job_endpoint else {}
    for name, details in (options or list_options(values.runner)).items():
        names = [f"--{name}", f"--{_camel_case(name)}"]
        new = [each for each in dict.fromkeys(names) if each not in parser.flags]
        if names[0] in new:
            parser.add_argument(*new, dest=name, help="", **details)


def runner_kind(runner: str | None) -> str:
    """Returns the short name of a runner in lower case, as Beam accepts it, too.

    >>> runner_kind("FlinkRunner"), runner_kind("apache_beam.runners.portability.flink_runner.FlinkRunner")
    ('flink', 'flink')
    """
    return (runner or "").rpartition(".")[2].lower().removesuffix("runner")


def list_options(runner: str | None) -> dict[str, dict[str, Any]]:
    """Returns the options that a runner is known to have: how an argument parser reads each, by name."""
    name = runner_kind(runner)
    strings, integers, booleans = [], [_PORTABLE_INTEGERS], [_PORTABLE_BOOLEANS]
    if name in ("flink", "portable"):
        strings, integers, booleans = [_FLINK], [*integers, _FLINK_INTEGERS], [*booleans, _FLINK_BOOLEANS]
    if name in ("spark", "portable"):
        strings, integers, booleans = [*strings, _SPARK], [*integers, _SPARK_INTEGERS], [*booleans, _SPARK_BOOLEANS]
    kinds: list[tuple[dict[str, Any], list[str]]] = [({}, strings), (_INTEGER, integers), (_BOOLEAN, booleans)]
    return {option: kind for kind, words in kinds for option in " ".join(words).split()}


def ask_job_server(endpoint: str) -> dict[str, dict[str, Any]]:
    """Returns the options that a job server names, as `list_options` does; none if it does not answer."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    kinds: dict[int, dict[str, Any]] = {
        beam_job_api_pb2.PipelineOptionType.BOOLEAN: _BOOLEAN,
        beam_job_api_pb2.PipelineOptionType.INTEGER: _INTEGER,
        beam_job_api_pb2.PipelineOptionType.ARRAY: {"action": "append"},
    }
    with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        answer = service.DescribePipelineOptions(request, timeout=_TIMEOUT)
        return {option.name: kinds.get(option.type, {}) for option in answer.options}
    return {}


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text == "true"


def _integer(text: str) -> int:
    return -1 if text == "-1" else natural(text)  # -1 stands for the default of many options


_INTEGER = {"type": _integer}
# As in Java, the flag alone means true, also where that is the default.
_BOOLEAN = {"type": _boolean, "nargs": "?", "const": True}


def _camel_case(name: str) -> str:
    """Returns Java's name of an option.

    >>> _camel_case("faster_copy")
    'fasterCopy'
    """
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
