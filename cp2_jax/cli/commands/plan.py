"""`cp2 plan`: what a run needs, before it is started."""

import dataclasses
import json
import pathlib

from cp2_jax.cli import command, screen

TEXT = """\
Say what a run needs before it is started.

  cp2 plan --config pretrain --topology v4-32
  cp2 plan --config quick_tune:small --images 500 --sizes

The first compiles the config's real step for the topology, without having it
(for TPUs: pip install "cp2_jax[tpu]", for cards: "cp2_jax[gpu]"), and prints
memory, work, communication and bounds on time. That takes a minute or, for
what is not here, ten. The second prints the sizes that `small` chooses for
500 images, at once and without these packages.

Topologies: slices (v3-8, v4-32, v5e-16, …), shapes (v4:2x2x4), NVIDIA cards
(h100, h200-8, a100-40gb, two hosts of eight: h100:2x8), or "local": the
devices of this machine."""
# Measured on two idle cores (docs/scaling.md, runs.progress_line).
HERE, THERE = "about 40 s, less if it was compiled before", "2 to 11 minutes"


def _options(made):
    made.add_argument("--topology", default="local", help="slice, shape of a slice, cards, or local (%(default)s)")
    made.add_argument(
        "--images",
        metavar="N",
        type=command.whole(1),
        default=1_281_167,
        help="images of an epoch (%(default)s: ImageNet's training set)",
    )
    made.add_argument(
        "--efficiencies",
        metavar="E,E",
        type=_shares,
        default=(1.0, 0.5, 0.25),
        help="shares of the bound's speed to give hours for (1,0.5,0.25)",
    )
    made.add_argument("--sizes", action="store_true", help="only choose the sizes that are open; compile nothing")
    made.add_argument("--json", metavar="FILE", type=command.local, help="write the plan to this file as well")


def _shares(text):
    return tuple(float(part) for part in text.split(","))


_shares.__name__ = "list of numbers, such as 1,0.5,"


def _settle(config, topology, images) -> bool:
    """Choose the sizes that a config leaves open for a topology's devices, and print them; say whether any was open."""
    from cp2_jax.planning import chips
    from cp2_jax.pretraining import sizes as pretraining
    from cp2_jax.runs.sizes import this_machine
    from cp2_jax.segmentation import sizes as segmentation

    devices, chip = chips.count(topology)
    machine = dataclasses.replace(this_machine(), devices=devices)
    if chip:
        machine = dataclasses.replace(machine, memory=chip.memory, accelerator=True)
    rules = {"pretrain": pretraining, "finetune": segmentation}
    reasons = rules[config.kind].settle(config, images, machine)
    if reasons:
        print(screen.wrapped(reasons, screen.WIDTH) + "\n", flush=True)
    return bool(reasons)


def _run(arguments):
    from cp2_jax.data.labelled import classes
    from cp2_jax.planning import chips, program, report
    from cp2_jax.pretraining import options as pretraining
    from cp2_jax.runs import out_of_memory, progress
    from cp2_jax.segmentation import options as segmentation

    config = command.typed_config(arguments)
    topology = None if arguments.sizes else chips.get(arguments.topology)
    if config.kind == "finetune" and config.data.path:
        classes.resolve(config)
    config.data.path = config.data.path or "unread"
    chosen = _settle(config, arguments.topology, arguments.images)
    if arguments.sizes:
        if not chosen:
            print(f"{arguments.config} leaves no size open; the variant `small` does (docs/small_data.md)")
        return
    check = {"pretrain": pretraining.check, "finetune": segmentation.check}
    check[config.kind](config, len(topology.devices))
    place, takes = ("", HERE) if topology.name == chips.LOCAL else (f" for {topology.name}", THERE)
    with progress.waiting(f"compiling the step{place} ({takes})"):
        compiled = program.compile_step(config, topology, arguments.images)
    plan = report.plan(config, topology, compiled, arguments.images, list(arguments.efficiencies))
    print(report.table(compiled, plan))
    if arguments.json:
        text = json.dumps({"config": config.to_dict()} | report.as_dict(compiled, plan), indent=1, default=str)
        pathlib.Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    if compiled.fits is False:
        raise chips.PlanError(f"{config.batch_size} images do not fit {arguments.topology}; {out_of_memory.REMEDIES}")


COMMAND = command.Command(TEXT, _options, _run, config="pretrain")
