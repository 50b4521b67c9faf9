"""A small pretraining for tests of buckets: in this process, or in one of its own that kills itself."""

import os
import signal
import subprocess
import sys
from unittest import mock

from configs import pretrain_r50_aspp
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.pretraining import run
from cp2_jax.runs.checkpoints import read
from cp2_jax.runs.writers import VARYING, Writer, read_metrics
from helpers import toy_backbone
from helpers.paths import ROOT

STEPS = 8


def config(source, data, **changes):
    """Two convolutions on 32x32 images, a save every second step."""
    made = pretrain_r50_aspp.get_config()
    made.update(image_size=32, batch_size=4, bn_groups=1, steps=STEPS, save_every=2, log_every=1, keep=9)
    made.update(picture_every=0, probe_every=0)  # of pictures, the curves
    made.augment.update(
        jitter_probability=0.0, grayscale=0.0, blur=0.0
    )  # flips and masks are random, too, and compile sooner
    toy_backbone.choose(made.model)
    made.model.dtype = "float32"
    made.loss.queue_size = 16
    made.data.update(source=source, path=str(data), workers=0)
    made.update_from_flattened_dict(changes)
    return made


def train(source, data, workdir, **changes):
    """Train, or go on; return what was computed: the metrics of each step, and the arrays of the last checkpoint."""
    with mock.patch.dict(BACKBONES, toy=toy_backbone.BACKBONE):
        run.train(config(source, data, **changes), workdir)
        return found(workdir)


def found(workdir):
    """Return (metrics of each step, arrays of the newest checkpoint) of a work directory."""
    lines = read_metrics(f"{workdir}/metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines], read(workdir)[0]


def killed(source, data, workdir, after):
    """Train in a process that kills itself as soon as some steps were dispatched, while the last save may be under way."""
    call = f"bucket_run.die_after({after}); bucket_run.train({source!r}, {str(data)!r}, {str(workdir)!r})"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"import conftest; from helpers import bucket_run; {call}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def die_after(steps):
    """Let this process be killed when so many steps were dispatched."""
    before = Writer.progress

    def progress(self, step):
        before(self, step)
        if step == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    Writer.progress = progress
