"""Files that are whole or absent: written beside their final name, flushed to disk, then renamed over it."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses (disk full, no permission) into a UserError that names the file."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or str(e)
        raise UserError(f"cannot write {path}: {reason}; free some space or give another --results_path") from None


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
