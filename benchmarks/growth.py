"""What a method's steps and ends of tasks cost as tasks become many: iterations per second of CPU time, and seconds of
a task's end, at tasks 2, 10, 50 and 100.

    OMP_NUM_THREADS=1 python -m benchmarks.growth [--only er derpp] [--seconds 4]

Class-IL and task-IL methods learn 100 tasks of two classes and 100 images of 8x8 (`many_tasks.py`), the others
perm-digits of 100 permutations and as many images; MLP of two layers of 100, batches of 10, one epoch, a buffer of 400.
Evaluation is left out. A method whose steps grow does not get to task 100 within its seconds: what it got to is shown.
"""

import argparse
import statistics
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from palimpsest.utils import registry
from palimpsest.utils.check.cases import cases, required_options
from palimpsest.utils.errors import TrainingFailed, UserError, one_line
from palimpsest.utils.record import Position
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train_task

AT = (2, 10, 50, 100)
BATCH = 10
STREAM = Path(__file__).with_name("many_tasks.py")


def command(name: str) -> list[str]:
    """The options of a method's run.

    Raises:
        UserError: it learns neither stream.
    """
    setting = cases(name)[0].setting
    streams = {"class-il": [str(STREAM)], "domain-il": ["perm-digits", "--n_tasks", "100", "--label_perc", "0.07"]}
    if setting not in streams or registry.load("model", name).JOINT:
        raise UserError("no stream of many tasks")
    argv = ["--model", name, "--dataset", *streams[setting], "--batch_size", str(BATCH), "--n_epochs", "1"]
    argv += ["--device", "cpu", "--num_threads", "1", "--disable_log", "--non_verbose"]
    own = required_options(name)
    for option, value in (("--buffer_size", "400"), ("--minibatch_size", "10"), ("--fitting_epochs", "1")):
        if option in own:
            own[own.index(option) + 1] = value
    return argv + own


def grow(name: str, seconds: float) -> tuple[str, list[list[float]], str]:
    """Learn tasks for so many seconds of CPU time: the name, a row of each task (its number, iterations per second,
    seconds of its end), and why there are no more.
    """
    rows: list[list[float]] = []
    try:
        exp = build(resolve(command(name)))
        model, meter, at, marks = exp.model, exp.meter, Position(), {}
        begin_task, end_task = meter.begin_task, meter.end_task

        def begun(*args, **kwargs):
            begin_task(*args, **kwargs)
            marks["begin"], marks["step"] = time.process_time(), at.step

        def ended(*args, **kwargs):
            marks["steps"] = time.process_time()
            end_task(*args, **kwargs)
            marks["end"] = time.process_time()

        meter.begin_task, meter.end_task = begun, ended
        model.train()
        start = time.process_time()
        for task in range(exp.dataset.N_TASKS):
            train_task(exp, at)
            rate = (at.step - marks["step"]) / (marks["steps"] - marks["begin"])
            rows.append([task + 1, rate, marks["end"] - marks["steps"]])
            at.leave_task()
            if time.process_time() - start > seconds:
                return name, rows, "time"
    except (UserError, TrainingFailed) as e:
        return name, rows, one_line(e)
    return name, rows, ""


def cells(rows: list[list[float]]) -> list[str]:
    """Cells: the rate at each of `AT`, then the milliseconds of an end; the median of a task and the two before it."""
    out = []
    for column in (1, 2):
        for task in AT:
            near = [row[column] for row in rows if task - 3 < row[0] <= task and row[0] > 1]
            there = near and rows[-1][0] >= task
            value = statistics.median(near) if there else 0.0
            out.append((f"{value:.0f}" if column == 1 else f"{1000 * value:.1f}") if there else "-")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods (default: all)")
    parser.add_argument("--seconds", type=float, default=4, help="of CPU time, for each method")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use threads that its parent started
    names = options.only or registry.names("model")
    steps, ends = ([f"{what} {task}" for task in AT] for what in ("it/s at", "end, ms at"))
    print("| " + " | ".join(["method", *steps, *ends, "tasks"]) + " |\n" + "|---" * (2 + 2 * len(AT)) + "|")
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # a process for each, which imports nothing anew
        for name, rows, why in pool.imap(partial(grow, seconds=options.seconds), names):
            told = why if why not in ("", "time") else str(len(rows))
            print("| " + " | ".join([name, *cells(rows), told]) + " |", flush=True)


if __name__ == "__main__":
    main()
