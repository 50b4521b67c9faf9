"""Requests to buckets: what is asked again, for how long, and what an answer means.

TensorStore's clients do the talking, in threads of their own without Python's lock. Whatever may pass (no connection, one
that was cut, 429, 5xx, silence) is asked again for `CP2_BUCKET_PATIENCE` seconds, 300 by default. All that is asked may be
asked twice: reading, writing a whole object, removing one.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any

BucketPath = Any  # `bucket.BucketPath`, which imports this module

_SILENCE = 30.0  # seconds without an answer after which a request is made anew
_SLOWEST = 2**20  # bytes a second below which a connection counts as silent
_FIRST, _LONGEST = 0.2, 10.0  # seconds between two tries
_RETRIES = {"max_retries": 2, "initial_delay": "50ms", "max_delay": "1s"}  # TensorStore's own, inside of each of ours
_FINAL = ("NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "OUT_OF_RANGE", "INVALID_ARGUMENT", "ALREADY_EXISTS")
_SIZE = re.compile(r"total size (\d+)")
_QUIET = 10.0  # seconds of repeating before it is said
_said: dict[str, float] = {}
_PROBES = 16  # requests at once while a size is looked for
_NEAR = 2**16  # bytes


class BucketError(Exception):
    """A bucket refuses what is asked; the message names the object and says what to do."""


class Unreachable(BucketError):
    """A bucket did not answer for all the time that it was given; nothing is lost, and the run can be resumed."""


class _Outside(Exception):
    """A range begins or ends behind the object's end."""


def patience() -> float:
    """Return for how many seconds a request is repeated.

    Raises:
      BucketError: `CP2_BUCKET_PATIENCE` is no number.
    """
    given = os.environ.get("CP2_BUCKET_PATIENCE") or "300"
    try:
        return float(given)
    except ValueError as error:
        raise BucketError(f"CP2_BUCKET_PATIENCE={given}: give a number of seconds") from error


def read(path: BucketPath, begin: int = 0, end: int | None = None) -> tuple[bytes, bytes]:
    """Return (bytes, generation) of an object, or of a part of it; less where the object ends before.

    Args:
      begin, end: the part; a negative `begin` counts from the end.

    Raises:
      FileNotFoundError: there is no such object (or bucket: servers do not tell).
      BucketError: it may not be read; `Unreachable`: no answer.
    """
    if end is not None and begin >= 0 and end <= begin:
        return b"", _found(path, generation(path))
    whole = begin == 0 and end is None
    try:
        result = _ask(path, "read", lambda store: start(path, begin, end, store), (end or 0) - begin)
    except _Outside as outside:
        if whole:  # an empty object has no byte 0
            return b"", _found(path, generation(path))
        total = outside.args[0] if outside.args[0] is not None else size(path)
        begin, end = (max(0, total + begin), total) if begin < 0 else (begin, min(total, total if end is None else end))
        return read(path, begin, end)
    return result.value, _found(path, None if result.state == "missing" else result.stamp.generation)


def start(path: BucketPath, begin: int, end: int | None, store: Any = None) -> Any:
    """Return the future of a request for a part of an object; for `read`, and for reading ahead (see `finish`)."""
    part = None if begin == 0 and end is None else slice(begin, end)
    return (store or _store(path.scheme, path.bucket, os.getpid())).read(path.key, byte_range=part)


def finish(path: BucketPath, future: Any, begin: int, end: int) -> tuple[bytes, bytes]:
    """Return what `start` has asked for; asked anew if it did not go well.

    Raises:
      FileNotFoundError, BucketError: see `read`.
    """
    try:
        result = future.result(timeout=_SILENCE)
    except (ValueError, TimeoutError):
        future.cancel()
        return read(path, begin, end)
    return result.value, _found(path, None if result.state == "missing" else result.stamp.generation)


def generation(path: BucketPath) -> bytes | None:
    """Return what differs for every content that an object ever has, or None if there is no such object.

    Raises:
      BucketError: see `read`.
    """
    result = _ask(path, "look for", lambda store: store.read(path.key, byte_range=slice(0, 0)))
    return None if result.state == "missing" else result.stamp.generation


