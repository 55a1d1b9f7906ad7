"""Tracking with MLflow: against a fake that keeps its rules (always), and against its SQLite store (if installed)."""

import argparse
import csv
import importlib.util
import itertools
import random
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import main as entry
from palimpsest.utils.args import canonical
from palimpsest.utils.errors import Stopped
from palimpsest.utils.log.formats import FILES
from palimpsest.utils.log.loggers import CSVLogger
from palimpsest.utils.log.mlflow_logger import PARENT_TAG, RUN_TAG, MLflowLogger
from palimpsest.utils.registry import ROOT
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.folders import digest
from tests.utils.test_loggers import SUMMARY, a_run, evaluate, go

pytestmark = pytest.mark.usefixtures("undrawn")
DIGITS = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--stop_after", "2", "--num_threads", "1",
          "--non_verbose", "--no_tensorboard"]  # fmt: skip
installed = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (requirements-mlflow.txt)"
)


class Fake:
    """A tracking store in memory, in the place of `mlflow.MlflowClient`; `down`: which call fails, True for all."""

    def __init__(self):
        self.runs, self.experiments, self.down, self.uris = [], {}, False, []

    def client(self, uri):
        self.uris.append(uri)
        return Client(self)

    def create_experiment(self, name, artifact_location=None):
        if name in self.experiments:
            raise ValueError(f"{name} exists")
        self.experiments[name] = SimpleNamespace(experiment_id=name, lifecycle_stage="active", place=artifact_location)
        return name

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def search_runs(self, experiment_ids, filter_string, max_results):
        wanted = re.fullmatch(rf"tags\.`{RUN_TAG}` = '(.*)'", filter_string).group(1)
        return [r for r in self.runs if r.experiment in experiment_ids and r.data.tags[RUN_TAG] == wanted][:max_results]

    def create_run(self, experiment_id, run_name, tags):
        info = SimpleNamespace(run_id=str(len(self.runs)), run_name=run_name, status="RUNNING", end_time=None)
        data = SimpleNamespace(params={}, metrics={}, tags=dict(tags))
        self.runs.append(SimpleNamespace(info=info, data=data, experiment=experiment_id, points=[], files=[]))
        return self.runs[-1]

    def log_batch(self, run_id, metrics=(), params=()):
        run = self.runs[int(run_id)]
        assert len(metrics) <= 1000 and len(params) <= 100 and not {p.key for p in params} & run.data.params.keys()
        run.data.params |= {p.key: p.value for p in params}
        run.points += metrics
        run.data.metrics |= {m.key: m.value for m in metrics}

    def get_metric_history(self, run_id, key):
        return [m for m in self.runs[int(run_id)].points if m.key == key]

    def log_artifact(self, run_id, path):
        self.runs[int(run_id)].files.append(path.rpartition("/")[2])

    def set_tag(self, run_id, key, value):
        self.runs[int(run_id)].data.tags[key] = value

    def update_run(self, run_id, status):
        self.runs[int(run_id)].info.status = status

    def set_terminated(self, run_id, status, end_time=None):
        self.runs[int(run_id)].info.__dict__.update(status=status, end_time=end_time or time.time_ns())

    def named(self, text):
        """The one run whose folder's name contains this."""
        (run,) = [r for r in self.runs if text in r.data.tags[RUN_TAG]]
        return run


class Client:
    """The way to a store, which may be down."""

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        random.random()  # as waiting times between attempts do
        if self.store.down in (True, name):
            raise ConnectionError("no\nanswer")
        return getattr(self.store, name)


@pytest.fixture
def store(monkeypatch):
    fake, module = Fake(), ModuleType("mlflow")
    module.MlflowClient = fake.client
    metric = namedtuple("Metric", "key value timestamp step")
    module.entities = SimpleNamespace(Metric=metric, Param=namedtuple("Param", "key value"))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return fake


def logger_of(run, uri="http://store"):
    return MLflowLogger(argparse.Namespace(mlflow=uri, results_path=run.results_path))


