"""Messages on a terminal: broken at spaces, where the terminal would break inside words. A file or a pipe gets one line."""

import dataclasses
import logging
import shutil
from typing import TextIO

from cp2_jax.lines import WIDTH, wrap


def width(stream: TextIO) -> int:
    """Return how many columns a stream's lines may have; 0: as many as they need, for nobody reads them on a terminal."""
    return min(WIDTH, shutil.get_terminal_size().columns) if stream.isatty() else 0


def wrapped(text: str, columns: int) -> str:
    """Return a text whose lines have at most so many columns, as far as its words (paths, values) allow.

    Args:
      columns: 0 leaves the text as it is.
    """
    if not columns:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += wrap(line, columns, further=f"{indent}  ") if len(line) > columns else [line]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Lines:
    """What `logging` formats records with: "WARNING: …", wrapped for a terminal.

    Attributes:
      stream: where the lines go.
    """

    stream: TextIO

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        text = f"{record.levelname}: {record.getMessage()}"
        if record.exc_info:
            return f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        return wrapped(text, width(self.stream))
