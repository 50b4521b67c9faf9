"""The same training on one device, on several processes, and with every option that saves memory (benchmarks/topology.py
has the long run)."""

import json
import subprocess
import sys

from helpers import compiling
from helpers.paths import ROOT


def test_topologies_options_and_resumption_compute_the_same_in_float64(tmp_path):
    """Four steps; a queue of two rows overwrites its first in the third. One device; two processes with all options that
    save memory; and their checkpoint after two steps, resumed on four devices of one process without them: the same bytes
    of samples, draws and masks, losses equal to 1e-9."""
    short = "loss.queue_size=32:model.head='fcn':model.fcn.channels=8:model.fcn.num_convs=1"
    short += ":augment.jitter_probability=0.0:augment.grayscale=0.0:augment.blur=0.0"  # drawn, compared, not computed
    thrifty = f"2x2:accumulate=2:remat=True:shard_state=True:{short}"
    topologies = f"1x1:{short},{thrifty},1x4:{short}:from={thrifty.replace(':', '+')}"
    command = [
        sys.executable,
        "benchmarks/topology.py",
        "--steps=4",
        "--dtypes=float64",
        f"--topologies={topologies}",
        f"--json={tmp_path / 'topology.json'}",
    ]
    done = subprocess.run(command, cwd=ROOT, env=compiling.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "topology.json").read_text())
    assert [row["steps"] for row in result["rows"]] == [4, 4, 2]
    for row in result["rows"]:
        assert row["crops"] and row["draws"] and row["masks"], row
        assert row["worst"] < 1e-9 and row["gradient"] < 1e-8, row
    # Losses move, so that equal ones mean something.
    assert len(set(next(iter(result["losses"].values())))) == 4
