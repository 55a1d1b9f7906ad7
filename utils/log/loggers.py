"""What becomes of a run's events: CSV files, lines on stdout, TensorBoard events, report.html.

The training loop tells every logger the same few events; each logger writes its own format.
"""

import csv
import json
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from palimpsest.utils import criterion
from palimpsest.utils.args import NEUTRAL
from palimpsest.utils.atomic import file_errors, write_text
from palimpsest.utils.config_file import write_config
from palimpsest.utils.log import plots
from palimpsest.utils.log.events import Logger
from palimpsest.utils.log.formats import csv_text, defined, plain
from palimpsest.utils.log.report import excluded_terms, summarise_run, write_report
from palimpsest.utils.log.run_file import RunFileLogger
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.record import Evaluation, Run, Summary

DEFAULTS = ("default", "method", "dataset")  # origins of an option's value that nobody chose for this run
REFRESH = 10  # seconds between two looks of a browser at the page of a running run


class CSVLogger(Logger):
    """`config.yaml`, `metrics.csv`, `losses.csv`, `accuracy_matrix.csv`, `per_class.csv`, `confusion.csv`, with
    `--eval_every` `points.csv`, which has the columns of metrics.csv, and, at the end, `metrics.json` in the run's
    folder.

    On a vision stream also `epochs.jsonl`, the records of `Run.epochs`, and `criterion` in metrics.json.

    metrics.csv has one row per evaluation x metric x scenario x task: tasks counted from 0, `value` in percent unless
    it is a perplexity, `epoch` empty at a task's end. Rows are on their way to the disk when the event returns, so a
    killed run keeps them; a resumed run rewrites those of its history, so that nothing is there twice. The run's
    metrics come last, with `task_evaluated` empty.

    losses.csv has one row per loss term every few iterations: step, term, mean since the last row of the term.

    per_class.csv and confusion.csv have the answers at every end of a task, where tasks have classes; a class is
    written as its original label. In confusion.csv a pair that did not occur has no row.
    """

    COLUMNS = ("step", "task_trained", "task_evaluated", "scenario", "metric", "value", "epoch")
    COLUMNS += ("model", "dataset", "seed")
    COUNTED = {
        "per_class.csv": (
            "step",
            "task_trained",
            "task_evaluated",
            "scenario",
            "class",
            "name",
            "accuracy",
            "examples",
        ),
        "confusion.csv": ("step", "task_trained", "scenario", "class", "predicted", "examples"),
    }

    def run_started(self, run: Run) -> None:
        if not run.position:
            about = {"model": run.model_name, "dataset": run.dataset_name, "setting": run.setting, "seed": run.seed}
            about |= {"parameters": run.parameters, "options": run.config, "origins": run.origins}
            about |= {"environment": run.environment, "notes": run.notes}
            about |= {"chosen_on": run.chosen_on, "trial": run.trial}
            write_config(run.folder / "config.yaml", plain(about))
        self.folder = run.folder
        rows = [row for evaluation in run.history for row in self._rows(run, evaluation)]
        write_text(run.folder / "metrics.csv", csv_text([self.COLUMNS, *rows]))
        rows = [(step, *term) for step, means, _ in run.losses for term in means.items()]
        write_text(run.folder / "losses.csv", csv_text([("step", "term", "value"), *rows]))
        if run.config.get("eval_every"):
            rows = [row for point in run.points for row in self._rows(run, point)]
            write_text(run.folder / "points.csv", csv_text([self.COLUMNS, *rows]))
        known = {str(evaluation.step) for evaluation in run.history if evaluation.epoch is None}
        for name in self.COUNTED:
            self._keep(run.folder / name, known)

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        self._append(self.folder / "losses.csv", [(step, *term) for term in losses.items()])

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        self._append(run.folder / "metrics.csv", self._rows(run, evaluation))
        if evaluation.epoch is None:
            self._write_matrix(run)
            for name, rows in self._counted(run, evaluation).items():
                path, new = run.folder / name, not (run.folder / name).exists()
                self._append(path, [self.COUNTED[name], *rows] if new else rows)
            if run.tasks:
                lines = [json.dumps(defined(record)) for record in run.epochs]
                write_text(run.folder / "epochs.jsonl", "".join(f"{line}\n" for line in lines))

    def point_taken(self, run: Run, point: Evaluation) -> None:
        self._append(run.folder / "points.csv", self._rows(run, point))

    def run_ended(self, run: Run, summary: Summary) -> None:
        at = (run.history[-1].step, run.history[-1].task) if run.history else (0, "")
        rows = [
            (*at, "", scenario, metric, float(value), "", run.model_name, run.dataset_name, run.seed)
            for scenario, metrics in summary.items()
            for metric, value in metrics.items()
        ]
        self._append(run.folder / "metrics.csv", rows)
        self._write_matrix(run)
        write_text(run.folder / "metrics.json", json.dumps(defined(self._facts(run, summary)), indent=1) + "\n")

    @staticmethod
    def _facts(run: Run, summary: Summary) -> dict[str, Any]:
        """All metrics with what they come from, and what the method found, if anything."""
        left_out, facts = excluded_terms(run), {}
        for scenario, matrix in run.matrices.items():
            defined = summary.get(scenario, {})
            facts[scenario] = {
                "accuracy_matrix": matrix,
                "untrained": run.baselines.get(scenario),
                "metrics": {name: defined.get(name) for name in METRICS},
                "undefined_terms_left_out": left_out[scenario],
            }
        if run.analysis and run.analysis.numbers:
            facts["extra_metrics"] = run.analysis.numbers
        if run.tasks:
            facts["criterion"] = criterion.as_facts(run)
        return facts

    @staticmethod
    def _rows(run: Run, evaluation: Evaluation) -> list[tuple]:
        epoch = "" if evaluation.epoch is None else evaluation.epoch
        about = (run.model_name, run.dataset_name, run.seed)
        return [
            (evaluation.step, evaluation.task, task, scenario, metric, value, epoch, *about)
            for metric, scenario, task, value in evaluation.values(run.score)
        ]

    @staticmethod
    def _counted(run: Run, evaluation: Evaluation) -> dict[str, list[tuple]]:
        """Rows of the files of `COUNTED`, none where tasks have no classes."""
        at, per_class, pairs = (evaluation.step, evaluation.task), [], []
        for scenario, counts in run.counts.items():
            named = dict(enumerate(run.classes)) or {c: (c, str(c)) for c in range(len(counts.confusion))}
            for task, (hits, totals) in counts.tasks.items():
                for c in np.flatnonzero(totals):
                    share = 100 * int(hits[c]) / int(totals[c])
                    per_class.append((*at, task, scenario, *named[c], share, int(totals[c])))
            for c, predicted in np.argwhere(counts.confusion):
                n = int(counts.confusion[c, predicted])
                pairs.append((*at, scenario, named[c][0], named[predicted][0], n))
        return {"per_class.csv": per_class, "confusion.csv": pairs} if run.counts else {}

    @staticmethod
    def _keep(path: Path, steps: set[str]) -> None:
        """Leave the rows of these steps alone: those of a killed run's later ones are written again."""
        if path.is_file():
            with file_errors(path), open(path, newline="", encoding="utf-8") as f:
                head, *rows = list(csv.reader(f)) or [[]]
            write_text(path, csv_text([head, *(row for row in rows if row and row[0] in steps)]))

    @staticmethod
    def _append(path: Path, rows: Iterable[tuple]) -> None:
        with file_errors(path), open(path, "a", newline="", encoding="utf-8") as f:
            f.write(csv_text(rows))

    @staticmethod
    def _write_matrix(run: Run) -> None:
        """Rows scenario, after_task, task_0..task_{T-1}; an empty cell was not evaluated."""
        rows: list[tuple] = [("scenario", "after_task", *(f"task_{i}" for i in range(run.n_tasks)))]
        for scenario, matrix in run.matrices.items():
            for t, scores in enumerate(matrix):
                rows.append((scenario, t, *("" if np.isnan(score) else float(score) for score in scores)))
        write_text(run.folder / "accuracy_matrix.csv", csv_text(rows))


