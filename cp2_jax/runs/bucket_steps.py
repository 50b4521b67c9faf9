"""Checkpoints' files in a bucket: a step is complete if its `checksums.json` is there, which is written last.

The files are those of a step on a disk (see `checkpoints`): a step that is copied from a bucket to a disk, or back, is one
there as well.
"""

import contextlib
import json
import pathlib
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from cp2_jax.paths import AnyPath, BucketPath
from cp2_jax.runs import checksums

_AT_ONCE = 8  # files carried at once


def complete(directory: AnyPath) -> dict[str, AnyPath]:
    """Return the complete steps in a directory, also on a disk, oldest first, by name."""
    if not isinstance(directory, BucketPath):
        steps = {path.name for path in directory.glob("*") if path.name.isdecimal() and path.is_dir()}
        return {step: directory / step for step in sorted(steps, key=int)}
    names = [name.split("/") for name in directory.files()]
    steps = {name[0] for name in names if len(name) == 2 and name[1] == checksums.NAME and name[0].isdecimal()}
    return {step: directory / step for step in sorted(steps, key=int)}


def upload(step: pathlib.Path, place: BucketPath) -> None:
    """Write a step from the disk into a bucket; before the last file is there, it does not count.

    Raises:
      BucketError: it could not be written.
    """
    remove(place)
    files = [path for path in step.rglob("*") if path.is_file() and path != step / checksums.NAME]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda path: (place / path.relative_to(step).as_posix()).write_bytes(path.read_bytes()), files))
    (place / checksums.NAME).write_bytes((step / checksums.NAME).read_bytes())


def remove(place: BucketPath) -> None:
    """Remove a step, complete or not; from its first moment on it does not count."""
    names = place.files()
    if checksums.NAME in names:
        (place / checksums.NAME).unlink(missing_ok=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda name: (place / name).unlink(missing_ok=True), names))


def prune(directory: BucketPath, keep: int) -> None:
    """Remove all but the newest complete steps."""
    for step in list(complete(directory).values())[:-keep]:
        remove(step)


def clean(directory: BucketPath) -> None:
    """Remove what killed runs left of steps that are not complete."""
    good = complete(directory)
    for name in {name.split("/")[0] for name in directory.files()}:
        if name.isdecimal() and name not in good:
            remove(directory / name)


def move(step: BucketPath, aside: BucketPath) -> None:
    """Put a step that does not count any more under another name."""
    for name in sorted(step.files(), key=lambda name: name != checksums.NAME):
        with contextlib.suppress(FileNotFoundError):
            (aside / name).write_bytes((step / name).read_bytes())
        (step / name).unlink(missing_ok=True)


@contextlib.contextmanager
def on_disk(step: AnyPath) -> Iterator[pathlib.Path]:
    """Give a step as a folder on the disk: itself, or a copy of one in a bucket, whose files were checked.

    Raises:
      Damaged: a file is missing, or is not what was written.
      BucketError: the bucket cannot be read.
    """
    if not isinstance(step, BucketPath):
        yield step
        return
    with tempfile.TemporaryDirectory(prefix="cp2_jax_") as folder:
        _download(step, pathlib.Path(folder))
        yield pathlib.Path(folder)


def _download(step: BucketPath, folder: pathlib.Path) -> None:
    try:
        listed = (step / checksums.NAME).read_text("utf-8")
        recorded = dict(json.loads(listed))
    except FileNotFoundError as error:
        raise checksums.Damaged(f"file {checksums.NAME} is missing: it is no checkpoint, or was not finished") from error
    except (ValueError, TypeError) as error:
        raise checksums.Damaged(f"file {checksums.NAME} is not readable: {error}") from error

    def fetch(name: str) -> None:
        for last in (False, True):  # a broken copy of a good file is fetched anew
            try:
                data = (step / name).read_bytes()
            except FileNotFoundError as error:
                raise checksums.Damaged(f"file {name} is missing") from error
            if zlib.crc32(data) == recorded[name]:
                break
            if last:
                raise checksums.Damaged(f"file {name} is changed")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fetch, recorded))
    (folder / checksums.NAME).write_text(listed, encoding="utf-8")
