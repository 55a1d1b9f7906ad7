"""`main.py --sweep FILE.yaml`: many runs from one file, on this machine or on a cluster, and which of them is best."""

import contextlib
import csv
import io
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from palimpsest.utils.args import ArgumentParser
from palimpsest.utils.atomic import file_errors, write_text
from palimpsest.utils.errors import UserError, signals_handled
from palimpsest.utils.option_types import positive_int
from palimpsest.utils.study.plan import Case, Plan, command_line, read_plan

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from palimpsest.utils.study.trials import Trials

TABLE = "trials.csv"
WORDS = {"COMPLETE": "done", "FAIL": "failed", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting"}
FACTS = ("trial", "model", "dataset", "backbone", "seeds", "state", "value", "reason", "seconds", "folders", "command")


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        prog="main.py",
        description="Run a sweep: every point of a grid, or a search by random draws or TPE. Running the command again "
        "goes on; what is done is not repeated. See docs/study.md for the file, docs/cluster.md for Slurm.",
    )
    add = parser.add_argument
    add("--sweep", nargs="?", metavar="FILE", help="the sweep, a YAML file")
    add("--launcher", choices=["local", "slurm"], default="local", help="where the workers run")
    add("--workers", type=positive_int, default=1, metavar="N", help="runs side by side; tasks of the Slurm array")
    add("--profile", metavar="FILE", help="parameters of a Slurm job, a YAML file: partition, time, gpus_per_node, ...")
    add("--retry_failed", action="store_true", help="run each trial that failed once more")
    final = "then run the best point of every combination with every seed, for scores of the test set; in this process"
    add("--final", action="store_true", help=final)
    add(
        "--dry_run", action="store_true", help="print each command, under Slurm also the sbatch script, and run nothing"
    )
    return parser


def command(argv: list[str]) -> int:
    """Run a sweep; the exit status: 0, 1 where a trial failed or is left, 128 + the number of the signal that stopped
    it.
    """
    args = make_parser().parse_args(argv)
    if args.sweep is None:
        raise UserError("--sweep needs the sweep's file: --sweep FILE.yaml")
    if args.profile and args.launcher != "slurm":
        raise UserError("--profile is for --launcher slurm: add it, or drop --profile")
    file = Path(args.sweep)
    plan = read_plan(file)
    if args.final and not plan.chooses:
        raise UserError("--final is for a sweep that chooses: search random or tpe, or a grid with an objective")
    if args.final and args.launcher == "slurm":
        raise UserError("--final runs in this process: give it without --launcher slurm, in a job of its own")
    from palimpsest.utils.study import launch

    profile = launch.read_profile(plan, args.profile) if args.launcher == "slurm" else {}
    print_plan(plan)
    if args.dry_run:
        print_commands(plan)
        if args.launcher == "slurm":
            print(f"\nsbatch script of {args.workers} worker(s):\n{launch.script(plan, profile, args.workers)}")
        return 0
    from palimpsest.utils.study.trials import Trials

    trials = Trials(plan)
    trials.complete_plan()
    if args.retry_failed:
        print(f"{trials.retry_failed()} failed trial(s) are run once more")
    kept = plan.folder / file.name  # what the workers read, whatever becomes of the file
    with file_errors(kept):
        if not (kept.exists() and kept.samefile(file)):
            shutil.copyfile(file, kept)
    status = 0
    if left := trials.unfinished():
        with asked_to_stop() as asked:
            workers = min(args.workers, left)
            if args.launcher == "slurm":
                team = launch.SlurmWorkers(plan, kept.resolve(), workers, profile)
            else:
                team = launch.LocalWorkers(plan, kept.resolve(), workers)
            follow(trials, team, asked)
            status = 128 + asked[0] if asked else 0
    trials.remove_locks()
    table = write_table(trials)
    print_end(trials, table)
    counts = count(trials)
    if args.final and not trials.unfinished():
        for case in plan.cases:
            run_best(trials, case)
    return status or (1 if counts["failed"] or counts["waiting"] or counts["running"] else 0)


