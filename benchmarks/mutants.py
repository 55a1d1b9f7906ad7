"""Do the tests notice a bug? Plausible ones are put into the code one at a time, and the tests that ought to fail run.

    python -m benchmarks.mutants                     every mutation of mutants.yaml, one after the other
    python -m benchmarks.mutants --only "si path"    those whose file or description has both words
    python -m benchmarks.mutants --check             only that every text to be replaced is found once

A mutation replaces one text, which must occur exactly once in its file, in a copy of the tree. It is caught where
pytest fails or hangs. The named tests are run on the unchanged copy first: they must pass there. The share that is
caught is printed, without the mutations that are named as equivalent; the status is 1 below 95 %.

An entry of mutants.yaml:

    file: changed file, from the root of the tree
    what: the bug, in a few words
    old, new: the text, and what takes its place
    tests: test files, or single tests of large files, separated by blanks
    equivalent: (optional) why no test can tell the two programs apart; such a mutation is not run
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

ROOT, TABLE = Path(__file__).resolve().parents[1], Path(__file__).with_name("mutants.yaml")
WANTED, TIMEOUT = 95, 600  # percent; seconds
LIBRARIES = ["torch", "pytest", "sklearn.datasets", "scipy.stats", "torchvision", "hypothesis"]
CAUGHT = (1, 2)  # what pytest returns where a test fails, or where the changed file cannot be imported


@dataclass
class Mutation:
    """One entry of the table, see the module."""

    file: str
    what: str
    old: str
    new: str
    tests: str
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class TableError(Exception):
    """The table does not fit the tree."""


def read(path: Path = TABLE) -> list[Mutation]:
    """The mutations of a table."""
    return [Mutation(**entry) for entry in yaml.safe_load(path.read_text())]


def chosen(mutations: Iterable[Mutation], words: str) -> list[Mutation]:
    """Those that have all of these words (parts of words count) in file or description."""
    return [m for m in mutations if all(word.lower() in str(m).lower() for word in words.split())]


def mutated(text: str, mutation: Mutation) -> str:
    """A file's text with the bug.

    Raises:
        TableError: what is to be replaced is not there, or there more than once, or would not change.
    """
    if (n := text.count(mutation.old)) != 1 or mutation.old == mutation.new:
        raise TableError(f"{mutation}: the text occurs {n} times, expected once:\n{mutation.old}")
    return text.replace(mutation.old, mutation.new)


def check(tree: Path, mutations: Iterable[Mutation]) -> list[str]:
    """What is wrong with a table, one line or more for each entry that does not fit."""
    wrong = []
    for mutation in mutations:
        try:
            mutated((tree / mutation.file).read_text(), mutation)
        except (TableError, OSError) as error:
            wrong.append(str(error))
        missing = [name for name in mutation.tests.split() if not (tree / name.split("::")[0]).is_file()]
        if missing or not mutation.tests:
            wrong.append(f"{mutation}: no such tests: {' '.join(missing)}")
    return wrong


def copy_tree(tree: Path, folder: Path) -> None:
    """Copy the files that git knows or would add, and link the data folder."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=tree, check=True, capture_output=True, text=True).stdout.splitlines():
        if (tree / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
    if (tree / "data").is_dir():
        (folder / "data").symlink_to(tree / "data")


def run_tests(folder: Path, tests: Iterable[str], write_bytecode: bool = False) -> tuple[int, str]:
    """(status of pytest in a process of its own, what it printed); status 2 where it hangs."""
    output = folder.parent / f"{folder.name}.txt"
    # The libraries are there already: importing them takes longer than most of the tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    child = context.Process(target=_pytest, args=(folder, list(tests), output, write_bytecode))
    child.start()
    child.join(TIMEOUT)
    if child.is_alive():
        child.kill()
        child.join()
        return 2, f"hangs: not finished after {TIMEOUT} seconds"
    return child.exitcode, output.read_text(errors="replace")


def _pytest(folder: Path, tests: list[str], output: Path, write_bytecode: bool) -> None:
    """What a process of `run_tests` does: everything is imported from the copy, nothing from this tree."""
    sys.path[:] = [str(folder), *(name for name in sys.path if Path(name).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] == __package__]:
        del sys.modules[name]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    # Bytecode of a changed file must not outlive the change.
    sys.dont_write_bytecode = not write_bytecode
    os.chdir(folder)
    with open(output, "w") as f:
        os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])))


def try_one(folder: Path, mutation: Mutation) -> tuple[bool, float]:
    """Whether the tests in a copy of the tree notice the bug, which is taken out again; seconds."""
    path, start = folder / mutation.file, time.perf_counter()
    text, times = path.read_text(), path.stat()
    path.write_text(mutated(text, mutation))
    # Python takes bytecode for that of a file of the same size and second: a quick change must have another one.
    os.utime(path, (times.st_atime, times.st_mtime + 10))
    try:
        status, said = run_tests(folder, mutation.tests.split())
    finally:
        path.write_text(text)
        os.utime(path, (times.st_atime, times.st_mtime))
    if status not in (0, *CAUGHT):  # no test was found, say
        raise TableError(f"{mutation}: pytest ended with status {status}:\n{said[-2000:]}")
    return status != 0, time.perf_counter() - start


def try_all(tree: Path, mutations: list[Mutation], jobs: int) -> list[Mutation]:
    """Run the mutations, each in one of `jobs` copies of the tree; those that are not caught.

    Raises:
        TableError: a test fails without any bug.
    """
    folders: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as parent, ThreadPoolExecutor(jobs) as pool:
        for i in range(jobs):
            folder = Path(parent) / str(i)
            folder.mkdir()
            copy_tree(tree, folder)
            folders.put(folder)
        start, names = time.perf_counter(), sorted({name for m in mutations for name in m.tests.split()})
        status, said = run_tests(Path(parent) / "0", names, write_bytecode=True)
        if status:
            raise TableError(f"the tests fail on the unchanged tree:\n{said[-2000:]}")
        print(f"the tests pass on the unchanged tree ({time.perf_counter() - start:.0f} s)", flush=True)

        def one(mutation: Mutation) -> bool:
            folder = folders.get()
            try:
                caught, seconds = try_one(folder, mutation)
            finally:
                folders.put(folder)
            print(f"{'caught' if caught else 'NOT CAUGHT':10} {seconds:5.1f} s  {mutation}", flush=True)
            return caught

        found = list(pool.map(one, mutations))
    return [mutation for mutation, caught in zip(mutations, found, strict=True) if not caught]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="mutations that have all of these words")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree, and tests, side by side")
    parser.add_argument("--check", action="store_true", help="only look whether the table fits the tree")
    args = parser.parse_args(argv)
    mutations = chosen(read(), args.only)
    if wrong := check(ROOT, mutations):
        print("\n".join(wrong))
        return 2
    equivalent = [m for m in mutations if m.equivalent]
    for mutation in equivalent:
        print(f"equivalent          {mutation}: {mutation.equivalent}")
    mutations = [m for m in mutations if not m.equivalent]
    if args.check or not mutations:
        print(f"{len(mutations)} mutations, {len(equivalent)} equivalent ones")
        return 0
    try:
        missed = try_all(ROOT, mutations, max(args.jobs, 1))
    except TableError as error:
        print(error)
        return 2
    share = 100 * (1 - len(missed) / len(mutations))
    print(f"{len(mutations) - len(missed)} of {len(mutations)} caught, {share:.1f} %")
    for mutation in missed:
        print(f"    not caught: {mutation}")
    return 1 if share < WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
