"""One run at a time in a work directory."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers.paths import ROOT

from cp2_jax.runs import lock

HOLDER = """
import sys, time
from cp2_jax.runs import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def another_process(workdir):
    """Start a process that holds the lock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(workdir)], env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_second_is_told_who_holds_it_until_that_process_is_gone(tmp_path):
    process = another_process(tmp_path)
    try:
        with pytest.raises(lock.Busy, match=f"process {process.pid} on {socket.gethostname()} is at work in {tmp_path}"):
            with lock.held(tmp_path):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lock.held(tmp_path):  # at once: it was killed, and could tidy up nothing
        pass


def test_it_is_given_back_after_use_and_after_errors(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
            raise ZeroDivisionError
    assert (tmp_path / lock.NAME).read_text() == ""


def elsewhere(tmp_path):
    """A lock of another host, whose file lock this one cannot see."""
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "2026-01-01 00:00:00"}))
    return path


@pytest.mark.parametrize("ahead", [0, 10**6, -(10**6)])
def test_another_hosts_lock_holds_while_it_shows_signs_of_life(tmp_path, monkeypatch, ahead):
    """However wrong the clock of this host is."""
    path, stop, clock = elsewhere(tmp_path), threading.Event(), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)

    def beat():
        while not stop.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(lock.Busy, match="process 7 on elsewhere is at work .* since 2026"), lock.held(tmp_path, 2.0):
            pass
    finally:
        stop.set()
        thread.join()


def test_another_hosts_lock_without_a_sign_of_life_is_taken_over(tmp_path):
    elsewhere(tmp_path)
    with lock.held(tmp_path, patience=0.2):
        assert json.loads((tmp_path / lock.NAME).read_text())["host"] == socket.gethostname()
    os.utime(elsewhere(tmp_path), (0, 0))
    begin = time.monotonic()
    with lock.held(tmp_path, patience=60.0):  # long gone: nobody waits
        assert time.monotonic() - begin < 30


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_a_broken_lock_file_is_nobodys(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()


def no_locks(file, operation):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_without_file_locks_a_process_of_this_host_holds_as_long_as_it_lives(tmp_path, monkeypatch):
    """Some network file systems and container volumes have none; both would train in the same folder."""
    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    monkeypatch.setattr(lock, "_BEAT", 0.05)
    with lock.held(tmp_path):
        with pytest.raises(lock.Busy, match=f"process {os.getpid()} on .* is at work in {tmp_path}"):
            with lock.held(tmp_path, 2.0):
                pass
    with lock.held(tmp_path):  # given back
        pass


def test_without_file_locks_a_dead_process_of_this_host_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    process = subprocess.Popen(["true"])
    process.wait()
    (tmp_path / lock.NAME).write_text(json.dumps({"host": socket.gethostname(), "process": process.pid}))
    with lock.held(tmp_path, 60.0):  # at once
        pass
