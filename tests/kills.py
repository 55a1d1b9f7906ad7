"""Kills a run with SIGKILL at random moments, resumes it each time, and compares the end with an undisturbed run.

Compared bit for bit: every value of the final checkpoint, the CSV files, report.html, the fingerprints in result.yaml,
the row in mean_accs.csv, and every TensorBoard scalar as a reader sees it.

Each life of the run is a forked process, so that 30 lives take seconds and not minutes of imports.
"""

import contextlib
import csv
import logging
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import main as entry
from palimpsest.utils.check import cases
from palimpsest.utils.check.case_runs import differing_entries
from palimpsest.utils.log.mean_accs import COSTS
from palimpsest.utils.run import checkpoint

PLAIN = sorted((Path(__file__).parent / "models" / "mammoth_style").glob("[a-z]*.py"))
CLOCKS = [column for column in COSTS if "seconds" in column or "peak" in column]
FILES = ("metrics.csv", "losses.csv", "points.csv", "accuracy_matrix.csv", "per_class.csv", "confusion.csv")
FILES += ("report.html", "result.yaml")


def command(model: str, results: Path) -> list[str]:
    """A small run that saves often, evaluates often, and has short tasks."""
    case = cases.cases(model)[0]
    argv = ["--model", model, "--dataset", cases.STREAMS[case.setting], "--n_epochs", "4", "--num_threads", "1"]
    argv += [*cases.required_options(model), "--eval_epochs", "2", "--savecheck", "7", "--resume"]
    argv += ["--eval_every", "5"]
    return [*argv, "--non_verbose", "--device", "cpu", "--results_path", str(results)]


def life(argv: list[str], seconds: float | None = None) -> int:
    """One process of the run, killed after some seconds if it lives that long; its exit status, -9 when killed."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os._exit(entry.main(argv))
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up() -> None:
    """Import and read what every life needs, so that lives are spent on the run; no computation, so no threads."""
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import palimpsest.utils.run.experiment  # noqa: F401
    from palimpsest.datasets.utils import sources

    torch.set_num_threads(1)  # a forked process cannot use threads that its parent started
    sources.digits("./data")


CALLS: list[int] = []  # no part of the patched method: a checkpoint would refuse it


def at_call(monkeypatch, method: type, call: int, do) -> None:
    """A method whose `observe` returns do(loss) at one call."""
    original = method.observe
    CALLS.clear()

    def observe(self, *args, **kwargs):
        CALLS.append(1)
        loss = original(self, *args, **kwargs)
        return do(loss) if len(CALLS) == call else loss

    monkeypatch.setattr(method, "observe", observe)


def run_folder(results: Path) -> Path:
    """The only run's folder."""
    (config,) = results.glob("*/*/*/*/config.yaml")
    return config.parent


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every TensorBoard scalar (step, value) as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every purge, which is what is wanted
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mean_rows(results: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of mean_accs.csv without what names the run's folder."""
    out = {}
    for path in results.glob("*/*/*/mean_accs.csv"):
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        leave_out = ("run_id", "results_path", *(name for name in rows[0] if name in CLOCKS))
        out[path.parts[-4]] = [{k: v for k, v in row.items() if k not in leave_out} for row in rows]
    return out


def differences(whole: Path, broken: Path) -> list[str]:
    """What two results folders with one run each differ in."""
    a, b = run_folder(whole), run_folder(broken)

    def content(file: Path) -> bytes | None:
        return file.read_bytes() if file.is_file() else None  # not every stream has classes

    out = [name for name in FILES if content(a / name) != content(b / name)]
    first, second = (checkpoint.load(folder / "checkpoint.pt") for folder in (a, b))
    for state in (first, second):
        state["options"].pop("results_path")
        state.pop("path")  # the method itself is compared by its fingerprint in result.yaml
        state["spent"] = {name: value for name, value in state["spent"].items() if "seconds" not in name}
    out += [f"checkpoint {name}" for name in differing_entries(first, second)]
    one, other = scalars(a), scalars(b)
    out += [f"TensorBoard {tag}" for tag in one.keys() | other.keys() if one.get(tag) != other.get(tag)]
    return out + (["mean_accs.csv"] if mean_rows(whole) != mean_rows(broken) else [])


def torture(model: str, kills: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Kill and resume a run; what differs from an undisturbed one, and the iteration each life had saved last."""
    rng, steps = random.Random(f"{model} {seed}"), []
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        begin = time.perf_counter()
        if life(command(model, whole)):
            return ["the undisturbed run failed"], steps
        length = time.perf_counter() - begin
        reach = 0.3 * length
        while len(steps) < kills:
            # Short lives, so that the kills are spread over the whole run: starting, tasks, evaluations, writing;
            # longer ones while the run does not get on.
            status = life(command(model, broken), rng.uniform(0, reach))
            if status >= 0:
                if status:
                    return [f"a resumed run ended with {status}"], steps
                # Finished before it was killed often enough: once more from the start.
                found = differences(whole, broken)
                if found:
                    return found, steps
                broken = Path(folder, f"broken{len(steps)}")
                continue
            saved = [checkpoint.newest(c.parent)[0] for c in broken.glob("*/*/*/*/config.yaml")]
            steps.append(max((checkpoint.read_footer(path).step for path in saved if path), default=0))
            stuck = len(steps) > 1 and steps[-1] == steps[-2]
            reach = 1.25 * reach if stuck else max(0.3 * length, 0.8 * reach)
        if life(command(model, broken)):
            return ["the last resumed run failed"], steps
        return differences(whole, broken), steps
