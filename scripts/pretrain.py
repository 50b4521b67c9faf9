"""Pretrain a segmentation model with CP2: python scripts/pretrain.py --config configs/… --workdir DIR

The configs say the whole command of each experiment. Run again with the same work directory, it resumes.
"""

import functools
import pathlib

import _cli

FLAGS = _cli.define_config_flags()
PROFILE = _cli.flags.DEFINE_bool("profile", False, "Trace a few steps, print where their time goes, end.")

import jax  # noqa: E402
from clu import parameter_overview  # noqa: E402

from cp2_jax import validation  # noqa: E402
from cp2_jax.convert import warm_start  # noqa: E402
from cp2_jax.data.images.sources import open_held_out, open_source  # noqa: E402
from cp2_jax.data.images.stream import Batches, pretrain_dataset  # noqa: E402
from cp2_jax.pretraining import attention_maps  # noqa: E402
from cp2_jax.pretraining import step as pretrain_step  # noqa: E402
from cp2_jax.runs import distributed, loop, mesh, profiling, settings  # noqa: E402
from cp2_jax.runs.checkpoints import Checkpoints  # noqa: E402
from cp2_jax.runs.writers import Writer  # noqa: E402


def main(_):
    config = FLAGS.value
    workdir = pathlib.Path(_cli.flags.FLAGS.workdir).absolute()
    validation.validate_pretrain(config, jax.device_count())
    source = open_source(config.data)
    distributed.agree({"number of images": str(len(source))})
    steps_per_epoch = settings.steps_per_epoch(len(source), config.batch_size)
    total_steps = settings.total_steps(config, len(source))
    device_mesh = mesh.make_mesh()
    initial_state, step = pretrain_step.make_step(config, total_steps, steps_per_epoch, device_mesh)
    settings.save_config(workdir, config)
    print(config)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep)
    variables = None
    if config.init.checkpoint and checkpoints.latest_step() is None:
        variables, table = warm_start.start(config, jax.jit(lambda: pretrain_step.init_variables(config))())
        print(table)
    state = initial_state(variables)
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(f"{len(source)} images, {steps_per_epoch} steps an epoch, {total_steps} steps, on {jax.device_count()} "
          f"{jax.devices()[0].device_kind}")  # fmt: skip
    if restored := checkpoints.restore(state):
        state, _ = restored
        print(f"resuming after step {int(state.step)}")
    start = int(state.step)
    read = functools.partial(
        pretrain_dataset, image_size=config.image_size, seed=config.seed, crop_scale=config.data.crop_scale,
        backgrounds=config.data.backgrounds,
    )  # fmt: skip
    read_training = functools.partial(read, source=source, attention=attention_maps.open_maps(config, source))
    dataset = read_training(
        batch_size=config.batch_size,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    batches = Batches(dataset, source, place=lambda b: mesh.place_batch(device_mesh, b), ahead=config.data.prefetch)
    if PROFILE.value:
        print(profiling.profile(step, state, batches, workdir / "profile"))
        batches.close()
        return
    with Writer(workdir, total_steps, start, title="pretraining") as writer:
        on_step = [_cli.watchdog()]
        if config.picture_every:
            few = next(iter(read_training(batch_size=4)))
            on_step.append(hooks.pretrain_pictures(config, few, writer, device_mesh))
        if config.probe_every:
            held_out = next(iter(read(source=open_held_out(config.data), batch_size=config.probe_images, prefetch=1)))
            on_step.append(hooks.pretrain_probes(config, held_out, writer, device_mesh))
        loop.fit(
            step,
            state,
            batches,
            total_steps=total_steps,
            writer=writer,
            checkpoints=checkpoints,
            meta={"kind": "pretrain", "config": settings.as_plain(config)},
            save_every=config.save_every,
            log_every=config.log_every,
            samples_per_step=config.batch_size,
            extra_metrics=lambda: {"unreadable_images": batches.unreadable_count},
            on_step=on_step,
        )
        writer.curves()
    batches.close()
    checkpoints.close()
    print(f"finished {total_steps} steps; model and pictures in {workdir}")


if __name__ == "__main__":
    _cli.run(main)
