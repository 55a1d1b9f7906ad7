"""Files that are whole or absent: written beside their final name, flushed to disk, then renamed over it."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system refuses (disk full, no permission) into a UserError that names the file."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or str(e)
        raise UserError(f"cannot write {path}: {reason}; free some space or give another --results_path") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content; whenever the process is killed, the old or the new content is there, never a part.

    A killed process may leave a file `.<name>.<random>.tmp` behind. The folder must exist.

    Raises:
        UserError: the file cannot be written.
    """
    # The suffix is random and not the process id: two machines may share the folder and the id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained(path):
        try:
            with open(temporary, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; line ends are kept as given, characters that UTF-8 has no form for are escaped."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))
