"""The planner: collectives read from HLO text, topologies, bounds by hand, and a small step compiled end to end."""

import dataclasses
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from helpers import command_line, compiling
from helpers.paths import DATA, ROOT

from configs import finetune_demo, pretrain_r50_aspp
from cp2_jax.planning import cards, chips, collectives, program, report, traffic
from cp2_jax.planning.collectives import Collective

HLO = DATA / "hlo"  # lines as XLA 0.10.2 writes them for CPUs and TPUs


def test_collectives_are_read_from_the_text():
    found = collectives.find((HLO / "collectives.txt").read_text(), 8)
    assert [(c.kind, c.bytes, c.group) for c in found] == [
        ("all-gather", 32 * 128 * 4, 8),
        ("all-reduce", 8 * 4 + 8 * 2, 2),
        ("all-reduce", 256, 4),
        ("all-gather", 16 * 16 * 4, 8),
        ("collective-permute", 8 * 128 * 4, 8),
        ("reduce-scatter", 16, 4),
    ]
    assert found[0].name == "jit(step)/jvp(bc,rnc->brn)/dot_general" and found[0].shapes == ((32, 128),)


def test_traffic_is_counted_by_hand():
    text = (HLO / "traffic.txt").read_text()
    # The copy fetches ahead what the multiplication is counted to read.
    assert traffic.by_part(text) == {"augment": 10 + 32 + 32 + 16, "backward": 3 * 32}


@pytest.mark.parametrize(
    "kind,moved", [("all-reduce", 150), ("all-gather", 75), ("reduce-scatter", 300), ("collective-permute", 100)]
)
def test_a_ring_moves_these_bytes(kind, moved):
    """4 devices, a result of 100 bytes: an all-gather receives 3 quarters, a reduce-scatter reduced 4 times 100."""
    assert Collective(kind, 100, 4, "", ()).moved == moved


@pytest.mark.parametrize("name", ["v9-8", "v4-31", "v5e:", "nonsense", "v4-0", ""])
def test_an_unknown_topology_lists_the_known(name):
    with pytest.raises(chips.PlanError, match="v3-8, v3-32.*v4-32.*v5e-16.*local"):
        chips.get(name)


PROGRAM = program.Program(
    kind="pretrain",
    topology="x",
    devices=4,
    hosts=2,
    batch_size=256,
    parameters=100,
    optimizer=100,
    queue=50,
    batch=64,
    temporaries=320,
    code=10,
    peak=700,
    memory=1000,
    flops=100.0,
    bytes_accessed=50.0,
    traffic={"augment": 48.0, "backward": 96.0},
    collectives=[Collective("all-gather", 80, 4, "", ())],
    compile_seconds=1.0,
)


def test_bounds_follow_from_the_specification():
    config = pretrain_r50_aspp.get_config()
    config.epochs = 2
    chip = chips.Chip(memory=1000, flops=50.0, memory_rate=10.0, link_rate=20.0)
    topology = chips.Topology("x", [None] * 4, chip, hosts=2)
    plan = report.plan(config, topology, PROGRAM, images=2560, efficiencies=(1.0, 0.5))
    assert (plan.compute, plan.memory, plan.links, plan.bound) == (2.0, 5.0, 3.0, 5.0)
    assert (plan.steps, plan.steps_per_epoch) == (20, 10)
    assert plan.epochs_per_day == 86400 / 50
    assert plan.decode_rate == 3 * 256 / 2 / 5
    assert plan.hours == {1.0: 100 / 3600, 0.5: 200 / 3600}
    # 316 of the 700 bytes do not grow; the other 384 are 6 for each of 64 images: (1000 - 316) / 6.
    assert plan.largest_batch == 114
    text = report.table(PROGRAM, plan)
    assert re.search(r"memory traffic +50 B\n  backward +96 B, 2 B a sample\n  augment +48 B, 1 B a sample\n", text)
    assert "700 B of 1.00 kB, fits" in text and "at 50% of that speed" in text
    full = report.as_dict(PROGRAM, plan)
    assert json.loads(json.dumps(full))["plan"]["bound"] == 5.0 and full["fits"] is True


def test_a_program_that_the_compiler_refused_does_not_fit():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded"
    assert program._wanted(message) == int(20.5 * 2**30) and "20.50G" in program._reason(message)
    unknown = dict.fromkeys(("temporaries", "code", "flops", "bytes_accessed", "traffic", "collectives"))
    error, peak = program._reason(message), program._wanted(message)
    compiled = dataclasses.replace(PROGRAM, memory=16e9, peak=peak, error=error, **unknown)
    assert compiled.fits is False
    plan = report.plan(pretrain_r50_aspp.get_config(), chips.Topology("x", [None], chips.TPUS["v5e"], 1), compiled, 1000)
    assert "DOES NOT FIT: 22.01 GB of 16.00 GB" in report.table(compiled, plan) and plan.bound is None


