"""What a method's steps and ends of tasks cost as tasks become many: iterations per second of CPU time, and seconds of
a task's end, at tasks 2, 10, 50 and 100.

    OMP_NUM_THREADS=1 python -m benchmarks.growth [--only er derpp] [--seconds 10]

Class-IL and task-IL methods learn 100 tasks of two classes and 100 images of 8x8 (`many_tasks.py`), the others
perm-digits of 100 permutations and as many images; MLP of two layers of 100, batches of 10, one epoch, a buffer of 400.
Evaluation is left out. A method whose steps grow does not get to task 100 within its seconds: what it got to is shown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

AT = (2, 10, 50, 100)
BATCH = 10
STREAM = Path(__file__).with_name("many_tasks.py")


def command(name: str) -> list[str]:
    """The options of a method's run."""
    from palimpsest.utils.check.cases import cases, required_options

    setting = cases(name)[0].setting
    streams = {"class-il": [str(STREAM)], "domain-il": ["perm-digits", "--n_tasks", "100", "--label_perc", "0.07"]}
    if setting not in streams:
        raise SystemExit(f"{name} learns no stream of many tasks")
    argv = ["--model", name, "--dataset", *streams[setting], "--batch_size", str(BATCH), "--n_epochs", "1"]
    argv += ["--lr", "0.03", "--device", "cpu", "--num_threads", "1", "--disable_log", "--non_verbose"]
    own = required_options(name)
    for option, value in (("--buffer_size", "400"), ("--minibatch_size", "10"), ("--fitting_epochs", "1")):
        if option in own:
            own[own.index(option) + 1] = value
    return argv + own


def grow(name: str) -> None:
    """Learn the tasks and print a line of JSON after each: task, iterations per second, seconds of its end."""
    from palimpsest.utils.record import Position
    from palimpsest.utils.run.config import resolve
    from palimpsest.utils.run.experiment import build
    from palimpsest.utils.run.training import train_task

    exp = build(resolve(command(name)))
    exp.log.loggers.clear()
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
    for task in range(exp.dataset.N_TASKS):
        train_task(exp, at)
        rate = (at.step - marks["step"]) / (marks["steps"] - marks["begin"])
        print(json.dumps([task + 1, rate, marks["end"] - marks["steps"]]), flush=True)
        at.leave_task()


def measured(name: str, seconds: float) -> tuple[list[list[float]], str]:
    """What a process of its own printed within the time, and its last words where it failed."""
    argv = [sys.executable, "-m", "benchmarks.growth", "--grow", name]
    root = Path(__file__).parents[1]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()[0], ""
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("[") and line.endswith("]")]
    return lines, err.strip().splitlines()[-1] if child.returncode > 0 and err.strip() else ""


def row(lines: list[list[float]]) -> list[str]:
    """Cells: the rate at each of `AT`, then the milliseconds of an end; the median of a task and the two before it."""
    cells = []
    for column in (1, 2):
        for task in AT:
            near = [line[column] for line in lines if task - 3 < line[0] <= task and line[0] > 1]
            there = near and lines[-1][0] >= task
            value = statistics.median(near) if there else 0.0
            cells.append((f"{value:.0f}" if column == 1 else f"{1000 * value:.1f}") if there else "-")
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods (default: all)")
    parser.add_argument("--seconds", type=float, default=10, help="for each method, with the start of its process")
    parser.add_argument("--grow", metavar="METHOD", help="one method in this process, as lines of JSON")
    options = parser.parse_args()
    if options.grow:
        grow(options.grow)
        return
    from palimpsest.utils import registry

    steps, ends = ([f"{what} {task}" for task in AT] for what in ("it/s at", "end, ms at"))
    print("| " + " | ".join(["method", *steps, *ends, "tasks"]) + " |\n" + "|---" * (2 + 2 * len(AT)) + "|")
    for name in options.only or registry.names("model"):
        lines, failed = measured(name, options.seconds)
        print(
            "| " + " | ".join([name, *row(lines), failed or str(int(lines[-1][0]) if lines else 0)]) + " |", flush=True
        )


if __name__ == "__main__":
    main()
