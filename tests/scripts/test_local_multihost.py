"""The launcher of several processes on this machine: they find each other, and none waits for another in vain."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.paths import ROOT


def run_local(*arguments, patience="5"):
    """Start the launcher as a terminal does: a shell that is begun with SIGINT ignored, as jobs in the background of a
    script are, can never hear it."""
    environment = os.environ | {"PYTHON": sys.executable, "PATIENCE": patience}
    return subprocess.Popen(
        ["bash", ROOT / "scripts" / "launch" / "local_multihost.sh", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def toy(workdir, steps):
    return ["tests/helpers/processes.py", "--config=configs/pretrain_demo.py", f"--workdir={workdir}", f"--steps={steps}"]


def test_local_processes_find_each_other_stop_on_sigterm_and_go_on(tmp_path):
    first = run_local("2", "2", *toy(tmp_path, 100000))
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    printed, errors = first.communicate(timeout=300)
    assert first.returncode == 75, errors
    assert "[0] starting at 0 with 2 processes, 4 devices" in printed
    stopped = int(re.search(r"\[1\] .*after step (\d+), saved", errors)[1])
    # The checkpoint of 2 x 2 goes on, on one process with one device.
    second = run_local("1", "1", *toy(tmp_path, stopped + 2))
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert f"[0] starting at {stopped} with 1 processes, 1 devices" in printed
    total = float(sum(28 + 8 * n for n in range(stopped + 2)))
    assert f"ended at {stopped + 2} with {total}" in printed


@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "1", "x.py"], ["two", "1", "x.py"]])
def test_local_usage(arguments):
    process = run_local(*arguments)
    assert "usage: local_multihost.sh" in process.communicate()[1] and process.returncode == 2


def test_a_failing_command_is_not_to_be_run_again():
    process = run_local("1", "1", "-c", "import sys; sys.exit(3)")
    process.communicate()
    assert process.returncode == 3


APART = """
import signal, sys, time
if sys.argv[-1] == "--process_id=1":
    print("hm", file=sys.stderr)
    sys.exit("error: no such key")
if sys.argv[-1] == "--process_id=2":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("waiting", flush=True)
time.sleep(300)
"""


def test_an_error_of_one_process_ends_those_that_wait_for_it(tmp_path):
    """Process 0 ends at SIGTERM, process 2 does not heed it, as in a run that has begun."""
    (tmp_path / "apart.py").write_text(APART)
    process = run_local("3", "1", str(tmp_path / "apart.py"), patience="0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "[1] error: no such key\n" in errors
    assert "\nprocess 1 ended with status 1, so the rest (0 2) is ended, too: [1] error: no such key\n" in f"\n{errors}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_all_processes(tmp_path, number):
    """Ctrl-C, too, which processes in the background of a script ignore."""
    (tmp_path / "wait.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('waiting', flush=True)\ntime.sleep(300)"
    )
    process = run_local("2", "1", str(tmp_path / "wait.py"))
    assert sum("waiting" in process.stdout.readline() for _ in range(3)) == 2  # and one line of the script's own
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_sigterm_before_the_run_has_begun_is_one_line(tmp_path):
    """Python that is still starting does not listen yet, and ends without a word (status 143)."""
    (tmp_path / "wait.py").write_text("import time\nprint('waiting', flush=True)\ntime.sleep(300)")
    process = run_local("2", "1", str(tmp_path / "wait.py"))
    assert sum("waiting" in process.stdout.readline() for _ in range(3)) == 2
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == "stopped by a signal before the run had begun: run the same command again\n"


@pytest.mark.parametrize("end, status, again", [("os.kill(os.getpid(), 9)", 137, False), ("sys.exit(75)", 75, True)])
def test_a_process_that_is_gone_ends_those_that_do_not_notice_it(tmp_path, end, status, again):
    """Those that are still looking for it, for instance; one that was told to run again kills none."""
    (tmp_path / "apart.py").write_text(
        f"import os, signal, sys, time\nif sys.argv[-1] == '--process_id=1':\n    {end}\n"
        f"signal.signal(signal.SIGTERM, lambda *_: {'(time.sleep(2), sys.exit(75))' if again else 'None'})\ntime.sleep(300)"
    )
    process = run_local("2", "1", str(tmp_path / "apart.py"), patience="0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"process 1 ended with status {status}, so the rest (0) is ended, too:" in errors
