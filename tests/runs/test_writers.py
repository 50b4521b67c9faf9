"""Writers: the lines of metrics.jsonl, what a resumption does to them, TensorBoard files, pictures, terminal."""

import io
import json
import mmap
import re
import time

import numpy as np
import pytest
import rich.console
from helpers.tensorboard import events
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cp2_jax.runs import writers
from cp2_jax.runs.writers import Writer


def write(workdir, steps, start_step=0, total=100):
    with Writer(workdir, total, start_step) as writer:
        for step in steps:
            writer.scalars(step, {"loss": 1.0 / step, "time/images_per_second": time.monotonic()})


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_floats_come_back_exactly(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("run")
    with Writer(folder, 10) as writer:
        writer.scalars(1, {"loss": np.float32(value), "as_double": value})
    (line,) = writers.read_metrics(folder / "metrics.jsonl")
    assert np.float32(line["loss"]).tobytes() == np.float32(value).tobytes()
    assert line["as_double"] == value and line["step"] == 1


def test_what_json_cannot_say_is_null(tmp_path, caplog):
    with Writer(tmp_path, 10) as writer:
        writer.scalars(1, {"a": float("nan"), "b": np.float32("inf"), "c": np.int32(3)})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line == {"step": 1, "a": None, "b": None, "c": 3}
    assert not caplog.records  # TensorBoard's writer warns of such values without a name


def test_curves_of_the_run(tmp_path):
    with Writer(tmp_path, 10) as writer:
        writer.curves()  # nothing yet
        assert not list(writer.pictures.iterdir())
        writer.scalars(1, {"loss": 2.0})
        writer.scalars(2, {"loss": 1.0, "miou": 0.5})
        writer.curves()
    picture = np.asarray(Image.open(tmp_path / "pictures" / "curves.png"))
    assert picture.shape[1] > 1.5 * picture.shape[0] and picture.std() > 5  # two panels, something in them


def test_resuming_drops_the_lines_that_will_be_computed_again(tmp_path):
    write(tmp_path / "unbroken", range(1, 9))
    write(tmp_path / "broken", range(1, 7))
    write(tmp_path / "broken", range(5, 9), start_step=4)
    lines = [writers.read_metrics(tmp_path / run / "metrics.jsonl") for run in ("unbroken", "broken")]
    computed = [[{k: v for k, v in x.items() if not k.startswith(writers.VARYING)} for x in run] for run in lines]
    assert computed[0] == computed[1] and len(computed[0]) == 8
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == ["metrics.jsonl", "pictures", "tensorboard"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_broken_off_by_a_kill(tmp_path, cut):
    write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-cut])
    whole = 3 if cut == 1 else 2  # without the newline alone, the line is complete
    assert [line["step"] for line in writers.read_metrics(path)] == list(range(1, whole + 1))
    write(tmp_path, [4], start_step=3)
    assert [line["step"] for line in writers.read_metrics(path)] == [*range(1, whole + 1), 4]


@pytest.mark.parametrize(
    "text", [b"null", b'{"loss": 1}', b'{"step": 2, "lo', b"\xff\xfe\0"], ids=["value", "step", "cut", "binary"]
)
def test_lines_that_are_no_metrics_cost_no_others(tmp_path, text, caplog):
    """An editor or a broken disk changed one; a resumed run keeps all others, and says so."""
    write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + text + b"\n" + b"".join(others))
    write(tmp_path, [4], start_step=3)
    assert [line["step"] for line in writers.read_metrics(path)] == [1, 2, 3, 4]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 1 lines that are no metrics are left out"]


