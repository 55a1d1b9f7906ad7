"""Tracking with MLflow (`--mlflow [URI]`): parameters, metrics and files of a run; runs over several seeds in one.

MLflow is an optional package and is imported here, when it is asked for. A store that cannot be reached is an error
before training; from then on it costs a line of warning, and what it missed is sent again later.
"""

import logging
import math
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from palimpsest.utils.atomic import file_errors, locked
from palimpsest.utils.errors import Stopped, UserError, one_line
from palimpsest.utils.log.events import Logger
from palimpsest.utils.log.formats import FILES, loss_points, score_points
from palimpsest.utils.randomness import preserve_rng
from palimpsest.utils.record import Evaluation, Run, Summary

LOCAL = "local"  # what `--mlflow` alone stands for
RUN_TAG, PARENT_TAG = "palimpsest.run_id", "mlflow.parentRunId"
PAUSE, SHARE = 5.0, 20  # a message that took s seconds is followed by a pause of PAUSE seconds, or SHARE x s if longer
METRICS_AT_ONCE, PARAMS_AT_ONCE, LONGEST_PARAM, LONGEST_TAG = 1000, 100, 6000, 5000  # limits of MLflow
# MLflow's own defaults wait for minutes on a server that does not answer, and report its use to its makers.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Store:
    """The MLflow experiment that a run belongs to: `<setting>/<dataset>`, or `--exp_name`; made where it is not there.

    `--mlflow` alone is the file `<results_path>/mlflow.db`. Unless a server keeps the files of a run, they are below
    `<results_path>/mlartifacts`.

    Raises:
        UserError: no MLflow, or a store that cannot be used.
    """

    def __init__(self, args: Any, run: Run):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        results = Path(args.results_path).resolve()
        uri = f"sqlite:///{(results / 'mlflow.db').as_posix()}" if args.mlflow == LOCAL else args.mlflow
        try:
            import mlflow
            from mlflow import entities
        except ModuleNotFoundError as e:
            raise UserError(
                f"--mlflow needs the package mlflow ({one_line(e)}): pip install -r requirements-mlflow.txt"
            ) from None
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
        self.entities = entities
        name = run.config.get("exp_name") or f"{run.setting}/{run.dataset_name}"
        place = None if re.match("https?:|databricks", uri) else (results / "mlartifacts").as_uri()
        try:
            with _alone(uri), preserve_rng():
                self.client = mlflow.MlflowClient(uri)
                try:
                    self.experiment = self.client.create_experiment(name, artifact_location=place)
                except Exception:
                    found = self.client.get_experiment_by_name(name)
                    if found is None:
                        raise
                    if found.lifecycle_stage == "deleted":
                        raise UserError(
                            f"its experiment '{name}' was deleted: restore it, or give another --exp_name"
                        ) from None
                    self.experiment = found.experiment_id
        except Exception as e:  # of MLflow, its database layer, its network layer
            advice = "" if isinstance(e, UserError) else "; --mlflow alone keeps a file under --results_path"
            raise UserError(f"--mlflow {uri} cannot be used: {one_line(e)}{advice}") from None

    def find(self, name: str):
        """The MLflow run of the run folder `name`, or None."""
        query = f"tags.`{RUN_TAG}` = '{name}'"
        return next(iter(self.client.search_runs([self.experiment], filter_string=query, max_results=1)), None)

    def find_or_start(self, name: str, run: Run, tags: dict[str, Any]):
        """The MLflow run of the folder `name`, running again if it had been stopped; a new one where none is."""
        found = self.find(name)
        if found is None:
            about = {"model": run.model_name, "dataset": run.dataset_name, "setting": run.setting, RUN_TAG: name} | tags
            about = {key: str(value)[:LONGEST_TAG] for key, value in about.items()}
            return self.client.create_run(self.experiment, run_name=f"{Path(run.model_name).stem} {name}", tags=about)
        if found.info.status not in ("RUNNING", "FINISHED"):
            self.client.update_run(found.info.run_id, status="RUNNING")
        return found

    def add_params(self, to, options: dict[str, Any]) -> None:
        """Parameters that the MLflow run does not have yet; those it has never change."""
        new = [(name, value) for name, value in options.items() if name not in to.data.params]
        for i in range(0, len(new), PARAMS_AT_ONCE):
            part = [self.entities.Param(name, str(v)[:LONGEST_PARAM]) for name, v in new[i : i + PARAMS_AT_ONCE]]
            self.client.log_batch(to.info.run_id, params=part)


