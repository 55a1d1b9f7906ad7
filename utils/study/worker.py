"""A worker of a sweep: takes trials that nobody works on, one after another, until none is left.

Each trial is a process of its own, forked from the worker, which has imported PyTorch and never used it: a trial that
crashes or takes all memory is a failed trial and no lost worker, no setting of one run reaches another, and runs start
at once. The trial's process holds the trial's lock and tells its result itself. So a worker may be killed at any time:
its trial goes on alone, or was interrupted and is taken up by whoever comes next, from its checkpoint.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

from optuna.trial import Trial, TrialState
from submitit.helpers import Checkpointable

from palimpsest.utils.atomic import LockTaken
from palimpsest.utils.errors import Stopped, TrainingFailed, UserError, one_line
from palimpsest.utils.log.events import Logger
from palimpsest.utils.log.report import summarise_run
from palimpsest.utils.record import Evaluation, Run, Summary
from palimpsest.utils.run import config as configuration
from palimpsest.utils.run.experiment import execute
from palimpsest.utils.study.jobs import LOADED
from palimpsest.utils.study.plan import Case, Plan, command_line, read_plan
from palimpsest.utils.study.trials import Trials

TAKEN = 75  # exit status of a process that found its trial taken by another
MOST_KILLS = 3  # of one trial; the system kills what takes too much memory
# Only the worker asks a trial to stop, by SIGUSR1: Slurm and a terminal signal every process, and a run that is asked
# twice ends at once without saving.
BLOCKED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2}


class Pruned(Exception):
    """A trial is ended before its end, since others were better at this place."""


class Worker(Checkpointable):
    """What submitit runs, on this machine or as a task of a Slurm array.

    Args:
        file: the sweep's file.
        name: of the worker.
        launcher: process id of who started it on this machine, without whom it ends; None under Slurm.
        devices: `CUDA_VISIBLE_DEVICES` of its trials; as it is where None.
    """

    def __init__(self, file: Path, name: str, launcher: int | None = None, devices: str | None = None):
        self.file, self.name, self.launcher, self.devices = file, name, launcher, devices
        self.process: multiprocessing.Process | None = None
        self.stopping = False

    def __getstate__(self) -> dict:
        return self.__dict__ | {"process": None, "stopping": False}

    def __call__(self) -> None:
        """Work until no trial is left to take. Ends with status 143 where SIGTERM ended it."""
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        if self.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
        elif self.launcher:  # submitit hides all devices from local jobs that ask for none
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a look for GPUs must not spoil them for forks
        for name in LOADED:
            importlib.import_module(name)
        trials = Trials(read_plan(self.file, check=False))
        while not self.stopping:
            found = trials.candidate()
            if found:
                self.perform(trials, *found)
            elif self.launcher is None or not trials.unfinished():
                break
            else:  # what is left is run by others, who may be killed
                time.sleep(1)
                self.stop_without_launcher()
        if self.stopping:
            sys.exit(128 + signal.SIGTERM)

    def checkpoint(self):
        """Called by submitit before it puts a job that is preempted or at its time limit back into the queue."""
        self.stop()
        if self.process:
            self.process.join()
        return super().checkpoint()

    def stop(self) -> None:
        """Ask the trial to save its state and end."""
        if self.process and self.process.is_alive() and not self.stopping:
            os.kill(self.process.pid, signal.SIGUSR1)
        self.stopping = True

    def stop_without_launcher(self) -> None:
        """A sweep on this machine ends with the command that began it."""
        try:
            if self.launcher:
                os.kill(self.launcher, 0)
        except ProcessLookupError:
            self.stop()

    def perform(self, trials: Trials, case: Case, number: int) -> None:
        """Run one trial in a process of its own, to its end or until the worker is asked to stop."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        try:
            arguments = (trials.plan, case, number, self.name)
            process = multiprocessing.get_context("fork").Process(target=run_trial, args=arguments)
            process.start()
            self.process = process
        finally:  # a signal that came meanwhile is delivered now
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while process.is_alive():
            process.join(1)
            self.stop_without_launcher()
        self.process = None
        status = process.exitcode
        if status in (0, TAKEN, 128 + signal.SIGUSR1, -signal.SIGUSR1):
            return
        if status == -signal.SIGKILL:
            time.sleep(1)  # whoever kills every process kills this one as well
            kills = trials.count_kill(case, number)
            if kills < MOST_KILLS:
                return
            reason = f"its process was killed {kills} times: too little memory?"
        else:
            reason = f"its process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
        trials.tell(case, number, None, TrialState.FAIL, reason)