@pytest.fixture
def small_step(monkeypatch):
    """Compiles a step of one product for a described device, in the place of pretraining's."""

    @dataclasses.dataclass
    class State:
        params: jax.Array
        opt_state: jax.Array

    jax.tree_util.register_dataclass(State)
    device_mesh = program.mesh.make_mesh(jax.devices()[:1])
    kept = jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec())

    def make_step(config, total, per_epoch, mesh):
        def step(state, batch):
            with jax.named_scope("optimizer"):
                return dataclasses.replace(state, params=state.params @ state.params), batch["foreground"].sum()

        return lambda: State(jnp.ones((64, 64)), jnp.ones(64)), jax.jit(step)

    task = SimpleNamespace(
        make_step=make_step, state_sharding=lambda mesh, state, split: jax.tree.map(lambda _: kept, state)
    )
    monkeypatch.setattr(program.mesh, "make_mesh", lambda devices: device_mesh)
    monkeypatch.setattr(program, "pretrain_step", SimpleNamespace(**vars(task), abstract_batch=abstract_batch))

    def compiled(platform, chip):
        topology = chips.Topology("local", [SimpleNamespace(platform=platform)], chip, 1)
        config = pretrain_r50_aspp.get_config()
        found = program.compile_step(config, topology, 1000)
        plan = report.plan(config, topology, found, 1000)
        return found, plan, report.table(found, plan)

    return compiled


def abstract_batch(config):
    return {"foreground": jax.ShapeDtypeStruct((config.batch_size, 2, 4, 4, 3), jnp.uint8)}


def rows(table):
    return {line[:28].strip(): line[29:] for line in table.splitlines()}


@pytest.mark.parametrize("platform", ["gpu", "cuda", "rocm"])
def test_on_gpus_what_their_libraries_compute_is_not_counted_and_no_bound_is_given(platform, small_step):
    """Memory and traffic by part are known, as they come from the program's arrays and text."""
    found, plan, table = small_step(platform, cards.PRESENT["H100"])
    assert found.flops is None and found.bytes_accessed is None
    assert {plan.compute, plan.memory, plan.links, plan.bound, plan.epochs_per_day, plan.decode_rate} == {None}
    assert plan.hours == {} and plan.largest_batch > 256 and found.fits and found.traffic["optimizer"] > 0
    shown = rows(table)
    for name in ("work", "memory traffic", "step by compute, at least", "step, at least", "epochs a day, at most"):
        assert shown[name] == "unknown", name
    assert "of 80.00 GB, fits" in shown["peak"] and "hours" not in table
    assert json.loads(json.dumps(report.as_dict(found, plan)))["plan"]["bound"] is None


def test_elsewhere_the_same_program_is_counted(small_step):
    found, plan, table = small_step("tpu", chips.TPUS["v3"])
    # The product, and the sum over 256 rows of uint8 (XLA counts each addition and some conversions).
    assert (
        2 * 64**3 <= found.flops < 2 * 64**3 + 10 * 256 * 96 and plan.bound > 0 and rows(table)["work"].endswith("padding)")
    )


@pytest.mark.parametrize(
    "kind,memory",
    [("NVIDIA H200", 141e9), ("NVIDIA H100 80GB HBM3", 80e9), ("NVIDIA H100 PCIe", 80e9), ("NVIDIA A100-SXM4-40GB", 40e9)]
    + [("NVIDIA A100-SXM4-80GB", 80e9), ("Tesla V100-SXM2-16GB", 16e9), ("NVIDIA B200", None), ("cpu", None)],
)
def test_a_card_is_known_by_its_name_and_has_the_memory_that_its_allocator_may_take(kind, memory, monkeypatch):
    stats = {"bytes_limit": 60_000_000_000}
    for given in (None, {}, stats):
        card = SimpleNamespace(device_kind=kind, platform="cpu" if kind == "cpu" else "gpu", memory_stats=lambda g=given: g)
        monkeypatch.setattr(jax, "devices", lambda card=card: [card])
        chip = chips.get("local").chip
        assert (chip and chip.memory) == (memory and (given or {}).get("bytes_limit", memory))


SMALL = [
    "--config.image_size=32",
    "--config.batch_size=32",
    "--config.model.resnet.depth=18",
    "--config.model.resnet.width=8",
    "--config.model.resnet.stem_width=8",
    "--config.model.resnet.stage_sizes=(1, 1, 1, 1)",
    "--config.model.aspp.channels=8",
    "--config.model.aspp.dilations=(1, 2)",
    "--config.loss.queue_size=2048",
    "--config.model.dtype=float32",
]


