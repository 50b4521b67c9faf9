"""The same training steps on several topologies: processes x devices of this machine's CPU. Do they compute the same?

    python benchmarks/topology.py [--steps 20] [--topologies 1x1,1x8,2x4,4x2] [--dtypes float64,float32] [--json FILE]

A topology may have config values of its own: 1x8:accumulate=2:remat=True:shard_state=True. With from=2x4 (and + for a
colon in it) it does not begin at the start, but resumes the checkpoint that the run on 2x4 saved half-way.

A small ResNet + ASPP with batch-norm groups, strided key groups, on-device augmentation and a queue that wraps around,
fed by the real input pipeline. Compares, step by step, to the first topology: the bytes of crops, masks and jitter
draws, the bits of the composed images, and the loss. With both dtypes, the float32 runs' distance to one another is set
against their distance to the float64 run, in which ReLUs and max-pools decide near-ties differently.
"""

import argparse
import gc
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

COLUMNS = (
    "processes x devices",
    "dtype",
    "steps",
    "crops, draws, masks",
    "composed images",
    "first step",
    "worst step",
    "gradient norm, worst",
    "worst to float64 1x1",
)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--topologies", default="1x1,1x8,2x4,4x2")
    parser.add_argument("--dtypes", default="float64,float32")
    parser.add_argument("--shuffle", default="strided")
    parser.add_argument("--json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def small_config(dtype, shuffle, changes):
    import ast

    from cp2_jax.configs import pretrain_r50_aspp

    config = pretrain_r50_aspp.get_config()
    config.update(image_size=32, batch_size=16, bn_groups=4, key_shuffle=shuffle)
    config.model.dtype = dtype
    config.model.resnet.update(depth=18, width=8, stem_width=8, stage_sizes=(1, 1, 1, 1))
    config.model.aspp.update(channels=8, dilations=(1, 2))
    config.loss.update(queue_size=64, momentum=0.9)  # 4 rows: full after 4 steps, then the oldest are overwritten
    for change in changes:
        key, _, value = change.partition("=")
        config.update_from_flattened_dict({key: ast.literal_eval(value)})
    return config


def make_images(folder):
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(48):
        coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((60, 50), Image.BICUBIC).save(folder / f"{number:02d}.jpg")


def digest(tree):
    """The first 16 hexadecimal digits of the SHA-256 of all arrays of a pytree."""
    import jax
    import numpy as np

    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def whole(tree):
    """Arrays that are split over the processes, as NumPy arrays."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def make_look(config, device_mesh):
    """Return `(step number, batch) -> arrays`: the draws as the step makes them, and what it composes of them."""
    import jax
    import numpy as np

    from cp2_jax.augment import compose
    from cp2_jax.runs import mesh, rngs

    options = compose.AugmentOptions.from_config(config)

    @jax.jit
    def look(number, batch):
        key = rngs.key(config.seed, "augment", number)
        pair = compose.compose_pairs(key, batch["foreground"], batch["background"], options)
        rows = rngs.per_sample(key, config.batch_size)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        draws = jax.vmap(jax.vmap(lambda k: compose.draw_view(k, options)))(fold(rows, np.arange(4)))
        masks, images = (pair.mask_query, pair.mask_key), (pair.image_query, pair.image_key)
        return mesh.constrain_batch({"draws": draws, "masks": masks, "images": images}, device_mesh)

    return look


def start(task, initial_state):
    """The state to begin with, and the checkpoints: the state is that of the last one, if there is any.

    One initial state for all dtypes, so that float32 and float64 start alike.
    """
    import jax

    from cp2_jax.runs.checkpoints import Checkpoints

    state = initial_state()
    wide = jax.tree.map(lambda x: x.astype(task["dtype"]) if x.dtype.kind == "f" else x, state)
    state = jax.device_put(wide, jax.tree.map(lambda x: x.sharding, state))
    saver = Checkpoints(task["checkpoints"])
    restored = saver.restore(state)
    return (restored[0] if restored else state), saver


def open_images(task, config, device_mesh, start_step):
    """The batches of this process, from a step on, by the real pipeline."""
    from cp2_jax.data.images.sources import ImageFolder
    from cp2_jax.data.images.stream import pretrain_dataset
    from cp2_jax.runs import mesh

    return pretrain_dataset(
        ImageFolder(task["images"]),
        batch_size=config.batch_size,
        image_size=config.image_size,
        seed=config.seed,
        start_step=start_step,
        rows=mesh.local_rows(device_mesh, config.batch_size),
        threads=1,
    )


def worker(arguments, task):
    """One process of one topology; process 0 writes what was seen."""
    import jax
    import numpy as np
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    gc.disable()  # a few steps: what tracing leaves behind fits the memory, and looking through it takes long
    from cp2_jax.pretraining import step as pretrain_step
    from cp2_jax.runs import distributed, mesh

    jax.config.update("jax_enable_x64", task["dtype"] == "float64")
    if task["processes"] > 1:
        distributed.initialize(task["coordinator"], task["processes"], task["process"])
    config = small_config(task["dtype"], arguments.shuffle, task["changes"])
    device_mesh = mesh.make_mesh()
    initial_state, step = pretrain_step.make_step(config, 100, 10, device_mesh)
    state, saver = start(task, initial_state)
    look = make_look(config, device_mesh)
    dataset = open_images(task, config, device_mesh, int(state.step))
    seen = []
    for number in range(int(state.step), arguments.steps):
        host = next(dataset)
        host.pop("unreadable")
        batch = mesh.place_batch(device_mesh, host)
        row = {name: digest(whole(value)) for name, value in look(number, batch).items()}
        state, metrics = step(state, batch)
        if number + 1 == arguments.steps // 2:
            saver.save(number + 1, state, {})
        exact = {
            name: float(metric.total) / float(metric.count)
            for name, metric in (("loss", metrics.loss), ("gradient_norm", metrics.gradient_norm))
        }
        seen.append({"step": number, "crops": digest(whole(batch))} | row | exact)
    saver.close()
    queue = whole(state.queue)
    if jax.process_index() == 0:
        result = {"devices": jax.device_count(), "steps": seen, "queue": float(np.abs(queue).sum())}
        pathlib.Path(task["output"]).write_text(json.dumps(result))


def checkpoints(folder, topology, dtype):
    # By a digest: a topology with many config values is longer than a file's name may be.
    return folder / f"checkpoints {hashlib.sha256(topology.encode()).hexdigest()[:12]} {dtype}"


def run(arguments, topology, dtype, folder):
    """Start the processes of one topology and return what the first wrote."""
    shape, *changes = topology.split(":")
    source = next((change[5:].replace("+", ":") for change in changes if change.startswith("from=")), topology)
    changes = [change for change in changes if not change.startswith("from=")]
    if source != topology:
        # Another run's checkpoint: what this run saves must not lie beside it.
        shutil.copytree(checkpoints(folder, source, dtype), checkpoints(folder, topology, dtype))
    processes, devices = map(int, shape.split("x"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    output = folder / f"{len(list(folder.iterdir()))}.json"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    started = []
    for process in range(processes):
        task = dict(
            processes=processes,
            process=process,
            coordinator=f"localhost:{port}",
            dtype=dtype,
            changes=changes,
            checkpoints=str(checkpoints(folder, topology, dtype)),
            images=str(folder / "images"),
            output=str(output),
        )
        started.append(subprocess.Popen([sys.executable, *sys.argv, "--worker", json.dumps(task)], env=environment))
    if any([process.wait() for process in started]):
        raise SystemExit(f"{topology} failed")
    return json.loads(output.read_text())


def compare(first, other):
    """How another topology's run differs from the first's."""
    steps = {step["step"]: step for step in first["steps"]}
    pairs = [(steps[step["step"]], step) for step in other["steps"]]
    loss = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs]
    return {
        **{key: all(a[key] == b[key] for a, b in pairs) for key in ("crops", "draws", "masks", "images")},
        "steps": len(pairs),
        "first": loss[0],
        "worst": max(loss),
        "gradient": max(abs(a["gradient_norm"] - b["gradient_norm"]) / a["gradient_norm"] for a, b in pairs),
    }


def show(runs, first, topology, dtype):
    """Print one run's row of the table and return it."""
    found, exact = runs[topology, dtype], runs.get((first, "float64"))
    row = {"topology": topology, "dtype": dtype} | compare(runs[first, dtype], found)
    row["to_float64"] = compare(exact, found)["worst"] if exact else None
    same = "same bytes" if row["crops"] and row["draws"] and row["masks"] else "DIFFER"
    images = "same bits" if row["images"] else "rounded differently"
    shown = "" if row["to_float64"] is None else f"{row['to_float64']:.1e}"
    numbers = " | ".join(f"{row[name]:.1e}" for name in ("first", "worst", "gradient"))
    print(f"| {topology} | {dtype} | {row['steps']} | {same} | {images} | {numbers} | {shown} |", flush=True)
    return row


def main():
    arguments = parse()
    if arguments.worker:
        return worker(arguments, json.loads(arguments.worker))
    topologies, dtypes = arguments.topologies.split(","), arguments.dtypes.split(",")
    print(f"{arguments.steps} steps; relative differences of the loss to {topologies[0]} of the same dtype, and to float64")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    runs, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_images(folder / "images")
        for dtype in dtypes:
            for topology in topologies:
                runs[topology, dtype] = run(arguments, topology, dtype, folder)
                rows.append(show(runs, topologies[0], topology, dtype))
    if arguments.json:
        losses = {f"{t} {d}": [s["loss"] for s in found["steps"]] for (t, d), found in runs.items()}
        pathlib.Path(arguments.json).write_text(json.dumps({"rows": rows, "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
