"""What only a GPU can tell, in one script of under six minutes: `python -m benchmarks.gpu`.

Tests marked for CUDA; every method for two tasks of the digits; the runner's loop beside a bare eager one and one CUDA
graph; float32, TF32, bfloat16, channels last; several runs on one GPU. Each part is a process of its own with a time
limit, and what it found until then counts. It prints one table; with $OUT set, `gpu.json` there has the same and more.

    python -m benchmarks.gpu [--only PART ...]
    python -m benchmarks.gpu --dry    # all parts, small, on the CPU; what needs a GPU is named as skipped

What it needs is torch with CUDA and the packages of requirements.txt; those that are missing are named first.
"""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITS = {"tests": 75, "methods": 90, "loops": 85, "precision": 40, "jobs": 55}  # seconds; 345 in all
MODULES = {"scikit-learn": "sklearn", "scikit-posthocs": "scikit_posthocs", "PyYAML": "yaml"}
FOR_TESTS = ("pytest", "hypothesis")
CUDA_TESTS = ("tests/datasets/test_transforms.py", "tests/run/test_training.py", "tests/test_gpu_script.py")
CUDA_TESTS += ("tests/models/test_conformance.py",)  # the longest
RUNGS = ("--precision fp32", "--precision tf32", "--precision bf16", "--precision bf16 --channels_last")
FOUND = "found "  # before the JSON of what a part found