class MLflowLogger(Logger):
    """One MLflow run per run, named by method and run folder, against training iterations.

    Parameters are the resolved options; tags tell the environment. Metrics: `class-il/acc_task01`... and
    `class-il/acc_mean` at every evaluation (the same of a perplexity), `loss/<term>`, `lr`, and at the end
    `class-il/acc`, `class-il/forgetting`, ... and `cost/flops_training`, ...; at the points of `--eval_every` the names
    with `subset/` before them. Files: those of `formats.FILES`.

    A run that is resumed finds its MLflow run by the tag `palimpsest.run_id`, compares all it knows with what the store
    has, and sends the rest: a run that was not tracked from its beginning is complete as well. Metrics are collected
    and sent every few seconds, so that a short iteration does not pay for a slow store.
    """

    def __init__(self, args: Any):
        self.args = args
        self.store: Store | None = None
        self.run_id: str | None = None
        self.parent: str | None = None
        self.finished: int | None = None  # when, where the MLflow run was finished before this process
        self.pending: list[tuple[str, int, float, int]] = []  # key, step, value, milliseconds
        self.known: set[tuple[str, int, float]] = set()
        self.clock, self.next, self.warned = 0, 0.0, False

    def run_started(self, run: Run) -> None:
        self.run = run
        for step, means, lr in run.losses if run.position is not None else ():
            self._note(step, loss_points(means, lr))
        for evaluation in run.history:
            self._note(evaluation.step, score_points(evaluation))
        for point in run.points:
            self._note(point.step, {f"subset/{name}": value for name, value in score_points(point).items()})
        self._send(at_once=True)

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        self._note(step, loss_points(losses, lr))
        self._send()

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        self._note(evaluation.step, score_points(evaluation))
        self._send()

    def point_taken(self, run: Run, point: Evaluation) -> None:
        self._note(point.step, {f"subset/{name}": value for name, value in score_points(point).items()})
        self._send()

    def run_ended(self, run: Run, summary: Summary) -> None:
        step = run.history[-1].step if run.history else 0
        for scenario, values in summary.items():
            self._note(step, {f"{scenario}/{metric}": value for metric, value in values.items()})
        costs = {name: value for name, value in run.costs.items() if isinstance(value, int | float)}
        self._note(step, {f"cost/{name}": value for name, value in costs.items()})
        self._send(at_once=True)
        if self.run_id and not self.pending:
            with self._tolerated():
                for path in (run.folder / name for name in FILES):
                    if path.is_file():
                        self.store.client.log_artifact(self.run_id, str(path))
                self.store.client.set_terminated(self.run_id, "FINISHED", end_time=self.finished)

    def run_stopped(self, run: Run, error: BaseException) -> None:
        self._send(at_once=True)
        status = "KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED"
        with self._tolerated():
            for run_id in filter(None, (self.run_id, self.parent)):
                self.store.client.set_terminated(run_id, status)

    def seeds_ended(self, runs: list[Run], table: dict[str, dict[str, tuple]], page: Path) -> None:
        """Mean, `_std` and half the 95 % interval `_ci95` of every metric, in the run that those per seed are nested
        in.
        """
        self.run = runs[0]
        with self._tolerated():
            self.store = store = Store(self.args, self.run)
            parent = store.find_or_start(self.run.group, self.run, {})
            store.add_params(parent, {name: value for name, value in self.run.config.items() if name != "seed"})
            for child in filter(None, (store.find(run.folder.name) for run in runs)):
                if child.data.tags.get(PARENT_TAG) != parent.info.run_id:  # it was tracked before --seeds was given
                    store.client.set_tag(child.info.run_id, PARENT_TAG, parent.info.run_id)
            self._adopt(parent)
            for scenario, values in table.items():
                for metric, (mean, std, half, _) in values.items():
                    name = f"{scenario}/{metric}"
                    self._note(self.run.history[-1].step, {name: mean, f"{name}_std": std, f"{name}_ci95": half})
            self._send_pending()
            store.client.log_artifact(self.run_id, str(page))
            store.client.set_terminated(self.run_id, "FINISHED", end_time=self.finished)

    def _note(self, step: int, values: dict[str, float]) -> None:
        """Put metrics on the list, once each; MLflow shows the one with the latest time of those at one step."""
        for name, value in values.items():
            point = (re.sub(r"[^\w\-. :/]", "_", name), step, float(value))
            if math.isfinite(value) and point not in self.known:
                self.known.add(point)
                self.clock = max(self.clock + 1, time.time_ns() // 1_000_000)
                self.pending.append((*point, self.clock))

    def _send(self, at_once: bool = False) -> None:
        if at_once or time.monotonic() >= self.next:
            with self._tolerated():
                if self.run_id is None:
                    self._begin()
                self._send_pending()

    def _send_pending(self) -> None:
        while self.pending:
            part = [
                self.store.entities.Metric(name, value, milliseconds, step)
                for name, step, value, milliseconds in self.pending[:METRICS_AT_ONCE]
            ]
            self.store.client.log_batch(self.run_id, metrics=part)
            del self.pending[:METRICS_AT_ONCE]

    def _begin(self) -> None:
        """Find or start the MLflow run; may fail anywhere and be called again."""
        run = self.run
        self.store = store = self.store or Store(self.args, run)
        tags = {"seed": run.seed, "parameters": run.parameters, **run.environment}
        tags["mlflow.source.git.commit"] = run.environment.get("commit", "unknown").split()[0]
        about = [run.config.get("notes"), *(f"{name}: {note}" for name, note in run.notes.items())]
        tags["mlflow.note.content"] = "\n\n".join(filter(None, about))
        if run.group:
            with locked(run.folder.parent / f".{run.group}.lock", timeout=60):  # seeds may run side by side
                self.parent = tags[PARENT_TAG] = store.find_or_start(run.group, run, {}).info.run_id
        mine = store.find_or_start(run.folder.name, run, tags)
        store.add_params(mine, run.config)
        if (run.folder / FILES[0]).is_file():
            store.client.log_artifact(mine.info.run_id, str(run.folder / FILES[0]))
        self._adopt(mine)

    def _adopt(self, mine) -> None:
        """Write to this MLflow run, and nothing that it has already."""
        there = {
            (m.key, m.step, m.value)
            for key in mine.data.metrics
            for m in self.store.client.get_metric_history(mine.info.run_id, key)
        }
        self.pending = [entry for entry in self.pending if entry[:3] not in there]
        self.known |= there
        self.finished = mine.info.end_time if mine.info.status == "FINISHED" else None
        self.run_id = mine.info.run_id

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        """A failure inside the block is one line on stderr, once per run, and never an end."""
        begin = time.monotonic()
        try:
            with preserve_rng():  # waiting times between attempts are random
                yield
        except Exception as e:  # whatever MLflow, its database layer or its network layer raises
            if not self.warned:
                text = f"main.py: MLflow: {one_line(e)}; the run goes on, and its folder has all numbers"
                print(text, file=sys.stderr, flush=True)
            self.warned = True
        now = time.monotonic()
        self.next = now + max(PAUSE, SHARE * (now - begin))


def _alone(uri: str):
    """A lock on an SQLite store: two processes must not make its tables at the same time. Fails at once where the file
    cannot be written or is none, for which MLflow needs minutes.
    """
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+).*", uri)
    if match is None:
        return nullcontext()
    path = Path(match[1])
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=60)
    try:
        database.execute("BEGIN IMMEDIATE")
    finally:
        database.close()
    return locked(Path(f"{path}.lock"), timeout=120)
