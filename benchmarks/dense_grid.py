"""At which settings does the dense loss leave chance? Small pretrainings, one line each; docs/results.md shows the table.

    python benchmarks/dense_grid.py --photographs tiny_imagenet32.npz --workdir runs/dense_grid
    python benchmarks/dense_grid.py --position

Each cell is a run of `pretraining.run.train` with the demo's config and the changes in `BASE` and `CELLS`, on scenes and
on photographs. What it measured is one JSON file; a cell that is there is not run again. `--cells NAME;NAME` takes some.
`--position` trains nothing: it computes what the place of a pixel alone could give, whatever the image shows.
"""

import argparse
import json
import logging
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np

from cp2_jax import config_files
from cp2_jax.augment import compose, masks
from cp2_jax.data import demo
from cp2_jax.data.prepare import photographs
from cp2_jax.pretraining import losses, run
from cp2_jax.reproduce.collect import markdown
from cp2_jax.runs import optim, rngs

DATA = ("scenes", "photographs")

# Half as wide as the demo's network, so that 16 x 16 maps fit; batch 32, 300 steps.
BASE = {
    "batch_size": 32,
    "steps": 300,
    "loss.queue_size": 512,
    "model.resnet.width": 8,
    "model.resnet.stem_width": 8,
    "model.aspp.channels": 32,
    "optimizer.warmup_steps": 30,
    "augment.blur": 0.0,
    "picture_every": 0,
    "probe_every": 1000,
    "log_every": 50,
    "save_every": 1000,
}


def _size(crop: int, stride: int) -> dict:
    # The scenes have 48 pixels; crops of 64 are enlarged ones, as those of the photographs are.
    return {"image_size": crop, "model.resnet.output_stride": stride}


MAP_8 = _size(32, 4)
COLD = {"loss.temperature_dense": 0.2}
SAME_COLORS = {"augment.jitter_probability": 0.0, "augment.grayscale": 0.0}

# name → (which data, changes). Joint training at the paper's α = 0.2 and τ = 1 where nothing else is said.
CELLS = {
    "map 4, crop 32, stride 8": (DATA, _size(32, 8)),
    "map 8, crop 64, stride 8": (DATA, _size(64, 8)),
    "map 8, crop 32, stride 4": (DATA, MAP_8),
    "map 16, crop 64, stride 4": (DATA, _size(64, 4)),
    "map 4, crop 32, stride 8, τ 0.2": (DATA, _size(32, 8) | COLD),
    "map 8, crop 64, stride 8, τ 0.2": (DATA, _size(64, 8) | COLD),
    "map 8, crop 32, stride 4, τ 0.2": (DATA, MAP_8 | COLD),
    "map 16, crop 64, stride 4, τ 0.2": (DATA, _size(64, 4) | COLD),
    # The others change the map of 8 from crops of 32.
    "α 1": (DATA, MAP_8 | {"loss.alpha": 1.0}),
    "α 5": (DATA, MAP_8 | {"loss.alpha": 5.0}),
    "α 1, τ 0.2": (DATA, MAP_8 | COLD | {"loss.alpha": 1.0}),
    "dense loss alone": (DATA, MAP_8 | {"loss.alpha": 1.0, "loss.alpha_instance": 0.0}),
    "dense loss alone, τ 0.2": (DATA, MAP_8 | COLD | {"loss.alpha": 1.0, "loss.alpha_instance": 0.0}),
    "instance loss alone": (DATA, MAP_8 | {"loss.alpha": 0.0}),
    "batch 128": (("scenes",), MAP_8 | {"batch_size": 128}),
    "1,200 steps": (DATA, MAP_8 | {"steps": 1200}),
    "1,200 steps, α 1": (("scenes",), MAP_8 | {"steps": 1200, "loss.alpha": 1.0}),
    "areas 0.3 to 0.6": (("scenes",), MAP_8 | {"augment.mask_area": (0.3, 0.6)}),
    "polygon": (("scenes",), MAP_8 | {"augment.mask": "polygon"}),
    "blocks": (("scenes",), MAP_8 | {"augment.mask": "blocks"}),
    # Is it the augmentation that takes away what tells one source from another?
    "colours unchanged": (DATA, MAP_8 | SAME_COLORS),
    "colours unchanged, α 1, τ 0.2": (DATA, MAP_8 | SAME_COLORS | COLD | {"loss.alpha": 1.0}),
    "colours unchanged, blocks, α 1": (DATA, MAP_8 | SAME_COLORS | {"loss.alpha": 1.0, "augment.mask": "blocks"}),
    "independent backgrounds": (("scenes",), MAP_8 | {"data.backgrounds": "independent"}),
    "no atrous rates in the head": (("scenes",), MAP_8 | {"model.aspp.dilations": (1,)}),
    "FCN head, which does not pool the image": (
        ("scenes",),
        MAP_8 | {"model.head": "fcn", "model.fcn.channels": 32, "model.fcn.dilation": 1},
    ),
}


def settings(name: str, data: str, folders: dict):
    """Return the config of a cell."""
    config = config_files.load("pretrain:demo")
    config.data.path = str(folders[data])
    config.update_from_flattened_dict(BASE | CELLS[name][1])
    if data == "photographs":  # colours mean something there: MoCo v2's own augmentation
        config.augment.update(saturation=0.4, hue=0.1, grayscale=0.2)
    return config


