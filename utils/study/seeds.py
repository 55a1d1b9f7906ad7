"""The same experiment once per seed of `--seeds`, one after another or side by side, and what is said of all."""

import sys
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

from palimpsest.utils import identity
from palimpsest.utils.args import NEUTRAL
from palimpsest.utils.errors import TrainingFailed
from palimpsest.utils.log.mlflow_logger import MLflowLogger
from palimpsest.utils.log.page import count
from palimpsest.utils.log.report import summarise_run
from palimpsest.utils.log.seeds import SUMMARY, found_leaks, summarise_seeds, write_seeds_report, write_seeds_summary
from palimpsest.utils.metrics import FEWEST, interval, plus_minus
from palimpsest.utils.record import Run, Summary
from palimpsest.utils.run.config import Config
from palimpsest.utils.run.experiment import execute
from palimpsest.utils.run.finished import load_run
from palimpsest.utils.run.folders import hash_of
from palimpsest.utils.run.layers import distinct, with_seed
from palimpsest.utils.study.jobs import Job, gpus, run_all


def perform(config: Config, argv: list[str]) -> None:
    """The run or runs that a configuration asks for: one, or one for each seed, in turn or side by side.

    Args:
        config: what `argv` resolves to.
        argv: the command line.
    """
    if config.args.jobs:
        run_seeds(config, argv)
    elif config.args.seeds:
        execute_seeds(config)
    else:
        execute(config)


def execute_seeds(config: Config) -> list[tuple[Run, Summary]]:
    """One run after another in this process, then `end_seeds`. A run that fails does not keep the others from running.

    Returns:
        Of each seed what `execute` returns.

    Raises:
        TrainingFailed: at the end, where a run failed.
    """
    done: list[tuple[Run, Summary]] = []
    failed: dict[int, str] = {}
    for seed in config.args.seeds:
        print(f"seed {seed}", flush=True)
        try:
            first = done[0][0] if done else None
            done.append(execute(replace(config, args=with_seed(config.args, seed)), first))
        except TrainingFailed as e:
            failed[seed] = str(e)
            print(f"seed {seed} failed: {e}", flush=True)
    end_seeds(config.args, done, failed)
    return done


def end_seeds(args: Any, done: list[tuple[Run, Summary]], failed: dict[int, str]) -> None:
    """Mean, standard deviation and 95 % interval of every metric (see `utils.metrics.spread`) over the finished runs:
    printed, and written into the folder of the runs' group.

    Args:
        args: the options that the runs share.
        done: the finished runs with their metrics.
        failed: seed -> why its run failed.

    Raises:
        TrainingFailed: after that, where a run failed; it names each with its reason.
    """
    runs = [run for run, _ in done]
    if runs:
        table = summarise_seeds([summary for _, summary in done])
        few = "" if len(runs) >= FEWEST else f" ({FEWEST} seeds or more have one)"
        print(f"{count(len(runs), 'seed')}: mean, standard deviation, 95 % interval{few}")
        for scenario, values in table.items():
            for metric, (mean, std, half, n) in values.items():
                low, high = interval(metric, mean, half, runs[0].score)
                ends = "" if isnan(low) else f"  [{low:.2f}, {high:.2f}]"
                print(f"  {scenario:<18} {metric:<20} {plus_minus(mean, std):>8}{ends}  n={n}")
        told = [f"MARK {mark}" for mark in runs[0].marks] + [f"LEAK {leak}" for leak in found_leaks(runs)]
        print("".join(f"  {line}\n" for line in told), end="", flush=True)
        if runs[0].folder is not None:
            _write(args, runs, table, failed)
    if failed:
        seeds: dict[str, list[str]] = {}
        for seed, reason in failed.items():
            seeds.setdefault(reason, []).append(str(seed))
        told = "; ".join(f"seed {', '.join(of)}: {reason}" for reason, of in seeds.items())
        raise TrainingFailed(f"{len(failed)} of {count(len(failed) + len(runs), 'run')} failed: {told}")


def _write(args: Any, runs: list[Run], table: dict, failed: dict[int, str]) -> None:
    folder = runs[0].folder.parent / runs[0].group
    write_seeds_summary(folder, runs, table, failed)
    page: Path = folder / SUMMARY
    if args.report != "off":
        page = write_seeds_report(folder, runs, table, failed)
        print(f"report over seeds: {page}")
    if args.mlflow:
        MLflowLogger(args).seeds_ended(runs, table, page)


def run_seeds(config: Config, argv: list[str]) -> list[tuple[Run, Summary]]:
    """The runs of `--seeds`, `--jobs` of them side by side, then `end_seeds` over those that are finished on disk.

    A run that is finished is not repeated, one that was interrupted goes on.

    Args:
        config: what `argv` resolves to.
        argv: the command line.

    Returns:
        The finished runs with their metrics, in the order of the seeds.

    Raises:
        TrainingFailed: at the end, where a run failed.
        JobsStopped: a signal; the same command goes on.
    """
    group = f"seeds_{_name(config)}"
    facts = {"chosen_on": config.chosen_on, "origins": config.origins}
    jobs = [Job(f"seed {seed}", argv, seed, group, facts) for seed in config.args.seeds]
    outcomes = run_all(jobs, config.args.jobs, gpus(config.args.device))
    done = []
    for outcome in outcomes:
        if outcome.state == "finished":
            run = load_run(outcome.folder)
            run.group = group
            done.append((run, summarise_run(run)))
        elif outcome.traceback:
            print(f"{outcome.job.label}:\n{outcome.traceback}", file=sys.stderr)
    failed = {outcome.job.seed: outcome.reason for outcome in outcomes if outcome.state != "finished"}
    end_seeds(config.args, done, failed)
    return done


def _name(config: Config) -> str:
    """The same for the same command, with however many seeds."""
    options = {name: value for name, value in vars(config.args).items() if name not in (*NEUTRAL, "seed")}
    classes = (config.model_class, config.dataset_class, config.backbone_class)
    files = dict(zip(identity.FILES, map(identity.of_class, classes), strict=True))
    parts = (config.args.exp_name, hash_of(distinct(options)), hash_of(files, 4))
    return "_".join(part for part in parts if part)
