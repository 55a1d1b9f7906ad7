"""Where a run writes, which earlier run a command line is about, and that one process at a time writes there."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from palimpsest.utils import identity
from palimpsest.utils.args import NEUTRAL
from palimpsest.utils.atomic import LockTaken, file_errors, locked, remove_leftovers
from palimpsest.utils.errors import UserError
from palimpsest.utils.record import Run
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.finished import RECORD, RESULT, read_record


def digest(run: Run) -> str:
    """16 hexadecimal digits that are equal for equal configurations, whatever has no influence on the numbers."""
    options = {name: value for name, value in run.config.items() if name not in NEUTRAL}
    return _hash(options, 8)


def places(run: Run) -> str:
    """8 hexadecimal digits that are equal where method, stream and network come from the same files."""
    return _hash({name: identity.place(fact) for name, fact in _files(run.environment).items()}, 4)


def content(run: Run) -> str:
    """8 hexadecimal digits that are equal where these files say the same."""
    return _hash(_files(run.environment), 4)


def _hash(facts: dict[str, Any], size: int) -> str:
    return hashlib.blake2b(repr(sorted(facts.items())).encode(), digest_size=size).hexdigest()


def _files(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in identity.FILES if name in environment}


@contextmanager
def run_folder(run: Run, resume: bool) -> Iterator[Path]:
    """results/<setting>/<dataset>/<model>/<run id>/, held by this process alone while the block runs.

    The run id is the experiment's name, the time, the seed, and digests of the options, of the files' places and of
    their content. With `resume` it is, of this configuration, the newest folder that has saved something and is not
    finished, else the newest finished one that can be shown, else the newest that has saved nothing yet; a new one
    where there is none. A run that other versions of the files began is taken only where there is none of these, and
    only if it is not finished.

    Raises:
        UserError: the folder cannot be made, or another process holds it.
    """
    parent = run.results_path / run.setting / run.dataset_name / Path(run.model_name).stem
    name = f"seed{run.seed}_{digest(run)}_{places(run)}"
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
    found = sorted(parent.glob(f"{prefix}[0-9]*_{name}_*"), key=lambda f: f.name, reverse=True)
    folders = [folder for folder in found if folder.is_dir()]
    finished = [folder for folder in folders if (folder / RESULT).is_file()]
    others = [folder for folder in folders if not folder.name.endswith(f"_{content(run)}")]
    begun = [folder for folder in folders if folder not in finished]
    begun.sort(key=lambda folder: folder in others)  # those of the very same files go first
    saved = [folder for folder in begun if next(folder.glob("*.pt"), None)]
    shown = [folder for folder in finished if folder not in others and _is_pure(folder, run)]
    choice = [f for f in saved if f not in others] + shown + [f for f in begun if f not in others] + saved
    if not choice and finished:
        now = ", ".join(_files(run.environment).values())
        print(f"--resume: the run in {finished[0]} is of other files than {now}: a new one begins", flush=True)
    return choice[0] if choice else None


def _is_pure(folder: Path, run: Run) -> bool:
    """Whether a finished run can be shown and had the files of `run` from its beginning to its end."""
    if not (folder / RECORD).is_file():
        return checkpoint.newest(folder)[0] is not None
    return _files(read_record(folder)["environment"]) == _files(run.environment)


def _new(parent: Path, run: Run, name: str) -> Path:
    while True:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        parts = (run.config.get("exp_name"), stamp, name, content(run))
        folder = parent / "_".join(part for part in parts if part)
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
