"""Tar shards, Parquet files and array_record against a folder: samples per second per core, opening, memory.

    python benchmarks/sources.py --images DIR [--rounds 5] [--samples 500] [--shards 1024] [--read 100000] [--json FILE]

The images are packed in each way in a temporary folder. One core: each round times every source once, in turn, on the same
samples of pretraining (three images, four crops); a source's figure is the least of its rounds' CPU times, for other
programs only ever add time. `alone` is reading without decoding. The same pixels come from all, which is asserted.
Opening: indexes of that many shards of 1,250 images are loaded, as a run does that is started again. Memory: what this
process holds for itself while that many images are read from tar and Parquet at random; a line goes through the second
half.
"""

import argparse
import io
import json
import os
import pathlib
import platform
import sys
import tarfile
import tempfile
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from memory import fit_line

from cp2_jax.data import indexes, parquet
from cp2_jax.data.images import crops
from cp2_jax.data.images.sources import ImageFolder, ParquetSource, TarSource, TfdsSource
from cp2_jax.data.prepare import imagenet

IMAGES_A_SHARD = 1250


def pack(source, root, rows=100):
    """Pack a source's images in every way and return {name: source}."""
    names = [f"{index:06d}.jpg" for index in range(len(source))]
    with tarfile.open(root / "images.tar", "w") as archive:
        for index, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(data := source[index])
            archive.addfile(info, io.BytesIO(data))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": source[index], "path": name} for index, name in enumerate(names)], kind)
    for compression in ("none", "snappy"):
        path = root / f"{compression}.parquet"
        pq.write_table(pa.table({"image": column}), path, compression=compression, row_group_size=rows)
    records, _ = imagenet.prepare_images(root / "records", {"train": source.root})
    return {
        "folder": source,
        "tar": TarSource(root / "images.tar"),
        "parquet, not compressed": ParquetSource(root / "none.parquet"),
        "parquet, snappy, all kept": ParquetSource(root / "snappy.parquet"),
        f"parquet, snappy, {rows} read for each": NothingKept(root / "snappy.parquet"),
        "array_record": TfdsSource(records),
    }


class NothingKept:
    """Compressed Parquet files as a large data set sees them: a row group is never asked for again while it is kept."""

    def __init__(self, path):
        self._source, self.name = ParquetSource(path), ParquetSource(path).name

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        parquet._kept = parquet._Kept(0)
        return self._source[index]


def sample(source, number):
    """Return the crops of one sample of pretraining: a foreground twice, two backgrounds."""
    found = []
    for stream, views in enumerate((2, 1, 1)):
        index = int(crops.generator(number, stream).integers(len(source)))
        rng = crops.generator(0, number, stream, 0)
        found.append(crops.random_crops(source[index], source.name(index), rng, 224, views))
    return np.concatenate(found)


def alone(source, number):
    """Read the three images of a sample."""
    for stream in range(3):
        source[int(crops.generator(number, stream).integers(len(source)))]


def one_core(sources, function, rounds, samples):
    """Return {name: CPU seconds of a sample, per round}."""
    times = {name: [] for name in sources}
    for index in range(rounds + 1):
        for name, source in sources.items():
            begin = time.process_time()
            for number in range(samples):
                function(source, number)
            if index:  # the first round warms up
                times[name].append((time.process_time() - begin) / samples)
    return {name: np.array(values) for name, values in times.items()}


def opening(root, shards):
    """Return the seconds in which the indexes of many shards are loaded."""
    names = [f"n01440764_{index:08d}.jpg".encode() for index in range(IMAGES_A_SHARD)]
    arrays = {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "offset": np.arange(IMAGES_A_SHARD, dtype=np.int64) * 110_000,
        "size": np.full(IMAGES_A_SHARD, 109_000, np.int64),
    }
    for number in range(shards):
        file = root / f"train-{number:04d}.tar"
        file.touch()
        indexes.make(file, "tar", lambda _: arrays)
    begin = time.perf_counter()
    opened = len(TarSource(f"{root}/train-{{0000..{shards - 1:04d}}}.tar"))
    assert opened == shards * IMAGES_A_SHARD
    return time.perf_counter() - begin


def memory(source, count):
    """Return MiB held at the half and at the end of reading at random, and the slope per 1,000 images with its error."""
    this, rng, held = psutil.Process(), np.random.default_rng(0), []
    for number in range(count):
        source[int(rng.integers(len(source)))]
        if number % max(1, count // 1000) == 0:
            held.append(this.memory_full_info().uss / 2**20)
    pieces = np.array_split(np.arange(len(held) // 2, len(held)), 20)
    held = np.array(held)
    slope, error = fit_line(np.array([p.mean() for p in pieces]), np.array([np.median(held[p]) for p in pieces]))
    per_image = 1000 / max(1, count // 1000)
    return {"half": held[len(held) // 2], "end": held[-1], "slope": slope * per_image, "error": error * per_image}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of JPEGs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--shards", type=int, default=1024, help="0: leave opening out")
    parser.add_argument("--read", type=int, default=100_000, help="images read for the memory; 0: leave it out")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    folder = ImageFolder(args.images)
    result = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0], "images": len(folder)}
    with tempfile.TemporaryDirectory() as work:
        root = pathlib.Path(work)
        sources = pack(folder, root)
        for number in range(8):
            for name, source in sources.items():
                assert (sample(source, number) == sample(folder, number)).all(), name
        result["sources"] = {}
        both = [one_core(sources, function, args.rounds, args.samples) for function in (sample, alone)]
        print(f"{'source':32} {'samples/s (CPU)':>16} {'of folder':>10} {'range':>13} {'reading alone, ms':>18}")
        for name in sources:
            ratios = both[0]["folder"] / both[0][name]
            rate, ratio = 1 / both[0][name].min(), both[0]["folder"].min() / both[0][name].min()
            reading = both[1][name].min()
            result["sources"][name] = {"per_second": rate, "ratio": ratio, "ratios": ratios.tolist(), "reading": reading}
            print(f"{name:32} {rate:16.1f} {ratio:10.3f} {ratios.min():6.3f}-{ratios.max():.3f} {1000 * reading:18.3f}")
        if args.shards:
            (root / "many").mkdir()
            result["opening"] = opening(root / "many", args.shards)
            print(f"{args.shards} shards of {IMAGES_A_SHARD} images open in {result['opening']:.2f} s")
        if args.read:
            for name in list(sources)[1:4]:
                result["sources"][name]["memory"] = held = memory(sources[name], args.read)
                print(
                    f"{name}: {held['half']:.1f} MiB after half of {args.read} images, {held['end']:.1f} at the end, "
                    f"{held['slope']:+.4f} ± {held['error']:.4f} MiB per 1,000 images"
                )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
