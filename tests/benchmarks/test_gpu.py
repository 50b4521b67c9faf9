"""The benchmarks of benchmarks/gpu.sh on tiny models; its table, with rows that were not measured."""

import importlib
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
from helpers import tiny
from helpers.paths import ROOT
from ml_collections import ConfigDict

from configs import finetune_demo
from cp2_jax.models import measured


@pytest.fixture
def benchmark(monkeypatch):
    """Gives a benchmark's module; they import each other by name, as scripts of one folder do, and set variables."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    known = set(sys.modules)
    with mock.patch.dict(os.environ):
        yield importlib.import_module
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and "benchmarks" in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_forms_are_timed_printed_as_rows_and_used(benchmark, tmp_path, monkeypatch, capsys):
    """What convs.py measures can be pasted into the table, or given to another benchmark."""
    path = tmp_path / "convs.json"
    command = ["--tiny", "--batch", "2", "--repeats", "1", "--dtype", "bfloat16", "--only", "rate_2,stem,pool", "--rows"]
    result = benchmark("convs").main([*command, "--json", str(path)])
    assert {row["form"] for row in result["rows"]} >= {"native", "taps", "interleaved", "blocks", "blocks_of_8", "auto"}
    assert all(row["worst"] < 0.05 for row in result["rows"]) and result["pool_taps_gradient_ms"] > 0
    printed = re.findall(r"^    (Row\(.*\)),$", capsys.readouterr().out, re.M)
    rows = [eval(line, {"Row": measured.Row, "Shape": measured.Shape}) for line in printed]
    assert len(rows) == sum(row["form"] != "auto" for row in result["rows"])
    before = {name: getattr(measured, name) for name in ("MEASURED", "POOL", "NORM")}
    for name, table in before.items():
        monkeypatch.setattr(measured, name, table)  # given back after the test
    for taps, form in ((1.0, "taps"), (3.0, "scatter")):
        measured.MEASURED, measured.POOL = before["MEASURED"], before["POOL"]
        path.write_text(json.dumps({**result, "pool_taps_gradient_ms": taps, "pool_scatter_gradient_ms": 2.0}))
        benchmark("timing").use_forms(path)
        assert measured.MEASURED == (*before["MEASURED"], *rows)
        assert measured.POOL.get("cuda") == form
    assert before["POOL"]["cuda"] == "taps"  # a new table, not the old one changed


@pytest.fixture
def toy(benchmark, monkeypatch):
    """Gives a benchmark's module; the network is one of two convolutions, and colours stay: quickly compiled."""

    def make_config(model, batch, dtype, tiny_sizes, groups=1, shuffle="none"):
        config = tiny.toy_pretrain_config(monkeypatch)
        config.update(batch_size=batch, bn_groups=groups, key_shuffle=shuffle)
        config.data.backgrounds, config.augment.jitter_probability = "in_batch", 0.0
        return config

    monkeypatch.setattr(benchmark("timing"), "make_config", make_config)
    return benchmark


