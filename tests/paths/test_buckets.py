"""Paths in buckets against servers of both kinds, which also answer badly."""

import os
import pathlib
import pickle
import re
import time

import pytest

from cp2_jax import paths
from cp2_jax.options import ConfigError
from cp2_jax.paths import stores


def test_a_file_is_written_read_listed_and_removed(bucket):
    file = bucket / "a folder" / "ü+%.txt"
    assert not file.exists() and not bucket.is_dir() and list(bucket.iterdir()) == []
    file.write_text("grüße")
    file.with_name("x.bin").write_bytes(b"")
    assert file.read_text() == "grüße" and file.with_name("x.bin").read_bytes() == b""
    assert file.is_file() and file.parent.is_dir() and not file.parent.is_file() and not file.is_dir()
    assert [path.name for path in file.parent.iterdir()] == ["x.bin", "ü+%.txt"]
    assert list(bucket.iterdir()) == [file.parent] and list(bucket.glob("*/*.txt")) == [file]
    assert bucket.files() == ["a folder/x.bin", "a folder/ü+%.txt"]
    file.unlink()
    assert not file.exists()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="no such object, or no such bucket"):
        file.unlink()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_parts_of_a_file_and_its_size(bucket, monkeypatch):
    file, data = bucket / "data", bytes(range(256)) * 40
    file.write_bytes(data)
    for begin, end in ((0, 10), (5, 5), (300, 400), (len(data) - 3, len(data) + 9), (len(data), len(data) + 1), (-7, None)):
        assert stores.read(file, begin, end)[0] == data[begin:end], (begin, end)
    assert stores.read(file, -(10**6), None)[0] == data
    for count in (0, 1, 4097, 2**16, 2**16 + 1, 3_000_001):
        file.write_bytes(bytes(count))
        assert stores.size(file) == count
    monkeypatch.setattr(stores, "_SIZE", re.compile("a version that does not say it"))
    assert stores.size(file) == count
    before = stores.generation(file)
    file.write_bytes(b"another")
    assert stores.generation(file) != before
    ahead = stores.start(file, 2, 4)
    assert stores.finish(file, ahead, 2, 4) == (b"ot", stores.generation(file))


def test_a_file_for_libraries_that_write_local_ones(bucket, tmp_path):
    for place in (bucket / "sub" / "out.bin", tmp_path / "sub" / "out.bin"):
        with paths.save_as(place) as file:
            file.write_bytes(b"done")
        assert paths.at(place).read_bytes() == b"done"
        with pytest.raises(ZeroDivisionError), paths.save_as(place) as file:
            file.write_bytes(b"half")
            raise ZeroDivisionError
        assert paths.at(place).read_bytes() == b"done" and [path.name for path in place.parent.iterdir()] == ["out.bin"]


def test_a_bucket_that_cannot_be_written_is_known_at_once(proxy, bucket):
    with paths.save_as(bucket / "out.npz", takes_long=True) as file:
        assert bucket.files() == []
        file.write_bytes(b"1")
    proxy.fault = lambda method, path: "403" * (method in ("PUT", "POST"))
    with pytest.raises(paths.BucketError, match="may not write it"), paths.save_as(bucket / "out.npz", takes_long=True):
        pytest.fail("hours of work would be lost")
    proxy.fault = lambda method, path: ""
    assert bucket.files() == ["out.npz"]


def test_a_file_that_cannot_be_written_is_known_at_once_and_named(tmp_path):
    (tmp_path / "folder").mkdir()
    os.chmod(tmp_path / "folder", 0o500)
    place = "/proc/self/out.npz" if os.geteuid() == 0 else tmp_path / "folder" / "out.npz"  # root may write into any folder
    with pytest.raises(OSError) as found, paths.save_as(place):
        pytest.fail("hours of work would be lost")
    assert found.value.filename == str(place)


@pytest.mark.parametrize("act", ["503", "cut", "lost", "slow"])
def test_what_passes_is_asked_again(proxy, bucket, act):
    file, left = bucket / "x", [0]

    def fault(method, path):
        left[0] -= 1
        return act if left[0] >= 0 else ""

    proxy.fault = fault
    for call, expected in (
        (lambda: file.write_bytes(b"12345"), None),
        (file.read_bytes, b"12345"),
        (lambda: stores.read(file, 1, 3)[0], b"23"),
        (file.is_file, True),
        (bucket.files, ["x"]),
        (file.unlink, None),
    ):
        left[0] = 2
        assert call() == expected
        assert left[0] < 2  # not always 0: an answer without a body cannot be cut