def test_a_new_run_in_an_old_directory_starts_empty(tmp_path):
    write(tmp_path, range(1, 4))
    write(tmp_path, [1])
    assert len(writers.read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    with Writer(tmp_path, 10) as writer:
        writer.scalars(3, {"loss": 0.25})
        path = writer.image(3, "pairs", picture)
    found = [value for event in events(tmp_path / "tensorboard") if event.step == 3 for value in event.summary.value]
    values = {value.tag: value for value in found}
    assert values["loss"].simple_value == 0.25
    np.testing.assert_array_equal(Image.open(io.BytesIO(values["pairs"].image.encoded_image_string)), picture)
    np.testing.assert_array_equal(Image.open(path), picture)
    assert path == tmp_path / "pictures" / "pairs_0000003.png"


def test_pictures_without_a_number_replace_each_other(tmp_path):
    with Writer(tmp_path, 10) as writer:
        for step in (3, 6):
            path = writer.image(step, "evaluation_best", np.full((6, 5, 3), step, np.uint8), numbered=False)
    assert path == tmp_path / "pictures" / "evaluation_best.png" and list(writer.pictures.iterdir()) == [path]
    assert np.asarray(Image.open(path))[0, 0, 0] == 6
    steps = [e.step for e in events(tmp_path / "tensorboard") if any(v.tag == "evaluation_best" for v in e.summary.value)]
    assert steps == [3, 6]  # TensorBoard keeps both


def test_plain_lines(tmp_path, capsys):
    with Writer(tmp_path, 200) as writer:
        writer.text("three [bold] words")
        writer.scalars(1, {"loss": 7.5})
        writer._marks[0] = (time.monotonic() - 10.0, 1)
        writer.progress(2)
        writer.scalars(
            2, {"loss": 7.123456, "gradient_norm": 1.0, "time/images_per_second": 12.34, "time/input_wait_share": 0.256}
        )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "three [bold] words"
    assert lines[1].startswith("step 1/200  eta 0:00:") and lines[1].endswith("  loss 7.5")
    # 198 steps of 10 s, and what a busy machine adds.
    assert re.fullmatch(r"step 2/200  eta 0:3[3-5]:\d\d  loss 7\.12  12\.3 img/s  waits for input 26%", lines[2])


def test_eta_leaves_out_the_first_steps(tmp_path):
    now = time.monotonic()
    with Writer(tmp_path, 110, start_step=10) as writer:
        assert writer.eta(10) == float("inf")
        writer._start = (now - 50.0, 10)  # 50 seconds of compiling for one step
        assert writer.eta(11) == pytest.approx(50.0 * 99, rel=0.01)
        writer.progress(11)  # compiled: time is taken from here on
        assert writer.eta(11) == float("inf") and writer.eta(12) < 99
        writer.scalars(11, {})
        writer.scalars(12, {})
        writer._marks[0], writer._marks[1] = (now - 4.0, 11), (now - 3.0, 12)
        assert writer.eta(13) == pytest.approx(4.0 / 2 * 97, rel=0.05)


def test_a_progress_bar_on_a_terminal(tmp_path, monkeypatch):
    screen = io.StringIO()
    console = rich.console.Console
    monkeypatch.setattr(
        writers.rich.console, "Console", lambda: console(file=screen, force_terminal=True, width=80, color_system=None)
    )
    with Writer(tmp_path, 8, start_step=2, title="pretraining") as writer:
        writer._bar.refresh()
        writer.compiling(60)
        writer._bar.refresh()
        writer.progress(3)
        writer.scalars(
            4,
            {"loss": 7.123456, "loss_instance": 6.5, "loss_dense": 3.1}
            | dict.fromkeys(["probe/output_auc", "learning_rate"], 0.5),
        )
        writer.text("a [red] message")
    shown = screen.getvalue()
    assert "pretraining" in shown and "compiling (about 19 s" in shown and "a [red] message" in shown
    assert "step 4/8  eta 0:00:00  loss 7.12 (instance 6.5, dense 3.1)" in shown
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines())) <= 80


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    write(tmp_path / "run", [1])
    capsys.readouterr()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    with Writer(tmp_path / "run", 10) as writer:
        writer.progress(1)
        writer.scalars(1, {"loss": 2.0})
        writer.image(1, "pairs", np.zeros((2, 2, 3), np.uint8))
        writer.text("message")
        assert writer.eta(2) > 0
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert capsys.readouterr().out == ""


def test_host_memory_follows_what_is_allocated():
    before = writers.host_memory()
    # Mapped by hand: an allocator may keep what is freed, as it does late in a long session.
    held = mmap.mmap(-1, 64 * 2**20)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    after = writers.host_memory()
    assert 60 < after["host/memory_mb"] - before["host/memory_mb"] < 80
    assert after["host/peak_memory_mb"] >= after["host/memory_mb"] - 1
    held.close()
    assert writers.host_memory()["host/memory_mb"] < after["host/memory_mb"] - 50


def test_metrics_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        writers.read_metrics(tmp_path / "metrics.jsonl")
