"""`run.json`: one run in one small file, for whoever reads many: the comparison, the page over runs, studies.

It is there from the start of a run, is written again at every end of a task, and says at the end what became of it.
Whether a run is finished is not said here but by the file that a run writes last, see `utils.run.finished.RESULT`.
"""

import json

from palimpsest.utils.atomic import write_text
from palimpsest.utils.errors import Stopped, one_line
from palimpsest.utils.log.events import Logger
from palimpsest.utils.log.formats import defined, plain
from palimpsest.utils.log.report import summarise_run
from palimpsest.utils.record import Evaluation, Run, Summary

NAME = "run.json"
# Of `Run`, what the file has: no history and no pictures, so that a thousand files are read in a moment.
KEPT = ("model_name", "dataset_name", "setting", "n_tasks", "seed", "config", "origins", "score", "tasks", "notes")
KEPT += ("environment", "published", "parameters", "matrices", "costs", "group", "chosen_on", "trial", "leaks", "marks")


class RunFileLogger(Logger):
    """Keeps `run.json` up to date.

    Its keys: those of `KEPT` with the values of `Run`, `metrics` (scenario -> metric -> value) of the tasks so far,
    `iterations`, and `reason`, why the run failed, None unless it did.
    """

    def run_started(self, run: Run) -> None:
        self._write(run, summarise_run(run))

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        if evaluation.epoch is None:
            self._write(run, summarise_run(run))

    def run_ended(self, run: Run, summary: Summary) -> None:
        self._write(run, summary)

    def run_stopped(self, run: Run, error: BaseException) -> None:
        stopped = isinstance(error, Stopped | KeyboardInterrupt | SystemExit)
        self._write(run, summarise_run(run), None if stopped else one_line(error) or type(error).__name__)

    @staticmethod
    def _write(run: Run, summary: Summary, reason: str | None = None) -> None:
        facts = {name: getattr(run, name) for name in KEPT}
        facts["config"], facts["origins"] = plain(run.config), plain(run.origins)
        facts |= {"metrics": summary, "iterations": run.history[-1].step if run.history else 0, "reason": reason}
        write_text(run.folder / NAME, json.dumps(defined(facts)) + "\n")
