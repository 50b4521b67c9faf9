"""Text files as users write them: lists of names, class files."""

from __future__ import annotations

import codecs

from cp2_jax.data import files
from cp2_jax.data.errors import SourceError
from cp2_jax.paths import AnyPath

# The longer ones first: UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST = 2**30  # bytes: a list of ten million names


def read_lines(path: str | AnyPath, error: type[SourceError] = SourceError) -> list[str]:
    """Return the lines of a text file, without their ends.

    UTF-8 with or without a byte order mark, and UTF-16 and UTF-32 with one, as Windows' editors and PowerShell write them;
    lines end as Unix, Windows or old Macs end them.

    Args:
      error: what to raise.

    Raises:
      SourceError: (or `error`) naming the file, if it cannot be read or is in another encoding.
    """
    try:
        if files.stamp(path)[0] > _LONGEST:
            raise error(f"{path} is larger than a text file of names would be; is it another kind of file?")
        data = files.read(path)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    return lines_of(data, str(path), error)


def lines_of(data: bytes, path: str, error: type[SourceError] = SourceError) -> list[str]:
    """Return the lines of a text file that was read.

    Args:
      data: what is in it.
      path: for messages; error: what to raise.

    Raises:
      SourceError: (or `error`) naming the file, if it is in another encoding; see `read_lines`.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise error(f"{path} is not {encoding.upper()} text (line {line}); save it as UTF-8") from problem
    if "\0" in text:
        raise error(f"{path} is not UTF-8 text (it has zero bytes, as UTF-16 without a mark has); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n") if text else []
