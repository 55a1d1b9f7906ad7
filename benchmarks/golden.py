"""Short runs whose weights and scores are known: a change that should not alter the arithmetic is held against them.

    python -m benchmarks.golden                        # against the numbers stored in golden.json
    python -m benchmarks.golden --against HEAD~10      # against another commit, run here
    python -m benchmarks.golden --only "er seq-digits" # those commands that have all of these words

golden.json has the commands: every method on each kind of stream that it lists, and the runner's options on top. Of
each run it keeps the fingerprint of the weights and every score. Scores may differ by 1e-5 points, weights not by a
bit. Stored weights can be compared only where processor, torch and numpy are those they were made with; elsewhere only
scores within 2 points are asked for, and `--against` gives the exact answer.
"""

import argparse
import csv
import json
import math
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORED = HERE / "golden.json"
COMMON = "--seed 0 --device cpu --num_threads 1 --non_verbose"
POINTS = 1e-5
# Runs in the folder of a checkout: imports once, then a process for each command that comes on standard input.
DRIVER = """
import os, sys
sys.path.insert(0, os.getcwd())
import json, torch, torchvision, sklearn.decomposition, matplotlib.pyplot
import main
for line in sys.stdin:
    argv = json.loads(line)
    if not (child := os.fork()):
        out = os.open(argv[1], os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        status = 1
        try:
            status = main.main(argv[2:])
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([argv[0], status]), flush=True)
"""


def environment() -> dict[str, str]:
    """What the bits of a run depend on besides the program."""
    import numpy
    import torch

    cpu = Path("/proc/cpuinfo")
    told = re.search(r"^model name\s*: (.*)", cpu.read_text() if cpu.exists() else "", re.M)
    return {
        "torch": torch.__version__, "numpy": numpy.__version__, "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(), "processor": told[1] if told else platform.processor(),
    }  # fmt: skip


def run_all(tree: Path, commands: list[str], jobs: int) -> dict[str, dict]:
    """Run the commands in a checkout.

    Returns:
        command -> {'weights': fingerprint, 'scores': values of metrics.csv in order}, or {'failed': last line printed}.
    """
    with tempfile.TemporaryDirectory(prefix="golden-") as folder, ThreadPoolExecutor(jobs) as pool:
        parts = [commands[i::jobs] for i in range(jobs)]
        done: dict[str, dict] = {}
        for part in pool.map(lambda i: _run_part(tree, parts[i], Path(folder) / str(i)), range(jobs)):
            done |= part
    return {command: done[command] for command in commands}


def _run_part(tree: Path, commands: list[str], folder: Path) -> dict[str, dict]:
    folder.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    out = {}
    for i, command in enumerate(commands):
        results, said = folder / str(i), folder / f"{i}.txt"
        argv = shlex.split(f"{command} {COMMON}") + ["--results_path", str(results)]
        if "seq-vision-mini" in command:
            argv += ["--base_path", str(folder / "data")]
        print(json.dumps([command, str(said), *argv]), file=driver.stdin, flush=True)
        _, status = json.loads(driver.stdout.readline())
        if status:
            lines = said.read_text().strip().splitlines()
            out[command] = {"failed": f"status {status}: {lines[-1] if lines else ''}"}
        else:
            out[command] = read_run(results)
        print("F" if status else ".", end="", file=sys.stderr, flush=True)
    driver.stdin.close()
    driver.wait()
    return out


def read_run(folder: Path) -> dict:
    """Fingerprint and scores of the one run below a folder."""
    (result,) = folder.rglob("result.yaml")
    weights = next(line.split()[1] for line in result.read_text().splitlines() if line.startswith("weights:"))
    with open(result.with_name("metrics.csv"), newline="") as f:
        scores = [round(float(row["value"]), 7) for row in csv.DictReader(f)]
    return {"weights": weights[:16], "scores": [None if math.isnan(s) else s for s in scores]}


def differences(expected: dict, found: dict, exact: bool) -> list[str]:
    """What is wrong with a run, nothing where it is as expected."""
    if "failed" in found or "failed" in expected:
        return [] if found == expected else [f"expected {_short(expected)}, found {_short(found)}"]
    out = []
    if exact and expected["weights"] != found["weights"]:
        out.append("other weights")
    if len(expected["scores"]) != len(found["scores"]):
        return [*out, f"{len(expected['scores'])} scores expected, {len(found['scores'])} found"]
    pairs = [(a, b) for a, b in zip(expected["scores"], found["scores"], strict=True) if a != b]
    largest = max((math.inf if None in pair else abs(pair[0] - pair[1]) for pair in pairs), default=0.0)
    if largest > (POINTS if exact else 2.0):
        out.append(f"scores differ by up to {largest:.3g}")
    return out


def _short(run: dict) -> str:
    return run.get("failed") or f"weights {run['weights']}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="run this commit too and compare with it")
    parser.add_argument("--only", default="", metavar="WORDS", help="commands that have all of these words")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--tree", type=Path, default=HERE.parent, help="checkout to be tested")
    parser.add_argument("--write", action="store_true", help="store what the runs give now as what is expected")
    args = parser.parse_args(argv)
    stored = json.loads(STORED.read_text())
    commands = [c for c in stored["runs"] if all(word in c.split() for word in args.only.split())]
    if not commands:
        parser.error(f"--only: no command has all of the words {args.only!r}")
    found = run_all(args.tree, commands, args.jobs)
    print(file=sys.stderr)
    if args.write:
        failed = {c: run for c, run in found.items() if "failed" in run}
        for command, run in failed.items():
            print(f"{command}\n    {run['failed']}")
        if not failed:
            rows = ",\n".join(f"{json.dumps(c)}: {json.dumps(run)}" for c, run in (stored["runs"] | found).items())
            STORED.write_text(f'{{"environment": {json.dumps(environment())},\n"runs": {{\n{rows}\n}}}}\n')
        return 1 if failed else 0
    expected, exact = stored["runs"], True
    if args.against:
        with tempfile.TemporaryDirectory(prefix="golden-tree-") as folder:
            tree = str(Path(folder) / "tree")
            git = ["git", "-C", str(HERE), "worktree"]
            subprocess.run([*git, "add", "--detach", tree, args.against], check=True, stdout=subprocess.DEVNULL)
            try:
                expected = run_all(Path(tree), commands, args.jobs)
            finally:
                subprocess.run([*git, "remove", "--force", tree], check=True)
    elif other := {k: v for k, v in environment().items() if v != stored["environment"].get(k)}:
        exact = False
        print(f"made with another {', '.join(other)}: bits are not compared, see --against")
    wrong = 0
    for command in commands:
        if problems := differences(expected[command], found[command], exact):
            wrong += 1
            print(f"{command}\n    {'; '.join(problems)}")
    print(f"{len(commands) - wrong} of {len(commands)} runs as expected, {wrong} not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
