"""Time and compare the forms of the model's convolutions at full size: forward, input gradient, weight gradient.

    python benchmarks/convs.py [--batch 8] [--repeats 5] [--only aspp_12,rate_2,pool] [--dtype float32] [--json convs.json]

On CPUs two times per pass, each the minimum of the repeats: wall clock, and the process's CPU time over all its cores,
which other programs on the machine disturb much less. On accelerators the wall clock of 20 calls that are waited for once.
"auto" is what `cp2_jax.models.measured.choose` takes. Every form's three results are compared with the native ones.
`--rows` prints lines for the table in cp2_jax/models/measured.py; `--json` has them for `--forms` of other benchmarks.
"pool" is the stem's max-pool, "norm" batch norm with ReLU: their forms differ in the gradient.
"""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from cp2_jax.models import conv, conv_forms, measured, norm, pooling

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
    "vit_aspp_6": (14, 384, 512, 3, 1, 6),
    "vit_aspp_12": (14, 384, 512, 3, 1, 12),
}
PASSES = ("forward", "inputs", "weights")
POOL, NORM = "pool", "norm"


def passes(form, stride, dilation):
    """Return the three jitted passes of one form, each a function of (x, kernel, cotangent)."""
    if form == "auto":

        def f(x, kernel):
            return conv.convolve(x, kernel, stride=stride, dilation=dilation)

        return (
            jax.jit(lambda x, k, g: f(x, k)),
            jax.jit(lambda x, k, g: jax.vjp(lambda x: f(x, k), x)[1](g)[0]),
            jax.jit(lambda x, k, g: jax.vjp(lambda k: f(x, k), k)[1](g)[0]),
        )
    return (
        jax.jit(lambda x, k, g: conv.FORMS[form](x, k, stride, dilation)),
        jax.jit(lambda x, k, g: conv_forms.gradient(form, 0, g, x, k, stride, dilation)),
        jax.jit(lambda x, k, g: conv_forms.gradient(form, 1, g, x, k, stride, dilation)),
    )


def measure(function, args, repeats):
    """Return the result, and the least wall and CPU time in milliseconds, of calls after one that compiles."""
    timing.take_card()
    result = jax.block_until_ready(function(*args))
    if jax.default_backend() != "cpu":
        wall = 1e3 * timing.per_call(function, *args, rounds=repeats)
        return result, wall, wall
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*args))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return result, *(1e3 * min(t) for t in zip(*times, strict=True))


@jax.jit
def difference(ours, native):
    """Return the largest difference, relative to the largest entry."""
    ours, native = ours.astype(jnp.float32), native.astype(jnp.float32)
    return jnp.max(jnp.abs(ours - native)) / jnp.max(jnp.abs(native))


