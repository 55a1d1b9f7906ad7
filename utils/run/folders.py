"""Where a run writes, which earlier run a command line is about, and that one process at a time writes there."""

import hashlib
import time
from collections.abc import Callable, Iterator
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
from palimpsest.utils.run.layers import distinct


class FolderTaken(UserError):
    """Another process runs this configuration."""


def digest(run: Run) -> str:
    """16 hexadecimal digits that are equal for equal configurations, whatever has no influence on the numbers."""
    options = {name: value for name, value in run.config.items() if name not in NEUTRAL}
    return hash_of(distinct(options))


def places(run: Run) -> str:
    """8 hexadecimal digits that are equal where method, stream and network come from the same files."""
    return hash_of({name: identity.place(fact) for name, fact in _files(run.environment).items()}, 4)


def content(run: Run) -> str:
    """8 hexadecimal digits that are equal where these files say the same."""
    return hash_of(_files(run.environment), 4)


def hash_of(facts: dict[str, Any], size: int = 8) -> str:
    """2 * size hexadecimal digits of a checksum over facts, in whatever order."""
    return hashlib.blake2b(repr(sorted(facts.items())).encode(), digest_size=size).hexdigest()


def _files(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in identity.FILES if name in environment}


@contextmanager
def run_folder(run: Run, resume: bool, on_taken: Callable[[str], None] | None = None) -> Iterator[Path]:
    """results/<setting>/<dataset>/<model>/<run id>/, held by this process alone while the block runs.

    The run id is the experiment's name, the time, the seed, and digests of the options, of the files' places and of
    their content. With `resume` it is, of this configuration, the newest folder that has saved something and is not
    finished, else the newest finished one that can be shown, else the newest that has saved nothing yet; a new one
    where there is none. A run that other versions of the files began is taken only where there is none of these, and
    only if it is not finished.

    Args:
        on_taken: called every second, with what to tell, while another process holds the folder; then it is looked for
            again, since the run may be finished. None: that is an error.

    Raises:
        UserError: the folder cannot be made, or another process holds it.
    """
    parent = run.results_path / run.setting / run.dataset_name / Path(run.model_name).stem
    name = f"seed{run.seed}_{digest(run)}_{places(run)}"
    with file_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            # Two processes that look for the folder at the same time must not both conclude that there is none.
            alone = locked(parent / f".{name}.lock", timeout=60) if resume else nullcontext()
            try:
                with file_errors(parent), alone:
                    folder = (resume and _earlier(parent, run, name)) or _new(parent, run, name)
                    _hold(folder, stack)
                break
            except LockTaken as e:
                raise UserError(f"another process looks for its folder in {parent} since a minute{e.hint}") from None
            except FolderTaken as e:
                if on_taken is None:
                    raise
                on_taken(str(e))
                time.sleep(1)
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


def _hold(folder: Path, stack: ExitStack) -> None:
    try:
        with file_errors(folder):
            stack.enter_context(locked(folder / ".lock"))
    except LockTaken as e:
        raise FolderTaken(
            f"another process is running this configuration in {folder}: wait for it, or end it first{e.hint}"
        ) from None