def test_the_step_beside_a_peer(toy, monkeypatch, tmp_path):
    """In the peer's place something that takes no time; the lock of the card is taken once, and its time told."""
    step = toy("step")
    monkeypatch.setenv("CARD_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(toy("timing"), "_card", {})
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.0"))
    monkeypatch.setattr(step, "torch_step", lambda variant, config, args: (lambda: None, 0.5, 3))
    path = tmp_path / "step.json"
    command = ["--tiny", "--batch", "8", "--steps", "2", "--warm_up", "1", "--peers", "best", "--json", str(path)]
    result = step.main(command)
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert result["torch_best_graphs"] == 3 and 0 < result["times_as_fast_as_best"] < 1
    assert result["samples_per_second"] == 8 / result["seconds"] and result["dense_share_of_peak"] > 0
    assert 0 < result["card_seconds"] < 600


def test_the_whole_step_and_its_memory(toy):
    """A program compiled once is timed, profiled, and is the plan's."""
    found = toy("whole_step").main(["--tiny", "--batch", "8", "--steps", "1", "--only", "whole,augment"])
    assert found["whole_seconds"] > 0 and found["augment_ms"] > 0 and found["blur_float16_ms"] > 0
    assert found["profile_ms"]["busy"] > 0 and found["profile_ms"]["optimizer"] > 0
    found = toy("card_memory").main(["--tiny", "--batch", "8"])
    assert found["predicted_gb"] > found["temporaries_gb"] > 0 and found["prediction"] is None  # CPUs do not tell
    with pytest.raises(SystemExit):
        toy("whole_step").main(["--only", "everything"])


def test_many_seeds(benchmark, monkeypatch):
    """Of a small network; the program for two seeds is another one than that for one."""
    pretrain, finetune = tiny.toy_pretrain_config(monkeypatch), finetune_demo.get_config()
    pretrain.batch_size = finetune.batch_size = 4
    pretrain.augment.update(jitter_probability=0.0, grayscale=0.0, blur=0.0)
    finetune.model = pretrain.model.copy_and_resolve_references()
    finetune.model.num_classes = finetune.data.num_classes
    finetune.data.crop_size = (32, 32)
    study = ConfigDict({"pretrain": pretrain, "finetune": finetune})
    monkeypatch.setitem(sys.modules, "configs.study_toy", SimpleNamespace(get_config=lambda: study))
    command = ["--config", "study_toy", "--seeds", "2", "--steps", "1", "--batch", "4", "--job", "pretraining"]
    found = benchmark("many_seeds").main(command)
    one, two = (found[f"pretraining_{count}_samples_per_second"] for count in (1, 2))
    assert two / one == found["pretraining_times_one"] > 0.1


def test_segmenting(benchmark):
    command = ["--job", "evaluate", "--model", "vit_aspp", "--tiny", "--batch", "2", "--size", "32", "--steps", "1"]
    assert benchmark("segmenting").main(command)["samples_per_second"] > 0


def test_steps_take_turns_and_are_compared_turn_by_turn(benchmark):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in ("ours", "best")}
    times = benchmark("timing").in_turn(steps, rounds=2, warm_up=1)
    assert calls == ["ours", "best"] * 3 and {len(kind) for kinds in times.values() for kind in kinds} == {2}
    found = benchmark("step").compared({"ours": ([2.0, 4.0, 1.0], [3.0] * 3), "best": ([4.0, 4.0, 3.0], [6.0] * 3)})
    assert found["times_as_fast_as_best"] == 2.0 and found["times_as_fast_as_best_range"] == [1.0, 3.0]
    assert (found["seconds"], found["seconds_median"], found["seconds_most"]) == (1.0, 2.0, 4.0)
    assert found["torch_best_seconds"] == 3.0 and found["share_of_the_cpu_time_of_best"] == 0.5