def missing() -> list[str]:
    """A line for each package that is not installed."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    names = [line.split(">=")[0] for line in lines if line] + [*FOR_TESTS]
    return [f"missing: pip install {n}" for n in names if not importlib.util.find_spec(MODULES.get(n, n))]


# ---- the parts: each yields what it found, row by row


def run_tests(dry: bool) -> Iterator[dict]:
    """pytest over the tests marked `cuda`; without a GPU they are skipped."""
    if not importlib.util.find_spec("pytest"):
        yield {"part": "tests", "result": "skipped: no pytest here"}
        return
    files = CUDA_TESTS[:1] if dry else CUDA_TESTS
    argv = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-rfs", "-m", "cuda", *files]
    # Its output is written as it comes, so that failures until the time limit are seen.
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        last = ""
        for line in child.stdout:
            last = line.strip() or last
            print(line, end="", flush=True)
            if line.startswith("FAILED"):
                yield {"part": "tests", "result": line.strip()}
    yield {"part": "tests", "result": last, "status": child.returncode}


def run_methods(dry: bool) -> Iterator[dict]:
    """Every method in --debug_mode, two tasks of the digits in the first setting that it lists; then the count."""
    import main as entry
    from palimpsest.utils import registry
    from palimpsest.utils.check.cases import STREAMS, cases, required_options

    names, done, device = ["sgd", "er"] if dry else registry.names("model"), 0, "cpu" if dry else "cuda"
    for name in names:
        setting = cases(name)[0].setting
        if setting == "vision":
            yield {"part": "methods", "method": name, "result": "skipped: learns no digits"}
            continue
        argv = ["--model", name, "--dataset", STREAMS[setting], "--device", device, "--debug_mode", "--disable_log"]
        argv += ["--non_verbose", *([] if setting == "general-continual" else ["--stop_after", "2"])]
        argv += required_options(name)
        said, begin = io.StringIO(), time.perf_counter()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(said):
                status = entry.main(argv)
            why = (said.getvalue().strip().splitlines() or [""])[-1]
        except Exception as e:  # of any kind: this is what is looked for
            status, why = 1, f"{type(e).__name__}: {e}".splitlines()[0]
        done += status == 0
        seconds = time.perf_counter() - begin
        yield {"part": "methods", "method": name, "result": f"failed: {why}" if status else "ok", "seconds": seconds}
    yield {"part": "methods", "result": f"{done} of {len(names)} methods ran"}


def run_loops(dry: bool) -> Iterator[dict]:
    """The three ways of a step."""
    from benchmarks.gpu_loops import METHODS, NETWORKS, compare
    from palimpsest.utils.errors import one_line

    device = "cpu" if dry else "cuda"
    for network in [*NETWORKS][: 1 if dry else 2]:
        for method in METHODS:
            iterations = 10 if dry else {"mnistmlp": 1000, "resnet18": 150}[network]
            try:
                yield compare(method, network, iterations, device)
            except RuntimeError as e:  # what a graph refuses is told, and the next method has its turn
                yield {"part": "loops", "method": method, "network": network, "result": f"failed: {one_line(e)}"}


def run_precision(dry: bool) -> Iterator[dict]:
    """The runner's er through ResNet-18 on each rung."""
    import torch

    from benchmarks.gpu_loops import experiment, runner_seconds

    device, iterations = ("cpu", 1) if dry else ("cuda", 150)
    for rung in RUNGS[2:] if dry else RUNGS:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        exp = experiment("er", "resnet18", iterations, device, *rung.split(), *(["--num_filters", "4"] if dry else []))
        row = {"part": "precision", "options": rung, "runner us": 1e6 * runner_seconds(exp, iterations, device)}
        yield row | ({"peak MiB": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {})


def run_jobs(dry: bool) -> Iterator[dict]:
    """Four seeds of er, so many at a time: seconds of the whole command, and iterations per second of all together."""
    iterations, device = (2, "cpu") if dry else (1000, "cuda:0")
    for jobs in (2,) if dry else (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            argv = [sys.executable, "main.py", "--model", "er", "--dataset", "benchmarks/noise_images.py"]
            argv += [
                "--buffer_size",
                "500",
                "--device",
                device,
                "--fitting_mode",
                "iters",
                "--n_iters",
                str(iterations),
            ]
            argv += ["--stop_after", "1", "--report", "off", "--non_verbose", "--results_path", folder]
            argv += ["--seeds", *("0123"[: 2 if dry else 4]), "--jobs", str(jobs)]
            begin = time.perf_counter()
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
            seconds = time.perf_counter() - begin
        row = {"part": "jobs", "jobs": jobs, "seconds": seconds}
        if done.returncode:
            yield row | {"result": "failed: " + (done.stderr.strip().splitlines() or ["without a word"])[-1]}
        else:
            yield row | {"it/s of all": (2 if dry else 4) * iterations / seconds}


PARTS = {"tests": run_tests, "methods": run_methods, "loops": run_loops, "precision": run_precision, "jobs": run_jobs}


# ---- one after the other


def measure(part: str, dry: bool) -> list[dict]:
    """The rows of one part, run in a process of its own for at most its time."""
    argv = [sys.executable, "-m", "benchmarks.gpu", "--part", part, *(["--dry"] if dry else [])]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            end = f"failed with status {status}" if (status := child.wait(LIMITS[part])) else ""
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # what it started belongs to its group
            child.wait()
            end = f"stopped after {LIMITS[part]} s"
        said.seek(0)
        lines = said.read().splitlines()
    rows = [json.loads(line[len(FOUND) :]) for line in lines if line.startswith(FOUND)]
    if end:
        why = next((line for line in reversed(lines) if line.strip() and not line.startswith(FOUND)), "")
        rows.append({"part": part, "result": f"{end}: {why[:300]}" if "failed" in end else end})
    return [*rows, {"part": part, "result": "done", "seconds": time.perf_counter() - begin}]


def table(rows: list[dict]) -> str:
    """A line for each row: its part, and what it says."""
    said = []
    for row in rows:
        if row["part"] == "methods" and row["result"] == "ok":
            continue
        cells = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "part"]
        said.append(f"| {row['part']} | {', '.join(cells)} |")
    return "\n".join(["| part | found |", "|---|---|", *said])


def main(argv: list[str] | None = None) -> int:
    """Print the table; the status is 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--dry", action="store_true", help="small, on the CPU; what needs a GPU is named as skipped")
    parser.add_argument("--part", choices=PARTS, help="one part in this process, its rows as JSON")
    options = parser.parse_args(argv)
    if options.part:
        for row in PARTS[options.part](options.dry):
            print(FOUND + json.dumps(row), flush=True)
        return 0
    for line in missing():
        print(line, flush=True)
    if importlib.util.find_spec("torch") is None:
        print("error: no torch here: pip install torch", file=sys.stderr)
        return 2
    import torch

    if not options.dry and not torch.cuda.is_available():
        print("error: torch sees no CUDA device here: use --dry, or another machine", file=sys.stderr)
        return 2
    device = "CPU, dry" if options.dry else torch.cuda.get_device_name(0)
    rows = [{"part": "machine", "device": device, "torch": torch.__version__}]
    for part in options.only:
        rows += measure(part, options.dry)
        print(f"{part}: {rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
        if folder := os.environ.get("OUT"):
            (Path(folder) / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    return int(any(str(row.get("result")).startswith(("failed", "stopped", "FAILED")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
