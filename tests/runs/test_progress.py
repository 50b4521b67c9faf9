"""Progress where nothing can be counted."""

import io
import sys

import pytest

from cp2_jax.runs import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, clock", [(io.StringIO, False), (Terminal, True)])
def test_waiting_says_for_what_and_on_a_terminal_how_long(monkeypatch, stream, clock):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError), progress.waiting("compiling"):
        raise ValueError
    printed = sys.stderr.getvalue()
    assert ("0:00:00" in printed) == clock
    assert "compiling" in printed if clock else printed == "compiling\n"