def test_the_table_says_what_was_not_measured_and_why(benchmark, tmp_path, capsys):
    machine = {"card": "NVIDIA H200", "date": "2026-11-26", "jax": "0.10.2"}
    rows = {
        "step_r50": machine | {"seconds": 0.08, "dense_share_of_peak": 0.5},
        "peer_r50": machine | {"torch_best_seconds": 0.12},
        "whole": machine | {"profile_ms": {"all operations": 99.0, "busy": 100.0}},
    }
    for name, found in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    (tmp_path / "peer_vit.status").write_text("PyTorch is not installed\n")
    (tmp_path / "finetune.json").write_text('{"seconds": 0.')  # ended while it wrote
    benchmark("gpu_table").main([str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines()]

    def shown(what, number=0):
        return [line[61:] for line in lines if line.strip().startswith(what)][number].strip()

    assert lines[0] == "NVIDIA H200, 2026-11-26, jax 0.10.2"
    assert shown("ResNet-50 + ASPP, update alone") == "80.0 ms" and shown("dense count") == "0.500"
    assert shown("against PyTorch, whole", 0) == "1.50 x" and shown("profile") == "0.990"
    assert shown("against PyTorch, whole", 1).split("  ") == ["not yet measured", "PyTorch is not installed"]
    assert shown("whole step from uint8 crops") == "not yet measured"
    assert shown("finetuning").split("  ") == ["not yet measured", "its figures cannot be read"]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["not_whole"]["peer_vit"] == "PyTorch is not installed" and set(written["rows"]) == set(rows)
    assert (tmp_path / "table.txt").read_text().splitlines() == lines


def test_the_script_is_sound_bash_and_names_benchmarks_that_exist():
    script = ROOT / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    found = re.findall(r"row (\w+) (\d+) (\w+\.py)", script.read_text())
    assert len(found) > 15 and len({name for name, _, _ in found}) == len(found)
    for name, _, file in found:
        assert (ROOT / "benchmarks" / file).exists() or name == "many_seeds"
    first = script.read_text().split("# If there is time left")[0]
    assert sum(int(seconds) for _, seconds, _ in re.findall(r"row (\w+) (\d+) (\w+\.py)", first)) <= 540


# In the place of Python: benchmarks that end in every way, and the table's own program.
STUB = """#!/bin/bash
case $1 in -c) exit 0 ;; *gpu_table.py) exec {python} "$@" ;; esac
part=${{@: -1}}
case $part in
  */step_r50.part) echo '{{"seconds": 0.1}}' > $part ;;
  */peer_r50.part) echo 'RuntimeError: no kernel for this card'; exit 1 ;;
  */whole.part) echo '{{"seco' > $part; kill -KILL $$ ;;
  */convs.part) echo '{{"rows": [], "measured": [], "pool_taps_gradient_ms": 0.5}}' > $part; kill -ALRM $$ ;;
  */peer_vit.part) echo 'Segmentation fault'; exit 3 ;;
  */memory.part) echo "{{\\"measured_gb\\": $CARD_SECONDS}}" > $part ;;
esac
"""


def test_rows_that_fail_or_are_cut_short_stop_no_other_and_say_so(tmp_path):
    """The script itself; a second call goes on with what is not whole, and what has no time says so."""
    python, out, kept = tmp_path / "python", tmp_path / "out", tmp_path / "kept"
    python.write_text(STUB.format(python=sys.executable))
    python.chmod(0o755)
    kept.mkdir()

    def run(**more):
        rows = "step_r50 peer_r50 peer_vit whole convs memory"
        environment = os.environ | {"PYTHON": str(python), "ROWS": rows, "KEEP": str(kept), "LIMIT": "30", **more}
        done = subprocess.run(
            ["bash", ROOT / "benchmarks" / "gpu.sh", "--rehearse", out], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert (kept / "gpu.json").read_text() == (out / "gpu.json").read_text()
        return json.loads((kept / "gpu.json").read_text()), done.stdout

    found, printed = run()
    assert found["rows"]["step_r50"] == {"seconds": 0.1} and found["rows"]["memory"] == {"measured_gb": 30}
    assert found["rows"]["convs"]["pool_taps_gradient_ms"] == 0.5 and "whole" not in found["rows"]
    assert found["not_whole"] == {
        "whole": "killed, as programs are that take more memory than there is",
        "peer_vit": "failed: exit status 3: Segmentation fault",
        "peer_r50": "failed: RuntimeError: no kernel for this card",
        "convs": "cut short after 30 s on the card",
    }
    assert re.search(r"against PyTorch, whole.*not yet measured  failed: RuntimeError", printed)
    (out / "step_r50.json").write_text('{"seconds": 0.2}')
    again, _ = run(TOTAL="10")
    assert again["rows"]["step_r50"] == {"seconds": 0.2}
    assert again["not_whole"]["convs"] == "cut short after 30 s on the card" and "whole" in again["not_whole"]
    assert again["not_whole"]["peer_r50"] == "no time left: call it again"