def test_silence_is_not_waited_for_forever(proxy, bucket, monkeypatch):
    file, silent = bucket / "x", [1]
    file.write_bytes(b"12345")

    def fault(method, path):
        silent[0] -= 1
        return "silent" if silent[0] >= 0 else ""

    monkeypatch.setattr(stores, "_SILENCE", 0.5)
    proxy.fault = fault
    begin = time.monotonic()
    assert file.read_bytes() == b"12345" and time.monotonic() - begin < 20
    monkeypatch.setenv("CP2_BUCKET_PATIENCE", "1")
    proxy.fault = lambda method, path: "503"
    with pytest.raises(paths.Unreachable, match=f"{file} could not be reached for 1 s .*run the same command again"):
        file.read_bytes()


def test_what_is_asked_for_long_is_told_once(proxy, bucket, monkeypatch, caplog):
    monkeypatch.setattr(stores, "_QUIET", 0.2)
    monkeypatch.setattr(stores, "_said", {})
    monkeypatch.setenv("CP2_BUCKET_PATIENCE", "1.5")
    proxy.fault = lambda method, path: "503"
    for _ in range(2):
        with pytest.raises(paths.Unreachable):
            (bucket / "x").read_bytes()
    (record,) = caplog.records
    assert re.fullmatch(rf"{bucket}/x does not answer \(.+\); it is asked again, for up to 2 s", record.getMessage())


@pytest.mark.parametrize(
    "status, words", [("401", "credentials are missing or have expired"), ("403", "this account may not {} it")]
)
def test_refusals_are_said_at_once(proxy, bucket, status, words):
    proxy.fault = lambda method, path: status
    for what, call in (
        ("read", lambda: (bucket / "x").read_bytes()),
        ("write", lambda: (bucket / "x").write_bytes(b"")),
        ("list", bucket.files),
    ):
        begin = time.monotonic()
        with pytest.raises(paths.BucketError, match=words.format("(look for|list)" if what == "list" else what)) as caught:
            call()
        assert time.monotonic() - begin < 60 and "\n" not in str(caught.value) and str(bucket) in str(caught.value)


def test_a_bucket_that_does_not_exist(proxy, bucket):
    gone = paths.at(f"{proxy.scheme}://no-such-bucket/run")
    assert not gone.exists() and list(gone.iterdir()) == []
    with pytest.raises(paths.BucketError, match="there is no bucket no-such-bucket; make it"):
        (gone / "x").write_bytes(b"1")


def test_an_address_without_a_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(paths.BucketError, match="AWS_ENDPOINT_URL=minio:9000 has to begin with https:// or http://"):
        stores._store("s3", "bucket", -1)


def test_settings_of_the_environment_that_cannot_be_are_named_at_once(monkeypatch, tmp_path):
    path = paths.at("gs://bucket/x")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    with pytest.raises(paths.BucketError, match="GOOGLE_APPLICATION_CREDENTIALS=.*gone.json: there is no such file"):
        stores._store("gs", "bucket", -1)
    with pytest.raises(paths.BucketError, match="credentials cannot be used .*set GOOGLE_APPLICATION_CREDENTIALS"):
        stores._explain(path, "read", ValueError(f"UNKNOWN: Unexpected content of the JSON credentials file: {tmp_path}/x"))
    monkeypatch.setenv("CP2_BUCKET_PATIENCE", "soon")
    with pytest.raises(paths.BucketError, match="CP2_BUCKET_PATIENCE=soon: give a number of seconds"):
        path.read_bytes()


def test_paths_are_those_of_pathlib():
    path = paths.at("gs://bucket//a/./b.tar.gz/")
    assert str(path) == "gs://bucket/a/b.tar.gz" and path.name == "b.tar.gz" and path.suffix == ".gz"
    assert path.parent / "c" == paths.at("gs://bucket/a/c") == path.with_name("c") and path.stem == "b.tar"
    assert str(path.with_suffix(".x")) == "gs://bucket/a/b.tar.x" and path / ".." == path.parent
    assert path.is_relative_to(path.parent) and not path.is_relative_to(paths.at("gs://bucket/a/b"))
    assert pickle.loads(pickle.dumps(path)) == path and paths.at(path) is path and paths.is_bucket(path)
    assert str(paths.at("s3://bucket")) == "s3://bucket" and not paths.is_bucket("a/s3:/b")
    assert paths.at("~/x") == paths.pathlib.Path.home() / "x"
    with pytest.raises(TypeError):
        open(path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("http://host/x", "no http://"),
        ("gs://", "nothing is no name of a bucket"),
        ("gs:/bucket/run", "write gs://bucket/run, as a text: this would be a folder gs: on the disk"),
        (pathlib.Path("s3://bucket/run"), "write s3://bucket/run, as a text"),
        ("gs://Bad_/x", "Bad_ is no name"),
        ("s3://AKIA:secret@bucket/x", "credentials by the environment"),
        ("s3://bucket/x?X-Amz-Signature=secret", "credentials by the environment"),
    ],
)
def test_what_is_no_place_is_refused_without_showing_secrets(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        paths.at(text)
    assert "secret" not in str(caught.value)
