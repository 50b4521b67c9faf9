"""Time and compare the forms of the model's convolutions at full size: forward, input gradient, weight gradient.

    python benchmarks/convs.py [--batch 8] [--repeats 5] [--only aspp_12,rate_2] [--dtype float32] [--json convs.json]

Two times per pass, each the minimum of the repeats: wall clock, and the process's CPU time over all its cores, which other
programs on the machine disturb much less (on accelerators only the wall clock means anything). "auto" is what
`cp2_jax.models.conv.choose` takes. Every form's three results are compared with the native ones.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from cp2_jax.models import conv

# name: (size of the map, inputs, outputs, kernel, stride, dilation), of ResNet-50 with ASPP at 224 pixels
SHAPES = {
    "stem": (224, 3, 64, 7, 2, 1),
    "stage1_3x3": (56, 64, 64, 3, 1, 1),
    "stage2_3x3": (28, 128, 128, 3, 1, 1),
    "stage3_3x3": (14, 256, 256, 3, 1, 1),
    "stage3_stride2": (28, 256, 256, 3, 2, 1),
    "rate_2": (14, 512, 512, 3, 1, 2),
    "stage1_1x1": (56, 64, 256, 1, 1, 1),
    "stage2_1x1": (28, 512, 128, 1, 1, 1),
    "stage3_1x1": (14, 1024, 256, 1, 1, 1),
    "stride2_1x1": (56, 256, 512, 1, 2, 1),
    "aspp_6": (14, 2048, 512, 3, 1, 6),
    "aspp_12": (14, 2048, 512, 3, 1, 12),
    "aspp_18": (14, 2048, 512, 3, 1, 18),
    "bottleneck": (14, 2560, 512, 3, 1, 1),
    "aspp_6_at_32": (32, 2048, 512, 3, 1, 6),  # finetuning's crops of 512 pixels
    "aspp_12_at_32": (32, 2048, 512, 3, 1, 12),
}
PASSES = ("forward", "inputs", "weights")


def passes(form, stride, dilation):
    """Return the three jitted passes of one form, each a function of (x, kernel, cotangent)."""

    def f(x, kernel):
        return conv.convolve(x, kernel, stride=stride, dilation=dilation, form=form)

    return (
        jax.jit(lambda x, k, g: f(x, k)),
        jax.jit(lambda x, k, g: jax.vjp(lambda x: f(x, k), x)[1](g)[0]),
        jax.jit(lambda x, k, g: jax.vjp(lambda k: f(x, k), k)[1](g)[0]),
    )


def measure(function, args, repeats):
    """Return the result, and the least wall and CPU time in milliseconds, of calls after one that compiles."""
    result = jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*args))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return np.asarray(result, np.float32), *(1e3 * min(t) for t in zip(*times, strict=True))


def compare(name, batch, repeats, dtype):
    """Yield one row for each form of one convolution."""
    size, inputs, outputs, taps, stride, dilation = SHAPES[name]
    rng = np.random.default_rng(0)
    out = (size - 1) // stride + 1

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

    args = draw(batch, size, size, inputs), draw(taps, taps, inputs, outputs), draw(batch, out, out, outputs)
    native = None
    for form in ("native", "cropped", "shifted", "columns", "interleaved", "auto"):
        if (form == "interleaved" and dilation == 1) or (form == "cropped" and dilation * (taps // 2) < size):
            continue  # the same program as native
        row = {"shape": name, "form": form, "worst": 0.0}
        results = []
        for part, function in zip(PASSES, passes(form, stride, dilation), strict=True):
            result, row[f"{part}_wall_ms"], row[f"{part}_cpu_ms"] = measure(function, args, repeats)
            results.append(result)
        native = native or results
        row["worst"] = float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(results, native, strict=True)))
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", default=",".join(SHAPES), help="names of shapes, comma-separated")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(SHAPES):
        parser.error(f"unknown shapes {sorted(unknown)}: choose from {', '.join(SHAPES)}")
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "batch": args.batch,
        "dtype": args.dtype,
        "rows": [],
    }
    header = " ".join(f"{part + ' ' + kind:>13s}" for kind in ("wall", "cpu") for part in PASSES)
    print(f"{'shape':15s} {'form':12s} {header} {'sum cpu':>9s} {'worst':>8s}   (ms)")
    for name in wanted:
        for row in compare(name, args.batch, args.repeats, args.dtype):
            result["rows"].append(row)
            times = [row[f"{part}_{kind}_ms"] for kind in ("wall", "cpu") for part in PASSES]
            cells = " ".join(f"{t:13.1f}" for t in times)
            print(f"{name:15s} {row['form']:12s} {cells} {sum(times[3:]):9.1f} {row['worst']:8.0e}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
