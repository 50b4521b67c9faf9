"""Lines, pictures and TensorBoard files, and how a file that a kill broke off is taken up again."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cp2_jax.writers import Writer, read_metrics


def test_values_are_exact_and_terminal_lines_say_what_matters(tmp_path, capsys):
    value = np.float32(0.1)
    with Writer(tmp_path, 10) as writer:
        writer.scalars(1, {"loss": value, "time/images_per_second": 12.34})
    assert np.float32(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"]) == value
    assert "step 1/10 loss 0.1 12.3 images/s eta 0:00:0" in capsys.readouterr().out
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("broken", ["", '{"step": 4, "lo'])
def test_resuming_drops_lines_that_will_be_computed_again(tmp_path, broken):
    with Writer(tmp_path, 10) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(broken)
    with Writer(tmp_path, 10, start_step=2) as writer:
        writer.scalars(3, {"loss": 30})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 30)]


def test_pictures_are_written_as_they_are(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with Writer(tmp_path, 10) as writer:
        path = writer.image(3, "pairs", picture)
    assert path == tmp_path / "pictures" / "pairs_0000003.png"
    np.testing.assert_array_equal(Image.open(path), picture)


def test_no_tensorflow_is_imported():
    """Of all the project's libraries, none may pull it in."""
    code = ("import sys, json, cp2_jax.pretrain, cp2_jax.writers, cp2_jax.checkpoints, cp2_jax.data.pretrain, cp2_jax.loop;"
            "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')]))")  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
