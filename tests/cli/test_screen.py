"""What is printed for people fits a terminal; what is printed for a file stays one line."""

import io
import logging
import os
import pathlib
import sys

import pytest

from cp2_jax import paths
from cp2_jax.cli import errors, main, screen
from cp2_jax.data import indexes
from cp2_jax.options import ConfigError

LONG = "the batch is larger than the data set: " + ", ".join(["config.batch_size=4"] * 12) + " /a" + "/long" * 30


def test_lines_are_broken_at_spaces_and_nothing_is_lost():
    text = f"first\n  {LONG}\n{'x' * 100}"
    lines = screen.wrapped(text, 80).split("\n")
    assert [line for line in lines if len(line) > 80] == ["    /a" + "/long" * 30, "x" * 100]  # paths stay whole
    assert lines[0] == "first" and lines[1].startswith("  the batch") and lines[2].startswith("    config.")
    assert "\n".join(lines).split() == text.split()
    assert screen.wrapped(text, 0) == text and screen.wrapped("short", 80) == "short"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, lines", [(io.StringIO, 1), (Terminal, 6)])
def test_errors_and_warnings_are_broken_for_a_terminal_alone(monkeypatch, stream, lines):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", stream())

    def call():
        raise ConfigError(LONG)

    assert errors.guarded(call) == errors.USAGE
    printed = sys.stderr.getvalue()
    assert printed.count("\n") == lines and printed.split() == ["error:", *LONG.split()]
    record = logging.LogRecord("any", logging.WARNING, "", 0, "%s", (LONG,), None)
    assert screen.Lines(sys.stderr).format(record).replace("WARNING", "error") == printed.rstrip("\n")


def test_a_record_keeps_its_traceback():
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("any", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    text = screen.Lines(Terminal()).format(record)
    assert text.startswith("ERROR: failed\nTraceback") and text.endswith("ValueError: why")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_locale_has_not_end_no_command(monkeypatch, encoding):
    """As in LANG=en_US, which many clusters set: the help itself has a letter that Latin-1 has not."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main.run("--help", [], "cp2") == 0
    print("stra\xdfe \u2026 \udce9")
    out.flush()
    shown = out.buffer.getvalue().decode(encoding)
    assert shown.startswith("usage: cp2 COMMAND \\u2026") and shown.endswith("e \\u2026 \\udce9\n")


def test_without_a_home_that_can_be_written_programs_are_not_kept(monkeypatch, tmp_path, caplog):
    """As in a container whose user has no home: the command runs, and a line says what to set."""

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for home in ("/proc/self", "/dev/null"):
        monkeypatch.setenv("HOME", home)
        assert paths.cache() is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache() == tmp_path / ".cache" / "cp2_jax" and paths.cache().is_dir()
    monkeypatch.setattr(pathlib.Path, "home", none)
    main.set_up()
    assert "set JAX_COMPILATION_CACHE_DIR to a folder of yours" in caplog.text
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert len(indexes.places(tmp_path / "a.tar", "tar")) == 1 + ("XDG_CACHE_HOME" in os.environ)