def size(path: BucketPath) -> int:
    """Return the size of an object in bytes.

    TensorStore's clients do not tell it, but say where an object ends when they are asked for bytes behind it. Asking for
    single bytes brings the end near; a version that does not say it is asked until the end is found.

    Raises:
      FileNotFoundError, BucketError: see `read`.
    """
    _found(path, generation(path))
    low, high = 0, 2**44  # the size lies in [low, high)
    probes = [_NEAR] + [2**power for power in range(20, 44, 3)]
    while high - low > 1:
        if low == 0 or high - low <= 16 * _NEAR:
            total = _end(path, max(0, low - 1), min(high, low + 16 * _NEAR if low else _NEAR))
            if total is not None:
                return total
        inside = _inside(path, probes)
        low = max([low, *(probe for probe, there in zip(probes, inside, strict=True) if there)])
        high = min([high, *(probe for probe, there in zip(probes, inside, strict=True) if not there)])
        probes = sorted({low + (high - low) * k // _PROBES for k in range(1, _PROBES)} - {low, high})
    return low


def _end(path: BucketPath, begin: int, end: int) -> int | None:
    """Return the size of an object that ends between two places, as far as the client says it."""
    try:
        _ask(path, "read", lambda store: start(path, begin, end, store))
    except _Outside as outside:
        return outside.args[0]
    return None


def _inside(path: BucketPath, sizes: list[int]) -> list[bool]:
    """Say for each number of bytes whether an object has as many."""
    futures = [start(path, one - 1, one) for one in sizes]
    there = []
    for future, one in zip(futures, sizes, strict=True):
        try:
            future.result(timeout=_SILENCE)
            there.append(True)
        except (ValueError, TimeoutError):
            try:
                _ask(path, "read", lambda store, one=one: start(path, one - 1, one, store))
                there.append(True)
            except _Outside:
                there.append(False)
    return there


def write(path: BucketPath, data: bytes | None) -> None:
    """Write an object as a whole, or remove it (None); removing what is not there is no error.

    Raises:
      BucketError: it may not be written, or there is no such bucket; `Unreachable`: no answer.
    """
    try:
        _ask(path, "write" if data is not None else "remove", lambda store: store.write(path.key, data), len(data or b""))
    except FileNotFoundError as error:
        if data is None:
            return
        raise BucketError(f"{path}: there is no bucket {path.bucket}; make it, or set another path") from error


def keys(folder: BucketPath) -> list[str]:
    """Return the names of all objects in a folder, relative to it, sorted; [] also if there is no such bucket.

    Raises:
      BucketError: they may not be listed; `Unreachable`: no answer.
    """
    import tensorstore

    prefix = f"{folder.key}/" if folder.key else ""
    if folder.scheme == "gs":  # TensorStore takes a refused list for an empty one; looking for an object is refused as well
        generation(folder / ".cp2_jax")
    inside = tensorstore.KvStore.KeyRange(prefix, f"{folder.key}0") if prefix else tensorstore.KvStore.KeyRange()
    try:
        found = _ask(folder, "list", lambda store: store.list(inside))
    except FileNotFoundError:
        return []
    return sorted(name[len(prefix) :] for one in found if (name := one.decode("utf-8", "surrogateescape")) > prefix)


def _found(path: BucketPath, generation: bytes | None) -> bytes:
    if generation is None:
        raise FileNotFoundError(errno.ENOENT, "no such object, or no such bucket", str(path))
    return generation


@functools.cache
def _store(scheme: str, bucket: str, process: int) -> Any:
    """Return the client of a bucket; a process that was forked needs one of its own."""
    import tensorstore

    if scheme == "gs":
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        if emulator:  # what Google's own libraries read
            address = emulator if "://" in emulator else f"http://{emulator}"
            os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
            os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "anonymous")
        elif (file := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")) and not os.path.isfile(file):
            # TensorStore would go on without any, and the server refuse for another reason.
            raise BucketError(f"GOOGLE_APPLICATION_CREDENTIALS={file}: there is no such file")
        spec: dict[str, Any] = {"driver": "gcs", "bucket": bucket, "context": {"gcs_request_retries": _RETRIES}}
    else:
        spec = {"driver": "s3", "bucket": bucket, "context": {"s3_request_retries": _RETRIES}}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            if not endpoint.startswith(("http://", "https://")):
                raise BucketError(f"AWS_ENDPOINT_URL={endpoint} has to begin with https:// or http://")
            spec["endpoint"] = endpoint.rstrip("/")
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            spec["aws_region"] = region
        elif endpoint:
            spec["aws_region"] = "us-east-1"
        if os.environ.get("AWS_ACCESS_KEY_ID"):  # else TensorStore looks everywhere, and tells of every file that is absent
            spec["aws_credentials"] = {"type": "environment"}
    return tensorstore.KvStore.open(spec).result(timeout=_SILENCE)


def _ask(path: BucketPath, what: str, request: Callable[[Any], Any], size: int = 0) -> Any:
    """Return the result of a request, which is made again while what went wrong may pass.

    Args:
      what: is asked, for messages.
      request: store → future.
      size: bytes to be carried, for how long silence is borne.

    Raises:
      FileNotFoundError, _Outside, BucketError, Unreachable.
    """
    limit, pause = patience(), _FIRST
    end = time.monotonic() + limit
    while True:
        future = None
        try:
            future = request(_store(path.scheme, path.bucket, os.getpid()))
            return future.result(timeout=_SILENCE + max(0, size) / _SLOWEST)
        except TimeoutError:
            problem = "no answer"
            if future is not None:
                future.cancel()
        except (ValueError, OSError, RuntimeError) as error:
            problem = _explain(path, what, error)
        _say_slow(path, problem, end - limit, limit)
        if time.monotonic() + pause >= end:
            raise Unreachable(
                f"{path} could not be reached for {limit:.0f} s ({problem}). Nothing that was finished is lost: look at "
                "network and bucket, then run the same command again"
            )
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(_LONGEST, 2 * pause)


def _say_slow(path: BucketPath, problem: str, since: float, limit: float) -> None:
    """Warn of requests that have been repeated for a while, at most once a minute: it may be a wrong address."""
    now = time.monotonic()
    if now - since > _QUIET and now - _said.get("last", -60.0) >= 60:
        _said["last"] = now
        logging.warning("%s does not answer (%s); it is asked again, for up to %.0f s", path, problem, limit)


def _explain(path: BucketPath, what: str, error: Exception) -> str:
    """Return in a few words what went wrong, if it may pass; raise what it means, if not."""
    text = str(error)
    code = next((code for code in _FINAL if code in text.partition("[")[0].partition(": ")[0]), None)
    short = re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]", "", text.replace("\n", " ")))[:160].strip()
    account = "GOOGLE_APPLICATION_CREDENTIALS" if path.scheme == "gs" else "AWS_ACCESS_KEY_ID or AWS_PROFILE"
    if code == "NOT_FOUND":
        raise FileNotFoundError(errno.ENOENT, "no such object, or no such bucket", str(path)) from error
    if code == "OUT_OF_RANGE":
        total = _SIZE.search(text)
        raise _Outside(int(total[1]) if total else None) from error
    if "JSON credentials file" in text:
        raise BucketError(
            f"{path}: the credentials cannot be used ({short}); set GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    if code == "UNAUTHENTICATED" or "code='401'" in text or "ExpiredToken" in text:
        raise BucketError(
            f"{path}: the credentials are missing or have expired; log in again, or set {account} (docs/buckets.md)"
        ) from error
    if code == "PERMISSION_DENIED":
        raise BucketError(
            f"{path}: this account may not {what} it, or no credentials were found; give it the right, or set {account} "
            "(docs/buckets.md)"
        ) from error
    if code == "INVALID_ARGUMENT":
        raise BucketError(f"{path}: the server takes it for wrong ({short})") from error
    return short
