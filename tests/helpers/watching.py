"""Watches the test processes: a pytest plugin, registered by conftest.

A process that dies (the system kills those that take too much memory) ends the whole run at once, and the run says which
test it was at. pytest-xdist by itself starts another process instead, which can meet the same end again and again, or waits
for one that never answers. At the end the plugin prints how much memory each process held.
"""

import pathlib
import re
import signal
import tempfile

import pytest

CRASHED = 70  # exit status of a run whose test process died


class Watch:
    """The plugin, in the process that reports and in those that run tests alike.

    Every process writes the name of the test that it runs into a file; the reporting process reads the file of one that
    died.
    """

    def __init__(self, config):
        worker = getattr(config, "workerinput", None)
        self.folder = pathlib.Path(worker["watched"] if worker else tempfile.mkdtemp(prefix="tests_"))
        self.name = worker["workerid"] if worker else "main"
        self.reports = worker is None
        self.memory: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        (self.folder / self.name).write_text(item.nodeid)
        result = yield
        (self.folder / self.name).write_text(f"nothing (last {item.nodeid})")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(self):
        """Let a report reach the process that reports: pytest-xdist ends a session over text that UTF-8 cannot encode."""
        return _encodable((yield))

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["memory"] = memory()
        else:
            self.memory[self.name] = memory()

    def pytest_terminal_summary(self, terminalreporter):
        held = ", ".join(f"{name} {text}" for name, text in sorted(self.memory.items()))
        terminalreporter.write_line(f"memory of the test processes: {held}")

    def pytest_unconfigure(self):
        if self.reports:
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()


class WatchWorkers:
    """What the reporting process does where there are others: hooks that only pytest-xdist knows."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def pytest_configure_node(self, node):
        node.workerinput["watched"] = str(self.watch.folder)

    @pytest.hookimpl(trylast=True)
    def pytest_testnodedown(self, node, error):
        if "memory" in getattr(node, "workeroutput", {}):
            self.watch.memory[node.gateway.id] = node.workeroutput["memory"]
        elif error and "keyboard" not in str(error):
            path = self.watch.folder / node.gateway.id
            test = path.read_text() if path.exists() else "nothing yet"
            pytest.exit(f"test process {node.gateway.id} {_end(node)} while it ran {test}", returncode=CRASHED)


def _encodable(value):
    """Return a report's data with names of files that are no text written as `\\udce9`."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return type(value)(map(_encodable, value)) if isinstance(value, list | tuple) else value


def register(config) -> None:
    """Add the plugin to a pytest session; called by `pytest_configure`."""
    watch = Watch(config)
    config.pluginmanager.register(watch, "watch")
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(WatchWorkers(watch), "watch_workers")


def memory() -> str:
    """What this process holds in memory now and held at most, in words; empty where the system does not tell."""
    path = pathlib.Path("/proc/self/status")
    if not path.exists():
        return ""
    kib = {name: int(value) for name, value in re.findall(r"(VmRSS|VmHWM):\s*(\d+)", path.read_text())}
    return f"{kib['VmRSS'] / 2**20:.1f} GiB at the end, {kib['VmHWM'] / 2**20:.1f} GiB at most"


def _end(node) -> str:
    """How a test process ended, as far as it can be told."""
    process = getattr(getattr(node.gateway, "_io", None), "popen", None)
    try:
        status = process.wait(timeout=5)
    except Exception:  # execnet's insides; the run has to end in any case
        return "died"
    if status == -signal.SIGKILL:
        return "was killed (signal 9: often the system's answer to too little memory)"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def pytest_configure(config):
    """For `pytest -p helpers.watching`, without this project's conftest."""
    register(config)
