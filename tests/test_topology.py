"""The same training on one device, on several processes, and with every option that saves memory (benchmarks/topology.py
has the long run)."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# The compiler's fast way: what is compared is computed alike.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def test_topologies_and_options_compute_the_same_in_float64(tmp_path):
    """Three steps, in the third of which a queue of two rows overwrites its first: the same bytes of samples, draws and
    masks, losses equal to 1e-9."""
    options = ("1x1", "2x2", "1x4:accumulate=2:remat=True:shard_state=True")
    topologies = ",".join(f"{option}:loss.queue_size=32" for option in options)
    command = [sys.executable, "benchmarks/topology.py", "--steps=3", "--dtypes=float64", f"--topologies={topologies}",
               f"--json={tmp_path / 'topology.json'}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": FAST}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "topology.json").read_text())
    assert len(result["rows"]) == 3 and all(len(losses) == 3 for losses in result["losses"].values())
    for row in result["rows"]:
        assert row["crops"] and row["draws"] and row["masks"], row
        assert row["worst"] < 1e-9 and row["gradient"] < 1e-8, row
    # Losses move, so that equal ones mean something.
    losses = next(iter(result["losses"].values()))
    assert len(set(losses)) == 3