def plan_small(tmp_path, *flags, devices=8):
    command = [
        sys.executable,
        "scripts/plan.py",
        "--config=configs/pretrain_r50_aspp.py",
        *SMALL,
        f"--json={tmp_path / 'plan.json'}",
        *flags,
    ]
    done = subprocess.run(command, cwd=ROOT, env=compiling.environment(devices), capture_output=True, text=True)
    return done, json.loads((tmp_path / "plan.json").read_text()) if done.returncode == 0 else None


def check_collectives(found, queue_shape, pooled):
    """Besides reductions, only the pooled queries (and numbers per sample) are gathered; nothing has the queue's shape."""
    gathers = [c for c in found if c["kind"] != "all-reduce"]
    large = [c for c in gathers if c["bytes"] > pooled[0] * 4]
    assert len(large) == 1 and large[0]["kind"] == "all-gather" and large[0]["bytes"] == pooled[0] * pooled[1] * 4
    for one in found:
        assert not any(set(queue_shape) <= set(shape) for shape in one["shapes"]), one


def test_the_plan_of_a_small_step_on_eight_devices(tmp_path):
    done, plan = plan_small(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (plan["devices"], plan["batch_size"]) == (8, 32)
    assert plan["queue"] == 2048 * 128 * 4 // 8  # split
    assert plan["batch"] == 3 * 2 * 4 * 2 * 32 * 32 * 3  # three batches of 4 samples, 4 crops each
    # Two encoders; SGD's momentum is one more, beside a few counters.
    assert 0 <= 2 * plan["optimizer"] - plan["parameters"] < 100
    check_collectives(plan["collectives"], (64, 128), (32, 128))
    assert {"augment", "key forward", "query forward", "backward", "optimizer"} < set(plan["traffic"])
    assert 0.5 < sum(plan["traffic"].values()) / plan["bytes_accessed"] < 2
    assert plan["peak"] > plan["parameters"] + plan["optimizer"] + plan["queue"] + plan["temporaries"]
    assert done.stderr.startswith("compiling the step (about 40 s") and max(map(len, done.stdout.splitlines())) <= 80
    assert "all-gather" in done.stdout and "32, 4 a device" in done.stdout and plan["plan"]["bound"] is None


@pytest.mark.parametrize(
    "config, chosen",
    [
        ("quick_tune:small", ("batch_size = 16: ", "epochs = 65: ")),
        ("finetune_folder:small", ("steps = ", "eval_every = ")),
        ("pretrain", ("pretrain leaves no size open; the variant `small` does",)),
    ],
)
def test_sizes_alone_are_said_at_once(capsys, monkeypatch, config, chosen):
    monkeypatch.setattr(program, "compile_step", None)
    status, out, err = command_line.cp2(capsys, "plan", "--config", config, "--images", 500, "--sizes")
    assert (status, err) == (0, "") and all(words in out for words in chosen)
    assert max(map(len, out.splitlines())) <= 80


def test_a_batch_that_does_not_divide_is_refused_before_compiling(tmp_path):
    done, _ = plan_small(tmp_path, "--config.batch_size=36", "--config.loss.queue_size=3600")
    assert done.returncode == 2
    assert "batch_size=36: must be divisible by the number of devices, 8; use 32 or 40" in done.stderr


@pytest.mark.parametrize("topology,devices", [("v3-8", 8), ("v4:2x2x2", 8)])
def test_the_plan_for_a_tpu_slice(tmp_path, topology, devices):
    """Needs libtpu (pip install 'cp2_jax[tpu]'), no TPU."""
    pytest.importorskip("libtpu")
    done, plan = plan_small(tmp_path, f"--topology={topology}", devices=1)
    assert done.returncode == 0, done.stderr
    assert plan["devices"] == devices and plan["fits"] and plan["plan"]["bound"] > 0
    check_collectives(plan["collectives"], (64, 128), (32, 128))
    assert "hours" in done.stdout and "images decoded a second" in done.stdout


def test_the_batch_is_what_the_step_takes():
    config = pretrain_r50_aspp.get_config()
    assert sorted(program.abstract_batch(config)) == ["background", "foreground"]
    assert program.decoded_per_sample(config) == 3
    config.data.backgrounds, config.augment.mask = "in_batch", "attention"
    shapes = program.abstract_batch(config)
    assert sorted(shapes) == ["attention", "foreground"] and program.decoded_per_sample(config) == 1
    assert shapes["attention"].shape == (256, 2, 224, 224)


def test_kinds_of_configs():
    assert pretrain_r50_aspp.get_config().kind == "pretrain"
    config = finetune_demo.get_config()
    assert config.kind == "finetune"
    shapes = program.abstract_batch(config)
    assert shapes["image"].shape == (16, 48, 48, 3) and shapes["label"].shape == (16, 48, 48)