class ConsoleLogger(Logger):
    """One line per evaluation and a table of metrics at the end, on stdout.

    Args:
        verbose: False leaves the line per evaluation out.
    """

    def __init__(self, verbose: bool = True):
        self.verbose = verbose

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        if not self.verbose:
            return
        where = f"task {evaluation.task + 1}/{run.n_tasks}" if evaluation.task >= 0 else "untrained"
        if evaluation.epoch is not None:
            where += f" epoch {evaluation.epoch + 1}"
        means = {name: evaluation.seen_mean(scores) for name, scores in evaluation.scores.items()}
        means = [f"{name} no score" if np.isnan(mean) else f"{name} {mean:.1f}" for name, mean in means.items()]
        for metric, values in evaluation.others.items():
            if np.isnan([v for row in values.values() for v in row]).any():
                continue  # of some of the tasks only, as that of one class: it is in the files
            prefix = "" if len(values) == 1 else "{} "
            means += [f"{prefix.format(n)}{metric} {evaluation.seen_mean(v):.3g}" for n, v in values.items()]
        # Through tqdm: a plain print would land in the middle of the progress bar.
        tqdm.write(" | ".join([where, *means]), file=sys.stdout)
        sys.stdout.flush()

    def run_ended(self, run: Run, summary: Summary) -> None:
        names = [metric for metric in METRICS if any(metric in values for values in summary.values())]
        lines = [f"{run.model_name} on {run.dataset_name}, seed {run.seed}"]
        lines.append(" " * 22 + "".join(f"{scenario:>20}" for scenario in summary))
        for metric in names:
            cells = [f"{values[metric]:.2f}" if metric in values else "-" for values in summary.values()]
            lines.append(f"  {metric:<20}" + "".join(f"{cell:>20}" for cell in cells))
        if rows := criterion.of_run(run):
            columns = list(zip(criterion.COLUMNS, *map(criterion.cells, rows), strict=True))
            padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
            lines += ["forgetting criterion", *("  " + "  ".join(row).rstrip() for row in zip(*padded, strict=True))]
            lines += [f"  {line}" for line in criterion.remarks(run, rows)]
        lines += [f"  {about}: {note}" for about, note in run.notes.items()]
        lines += [f"  MARK {mark}" for mark in run.marks] + [f"  LEAK {leak}" for leak in run.leaks]
        if run.folder is not None:
            lines.append(f"results: {run.folder}")
        print("\n".join(lines), flush=True)