def sensible(form, size, taps, stride, dilation):
    """Whether a form exists for a shape and is another program than "native", but for that itself."""
    if form == "interleaved":
        return dilation > 1 and stride == 1
    if form.startswith("blocks"):
        return dilation == 1 and stride > 1
    if form == "cropped":
        return dilation * (taps // 2) >= size
    return form not in ("shifted", "taps", "columns") or dilation > 1 or taps == 1


def draw(*shapes, dtype):
    """Return arrays of normal numbers, made on the device."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, jnp.float32).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def compare(name, batch, repeats, dtype, shapes=SHAPES):
    """Yield one row for each form of one convolution."""
    size, inputs, outputs, taps, stride, dilation = shapes[name]
    out = (size - 1) // stride + 1
    maps = (batch, size, size, inputs), (taps, taps, inputs, outputs), (batch, out, out, outputs)
    args, native = draw(*maps, dtype=dtype), None
    # On accelerators "auto" is one of the others, and "shifted" took twice the time of "taps".
    left_out = ("native",) if jax.default_backend() == "cpu" else ("native", "shifted", "auto")
    for form in ("native", *(f for f in (*conv.FORMS, "auto") if f not in left_out)):
        if not sensible(form, size, taps, stride, dilation):
            continue
        row, results = {"shape": name, "form": form}, []
        for part, function in zip(PASSES, passes(form, stride, dilation), strict=True):
            result, row[f"{part}_wall_ms"], row[f"{part}_cpu_ms"] = measure(function, args, repeats)
            results.append(result)
        native = native or results
        row["worst"] = max(float(difference(a, b)) for a, b in zip(results, native, strict=True))
        yield row


def measured_row(row, machine, batch, dtype, shapes=SHAPES):
    """Return a row as the table of measurements has it."""
    size, inputs, outputs, taps, stride, dilation = shapes[row["shape"]]
    shape = measured.Shape((size, size), inputs, outputs, (taps, taps), stride, dilation, np.dtype(dtype).name)
    form = {"native": "cropped"}.get(row["form"], row["form"])  # the same program where nothing is cropped
    times = (round(row[f"{part}_wall_ms"], 3) for part in PASSES)
    return measured.Row(machine["card"], machine["date"], batch, shape, form, *times)


def compare_pool(batch, repeats, dtype, size=112, channels=64):
    """Return milliseconds of the max-pool's forward pass and of both together, by form."""
    x, g = draw((batch, size, size, channels), (batch, size // 2, size // 2, channels), dtype=dtype)
    found = {}
    for form in ("scatter", "taps"):
        both = jax.jit(lambda x, g, form=form: jax.vjp(lambda x: pooling.max_pool(x, form=form), x)[1](g)[0])
        forward = jax.jit(lambda x, form=form: pooling.max_pool(x, form=form))
        found[f"pool_{form}_forward_ms"] = measure(forward, (x,), repeats)[1]
        found[f"pool_{form}_gradient_ms"] = measure(both, (x, g), repeats)[1]
    return found


def compare_norm(batch, repeats, dtype, maps=((56, 256), (14, 1024))):
    """Return milliseconds of batch norm with ReLU, forward and gradient, by form and by how groups are laid out."""
    found = {}
    for size, channels in maps:
        x, g = draw(*[(batch, size, size, channels)] * 2, dtype=dtype)
        ones = jnp.ones(channels)
        for layout, groups in (("one_group", norm.Groups(1, batch)), ("strided", norm.Groups(4, batch // 4, strided=True))):
            for form in ("differentiated", "two_sums"):

                def run(x, groups=groups, form=form, ones=ones):
                    return norm.normalize(x, ones, ones, groups, 1e-5, x.dtype, True, form)[0]

                name = f"norm_{size}_{layout}_{form}"
                found[f"{name}_forward_ms"] = measure(jax.jit(run), (x,), repeats)[1]
                both = jax.jit(lambda x, g, run=run: jax.vjp(run, x)[1](g)[0])
                found[f"{name}_gradient_ms"] = measure(both, (x, g), repeats)[1]
    return found


def shrunk(row):
    """Return a shape for rehearsals: an eighth of the side, a sixty-fourth of the channels."""
    size, inputs, outputs, *rest = row
    return max(2, size // 8), max(1, inputs // 64), outputs // 64, *rest


def parse(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", default=",".join((*SHAPES, POOL, NORM)), help="names of shapes, comma-separated")
    parser.add_argument("--rows", action="store_true", help="print lines for measured.MEASURED")
    args = parser.parse_args(arguments)
    if unknown := set(args.only.split(",")) - set(SHAPES) - {POOL, NORM}:
        parser.error(f"unknown shapes {sorted(unknown)}: choose from {', '.join((*SHAPES, POOL, NORM))}")
    return args


def main(arguments=None):
    args = parse(arguments)
    shapes = {name: shrunk(row) for name, row in SHAPES.items()} if args.tiny else SHAPES
    result = {**timing.machine(), "batch": args.batch, "dtype": args.dtype, "rows": [], "measured": []}
    header = " ".join(f"{part + ' ' + kind:>13s}" for kind in ("wall", "cpu") for part in PASSES)
    print(f"{'shape':15s} {'form':12s} {header} {'sum cpu':>9s} {'worst':>8s}   (ms)")

    def keep():  # what there is, in case the time runs out
        if args.json:
            args.json.write_text(json.dumps(result))

    for name in args.only.split(","):
        if name == POOL:
            result |= compare_pool(args.batch, args.repeats, args.dtype, *((12, 4) if args.tiny else ()))
            keep()
            continue
        if name == NORM:
            result |= compare_norm(args.batch, args.repeats, args.dtype, *((((6, 8),),) if args.tiny else ()))
            keep()
            continue
        for row in compare(name, args.batch, args.repeats, args.dtype, shapes):
            result["rows"].append(row)
            if row["form"] != "auto":
                made = measured_row(row, result, args.batch, args.dtype, shapes)
                result["measured"].append(dataclasses.asdict(made))
            times = [row[f"{part}_{kind}_ms"] for kind in ("wall", "cpu") for part in PASSES]
            cells = " ".join(f"{t:13.3f}" for t in times)
            print(f"{name:15s} {row['form']:12s} {cells} {sum(times[3:]):9.1f} {row['worst']:8.0e}", flush=True)
            keep()
    if args.rows:
        for one in result["measured"]:
            print(f"    {measured.Row(**one | {'shape': measured.Shape(**one['shape'])})!r},")
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