def lowest(config) -> float:
    """Return the lowest dense loss as a share of uniform, ln N: the mean over 512 drawn pairs with usable masks."""
    options = compose.AugmentOptions.from_config(config)
    side, stride = config.image_size, config.model.resnet.output_stride
    blank = np.zeros((512, 2, side, side, 3), np.uint8)
    pair = jax.jit(compose.compose_pairs, static_argnums=3)(rngs.key(0, "probe"), blank, blank, options)
    pixels = (side // stride) ** 2
    counts = [compose.feature_mask(m, stride).sum((1, 2)) for m in (pair.mask_query, pair.mask_key)]
    good = np.all([(c > 0) & (c < pixels) for c in counts], axis=0)
    temperature = config.loss.temperature_dense
    uniform, best = losses.dense_loss_range(*counts, (pixels, pixels), temperature, config.loss.dense_axis)
    return float(np.mean(np.asarray(best / uniform)[good]))


def cell(name: str, data: str, folders: dict, workdir: pathlib.Path) -> dict:
    """Run one cell, unless its file is there; return what the file holds."""
    path = workdir / f"{data}, {name}.json".replace(" ", "_")
    if path.exists():
        return json.loads(path.read_text())
    begin, config, scratch = time.time(), settings(name, data, folders), workdir / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    metrics = run.train(config, scratch).metrics
    best = lowest(config)
    # Samples without usable masks have accuracy 0 and count in the run's average.
    usable = 1 - metrics["skipped_samples"] / config.batch_size
    found = {
        "name": name,
        "data": data,
        "usable": usable,
        "best": best,  # lowest loss / ln N
        "loss": 1 - metrics["learned_dense"] * (1 - best),  # of the usable samples / ln N
        "learned": metrics["learned_dense"],
        "accuracy": metrics["accuracy_dense"] / usable,
        "auc": metrics["probe/output_auc"],
        "backbone_auc": metrics["probe/backbone_auc"],
        "retrieval": metrics["probe/output_retrieval"],
        "accuracy_instance": metrics["accuracy_instance"],
        "seconds": time.time() - begin,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def position_alone(mask: str, side: int, stride: int, temperature: float, count: int = 500) -> tuple[float, float]:
    """Return (AUC, share of what is possible) of the best similarity that depends on nothing but the key pixel's place.

    The AUC ranks a key's pixels by how often their place is foreground. The loss is convex in the similarities: L-BFGS
    finds the best ones.
    """
    keys = jax.random.split(jax.random.key(0), count)
    law = masks.MaskLaw()
    drawn = jax.jit(jax.vmap(lambda key: masks.MASKS[mask](key, side, side, law)))(keys)
    flat = np.asarray(compose.feature_mask(drawn, stride)).reshape(count, -1)
    pixels = flat.shape[1]
    flat = flat[(flat.sum(1) > 0) & (flat.sum(1) < pixels)]
    often = flat.mean(axis=0)

    def ranked(row):
        inside, outside = often[row > 0, None], often[row == 0]
        return np.mean((inside > outside) + 0.5 * (inside == outside))

    areas = jnp.asarray(flat.sum(1))

    def loss(free):
        similarity = jnp.tanh(free) / temperature
        return jnp.mean(jax.nn.logsumexp(similarity) - flat @ similarity / areas)

    free = optim.minimize(loss, jnp.asarray(often - often.mean()), steps=40)
    uniform, best = losses.dense_loss_range(areas, areas, (pixels, pixels), temperature)
    return float(np.mean([ranked(row) for row in flat])), float((uniform[0] - loss(free)) / jnp.mean(uniform - best))


def position_table() -> str:
    """Return the table of `position_alone`, for the maps of the grid and for one of 14 x 14."""
    rows = []
    for mask in ("rectangle", "polygon", "blocks"):
        for side, stride in ((32, 8), (32, 4), (56, 4)):  # the last: the paper's 14 x 14
            found = [position_alone(mask, side, stride, temperature) for temperature in (1.0, 0.2)]
            rows.append([mask, f"{side // stride}", f"{found[0][0]:.2f}", *(f"{share:.0%}" for _, share in found)])
    return markdown(["mask", "map", "AUC", "of what is possible, τ 1", "τ 0.2"], rows)


def table(results: list[dict]) -> str:
    """Return the Markdown table of docs/results.md."""
    header = ["", "data", "usable", "lowest / ln N", "loss / ln N", "learned", "accuracy", "AUC", "backbone", "retrieval"]
    rows = [
        [
            r["name"],
            r["data"],
            f"{r['usable']:.0%}",
            f"{r['best']:.3f}",
            f"{r['loss']:.3f}",
            f"{r['learned']:+.1%}",
            f"{r['accuracy']:.2f}",
            f"{r['auc']:.3f}",
            f"{r['backbone_auc']:.3f}",
            f"{r['retrieval']:.2f}",
        ]
        for r in results
    ]
    return markdown(header, rows)


def main() -> None:
    """Run the cells that were asked for and print the table of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", default="", help="an .npz of photographs (cp2_jax/data/prepare/photographs.py)")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/dense_grid"))
    parser.add_argument("--cells", default="", help="names with semicolons between them; all by default")
    parser.add_argument("--position", action="store_true", help="what position alone could do, without training")
    options = parser.parse_args()
    if options.position:
        print(position_table())
        return
    logging.disable(logging.INFO)
    options.workdir.mkdir(parents=True, exist_ok=True)
    folders = {"scenes": demo.prepare(options.workdir / "data", size=48)}
    if options.photographs:
        folders["photographs"] = photographs.prepare(options.photographs, options.workdir / "data")
    names = options.cells.split(";") if options.cells else list(CELLS)
    results = []
    for name in names:
        for data in CELLS[name][0]:
            if data in folders:
                results.append(cell(name, data, folders, options.workdir))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in results[-1].items()}, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
