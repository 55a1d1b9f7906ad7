"""The trials of a sweep: Optuna studies in one journal, which workers on many machines share.

Every trial is written down as waiting when the sweep begins; a worker takes one by a lock of its own. So none is run
twice and none is missing, whoever is killed when: a trial that runs and whose lock is free is taken up again.

The journal is a file that is only appended to. Its lock is a file made with O_EXCL, which is atomic on local disks and
on NFS from version 3 on, where flock may be missing; one that a killed process left is removed after 30 seconds.
(Optuna's other lock, a symbolic link, looks at the age of the journal and not at its own: while others write it is
never taken for left behind.)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from palimpsest.utils.atomic import LockTaken, file_errors, locked
from palimpsest.utils.errors import UserError
from palimpsest.utils.study.plan import Case, Plan

JOURNAL = "journal.log"
FACTS = "sweep"  # study attribute: what must not change while a search goes on


class Trials:
    """The trials of one sweep as its journal has them.

    Args:
        plan: the sweep.

    Attributes:
        studies: case -> its Optuna study, in the order of the plan.
    """

    def __init__(self, plan: Plan):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, path = plan, plan.folder / JOURNAL
        with file_errors(plan.folder):
            plan.folder.mkdir(parents=True, exist_ok=True)
            lock = JournalFileOpenLock(str(path))
            _mend(path, lock)
            self.storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        self.studies: dict[str, optuna.Study] = {}
        for case in plan.cases:
            with suppress(KeyError):
                self.studies[case.name] = self._study(case)

    def _study(self, case: Case) -> optuna.Study:
        # What draws values is set for each trial; the default would be made with a seed that nobody knows.
        pruner = optuna.pruners.MedianPruner() if self.plan.pruning else optuna.pruners.NopPruner()
        return optuna.load_study(
            study_name=case.name, storage=self.storage, sampler=RandomSampler(seed=0), pruner=pruner
        )

    def complete_plan(self) -> None:
        """Write down the trials that are missing.

        Raises:
            UserError: the file describes another search than that which was begun, or lacks some of its trials.
        """
        try:
            with locked(self.plan.folder / ".plan.lock", timeout=60):
                for case in self.plan.cases:
                    self._complete(case)
        except LockTaken as e:
            raise UserError(f"another process plans the sweep in {self.plan.folder} since a minute{e.hint}") from None

    def _complete(self, case: Case) -> None:
        plan = self.plan
        if case.name not in self.studies:
            direction = "minimize" if plan.lower else "maximize"
            optuna.create_study(study_name=case.name, storage=self.storage, direction=direction, load_if_exists=True)
            self.studies[case.name] = self._study(case)
        study = self.studies[case.name]
        if FACTS not in study.user_attrs:
            study.set_user_attr(FACTS, plan.what_is_searched(case))
        advice = "give the file another name, or put back what it said"
        if study.user_attrs[FACTS] != plan.what_is_searched(case):
            raise UserError(
                f"the sweep in {plan.folder} was begun with another search than {plan.name} is now: {advice}"
            )
        trials = [trial.user_attrs for trial in study.get_trials(deepcopy=False) if "retry" not in trial.user_attrs]
        wanted = [{"run": case.key(values), "values": values, "seeds": seeds} for values, seeds in plan.points(case)]
        if plan.search == "grid":
            known, now = ({(trial["run"], *trial["seeds"]) for trial in some} for some in (trials, wanted))
            gone = known - now
            missing = [trial for trial in wanted if (trial["run"], *trial["seeds"]) not in known]
        else:
            gone, missing = trials[len(wanted) :], wanted[len(trials) :]
        if gone:
            raise UserError(
                f"{plan.name} lacks {len(gone)} trial(s) of {case.name} that the sweep in {plan.folder} has: {advice}"
            )
        for facts in missing:
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=facts))

    def retry_failed(self) -> int:
        """Write down every trial that failed once more; returns how many there are."""
        failed = [(case, trial) for case, trial in self.all() if trial.state == TrialState.FAIL]
        for case, trial in failed:
            facts = {name: trial.user_attrs[name] for name in ("run", "values", "seeds")} | {"retry": trial.number}
            self.studies[case.name].enqueue_trial(trial.params, user_attrs=facts)
        return len(failed)

    def all(self) -> list[tuple[Case, FrozenTrial]]:
        """Every trial with its case, one that was tried again left out."""
        out = []
        for case in self.plan.cases:
            if case.name in self.studies:
                trials = self.studies[case.name].get_trials(deepcopy=False)
                tried = {trial.user_attrs.get("retry") for trial in trials}
                out += [(case, trial) for trial in trials if trial.number not in tried]
        return out

    def candidate(self) -> tuple[Case, int] | None:
        """A trial that nobody works on, interrupted ones first: its case and its number there."""
        open_ = [(case, trial) for case, trial in self.all() if not trial.state.is_finished()]
        open_.sort(key=lambda found: found[1].state != TrialState.RUNNING)
        for case, trial in open_:
            path = self.lock(trial)
            try:
                with locked(path) if path.exists() else nullcontext():  # of most that wait there is none yet
                    return case, trial.number
            except LockTaken:
                continue
        return None

    def unfinished(self) -> int:
        """How many trials wait or run."""
        return sum(not trial.state.is_finished() for _, trial in self.all())

    def remove_locks(self) -> None:
        """Remove the locks of trials that are finished: looking whether one is free may make it anew."""
        for _, trial in self.all():
            if trial.state.is_finished():
                self.lock(trial).unlink(missing_ok=True)

    def lock(self, trial: FrozenTrial | Trial) -> Path:
        """The lock of who works on a trial."""
        folder = self.plan.folder / "locks"
        folder.mkdir(exist_ok=True)
        return folder / f"trial{trial._trial_id}.lock"

    @contextmanager
    def take(self, case: Case, number: int) -> Iterator[Trial | None]:
        """Within: the trial is this process's alone; None where it is finished.

        Raises:
            LockTaken: another process has it.
        """
        study = self.studies[case.name]
        frozen = study.get_trials(deepcopy=False)[number]
        with locked(self.lock(frozen)):
            state = self.storage.get_trial(frozen._trial_id).state
            if state == TrialState.WAITING:
                self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
            study.sampler = make_sampler(self.plan, case, number)
            yield None if state.is_finished() else Trial(study, frozen._trial_id)
            if self.storage.get_trial(frozen._trial_id).state.is_finished():
                # Whoever waits for this file reads the state anew before he does anything.
                self.lock(frozen).unlink(missing_ok=True)

    def values(self, case: Case, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """The values of a trial, which are drawn the first time."""
        if (fixed := trial.user_attrs["values"]) is not None:
            return fixed
        return self.plan.space.suggest(trial, case.searched) if isinstance(trial, Trial) else trial.params

    def tell(self, case: Case, number: int, value: float | None, state: TrialState, reason: str = "") -> None:
        """Note the end of a trial."""
        study = self.studies[case.name]
        trial_id = study.get_trials(deepcopy=False)[number]._trial_id
        if reason:
            self.storage.set_trial_user_attr(trial_id, "reason", reason)
        self.storage.set_trial_state_values(trial_id, state, None if value is None else [value])

    def count_kill(self, case: Case, number: int) -> int:
        """How often the process of a trial was killed, this time included."""
        trial = self.studies[case.name].get_trials(deepcopy=False)[number]
        kills = trial.user_attrs.get("kills", 0) + 1
        self.storage.set_trial_user_attr(trial._trial_id, "kills", kills)
        return kills


def make_sampler(plan: Plan, case: Case, number: int) -> BaseSampler:
    """What draws the values of a trial: of random search they depend on the seed, the case and the trial alone, whoever
    draws them.
    """
    seed = ((plan.search_seed * 1_000 + plan.cases.index(case)) * 1_000_003 + number) % 2**32
    # Trials that run count as bad ones for TPE, so that workers do not try the same place.
    return TPESampler(seed=seed, constant_liar=True) if plan.search == "tpe" else RandomSampler(seed=seed)


def drawn(plan: Plan, case: Case, number: int) -> dict[str, Any]:
    """The values that a trial of a random search will have."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=make_sampler(plan, case, number))
    return plan.space.suggest(study.ask(), case.searched)


def _mend(path: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a line that a full disk or a machine that went down left unfinished: Optuna reads none after it."""
    if not path.is_file():
        return
    lock.acquire()
    try:
        with open(path, "rb+") as f:
            size = f.seek(0, os.SEEK_END)
            back = min(size, 1 << 16)
            f.seek(size - back)
            tail = f.read(back)
            if tail and not tail.endswith(b"\n"):
                f.truncate(size - back + tail.rfind(b"\n") + 1)
    finally:
        lock.release()
