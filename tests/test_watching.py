"""A test process that dies ends the run at once, and the run says at which test."""

import os
import subprocess
import sys
import textwrap

import pytest
from helpers import watching
from helpers.paths import ROOT

PASSES = "def test_passes(): pass\n"
DIES = """
    import os, signal, subprocess
    def test_fine(): pass
    def test_dies():
        subprocess.Popen(["sleep", "90"])  # left behind, as a process of the data pipeline would be
        os.kill(os.getpid(), signal.SIGKILL)
    def test_later(): pass
    """
WAITS = "import time\ndef test_waits(): time.sleep(600)\n"


def run(folder, *arguments, **files):
    """Run pytest over small files of tests; more than 60 seconds are a failure."""
    for name, source in files.items():
        (folder / f"test_{name}.py").write_text(textwrap.dedent(source))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    options = ["-p", "helpers.watching", "-p", "no:cacheprovider", "-q", *arguments, str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("last", [True, False], ids=["at the end", "before others"])
def test_a_killed_process_ends_the_run(tmp_path, last):
    """Also where another process is busy, and where no file is left to hand out (with xdist alone the run hung there)."""
    files = {"a": DIES, "b": WAITS} if last else {"a": DIES, "b": WAITS, "c": PASSES, "d": PASSES, "e": PASSES}
    status, said = run(tmp_path, "-n", "2", "--dist", "loadfile", **files)
    assert status == watching.CRASHED, said
    assert "test process gw" in said and "was killed (signal 9" in said
    assert "while it ran test_a.py::test_dies" in said


def test_a_failure_with_text_that_utf8_cannot_encode_is_told(tmp_path):
    """With xdist alone the run broke off at the report."""
    status, said = run(tmp_path, "-n", "1", a=PASSES, b="def test_fails(): assert 'caf\\udce9' == 'cafe'\n")
    assert status == 1 and "1 failed, 1 passed" in said and "caf" in said


def test_other_runs_are_as_they_were(tmp_path):
    status, said = run(tmp_path, "-n", "2", a=PASSES, b=PASSES, c="def test_fails(): assert False\n")
    assert status == 1 and "1 failed, 2 passed" in said
    assert "memory of the test processes: gw0 " in said and "gw1 " in said
    status, said = run(tmp_path, "-p", "no:xdist", a=PASSES, b=PASSES, c=PASSES)
    assert status == 0 and "3 passed" in said
    assert "memory of the test processes: main " in said and "GiB at most" in said