def run_best(trials: "Trials", case: Case) -> None:
    """Run the best point of a case with every seed; its folders say what was seen to choose its options."""
    from palimpsest.utils.study import tune

    plan, found = trials.plan, best(trials, case)
    if found is None:
        raise UserError(f"{case.name}: no point is done with every seed, so there is no best")
    argv, n = final_argv(plan, case, found[0]), sum(one is case for one, _ in trials.all())
    held_out = f"held out {case.fixed['validation']} %" if "validation" in case.fixed else "held-out data"
    chosen_on = f"the sweep {plan.name}, {held_out}, {n} trials"
    tune.run(argv, chosen_on, [case.actions[name].dest for name in found[0]])


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Within: signals to stop are noted; a second one ends this process at once."""
    asked: list[int] = []

    def note(number: int, frame) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with signals_handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), note):
        yield asked


def print_plan(plan: Plan) -> None:
    """What the sweep is, in a few lines."""
    runs = sum(len(seeds) for case in plan.cases for _, seeds in plan.points(case))
    what = f"{plan.search}, {runs} run(s)"
    if plan.search != "grid":
        what += f": {plan.trials} trial(s) for each of {len(plan.cases)} combination(s), {len(plan.seeds)} seed(s) each"
        what += f", by {plan.objective} on held-out data"
    print(f"sweep {plan.name}: {what}")
    for line in plan.space.describe():
        print(f"  {line}")
    for case in plan.cases:
        if case.absent:
            print(f"  {case.name} has no {', '.join(f'--{name}' for name in case.absent)}: left out")
    for name, meanings in plan.ambiguous().items():
        told = "; ".join(f"'{text}' ({', '.join(models)})" for text, models in meanings.items())
        print(f"  CAUTION: --{name} is not the same to all: {told}")
    print(f"state and tables: {plan.folder}", flush=True)


def print_commands(plan: Plan) -> None:
    """Every command of a grid and of a random search; of TPE the values depend on the results."""
    from palimpsest.utils.study.trials import drawn

    for case in plan.cases:
        if plan.search == "tpe":
            print(f"{plan.trials} x {command_line(case.argv({}))} --{' --'.join(f'{n} ...' for n in case.searched)}")
            continue
        for number, (values, seeds) in enumerate(plan.points(case)):
            for seed in seeds:
                print(command_line(case.argv(drawn(plan, case, number) if values is None else values, seed)))


def count(trials: "Trials") -> Counter:
    """State in words -> trials."""
    return Counter(WORDS[trial.state.name] for _, trial in trials.all())


def follow(trials: "Trials", team: Any, asked: list[int]) -> None:
    """Show where the sweep stands until no worker is left, or until a signal comes: on a terminal a line for every
    worker and one for all, elsewhere a line for every trial that ends.
    """
    terminal = sys.stderr.isatty()
    total = len(trials.all())
    known = {trial._trial_id for _, trial in trials.all() if trial.state.is_finished()}
    bar = tqdm(total=total, initial=len(known), unit="trial", desc="all", disable=not terminal, smoothing=0)
    lines: dict[str, tqdm] = {}
    begin, before, going = time.monotonic(), len(known), True
    try:
        while going and not asked:
            going = team.alive()  # asked first: what ends meanwhile is shown by the last look
            for case, trial in trials.all():
                worker = trial.user_attrs.get("worker", "")
                if trial.state.is_finished() and trial._trial_id not in known:
                    known.add(trial._trial_id)
                    bar.update()
                    if not terminal:
                        left = (time.monotonic() - begin) / (len(known) - before) * (total - len(known)) / 60
                        print(f"{len(known)}/{total} {told(trials, case, trial)}; {left:.0f} min left", flush=True)
                elif terminal and trial.state.name == "RUNNING" and worker:
                    if worker not in lines:
                        lines[worker] = tqdm(bar_format="{desc}", position=len(lines) + 1, leave=False)
                    step = max(trial.intermediate_values, default=-1) + 1
                    lines[worker].set_description_str(f"worker {worker}: {titled(trials, case, trial)}, {step} task(s)")
            if going:
                time.sleep(0.5)
        if asked:
            team.stop()
    finally:
        for line in (*lines.values(), bar):
            line.close()


def titled(trials: "Trials", case: Case, trial: "FrozenTrial") -> str:
    """A trial in a few words."""
    values = trials.values(case, trial)
    seeds = trial.user_attrs["seeds"]
    parts = [*(f"{name} {_short(value)}" for name, value in values.items()), f"seed {' '.join(map(str, seeds))}"]
    return f"{case.name}: {', '.join(parts)}"


def told(trials: "Trials", case: Case, trial: "FrozenTrial") -> str:
    """What became of a trial, in one line."""
    if trial.state.name == "COMPLETE":
        return f"{titled(trials, case, trial)}: {trials.plan.objective} {trial.value:.2f} ({seconds(trial):.0f} s)"
    return f"{titled(trials, case, trial)}: {WORDS[trial.state.name]}: {trial.user_attrs.get('reason', '')}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def seconds(trial: "FrozenTrial") -> float:
    """From the first start of a trial to its end; nan before."""
    return trial.duration.total_seconds() if trial.duration else float("nan")


def write_table(trials: "Trials") -> Path:
    """Write the sweep's `trials.csv`: a row for every trial; returns its path."""
    plan, rows = trials.plan, []
    for case, trial in trials.all():
        values = trials.values(case, trial)
        argv = case.argv(values)
        seeds = trial.user_attrs["seeds"]
        given = ["--seed", str(seeds[0])] if len(seeds) == 1 else ["--seeds", *map(str, seeds)]
        ended = trial.state.is_finished()
        rows.append({"trial": trial.number, **case.names, "seeds": " ".join(map(str, seeds))} | values | {
            "state": WORDS[trial.state.name],
            "value": repr(trial.value) if trial.state.name == "COMPLETE" else "",
            "reason": trial.user_attrs.get("reason", ""),
            "seconds": f"{seconds(trial):.1f}" if ended and trial.duration else "",
            "folders": " ".join(trial.user_attrs.get("folders", [])),
            "command": command_line([*argv, *given]),
        })  # fmt: skip
    columns = [*FACTS[:5], *(name for name in plan.space.domains), *FACTS[5:]]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [c for c in columns if any(c in row for row in rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = plan.folder / TABLE
    write_text(path, text.getvalue())
    return path


def print_end(trials: "Trials", table: Path) -> None:
    """Counts, failures, and what was best in every combination, where something may be chosen."""
    plan, counts = trials.plan, count(trials)
    print(", ".join(f"{counts[word]} {word}" for word in WORDS.values() if counts[word]))
    failed = [(case, trial) for case, trial in trials.all() if trial.state.name == "FAIL"]
    for case, trial in failed[:5]:
        print(f"  {told(trials, case, trial)}")
    if len(failed) > 5:
        print(f"  and {len(failed) - 5} more")
    if counts["waiting"] or counts["running"]:
        print(f"not complete: the same command goes on; what the workers said is in {plan.folder / 'jobs'}")
    for case in plan.cases:
        if plan.held_out and (found := best(trials, case)):
            values, value, n = found
            over = f", mean of {n} seeds" if n > 1 else ""
            print(f"best of {case.name}: {plan.objective} {value:.2f} on held-out data{over}")
            print(f"  {command_line(final_argv(plan, case, values))}")
    if plan.search == "grid" and not plan.held_out:
        print("no best: these are scores of the test set, which are not for choosing (add validation for that)")
    print(f"table: {table}", flush=True)


def final_argv(plan: Plan, case: Case, values: dict[str, Any]) -> list[str]:
    """The arguments that run a point with every seed for scores of the test set."""
    seeds = ["--seed" if len(plan.seeds) == 1 else "--seeds", *map(str, plan.seeds)]
    return [*case.argv(values, without=("validation",)), *seeds]


def best(trials: "Trials", case: Case) -> tuple[dict[str, Any], float, int] | None:
    """Values, mean objective and number of seeds of the best point of a case, of those that are done with every seed;
    None where there is none.
    """
    plan = trials.plan
    points: dict[str, tuple[dict[str, Any], dict[int, float]]] = {}
    for found, trial in trials.all():
        if found is case and trial.state.name == "COMPLETE":
            values, seeds = trials.values(case, trial), trial.user_attrs["seeds"]
            _, scores = points.setdefault(repr(sorted(values.items())), (values, {}))
            scores |= dict.fromkeys(seeds, trial.value)
    sign, champion = (-1 if plan.lower else 1), (-inf, None)
    for values, scores in points.values():
        if len(scores) >= len(plan.seeds):
            mean = sum(scores.values()) / len(scores)
            if sign * mean > champion[0]:
                champion = (sign * mean, (values, mean, len(scores)))
    return champion[1]
