"""Several processes: who takes part, that all run the same, and that none waits for the dead. Toy steps, real processes."""

import re
import signal
import socket
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import pytest
from helpers import compiling
from helpers.paths import ROOT
from ml_collections import ConfigDict

from configs import pretrain_r50_aspp
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import run as pretraining
from cp2_jax.runs import distributed
from cp2_jax.segmentation import run as segmentation
from cp2_jax.segmentation.reports import Split

SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    "environment,expected",
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, False),  # inside an allocation, but not started by srun
        ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_clusters_are_recognised(environment, expected):
    assert distributed.in_cluster({"JAX_PLATFORMS": "cpu"} | environment) is expected


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("localhost:1", None, None), "--num_processes, --process_id is missing: give all"),
        ((None, 2, 0), "--coordinator is missing"),
        (("localhost:1", 2, 2), "--process_id=2 must lie between 0 and --num_processes=2 less 1"),
        (("localhost", 2, 0), "--coordinator=localhost: give host and port"),
        (("8476", 2, 0), "--coordinator=8476: give host and port"),
        (("localhost:99999", 2, 1), "--coordinator=localhost:99999: give host and port"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message):
    with pytest.raises(ConfigError, match=message):
        distributed.initialize(*arguments)


def test_a_port_that_is_taken_is_named():
    """JAX's coordination service ends by a segmentation fault there, and the other processes wait for five minutes."""
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"process 0 cannot listen on port {port} \(Address already in use\); is"):
            distributed.initialize(f"localhost:{port}", 2, 0)


def test_facts_and_their_differences():
    config = pretrain_r50_aspp.get_config()
    mine = distributed.facts(config, {"images": 10})
    assert mine["config.optimizer.learning_rate"] == "0.03" and mine["images"] == "10"
    assert "file cp2_jax/runs/distributed.py" in mine and "library jax" in mine
    theirs = mine | {"config.seed": "1", "file cp2_jax/runs/mesh.py": "abc", "file cp2_jax/new.py": "def"}
    text = distributed.differences([mine, theirs, theirs])
    assert "config.seed: process 0 has 0, process 1 has 1 (and 1 more)" in text
    assert re.search(r"file cp2_jax/runs/mesh.py: process 0 has \w{12}, process 1 has abc", text)
    assert "file cp2_jax/new.py: process 0 has absent, process 1 has def" in text and "optimizer" not in text


def start(workdir, *, act="", different=(), devices=2, **flags):
    """Start two processes, the second perhaps with another config."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = {"heartbeat_timeout": 10, "act": act} | flags
    command = [
        sys.executable,
        "tests/helpers/processes.py",
        "--config=configs/pretrain_demo.py",
        f"--workdir={workdir}",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    return [
        subprocess.Popen(
            [*command, f"--process_id={index}", *(different if index else ())],
            cwd=ROOT,
            env=compiling.environment(devices),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]


def finish(processes, timeout=300):
    try:
        return [(p.communicate(timeout=timeout), p.returncode) for p in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("late", [0, 1])
def test_processes_with_different_configs_all_stop(tmp_path, late):
    """All say why, with a status of ours, though one of them takes long to come to its end."""
    results = finish(start(tmp_path, different=["--config.seed=3", "--config.loss.alpha=0.3"], late=late))
    for (_, errors), status in results:
        assert status == 1
        assert "started differently:\n  config.loss.alpha: process 0 has 0.2, process 1 has 0.3\n" in errors
        assert "  config.seed: process 0 has 0, process 1 has 3\n" in errors and "Traceback" not in errors
    assert not (tmp_path / "checkpoints").exists()


def test_after_a_kill_the_other_stops_and_both_go_on(tmp_path):
    """kill -9 in step 5: the other process leaves by itself; restarted, both end where an unbroken run ends."""
    (survivor, status), (_, killed) = finish(start(tmp_path, act="kill", steps=10))
    assert killed == -signal.SIGKILL
    lost = (
        r"^error: process 1 of this run was lost \(its connection was closed\): start again with the same command to resume"
    )
    assert status == 75 and re.search(rf"{lost} from step [24]$", survivor[1], re.MULTILINE), survivor
    results = finish(start(tmp_path, act="kill", steps=10))
    assert [status for _, status in results] == [0, 0], results
    (printed, _), (other, _) = (texts for texts, _ in results)
    begun = int(re.search(r"starting at (\d+) with 2 processes, 4 devices", printed)[1])
    assert 2 <= begun <= 5
    assert f"ended at 10 with {float(sum(28 + 8 * n for n in range(10)))}" in printed
    assert "starting at" not in other  # process 0 alone prints


def test_the_loss_of_the_first_process_is_one_line_and_no_abort(tmp_path):
    """JAX's coordination service is in process 0; without it JAX aborts the others (SIGABRT)."""
    (_, killed), ((_, errors), status) = finish(start(tmp_path, act="kill", who=0))
    assert killed == -signal.SIGKILL and status == 75
    assert re.search(r"^error: process 0 of this run was lost \(.*to resume from step [24]$", errors, re.MULTILINE), errors