def curves(points):
    """(metric, step) -> value, the latest of each."""
    return {(p.key, p.step): p.value for p in sorted(points, key=lambda p: p.timestamp)}


def rows_as_metrics(folder):
    """metrics.csv in the names that the store has."""
    out = {}
    with open(folder / "metrics.csv", newline="") as f:
        for row in csv.DictReader(f):
            name = f"{row['scenario']}/{'acc' if row['metric'] == 'accuracy' else row['metric']}"
            name += f"_task{int(row['task_evaluated']) + 1:02d}" if row["task_evaluated"] else ""
            out[name, int(row["step"])] = float(row["value"])
    return out


def of_rows(points):
    """The curves without those that metrics.csv does not have."""
    return {k: v for k, v in curves(points).items() if not re.fullmatch(r"(loss|cost|subset)/.*|lr|.*/acc_mean", k[0])}


def test_the_store_receives_what_stands_in_the_files(tmp_path, store):
    run = a_run(tmp_path)
    run.environment["commit"] = "abc (tree has changes)"
    logger = logger_of(run, "local")
    go(run, CSVLogger(), logger)
    assert store.uris == [f"sqlite:///{tmp_path}/mlflow.db"] and (tmp_path / "mlflow.db").is_file()
    assert store.experiments["class-il/seq-mnist"].place == (tmp_path / "mlartifacts").as_uri()
    (tracked,) = store.runs
    found = curves(tracked.points)
    assert found["class-il/acc_mean", 200] == 70 and found["class-il/acc_mean", 150] == 70
    assert ("class-il/acc_task02", 150) not in found  # nan was not evaluated
    assert of_rows(tracked.points) == rows_as_metrics(tmp_path)
    assert tracked.experiment == "class-il/seq-mnist" and tracked.info.run_name == f"er {tmp_path.name}"
    assert tracked.data.params == {name: str(value) for name, value in run.config.items()}
    tags = tracked.data.tags
    assert tags["mlflow.source.git.commit"] == "abc" and tags["torch"] == "2" and tags["seed"] == "0"
    assert set(tracked.files) == {"config.yaml", "metrics.csv", "accuracy_matrix.csv"} < set(FILES)
    assert tracked.info.status == "FINISHED"
    logger.run_stopped(run, RuntimeError())
    assert tracked.info.status == "FAILED"


def test_losses_are_sent_now_and_then_and_names_are_made_fit(tmp_path, store):
    run = a_run(tmp_path, exp_name="mine", **{f"option_{i}": i for i in range(150)})
    logger = logger_of(run)
    logger.run_started(run)
    for step in range(1, 2501):
        logger.step(step, {"loss (sum)": 1 / step}, 0.1)
    (tracked,) = store.runs
    assert not tracked.points and tracked.experiment == "mine"
    logger.run_ended(run, {})
    assert len(tracked.points) == 5000 and curves(tracked.points)["loss/loss _sum_", 4] == 0.25
    assert len({p.timestamp for p in tracked.points}) == 5000


