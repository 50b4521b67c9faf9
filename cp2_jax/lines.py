"""How messages and reports are broken into lines. Needs no package, so that a lacking one can be named in one line."""

import textwrap

WIDTH = 80  # columns of what is printed


def wrap(
    text: str, columns: int = WIDTH, first: str = "", further: str = "", *, cut: bool = False, most: int = 0, rest: str = ""
) -> list[str]:
    """Return a paragraph as lines, broken at spaces and never at hyphens, which names and values have.

    Args:
      columns: the most that a line has.
      first, further: what the first line and the others begin with.
      cut: a word (a path, a value) that is longer than a line is cut; otherwise it stays whole and its line is longer.
      most: the number of lines at most, 0 for any number.
      rest: the end of the last line where `most` left something out.
    """
    limit = {"max_lines": most, "placeholder": rest} if most else {}
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=cut,
        break_on_hyphens=False,
        **limit,
    )