def test_an_error_of_the_input_in_one_process_costs_no_step(tmp_path):
    ((_, first), status), ((_, second), failed) = finish(start(tmp_path, act="unreadable"))
    assert failed == status == 1 and second.strip() == "error: photos/5.png: it is empty"
    assert first.strip() == "error: process 1 of this run stopped after step 5: photos/5.png: it is empty"
    assert (tmp_path / "checkpoints" / "5").exists()  # save_every is 2


def test_an_error_in_one_process_stops_all(tmp_path):
    ((_, first), status), ((_, second), failed) = finish(start(tmp_path, act="raise"))
    assert failed == status == 1 and second.strip() == "error: the disk of process 1 is gone"
    assert first.strip() == "error: process 1 of this run stopped: the disk of process 1 is gone"


@pytest.mark.parametrize("act,flags", [("freeze", {}), ("sleep", {"stall_timeout": 4})])
def test_a_process_that_hangs_stops_all(tmp_path, act, flags):
    """Frozen, it is silent; asleep, it still answers, and the watchdog looks at the steps."""
    processes = start(tmp_path, act=act, **flags)
    try:
        begin = time.monotonic()
        output, errors = processes[0].communicate(timeout=300)
        # Within a set time: the heartbeat's and the watchdog's limits are seconds here.
        assert processes[0].returncode == 75 and time.monotonic() - begin < 90
        frozen = "process 1 of this run was lost (gave no sign of life for 10 s): start again"
        assert ("no step has ended for 4 s after step" if act == "sleep" else frozen) in errors
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("late", [0, 1])
def test_sigterm_saves_on_all_and_leaves_with_75(tmp_path, late):
    """Also where one of them takes long to leave: without process 0, JAX's service would abort it (SIGABRT)."""
    processes = start(tmp_path, steps=100000, late=late)
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    results = finish(processes)
    assert [status for _, status in results] == [75, 75], results
    stopped = [int(re.search(r"after step (\d+), saved", errors)[1]) for (_, errors), _ in results]
    assert stopped[0] == stopped[1] and (tmp_path / "checkpoints" / str(stopped[0])).exists()


def test_weights_that_each_process_has_read_are_compared(monkeypatch):
    """A run may save between the reading of one and that of another, and each host may have a file of its own."""
    told = []
    monkeypatch.setattr(distributed, "agree", told.append)
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    for weights in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]):
        distributed.agree_on_arrays("init.checkpoint=x", {"w": jnp.array(weights, jnp.bfloat16)})
    assert told[0] == told[1] != told[2] and list(told[0]) == ["init.checkpoint=x"]


@pytest.mark.parametrize("run", [pretraining, segmentation], ids=["pretraining", "finetuning"])
def test_the_first_weights_of_all_processes_are_the_same(monkeypatch, run):
    seen = []

    def agree(what, variables):
        seen.append((what, variables))
        raise distributed.DisagreementError

    monkeypatch.setattr(distributed, "agree_on_arrays", agree)
    monkeypatch.setattr(run.warm_start, "load", lambda config: run.warm_start.Loaded({"w": 1}))
    config = ConfigDict({"init": {"checkpoint": "gs://bucket/run"}})
    with pytest.raises(distributed.DisagreementError):
        run._first(config) if run is pretraining else run._first(config, [])
    assert seen == [("init.checkpoint=gs://bucket/run", {"w": 1})]


def test_the_images_to_evaluate_are_those_of_all_processes(monkeypatch):
    told = []
    monkeypatch.setattr(distributed, "agree", told.append)
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    for names in ("ab", "ab", "ac"):
        split = Split("val", names)
        segmentation._agree_on_images(types.SimpleNamespace(examples=names, split=split))
    assert told[0] == told[1] != told[2]
