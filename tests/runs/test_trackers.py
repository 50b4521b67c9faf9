"""Trackers: the order of what is sent, failures that do not end a run, resumption, and MLflow's own stores where it is."""

import importlib.util
import json
import threading

import numpy as np
import pytest
from ml_collections import ConfigDict

from cp2_jax.options import ConfigError
from cp2_jax.runs import trackers
from cp2_jax.runs.trackers import Service, Tracker
from cp2_jax.runs.writers import Writer

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


class Recorder:
    """Keeps what a service is given, and fails from the `fails`-th call on."""

    def __init__(self, fails=99):
        self.calls, self.fails, self.threads = [], fails, set()

    def service(self, workdir, config, run):
        def call(kind):
            def record(*arguments):
                self.threads.add(threading.current_thread().name)
                self.calls.append((kind, *arguments))
                if len(self.calls) >= self.fails:
                    raise ConnectionError("no route\nto the host")

            return record

        self.calls.append(("open", config.get("seed"), run))
        return Service(run or "run-1", call("scalars"), call("image"), call("close"))


def config(names):
    return ConfigDict({"seed": 3, "trackers": names})


def test_the_writer_sends_metrics_and_pictures_in_order(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(trackers.SERVICES, "json", recorder.service)
    with Writer(tmp_path, 10, trackers=trackers.open_all(config("json"), tmp_path, resumed=False)) as writer:
        writer.scalars(1, {"loss": np.float32(0.5)})
        writer.image(1, "pairs", PICTURE)
        writer.scalars(2, {"loss": 0.25})
    assert [call[:2] for call in recorder.calls] == [("open", 3), ("scalars", 1), ("image", 1), ("scalars", 2), ("close",)]
    assert recorder.calls[1][2] == {"loss": 0.5} and recorder.calls[2][2] == "pairs"
    assert len(recorder.threads) == 1 and threading.current_thread().name not in recorder.threads


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, caplog):
    recorder = Recorder(fails=3)
    told = Tracker("json", recorder.service(tmp_path, {}, None))
    with Writer(tmp_path, 10, trackers=[told]) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"loss": 0.5})
    assert [call[0] for call in recorder.calls] == ["open", "scalars", "scalars"]
    assert [record.getMessage() for record in caplog.records] == [
        "json gets no more of this run (ConnectionError: no route); everything is in the work directory"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_resumed_run_is_the_same_run_at_the_tracker(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(trackers.SERVICES, "json", recorder.service)
    for resumed in (False, True, False):
        for told in trackers.open_all(config("json"), tmp_path, resumed):
            told.close()
    assert [call[2] for call in recorder.calls if call[0] == "open"] == [None, "run-1", None]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"json": "run-1"}


@pytest.mark.parametrize("text", ["", '{"json": "ru', "3"])
def test_a_broken_file_of_names_ends_no_run(tmp_path, monkeypatch, text, caplog):
    recorder = Recorder()
    monkeypatch.setitem(trackers.SERVICES, "json", recorder.service)
    (tmp_path / "trackers.json").write_text(text)
    for told in trackers.open_all(config("json"), tmp_path, resumed=True):
        told.close()
    assert recorder.calls[0][2] is None and "the trackers begin another run" in caplog.text
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"json": "run-1"}


def test_only_the_first_process_opens_any(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.SERVICES, "json", Recorder().service)
    monkeypatch.setattr(trackers.jax, "process_index", lambda: 1)
    assert trackers.open_all(config("json"), tmp_path, False) == [] and not list(tmp_path.iterdir())


def test_no_trackers_leave_no_trace(tmp_path):
    assert trackers.open_all(config(""), tmp_path, False) == [] and not list(tmp_path.iterdir())


def test_unknown_missing_and_broken_ones_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"there is no 'mlfow'; did you mean 'mlflow'|there is no 'mlfow'.*mlflow"):
        trackers.check("mlfow")
    monkeypatch.setitem(trackers.SERVICES, "not_installed_here", Recorder().service)
    with pytest.raises(ConfigError, match="not_installed_here is not installed; run: pip install not_installed_here"):
        trackers.check("not_installed_here")

    def broken(*_):
        raise OSError("no login")

    monkeypatch.setitem(trackers.SERVICES, "json", broken)
    with pytest.raises(ConfigError, match="json cannot be opened: no login"):
        trackers.open_all(config("json"), tmp_path, False)


def _run(tmp_path, resumed):
    told = trackers.open_all(config("mlflow"), tmp_path / "photos", resumed)
    with Writer(tmp_path / "photos", 10, 1 if resumed else 0, trackers=told) as writer:
        writer.scalars(1 + resumed, {"loss": 0.5 - 0.25 * resumed, "probe/output_auc": float("nan")})
        writer.image(1 + resumed, "pairs", PICTURE)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_mlflow(tmp_path, monkeypatch, kind):
    """What a run of MLflow has after a run and its resumption, read by MLflow itself from a store on disk."""
    from mlflow import MlflowClient

    if kind == "sqlite" and importlib.util.find_spec("sqlalchemy") is None:
        pytest.skip("mlflow-skinny has no data base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store" if kind == "file" else f"sqlite:///{tmp_path}/a.db")
    (tmp_path / "photos").mkdir()
    _run(tmp_path, resumed=False)
    _run(tmp_path, resumed=True)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("cp2_jax").experiment_id])
    assert run.info.run_name == "photos" and run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "trackers": "mlflow"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((entry.step, entry.value) for entry in history) == [(1, 0.5), (2, 0.25)]
    images = [entry.path for entry in client.list_artifacts(run.info.run_id, "images") if entry.path.endswith(".png")]
    assert sorted(path.split("+")[:3] for path in images) == [["images/pairs", "step", "1"], ["images/pairs", "step", "2"]]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(tmp_path, monkeypatch):
    """Without a server W&B writes into the work directory."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "photos").mkdir()
    told = trackers.open_all(config("wandb"), tmp_path / "photos", resumed=False)
    with Writer(tmp_path / "photos", 10, trackers=told) as writer:
        writer.scalars(1, {"loss": 0.5})
        writer.image(1, "pairs", PICTURE)
    assert list((tmp_path / "photos" / "wandb").glob("offline-run-*/*.wandb"))
    assert list((tmp_path / "photos" / "wandb").glob("offline-run-*/files/media/images/pairs*.png"))
