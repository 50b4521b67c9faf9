"""Places where files are: local paths, and `gs://` and `s3://` paths with the same methods.

`at` turns what a user typed into either. A local path is a `pathlib.Path` and costs nothing more than one. A path in a
bucket is a `BucketPath`: it has those methods of `pathlib.Path` that this package uses, but is none, so that it is never
taken for a local one by mistake. What is written to a bucket is there as a whole or not at all.

`bucket` has the path; `stores` has the requests, made by TensorStore's clients for Google Cloud Storage and S3, which Orbax
brings along. May import `options`, and nothing else.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

from cp2_jax.options import ConfigError
from cp2_jax.paths.bucket import BucketPath
from cp2_jax.paths.stores import BucketError, Unreachable

__all__ = [
    "AnyPath",
    "BucketError",
    "BucketPath",
    "Unreachable",
    "at",
    "cache",
    "is_bucket",
    "local",
    "refuse_secrets",
    "save_as",
    "save_folder",
    "save_json",
]

AnyPath = pathlib.Path | BucketPath
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOST_SLASH = re.compile(r"(gs|s3):/?([^/].*)", re.DOTALL | re.IGNORECASE)
_SIGNATURE = re.compile(r"[?&](X-Amz-|X-Goog-|AWSAccessKeyId|Signature=|sig=|token=)", re.IGNORECASE)


def at(path: str | os.PathLike | BucketPath) -> AnyPath:
    """Return a place as an object with the methods of `pathlib.Path`; `~` is expanded.

    Args:
      path: local, or `gs://BUCKET/…` or `s3://BUCKET/…`.

    Raises:
      ConfigError: no path, another scheme, a lost slash, no name of a bucket, or a key or password inside (which is not
        shown).
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        given = "None" if path is None else f"a value of type {type(path).__name__}"
        raise ConfigError(f"{given} was given, where a path is wanted: give a text, or a pathlib.Path")
    match = _URL.fullmatch(text)
    if match is None:
        if lost := _LOST_SLASH.fullmatch(text):
            raise ConfigError(
                f"{text}: write {lost[1].lower()}://{lost[2]}, as a text: this would be a folder {lost[1]}: on the disk "
                "(a pathlib.Path keeps one slash only)"
            )
        return pathlib.Path(os.path.expanduser(path))
    refuse_secrets(text)
    scheme, rest = match.groups()
    if scheme not in ("gs", "s3"):
        raise ConfigError(f"{text}: there are local paths, gs://BUCKET/… and s3://BUCKET/…, and no {scheme}://")
    bucket, _, key = rest.partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise ConfigError(f"{text}: {bucket or 'nothing'} is no name of a bucket; write {scheme}://BUCKET/FOLDER")
    return BucketPath(scheme, bucket, "/".join(part for part in key.split("/") if part not in ("", ".")))


def local(path: str | os.PathLike) -> pathlib.Path:
    """Return a path on a disk, for what is not written to buckets: as a local path, `gs://…` would be a folder `gs:`.

    Raises:
      ConfigError: it is in a bucket, or see `at`.
    """
    found = at(path)
    if isinstance(found, BucketPath):
        raise ConfigError(f"{path} is in a bucket, where a path on the disk is wanted (docs/buckets.md: what may be where)")
    return found


def is_bucket(path: str | os.PathLike | BucketPath) -> bool:
    """Say whether a path is in a bucket."""
    return isinstance(path, BucketPath) or os.fspath(path).startswith(("gs://", "s3://"))


def refuse_secrets(text: str, key: str = "this path") -> None:
    """Refuse a URL with a key, a password or a signature inside: configs are printed and saved.

    Args:
      key: of the config, for the message, which does not show the text.

    Raises:
      ConfigError: saying where credentials belong.
    """
    match = _URL.fullmatch(text)
    if match and ("@" in match[2].partition("/")[0] or _SIGNATURE.search(text)):
        raise ConfigError(
            f"{key} has a key, password or signature inside a {match[1]}:// address, which would be printed and saved with "
            "the config. Leave it out, and give credentials by the environment (docs/buckets.md)"
        )


def cache() -> pathlib.Path | None:
    """Return the folder for what can be made again, `~/.cache/cp2_jax`; None where no home can be written.

    In a container, a user may have none at all.
    """
    try:
        folder = pathlib.Path.home() / ".cache" / "cp2_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextlib.contextmanager
def save_as(path: str | os.PathLike | BucketPath, takes_long: bool = False) -> Iterator[pathlib.Path]:
    """Give a local file to write, which is there and empty: what cannot be written is known before it is computed. When all
    went well, it is put to its place in one piece.

    Args:
      path: its place; the folder is made if absent.
      takes_long: to compute what is written; a bucket is tried before, too, by an empty object that is removed again.

    Raises:
      OSError, BucketError: it cannot be written.
    """
    path = at(path)
    if isinstance(path, BucketPath):
        if takes_long:
            (probe := path.with_name(f".{path.name}.{secrets.token_hex(4)}")).write_bytes(b"")
            with contextlib.suppress(BucketError):
                probe.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="cp2_jax_") as folder:
            yield (file := pathlib.Path(folder) / path.name)
            path.write_bytes(file.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        unfinished.touch()
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.filename in (unfinished, str(unfinished)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def save_json(path: str | os.PathLike | BucketPath, values: Any) -> None:
    """Write plain values as JSON, indented, in one piece (see `save_as`).

    Raises:
      OSError, BucketError: it cannot be written.
    """
    with save_as(path) as file:
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def save_folder(path: str | os.PathLike | BucketPath) -> Iterator[pathlib.Path]:
    """Give a local folder to write into: the folder itself, or one whose files are put into a bucket afterwards.

    Raises:
      OSError, BucketError: it cannot be written.
    """
    path = at(path)
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cp2_jax_") as name:
        yield (folder := pathlib.Path(name))
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            (path / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
