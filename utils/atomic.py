"""Files that are whole or absent: written beside their final name, flushed to disk, then renamed over it."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, SoftFileLock, Timeout

from palimpsest.utils.errors import UserError

WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}  # how some network file systems answer
# What to do about a refusal of the system; a path that cannot be has no remedy but another one.
ADVICE = {
    (errno.ENOENT, errno.ESTALE): "its folder was removed or unmounted: put it back",
    (errno.ENOSPC, errno.EDQUOT): "free some space",
    (errno.EACCES, errno.EPERM, errno.EROFS): "make the folder writable",
}


class LockTaken(Exception):
    """Another process has the lock.

    Args:
        path: of the lock.
        hint: what to do where none has, empty for a lock that ends with its process.
    """

    def __init__(self, path: Path, hint: str = ""):
        super().__init__(f"{path} is taken by another process{hint}")
        self.hint = hint


@contextmanager
def locked(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Within, this process alone has the lock `path`.

    Where the file system has no locks (some network folders), the file `<path>.marker` stands for one: it is removed at
    the end of the block, and a killed process may leave it.

    Args:
        timeout: seconds to wait for it, -1 for ever.

    Raises:
        LockTaken: another process has it.
        OSError: the folder is not writable.
    """
    lock, marker = FileLock(str(path)), Path(f"{path}.marker")
    try:
        try:
            lock.acquire(timeout=timeout, poll_interval=0.02)
        except (OSError, NotImplementedError) as e:
            if isinstance(e, OSError) and e.errno not in WITHOUT_LOCKS:
                raise
            lock = SoftFileLock(str(marker))
            lock.acquire(timeout=timeout, poll_interval=0.02)
    except Timeout:
        hint = f"; if none does, delete {marker}" if isinstance(lock, SoftFileLock) else ""
        raise LockTaken(path, hint) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def file_errors(path: Path, other: str = "another --results_path") -> Iterator[None]:
    """Turn what the system refuses (disk full, no permission) into a UserError that names the file.

    Args:
        other: what the user may give instead.
    """
    try:
        yield
    except OSError as e:
        reason = e.strerror or str(e)
        advice = next((f"{said} or " for kinds, said in ADVICE.items() if e.errno in kinds), "")
        raise UserError(f"cannot write {path}: {reason}; {advice}give {other}") from None


@contextmanager
def atomic_write(path: Path, before: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Yields a file whose content replaces that of `path` in one step, once it is written as a whole.

    A killed process may leave a file `.<name>.<random>.tmp` behind. The folder must exist.

    Args:
        before: called when the new content is safe on disk, just before it takes its name.

    Raises:
        UserError: the file cannot be written; `path` is then as it was.
    """
    # The suffix is random and not the process id: two machines may share the folder and the id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with file_errors(path):
        try:
            with open(temporary, "wb") as f:
                guarded = _Guarded(f)
                try:
                    yield guarded
                except RuntimeError as e:
                    # torch.save reports a failed write as an error of its own.
                    raise guarded.error or e from None
                f.flush()
                os.fsync(f.fileno())
            if before:
                before()
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


class _Guarded:
    """A file that remembers why a write failed."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self.file.flush()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content; whenever the process is killed, the old or the new content is there, never a part.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as f:
        f.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; line ends are kept as given, characters that UTF-8 has no form for are escaped."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder; call it only while nobody else writes there."""
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