class TensorBoardLogger(Logger):
    """TensorBoard events in the run's folder, against training iterations.

    Text `config`; scalars `acc_mean`, `acc_task01`..., `perplexity_task01`... of token streams, `loss/<term>`, `lr`,
    `subset/acc_task01`... at the points of `--eval_every`; image `accuracy_matrix` after each task; at the end the
    metrics as HParams of the model, the dataset, the seed and the options that somebody chose. With two scenarios the
    tags of a score start with the scenario: `class-il/acc_mean`.
    """

    def run_started(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A killed run may have written events after its checkpoint, and at its very step: those are dropped by the
        # reader, and what the checkpoint knows of its step is written once more.
        self.folder = run.folder
        threading.excepthook = _without_writers(threading.excepthook)
        with file_errors(self.folder):
            self.writer = SummaryWriter(str(self.folder), purge_step=run.position or 0)
        for step, means, lr in run.losses if run.position else ():
            if step == run.position:
                self.step(step, means, lr)
        for evaluation in run.history if run.position else ():
            if evaluation.step == run.position:
                self.task_evaluated(run, evaluation)
        for point in run.points if run.position else ():
            if point.step == run.position:
                self.point_taken(run, point)
        if not run.position:
            rows = [(name, value, run.origins.get(name, "")) for name, value in run.config.items()]
            lines = [f"| {' | '.join(map(_md, row))} |" for row in rows]
            self.writer.add_text("config", "\n".join(["| option | value | origin |", "|---|---|---|", *lines]))

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        with file_errors(self.folder):
            for term, value in losses.items():
                self.writer.add_scalar(f"loss/{term}", value, step)
            self.writer.add_scalar("lr", lr, step)

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        with file_errors(self.folder):
            for metric, scenario, task, value in evaluation.values("acc"):
                tag = f"{_prefix(evaluation.scores, scenario)}{metric}_task{task + 1:02d}"
                self.writer.add_scalar(tag, value, evaluation.step)
            for scenario, scores in evaluation.scores.items():
                prefix = _prefix(evaluation.scores, scenario)
                if not np.isnan(mean := evaluation.seen_mean(scores)):
                    self.writer.add_scalar(f"{prefix}acc_mean", mean, evaluation.step)
                if evaluation.epoch is None and scenario in run.matrices:
                    image = plots.matrix_image(run.matrices[scenario])
                    self.writer.add_image(f"{prefix}accuracy_matrix", image, evaluation.step, dataformats="HWC")
            self.writer.flush()

    def point_taken(self, run: Run, point: Evaluation) -> None:
        with file_errors(self.folder):
            for _, scenario, task, value in point.values("acc"):
                tag = f"subset/{_prefix(point.scores, scenario)}acc_task{task + 1:02d}"
                self.writer.add_scalar(tag, value, point.step)

    def saving(self, run: Run) -> None:
        with file_errors(self.folder):
            self.writer.flush()

    def run_ended(self, run: Run, summary: Summary) -> None:
        from torch.utils.tensorboard.summary import hparams

        options = {"model": run.model_name, "dataset": run.dataset_name, "seed": run.seed} | {
            name: value
            for name, value in run.config.items()
            if name not in NEUTRAL and run.origins.get(name, "default") not in DEFAULTS
        }
        options = {name: v if isinstance(v, bool | int | float) else _utf8(v) for name, v in options.items()}
        metrics = {
            f"metrics/{_prefix(summary, scenario)}{metric}": value
            for scenario, values in summary.items()
            for metric, value in values.items()
        }
        step = run.history[-1].step if run.history else 0
        with file_errors(self.folder):
            # The writer's own add_hparams would open a second event file in a folder below.
            for part in hparams(options, metrics):
                self.writer.file_writer.add_summary(part)
            for tag, value in metrics.items():
                self.writer.add_scalar(tag, value, step)
            self.writer.close()


def _without_writers(hook: Callable) -> Callable:
    """A `threading.excepthook` without the tracebacks of TensorBoard's threads that could not write a file: the next
    event raises the same error, which is told in one line.
    """
    if hasattr(hook, "without_writers"):
        return hook

    def tell(args) -> None:
        writes = type(args.thread).__module__.startswith("tensorboard.")
        if not (writes and issubclass(args.exc_type, OSError)):
            hook(args)

    tell.without_writers = True
    return tell


class ReportLogger(Logger):
    """`report.html`, at the end.

    Args:
        live: also after every task, as a page that a browser reads again by itself until the run ends.
    """

    def __init__(self, live: bool = False):
        self.live = live

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        if self.live and evaluation.epoch is None:
            write_report(run, summarise_run(run), refresh=REFRESH)

    def run_stopped(self, run: Run, error: BaseException) -> None:
        if self.live and run.history:
            write_report(run, summarise_run(run))

    def run_ended(self, run: Run, summary: Summary) -> None:
        write_report(run, summary)


def make_loggers(args: Any, run: Run) -> list[Logger]:
    """The loggers that the options ask for; without a folder (`--disable_log`) only the console.

    The CSV files come first: what is written down fails last.
    """
    console = ConsoleLogger(verbose=not args.non_verbose)
    if args.disable_log or run.folder is None:
        return [console]
    loggers: list[Logger] = [*([CSVLogger()] if args.csv_log else []), RunFileLogger()]
    loggers += [console, *([] if args.report == "off" else [ReportLogger(live=args.report == "live")])]
    loggers += [TensorBoardLogger()] if args.tensorboard else []
    if args.mlflow:
        from palimpsest.utils.log.mlflow_logger import MLflowLogger

        loggers.append(MLflowLogger(args))  # last: it sends the files of the others
    if args.wandb:
        from palimpsest.utils.log.wandb_logger import WandbLogger

        loggers.append(WandbLogger(args))
    return loggers


def _prefix(scenarios: dict, scenario: str) -> str:
    return f"{scenario}/" if len(scenarios) > 1 else ""


def _utf8(value: Any) -> str:
    """A value as text, what UTF-8 has no form for escaped: an option may hold bytes of a name in another encoding."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _md(value: Any) -> str:
    """One cell of a markdown table."""
    return _utf8(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
