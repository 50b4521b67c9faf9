"""Finetuning's step and evaluation's forward pass at 512 x 512, batch 16, against the same in PyTorch.

    python benchmarks/segmenting.py --job finetune --device cuda --peers best [--model vit_aspp] [--json FILE]

Images are uint8 and lie on the device; normalising, upsampling to the labels' size and loss, or argmax and confusion
matrix, are part of it; decoding is not (benchmarks/evaluation.py has it). bfloat16, 21 classes, random weights.
"""

import os

import jax
import numpy as np
import timing

from cp2_jax.configs import finetune_voc
from cp2_jax.models import resize
from cp2_jax.runs import mesh
from cp2_jax.segmentation import confusion, inputs
from cp2_jax.segmentation import step as finetune_step

CLASSES = 21


def parse(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--job", choices=("finetune", "evaluate"), required=True)
    parser.add_argument("--model", choices=tuple(timing.CONFIGS), default="r50_aspp")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="PyTorch's")
    parser.add_argument("--peers", default="", help="best, autotuned, comma-separated; needs PyTorch")
    parser.add_argument("--peers_only", action="store_true", help="leave out our own")
    args = parser.parse_args(arguments)
    if args.peers_only:  # PyTorch has the card to itself
        jax.config.update("jax_platforms", "cpu")
    if args.peers:  # PyTorch needs the card's memory, of which JAX would take three quarters at its first use
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    timing.use_forms(args.forms)
    return args


def make_config(args):
    config = finetune_voc.get_config("vit" if args.model == "vit_aspp" else "")
    tiny = timing.make_config(args.model, args.batch, "bfloat16", args.tiny).model
    config.model.update({name: tiny[name] for name in ("resnet", "vit", "aspp", "dtype")})
    config.batch_size, config.data.crop_size = args.batch, (args.size, args.size)
    return config


def draw(args):
    """Return uint8 images and labels, a tenth of them unlabelled."""
    rng, shape = np.random.default_rng(0), (args.batch, args.size, args.size)
    labels = rng.integers(0, CLASSES, shape).astype(np.uint8)
    return rng.integers(0, 256, (*shape, 3)).astype(np.uint8), np.where(rng.random(shape) < 0.1, 255, labels)


def finetune(config, batch, steps):
    """Return seconds of a training step."""
    device_mesh = mesh.make_mesh(jax.devices()[:1])
    initial_state, step = finetune_step.make_step(config, 1000, 100, device_mesh)
    shapes = jax.eval_shape(initial_state, jax.eval_shape(lambda: finetune_step.init_variables(config)))
    lowered = step.lower(shapes, batch)
    timing.take_card()
    program = lowered.compile()
    state, placed = initial_state(finetune_step.init_variables(config)), mesh.place_batch(device_mesh, batch)

    def once():
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready(metrics)

    return timing.timed(once, steps, 3)


def evaluate(config, batch, steps):
    """Return seconds of class maps and confusion matrix of a batch, on the device."""
    model = finetune_step.build_model(config)

    @jax.jit
    def count(variables, batch):
        images = inputs.normalize(batch["image"], batch["size"], config.model.mean, config.model.std)
        logits = resize.bilinear(model.apply(variables, images, train=False), batch["label"].shape[1:])
        return confusion.confusion_matrix(batch["label"], logits.argmax(-1).astype("uint8"), CLASSES)

    lowered = count.lower(jax.eval_shape(lambda: finetune_step.init_variables(config)), batch)
    timing.take_card()
    program, variables, placed = lowered.compile(), finetune_step.init_variables(config), jax.device_put(batch)
    return timing.timed(lambda: jax.block_until_ready(program(variables, placed)), steps, 3)


def time_torch(variant, args, images, labels):
    """Return seconds of a peer's step, and the number of compiled graphs."""
    import torch
    import torch_peer

    options = {k: v for k, v in torch_peer.VARIANTS[variant].items() if k in ("autocast", "compiled", "mode")}
    placed = [torch.from_numpy(x).to(args.device) for x in (images, labels)]
    with torch_peer.recompilations_counted() as graphs:
        network = "tiny" if args.tiny else args.model
        prepare, step = torch_peer.make_segmenting(args.job, network, CLASSES, args.device, **options)
        if options.get("mode"):  # it tries kernels on the card while it compiles
            timing.take_card()
        prepare(*placed)
        timing.take_card()
        return timing.timed(lambda: step(*placed).sum().item(), args.steps, 3), graphs()


def main(arguments=None):
    args = parse(arguments)
    config, (images, labels) = make_config(args), draw(args)
    batch = {"image": images, "label": labels, "size": np.full((args.batch, 2), args.size, np.int32)}
    kind = timing.torch_card(args.device) if args.peers_only else None
    result = {"job": args.job, "model": args.model, "batch": args.batch, "size": args.size, **timing.machine(kind)}
    if not args.peers_only:
        seconds = {"finetune": finetune, "evaluate": evaluate}[args.job](config, batch, args.steps)
        result |= {"seconds": seconds, "samples_per_second": args.batch / seconds}
    for variant in filter(None, args.peers.split(",")):
        import torch

        seconds, graphs = time_torch(variant, args, images, labels)
        result |= {"torch": torch.__version__, f"torch_{variant}_seconds": seconds, f"torch_{variant}_graphs": graphs}
        if "seconds" in result:
            result[f"times_as_fast_as_{variant}"] = seconds / result["seconds"]
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
