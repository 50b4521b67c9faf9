"""Does a bucket that misbehaves cost a checkpoint? Injects faults at random requests of saves and restores.

    PYTHONPATH=tests python benchmarks/bucket_faults.py [--faults 200] [--seed 0] [--json FILE]

Servers of both kinds (fake-gcs-server and moto's S3, see tests/servers.txt) run on 127.0.0.1 behind a proxy. A state that
follows from its step is saved again and again, beside lines of metrics; each time something happens to a random request:

    503, 429, 500   the request is refused once or a few times
    cut, lost       the answer breaks off, or is lost after the server has done what was asked
    slow, silent    it comes late, or not at all
    outage          every request is refused for longer than the run's patience: the save fails and says so
    kill            from some request on nothing arrives, as if the process were killed there; then the run is begun anew
    gone            a file of the newest checkpoint disappears

After each: the newest checkpoint that was complete (of `gone`, the one before) is restored and equals its state bit for
bit; of faults that pass, the save itself succeeded. A call that takes longer than two minutes counts as hung. Status 1 if
anything was lost or hung.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from helpers import servers

from cp2_jax.paths import BucketError, stores
from cp2_jax.runs import bucket_steps
from cp2_jax.runs.bucket_checkpoints import BucketCheckpoints
from cp2_jax.runs.checkpoints import CheckpointError
from cp2_jax.runs.writers import Writer, read_metrics

PASSING = ("503", "429", "500", "cut", "lost", "slow", "silent")
FAULTS = (*PASSING, "outage", "kill", "gone")
LIMIT = 120  # seconds


def state(step):
    """Return what is saved at a step."""
    return {"step": np.int32(step), "w": np.random.default_rng(step).standard_normal((64, 64), np.float32)}


class Story:
    """One run in one bucket."""

    def __init__(self, proxy, seed):
        self.proxy, self.rng = proxy, random.Random(seed)
        self.bucket, self.step, self.good = proxy.new_bucket(), 0, []
        self.saver, self.pool = None, ThreadPoolExecutor(4)
        self.begin()

    def begin(self):
        """Start, or start anew; a process that was killed writes nothing more."""
        if self.saver is not None:
            self.writer._spool._ended.set()
            self.writer._spool._thread.join()
        self.saver = self.bounded(lambda: BucketCheckpoints(self.bucket / "checkpoints", keep=3))
        self.writer = self.bounded(lambda: Writer(self.bucket, 10**6, self.saver.latest_step() or 0))

    def bounded(self, call):
        """Return what a call returns, if it does in time."""
        return self.pool.submit(call).result(timeout=LIMIT)

    def save(self):
        self.step += 1
        self.writer.scalars(self.step, {"loss": 1 / self.step})
        self.writer.flush()
        self.saver.save(self.step, state(self.step), {"step": self.step})
        self.saver.wait()

    def inject(self, kind):
        """Let something happen to a save, or to what was saved; return whether all is as it should be."""
        if not self.good:
            self.bounded(self.save)
            self.good.append(self.step)
        if kind == "gone":
            self.bounded(self.save)
            newest = self.bucket / "checkpoints" / str(self.step)
            names = [name for name in newest.files() if name.startswith(("state/", "meta/")) and "commit" not in name]
            (newest / self.rng.choice(names)).unlink()
        else:
            self.proxy.fault = self.fault(kind)
            try:
                self.bounded(self.save)
                self.good.append(self.step)
            except (BucketError, CheckpointError) as error:
                if kind in PASSING:
                    print(f"{kind}: {error}", flush=True)
                    return False
            finally:
                self.proxy.fault = servers.nothing
        if kind in ("kill", "outage", "gone"):
            self.begin()
        return self.whole(kind)

    def fault(self, kind):
        first, count = self.rng.randrange(1, 25), self.rng.randrange(1, 4)
        seen = [0]

        def passing(method, path):
            seen[0] += 1
            return kind if first <= seen[0] < first + count else ""

        def lasting(method, path):
            seen[0] += 1
            return ("403" if kind == "kill" else "503") if seen[0] >= first else ""

        return passing if kind in PASSING else lasting

    def whole(self, kind):
        """Restore, and compare with what was saved."""
        restored, meta = self.bounded(lambda: self.saver.restore(state(0)))
        found = int(meta["step"])
        steps = {line["step"] for line in read_metrics(self.bucket / "metrics.jsonl")}
        same = all(
            np.array_equal(a, b) for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(found)), strict=True)
        )
        self.good = [int(step) for step in bucket_steps.complete(self.bucket / "checkpoints")]
        newest = max(self.good)
        late = found < newest or (kind in PASSING and found != self.step)
        self.step = max(self.step, newest)
        if not (same and not late and found in steps):
            print(f"{kind}: {found=} {same=} {late=} {steps=} {self.good=} {self.step=}", flush=True)
            return False
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    os.environ["CP2_BUCKET_PATIENCE"] = "20"
    stores._SILENCE = 2.0
    table, wrong, begin = collections.Counter(), [], time.monotonic()
    for number, scheme in enumerate(("gs", "s3")):
        with servers.proxied(scheme) as proxy:
            story, rng = Story(proxy, arguments.seed + number), random.Random(arguments.seed + number)
            for index in range(arguments.faults // 2):
                kind = FAULTS[index % len(FAULTS)] if index < len(FAULTS) else rng.choice(FAULTS)
                os.environ["CP2_BUCKET_PATIENCE"] = "1" if kind == "outage" else "20"
                try:
                    good, why = story.inject(kind), "not whole"
                except TimeoutError:
                    good, why = False, "hung"
                table[scheme, kind] += 1
                if not good:
                    wrong.append({"bucket": scheme, "fault": kind, "number": index, "why": why})
                    print("WRONG", wrong[-1], flush=True)
                    story = Story(proxy, arguments.seed + index)
    for (scheme, kind), count in sorted(table.items()):
        print(f"{scheme} {kind:8} {count:4}")
    hung = sum(one["why"] == "hung" for one in wrong)
    seconds = time.monotonic() - begin
    print(
        f"{sum(table.values())} faults in {seconds:.0f} s: {len(wrong) - hung} checkpoints lost or wrong, {hung} calls hung"
    )
    if arguments.json:
        counts = {f"{scheme} {kind}": count for (scheme, kind), count in table.items()}
        arguments.json.write_text(json.dumps({"faults": counts, "wrong": wrong, "seconds": seconds}, indent=1) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
