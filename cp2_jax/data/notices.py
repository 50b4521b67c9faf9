"""Remarks on the data that need to be read once, not once for each image, thread and worker process."""

import logging

_said: set[str] = set()
_state = {"quiet": False}


def say_once(message: str, about: str = "") -> None:
    """Log a warning, unless one about the same thing was logged before or this process was told to be quiet.

    Args:
      message: a whole sentence that names the file; what UTF-8 cannot encode is written as `\\udce9`.
      about: what it is about, for recognising repetitions; by default the message itself.
    """
    about = about or message
    if about in _said or _state["quiet"]:
        return
    _said.add(about)
    logging.warning(message.encode("utf-8", "backslashreplace").decode())


def be_quiet() -> None:
    """Let this process say nothing from now on: of several workers that see the same kind of data, one is enough."""
    _state["quiet"] = True