def test_a_resumed_run_goes_on_in_the_same_place_with_nothing_doubled(tmp_path, store):
    def first_task(name):
        run = a_run(tmp_path / name, scenarios=("class-il",), n_tasks=2)
        run.folder.mkdir()
        logger = logger_of(run)
        logger.run_started(run)
        logger.step(50, {"loss": 2.0}, 0.1)
        evaluate(run, [logger], 0, {"class-il": [90.0]})
        return run, logger

    def second_task(run, logger):
        for step in (150, 200):
            logger.step(step, {"loss": 100 / step}, 0.1)
        evaluate(run, [logger], 1, {"class-il": [60.0, 80.0]})
        logger.run_ended(run, {"class-il": {"acc": 70.0}})

    second_task(*first_task("whole"))
    stopped, logger = first_task("stopped")
    logger.step(150, {"loss": 100 / 150}, 0.1)  # after the checkpoint
    logger.run_stopped(stopped, Stopped(signal.SIGTERM, None, 160))
    assert store.named("stopped").info.status == "KILLED"

    resumed = a_run(tmp_path / "stopped", scenarios=("class-il",), n_tasks=2, resume=True)
    resumed.position, resumed.history, resumed.losses = 100, stopped.history[:1], [(50, {"loss": 2.0}, 0.1)]
    logger = logger_of(resumed)
    logger.run_started(resumed)
    assert store.named("stopped").info.status == "RUNNING"
    second_task(resumed, logger)
    one, other = store.named("whole"), store.named("stopped")
    assert curves(one.points) == curves(other.points) and len(one.points) == len(other.points)
    assert other.info.status == "FINISHED" and "resume" in other.data.params

    # The same once more, on a store that has none of it: a run is complete wherever it was not tracked before.
    store.runs.clear()
    logger = logger_of(resumed)
    resumed.losses = [(50, {"loss": 2.0}, 0.1), (150, {"loss": 100 / 150}, 0.1), (200, {"loss": 0.5}, 0.1)]
    logger.run_started(resumed)
    logger.run_ended(resumed, {"class-il": {"acc": 70.0}})
    assert curves(store.named("stopped").points) == curves(one.points)


def test_a_store_that_fails_costs_one_line_and_no_numbers(tmp_path, store, capsys):
    run, state = a_run(tmp_path), random.getstate()
    logger = logger_of(run)
    logger.run_started(run)
    store.down, logger.next = True, 0.0
    evaluate(run, [logger], 0, {"class-il": [90.0]})
    evaluate(run, [logger], 1, {"class-il": [60.0, 80.0]})
    logger.run_stopped(run, Stopped(signal.SIGTERM, None, 160))
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "MLflow: no answer; the run goes on" in err
    assert logger.next > time.monotonic()
    store.down = "log_batch"
    logger.run_ended(run, SUMMARY)
    assert store.named("").info.status == "RUNNING"  # not all of it is there
    store.down = False
    logger.run_ended(run, SUMMARY)
    assert curves(store.named("").points)["class-il/acc_task02", 200] == 80
    assert store.named("").info.status == "FINISHED" and not capsys.readouterr().err
    assert random.getstate() == state


