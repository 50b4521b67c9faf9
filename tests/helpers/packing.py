"""Images packed as tar shards and Parquet files."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from helpers.images import encode


def png(number: int) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)))


IMAGES = {f"{group}/{number}.png": png(7 * ord(group) + number) for group in "ab" for number in range(4)}


def write_tar(path, members, mode="w", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path, rows, kind="struct", group=3, column="image", **options):
    if kind == "struct":
        kind, rows = (
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            [{"bytes": one, "path": "x"} for one in rows],
        )
    table = pa.table({"label": list(range(len(rows))), column: pa.array(rows, kind)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, **options)
    return path


def folder(root):
    for name, data in IMAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def everything(source):
    return [source[index] for index in range(len(source))]