class Reporter(Logger):
    """Tells Optuna the objective at every end of a task, and ends the run where a pruner says so.

    Args:
        plan, trial: the sweep, the trial.
        before: values of the seeds that are done.
    """

    def __init__(self, plan: Plan, trial: Trial, before: list[float]):
        self.plan, self.trial, self.before = plan, trial, before

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        if evaluation.epoch is not None or evaluation.task < 0:
            return
        value = objective(self.plan, run, summarise_run(run))
        step = len(self.before) * run.n_tasks + evaluation.task
        if isnan(value) or step in self.trial.storage.get_trial(self.trial._trial_id).intermediate_values:
            return
        self.trial.report((sum(self.before) + value) / (len(self.before) + 1), step)
        if self.trial.should_prune() and evaluation.task + 1 < run.n_tasks:
            what = f"{self.plan.objective} {value:.2f}, others were better"
            raise Pruned(f"pruned after task {evaluation.task + 1}: {what}")


def objective(plan: Plan, run: Run, summary: Summary) -> float:
    """What the search looks at; nan where it is not defined.

    Raises:
        UserError: the run has no such scenario.
    """
    scenario = plan.scenario or (run.setting if run.setting in summary else next(iter(summary), run.setting))
    if scenario not in summary:
        raise UserError(f"the objective is of {scenario}, but this run is scored as {', '.join(summary)}")
    return summary[scenario].get(plan.metric, nan)


def run_trial(plan: Plan, case: Case, number: int, worker: str) -> None:
    """The process of one trial: runs its seeds and tells Optuna what came out. Exits with `TAKEN` where another has the
    trial, with 138 where it was asked to stop.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    trials = Trials(plan)
    try:
        with trials.take(case, number) as trial, told(trials, case, number):
            if trial is not None:
                trial.set_user_attr("worker", worker)
                value = run_seeds(trials, case, trial)
                trials.tell(case, number, value, TrialState.COMPLETE)
    except LockTaken:
        sys.exit(TAKEN)
    except Stopped as e:
        print(e, flush=True)
        sys.exit(e.status)


@contextlib.contextmanager
def told(trials: Trials, case: Case, number: int) -> Iterator[None]:
    """Within: what a trial fails of is noted, and no trial ends another."""
    try:
        yield
    except Pruned as e:
        trials.tell(case, number, None, TrialState.PRUNED, str(e))
    except (UserError, TrainingFailed) as e:
        print(f"the trial failed: {e}", flush=True)
        trials.tell(case, number, None, TrialState.FAIL, one_line(e))
    except Stopped:
        raise
    except Exception as e:
        traceback.print_exc()
        trials.tell(case, number, None, TrialState.FAIL, f"{type(e).__name__}: {one_line(e)}")


def run_seeds(trials: Trials, case: Case, trial: Trial) -> float:
    """Run a trial once with each of its seeds, going on where it was; the mean of the objective."""
    plan, values = trials.plan, trials.values(case, trial)
    scores: list[float] = []
    folders: list[str] = []
    for seed in trial.user_attrs["seeds"]:
        argv = case.argv(values, seed)
        print(f"{case.name}, trial {trial.number}: {command_line(argv)}", flush=True)
        config = configuration.resolve([*argv, "--resume"])
        if plan.chooses:
            config = replace(config, chosen_on=f"a trial of the sweep {plan.name} on held-out data", trial=True)
        run, summary = execute(config, listeners=[Reporter(plan, trial, [*scores])])
        folders.append(str(run.folder))
        trial.set_user_attr("folders", folders)
        scores.append(objective(plan, run, summary))
    if any(map(isnan, scores)):
        raise UserError(f"the objective {plan.objective} is not defined for this run: choose another metric")
    return sum(scores) / len(scores)