def test_seeds_are_nested_and_summed_up_and_later_ones_join(tmp_path, store, capsys):
    argv = [*DIGITS, "--mlflow", "http://store", "--savecheck", "last", "--results_path", str(tmp_path)]
    assert entry.main(argv) == 0  # seed 0, by itself at first
    assert entry.main([*argv, "--seeds", "0", "1", "--resume"]) == 0
    parent = store.named("seeds_")
    children = [run for run in store.runs if run is not parent]
    assert [run.data.tags["seed"] for run in children] == ["0", "1"]
    assert {run.data.tags[PARENT_TAG] for run in children} == {parent.info.run_id}
    accuracies = [run.data.metrics["class-il/acc"] for run in children]
    assert parent.data.metrics["class-il/acc"] == pytest.approx(np.mean(accuracies))
    assert parent.data.metrics["class-il/acc_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert "seed" not in parent.data.params and parent.data.params["model"] == "sgd"
    assert parent.files == ["report.html"] and parent.info.status == "FINISHED"
    for run in children:
        folder = next(tmp_path.glob(f"class-il/seq-digits/sgd/{run.data.tags[RUN_TAG]}"))
        assert of_rows(run.points) == rows_as_metrics(folder)
        assert set(run.files) == set(FILES) and ("lr", 18) in curves(run.points)
        assert curves(run.points)["cost/flops_training", 18] > 1e6
    counts, ended = [len(run.points) for run in children], children[0].info.end_time

    assert entry.main([*argv, "--seeds", "0", "1", "2", "--resume"]) == 0
    assert "MLflow" not in capsys.readouterr().err
    assert [len(run.points) for run in children] == counts and children[0].info.end_time == ended
    assert len(store.runs) == 4 and store.runs[-1].data.tags[PARENT_TAG] == parent.info.run_id
    mean = np.mean([*accuracies, store.runs[-1].data.metrics["class-il/acc"]])
    assert parent.data.metrics["class-il/acc"] == pytest.approx(mean)


def test_tracking_does_not_change_which_run_it_is():
    argv = canonical([*DIGITS])
    one, other = resolve(argv), resolve([*argv, "--mlflow"])
    assert other.args.mlflow == "local"
    options = [SimpleNamespace(config=vars(config.args)) for config in (one, other)]
    assert digest(options[0]) == digest(options[1])


def test_without_the_package_it_is_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    status = entry.main([*DIGITS, "--mlflow", "--results_path", str(tmp_path)])
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and "pip install -r requirements-mlflow.txt" in err
    assert (ROOT / "requirements-mlflow.txt").is_file() and not list(tmp_path.iterdir())
    assert entry.main([*DIGITS, "--mlflow", "--disable_log"]) == 0


@pytest.mark.parametrize("uri, words", [
    ("http://store", "'class-il/seq-digits' was deleted: restore it"), ("http://down", "no answer"),
    ("sqlite:///{}/text/x.db", "text/x.db"), ("sqlite:///{}/text", "not a database"),
])  # fmt: skip
def test_a_store_that_cannot_be_used_is_one_line_and_status_2(tmp_path, store, capsys, uri, words):
    (tmp_path / "text").write_text("no database" * 100)
    store.create_experiment("class-il/seq-digits")
    store.experiments["class-il/seq-digits"].lifecycle_stage = "deleted"
    store.down = uri != "http://store"
    status = entry.main([*DIGITS, "--mlflow", uri.format(tmp_path), "--results_path", str(tmp_path / "results")])
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and words in err and "cannot be used" in err
    assert not (tmp_path / "results").exists()


@installed
def test_sqlite_two_seeds_and_a_run_that_is_stopped_and_resumed(tmp_path, capsys):
    from mlflow import MlflowClient

    argv = [*DIGITS, "--mlflow", "--results_path", str(tmp_path)]
    assert entry.main([*argv, "--seeds", "0", "1"]) == 0
    argv = [*argv, "--exp_name", "stopped", "--resume"]
    argv[argv.index("--n_epochs") + 1] = "300"
    process = subprocess.Popen([sys.executable, "main.py", *argv, "--eval_epochs", "10"], cwd=ROOT)
    while process.poll() is None:
        files = list(tmp_path.glob("class-il/seq-digits/sgd/stopped_*/metrics.csv"))
        if files and len(files[0].read_text().splitlines()) > 10:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    assert process.wait() == 143
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("stopped").experiment_id])
    assert tracked.info.status == "KILLED"
    assert entry.main([*argv, "--eval_epochs", "10"]) == 0
    assert "MLflow" not in capsys.readouterr().err

    names = ("stopped", "class-il/seq-digits")
    runs = list(itertools.chain(*(client.search_runs([client.get_experiment_by_name(n).experiment_id]) for n in names)))
    (parent,) = [run for run in runs if run.data.tags[RUN_TAG].startswith("seeds_")]
    assert len(runs) == 4 and {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run is not parent:
            folder = next(tmp_path.glob(f"class-il/seq-digits/sgd/{run.data.tags[RUN_TAG]}"))
            points = [p for key in run.data.metrics for p in client.get_metric_history(run.info.run_id, key)]
            assert of_rows(points) == rows_as_metrics(folder)
            assert len({(p.key, p.step, p.value) for p in points}) == len(points)
            assert {file.path for file in client.list_artifacts(run.info.run_id)} == set(FILES)
            assert run.data.params["lr"] and run.data.tags.get(PARENT_TAG) in (parent.info.run_id, None)
    assert parent.data.metrics["class-il/acc_std"] > 0 and not list(ROOT.glob("mlruns"))
