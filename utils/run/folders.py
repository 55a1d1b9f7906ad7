"""Where a run writes, which earlier run a command line is about, and that one process at a time writes there."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path

from utils.args import NEUTRAL
from utils.atomic import LockTaken, file_errors, locked, remove_leftovers
from utils.errors import UserError
from utils.record import Run
from utils.run import checkpoint

RESULT = "result.yaml"  # written last: a run that has it is finished


def digest(run: Run) -> str:
    """16 hexadecimal digits that are equal for equal configurations, whatever has no influence on the numbers."""
    options = {name: value for name, value in run.config.items() if name not in NEUTRAL}
    return hashlib.blake2b(repr(sorted(options.items())).encode(), digest_size=8).hexdigest()


@contextmanager
def run_folder(run: Run, resume: bool) -> Iterator[Path]:
    """results/<setting>/<dataset>/<model>/<run id>/, held by this process alone while the block runs.

    The run id is the experiment's name, the time, the seed and a digest of the options. With `resume` it is the newest
    folder of this configuration that is unfinished or can be shown again; a new one where there is none.

    Raises:
        UserError: the folder cannot be made, or another process holds it.
    """
    parent = run.results_path / run.setting / run.dataset_name / Path(run.model_name).stem
    name = f"seed{run.seed}_{digest(run)}"
    with file_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
    # Two processes that look for the folder at the same time must not both conclude that there is none.
    alone = locked(parent / f".{name}.lock", timeout=60) if resume else nullcontext()
    with ExitStack() as stack:
        try:
            with file_errors(parent), alone:
                folder = (resume and _earlier(parent, run, name)) or _new(parent, run, name)
                stack.enter_context(_held(folder))
        except LockTaken as e:
            raise UserError(f"another process looks for its folder in {parent} since a minute{e.hint}") from None
        remove_leftovers(folder)
        yield folder


def _earlier(parent: Path, run: Run, name: str) -> Path | None:
    prefix = f"{run.config['exp_name']}_" if run.config.get("exp_name") else ""
    for folder in sorted(parent.glob(f"{prefix}[0-9]*_{name}"), key=lambda f: f.name, reverse=True):
        # A finished run without a checkpoint has nothing to go on from, and must not be written over.
        if folder.is_dir() and (not (folder / RESULT).is_file() or checkpoint.newest(folder)[0]):
            return folder
    return None


def _new(parent: Path, run: Run, name: str) -> Path:
    while True:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        folder = parent / "_".join(part for part in (run.config.get("exp_name"), stamp, name) if part)
        with file_errors(parent), suppress(FileExistsError):  # another process may take this millisecond
            folder.mkdir()
            return folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        with file_errors(folder):
            try:
                stack.enter_context(locked(folder / ".lock"))
            except LockTaken as e:
                raise UserError(
                    f"another process is running this configuration in {folder}: wait for it, or end it first{e.hint}"
                ) from None
        yield
