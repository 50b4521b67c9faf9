"""The launchers: what can be run here is run, what cannot is read."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers.paths import ROOT

LAUNCH = ROOT / "scripts" / "launch"


@pytest.mark.parametrize("path", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=lambda p: p.name)
def test_scripts_parse(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda p: p.name)
def test_each_launcher_has_a_page_and_names_it(path):
    page = re.search(r"docs/launch_\w+\.md", path.read_text())
    assert page and f"scripts/launch/{path.name}" in (ROOT / page[0]).read_text()


def run_local(*arguments, **options):
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.Popen(
        ["bash", LAUNCH / "local_multihost.sh", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def toy(workdir, steps):
    return ["tests/helpers/processes.py", "--config=configs/pretrain_demo.py", f"--workdir={workdir}", f"--steps={steps}"]


def test_local_processes_find_each_other_stop_on_sigterm_and_go_on(tmp_path):
    first = run_local("2", "2", *toy(tmp_path, 100000))
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    printed, errors = first.communicate(timeout=300)
    assert first.returncode == 75, errors
    assert "[0] starting at 0 with 2 processes, 4 devices" in printed
    stopped = int(re.search(r"\[1\] .*after step (\d+), saved", errors)[1])
    # The checkpoint of 2 x 2 goes on, on one process with one device.
    second = run_local("1", "1", *toy(tmp_path, stopped + 2))
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert f"[0] starting at {stopped} with 1 processes, 1 devices" in printed
    total = float(sum(28 + 8 * n for n in range(stopped + 2)))
    assert f"ended at {stopped + 2} with {total}" in printed


@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "1", "x.py"], ["two", "1", "x.py"]])
def test_local_usage(arguments):
    process = run_local(*arguments)
    assert "usage: local_multihost.sh" in process.communicate()[1] and process.returncode == 2


def test_a_failing_command_is_not_to_be_run_again():
    process = run_local("1", "1", "-c", "import sys; sys.exit(3)")
    process.communicate()
    assert process.returncode == 3


FAKE = """#!/usr/bin/env bash
# Remembers how it was called, and answers as the world is at that time: one answer a line, in the file of the question.
echo "$*" >> {folder}/calls
case "$*" in
  *describe*) question=states ;;
  *run.status\\ 2*) question=statuses ;;
  *) exit 0 ;;
esac
answer=$(head -n 1 {folder}/$question)
sed -i 1d {folder}/$question
[ "$answer" = gone ] && exit 1
echo -e "$answer"
"""


def cloud(tmp_path, *arguments, states=(), statuses=(), **environment):
    """Run cloud_tpu.sh with a gcloud that is ours; return (status, output, calls)."""
    (tmp_path / "gcloud").write_text(FAKE.format(folder=tmp_path))
    (tmp_path / "gcloud").chmod(0o755)
    for name, lines in (("states", states), ("statuses", statuses), ("calls", ())):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU_NAME": "pod", "ZONE": "here", "POLL_SECONDS": "0"}
    done = subprocess.run(
        ["bash", LAUNCH / "cloud_tpu.sh", *arguments],
        env=os.environ | variables | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr, (tmp_path / "calls").read_text().splitlines()


TRAIN = ("scripts/pretrain.py", "--config", "configs/pretrain_r50_aspp.py", "--config.data.crop_scale=(0.2, 1.0)")


def test_cloud_dry_run_prints_the_commands_and_calls_nothing(tmp_path):
    status, printed, calls = cloud(tmp_path, "create", DRY_RUN="1", SPOT="1", PROJECT="mine", TPU_TYPE="v4-64")
    assert status == 0 and calls == []
    create = "gcloud compute tpus tpu-vm create pod --zone=here --project=mine --accelerator-type=v4-64"
    create += " --version=tpu-ubuntu2204-base --spot"
    assert printed.splitlines()[0] == create
    assert "tpu-vm scp" in printed and "--worker=all" in printed and "requirements.txt" in printed


def test_cloud_run_quotes_the_command_for_all_workers(tmp_path):
    status, _, calls = cloud(tmp_path, "run", *TRAIN)
    assert status == 0 and len(calls) == 1
    assert "ssh pod --zone=here --worker=all" in calls[0] and "--config.data.crop_scale=\\(0.2\\,\\ 1.0\\)" in calls[0]


def test_cloud_keep_starts_again_after_a_preemption_and_a_stop(tmp_path):
    """No slice yet: created. It is preempted while running: deleted, created, run. Then all say 75: run. Then 0: done."""
    status, printed, calls = cloud(
        tmp_path,
        "keep",
        *TRAIN,
        states=["gone", "READY", "PREEMPTED", "PREEMPTED", "READY", "READY", "READY", "READY"],
        statuses=["running\\nrunning", "running\\n75", "75\\n75", "0\\n0"],
    )
    assert status == 0, printed
    kinds = [
        next(
            kind
            for kind in ("create", "delete", "nohup", "tail", "describe", "run.status 2", "scp", "mkdir", "pip")
            if kind in call
        )
        for call in calls
    ]
    assert [kind for kind in kinds if kind in ("create", "delete", "nohup")] == [
        "delete",
        "create",
        "nohup",
        "delete",
        "create",
        "nohup",
        "nohup",
    ]
    assert kinds[-1] == "tail" and printed.count("to be run again") == 2


def test_cloud_keep_gives_up_on_an_error_and_after_many_restarts(tmp_path):
    status, _, calls = cloud(tmp_path, "keep", *TRAIN, states=["READY"] * 3, statuses=["2\\n75"])
    assert status == 2 and sum("nohup" in call for call in calls) == 1
    status, printed, calls = cloud(tmp_path, "keep", *TRAIN, states=["READY"] * 9, statuses=["75"] * 3, MAX_RESTARTS="2")
    assert status == 75 and "giving up" in printed and sum("nohup" in call for call in calls) == 3


def test_slurm_requeues_a_stopped_job_only(tmp_path):
    """With a srun that returns what it is told, and a scontrol that remembers."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" > "$CALLS/srun.called"\nexit $STATUS\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$CALLS/scontrol.called"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "7",
        "PYTHON": "python",
    }

    def submit(status, restarts="0"):
        environment = os.environ | variables | {"STATUS": status, "SLURM_RESTART_COUNT": restarts}
        return subprocess.run(["bash", LAUNCH / "slurm.sbatch", "x.py", "--a=b c"], env=environment).returncode

    assert submit("0") == 0 and submit("2") == 2 and submit("75", restarts="20") == 75
    assert not (tmp_path / "scontrol.called").exists()
    assert submit("75") == 75
    assert (tmp_path / "scontrol.called").read_text() == "requeue 7\n"
    assert (tmp_path / "srun.called").read_text().endswith("python x.py --a=b c\n")


def test_the_jobset_is_consistent():
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (job["kind"], pod["restartPolicy"]) == ("JobSet", "Never")
    assert spec["parallelism"] == spec["completions"] == 4
    chips = eval(pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].replace("x", "*"))
    (container,) = pod["containers"]
    assert chips == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    for argument in container["args"][:1]:
        assert (ROOT / argument.partition("=")[2]).exists()
