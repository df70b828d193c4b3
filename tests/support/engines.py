"""Services of an engine that run in this process and take no jobs: a job server of Beam and the REST of Flink."""

import contextlib
import http.server
import json
import socket
import threading
from concurrent import futures

import grpc
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

KINDS = beam_job_api_pb2.PipelineOptionType


class _JobServer(beam_job_api_pb2_grpc.JobServiceServicer):
    def DescribePipelineOptions(self, request, context):
        options = [("retries", KINDS.INTEGER, "-1"), ("stop_early", KINDS.BOOLEAN, "true")]
        options += [("labels", KINDS.ARRAY, ""), ("parallelism", KINDS.INTEGER, "-1")]
        described = [
            beam_job_api_pb2.PipelineOptionDescriptor(name=name, type=kind, default_value=default)
            for name, kind, default in options
        ]
        return beam_job_api_pb2.DescribePipelineOptionsResponse(options=described)


@contextlib.contextmanager
def job_server():
    """Yields the address of a job server with the options retries, stop_early, labels and parallelism."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(_JobServer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextlib.contextmanager
def rest_service(answers):
    """Yields the address of a service that answers requests.

    Args:
        answers: What it answers, by path: a value that becomes JSON, or bytes. The dict may change. A PATCH request is
            answered with {}, its path is appended to the list `patched`, and the function `on_patch` is called.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def do_PATCH(self):
            answers.setdefault("patched", []).append(self.path)
            answers.get("on_patch", lambda: None)()
            self.send_response(202)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def unused_address():
    """Returns an address at which nothing answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
