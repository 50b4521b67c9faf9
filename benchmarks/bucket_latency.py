"""Images from a bucket whose requests take 30 ms each, against the same tar file on the disk: samples per second.

    PYTHONPATH=tests python benchmarks/bucket_latency.py --images DIR [--latency 0.03] [--rounds 5] [--samples 300]

At most 400 of the images are packed as one tar file, which is read from the disk, and from fake-gcs-server
(tests/servers.txt) on 127.0.0.1 through a line that delays every request, or none. Server and line have a core of their
own, and so has what is measured: the stream of pretraining with 16 threads, as a run without workers has it. In each
round every way is timed once, in turn; the figure is the median of the rounds' ratios. All give the same pixels, which is
asserted.
"""

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tarfile
import tempfile
import time
import urllib.request

import numpy as np
from helpers import servers

from cp2_jax.data.images.sources import ImageFolder, TarSource
from cp2_jax.data.images.stream import pretrain_dataset


def line(upstream, delay, ready):
    """Pass bytes on to a port, each piece of a request after `delay.value` seconds; send the port of its own."""
    os.sched_setaffinity(0, {0})

    async def accept(reader, writer):
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream)
        loop = asyncio.get_running_loop()

        async def requests():
            while data := await reader.read(1 << 16):
                loop.call_later(delay.value, up_writer.write, data)

        async def answers():
            while data := await up_reader.read(1 << 18):
                writer.write(data)
                await writer.drain()

        with contextlib.suppress(OSError):
            await asyncio.gather(requests(), answers())

    async def serve():
        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=512)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextlib.contextmanager
def through_a_line(port):
    """Run the line in a process of its own; give its port and the delay, whose value may be changed."""
    context = multiprocessing.get_context("spawn")
    ready, delay = context.Queue(), context.Value("d", 0.0)
    process = context.Process(target=line, args=(port, delay, ready), daemon=True)
    process.start()
    try:
        yield ready.get(timeout=60), delay
    finally:
        process.kill()


def pack(folder, path):
    with tarfile.open(path, "w") as archive:
        for index in range(min(400, len(folder))):
            info = tarfile.TarInfo(f"{index:06d}.jpg")
            info.size = len(data := folder[index])
            archive.addfile(info, io.BytesIO(data))


def stream(source):
    return pretrain_dataset(source, batch_size=16, image_size=224, seed=0)


def rate(source, samples):
    """Return samples per second, once the stream runs."""
    batches = stream(source)
    for _ in range(4):
        next(batches)
    begin = time.perf_counter()
    for _ in range(samples // 16):
        next(batches)
    return samples // 16 * 16 / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of JPEGs")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    own = {max(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as running:
        os.sched_setaffinity(0, {0})  # what is started from here on stays there
        port = running.enter_context(servers.server("gs"))
        line_port, delay = running.enter_context(through_a_line(port))
        os.sched_setaffinity(0, own)
        local = pathlib.Path(work) / "images.tar"
        pack(ImageFolder(args.images), local)
        os.environ |= servers.environment("gs", line_port)
        servers.make_bucket("gs", port, "images")
        upload = f"http://127.0.0.1:{port}/upload/storage/v1/b/images/o?uploadType=media&name=images.tar"
        urllib.request.urlopen(urllib.request.Request(upload, local.read_bytes()), timeout=60).read()
        far = TarSource("gs://images/images.tar")
        sources = {"disk": (TarSource(local), 0.0), "bucket": (far, 0.0), "bucket, delayed": (far, args.latency)}
        expected = next(stream(sources["disk"][0]))
        for source, delay.value in sources.values():
            assert all(np.array_equal(value, expected[key]) for key, value in next(stream(source)).items())
        rates = {name: [] for name in sources}
        for number in range(args.rounds + 1):
            for name, (source, delay.value) in sources.items():
                found = rate(source, args.samples)
                if number:  # the first round warms up
                    rates[name].append(found)
    result = {"latency": args.latency, "rates": rates, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    for name, found in rates.items():
        ratios = [one / disk for one, disk in zip(found, rates["disk"], strict=True)]
        result[f"{name} of disk"] = ratio = statistics.median(ratios)
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        print(f"{name:16} {max(found):7.1f} samples/s at best   {ratio:.3f} of the disk (rounds {spread})")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
