"""Files that others have made: read with errors of one line, and downloaded into place in one step."""

import contextlib
import functools
import hashlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from palimpsest.utils.atomic import locked
from palimpsest.utils.errors import UserError

# A cluster node behind a firewall would otherwise wait minutes for each connection.
NETWORK_TIMEOUT_SECONDS = 30
REPLACE = "replace it with the official file, or delete it to have it downloaded again"


@dataclass
class RawData:
    """Both splits of a source.

    Attributes:
        train_x: (N, C, H, W) uint8.
        train_y: (N,) int64 labels in [0, classes).
        test_x: (M, C, H, W) uint8.
        test_y: (M,) int64.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @functools.cached_property
    def checksum(self) -> str:
        """BLAKE2b of pixels and labels, 32 hexadecimal digits: equal for equal data, however they are stored."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()


def present(path: Path) -> Path | None:
    """Returns the file, else its .gz form, else None."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def reading(path: Path, find_altered: Callable[[], list[Path]] = list) -> Iterator[None]:
    """Turns whatever a reader of foreign files raises into one line that names the file.

    Args:
        path: the file or folder being read.
        find_altered: finds the files whose checksum is not the official one. Asked only after a failure.
    """
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as error:
        # An OSError without a number is a decoder's word for bad content.
        if isinstance(error, OSError) and error.errno is not None:
            said = f"{path}: cannot be read ({one_line(error)}): check that it exists and its permissions"
        elif altered := find_altered():
            names = ", ".join(map(str, altered))
            said = f"{names}: truncated or altered, the MD5 checksum is not the official one: {REPLACE}"
        else:
            said = f"{path}: truncated or damaged ({one_line(error)}): {REPLACE}"
        raise UserError(said) from error


def fetch(name: str, base: Path, wanted: list[Path], download: Callable[[str], object], advice: str) -> None:
    """Downloads what is missing into a folder of its own, then moves each complete file into place.

    A process that is killed meanwhile leaves at most its `.download-*` folder, which nobody reads.

    Args:
        name: the source, for messages and the lock.
        base: the data folder; made when it does not exist, and removed again when nothing came.
        wanted: the files, relative to `base`; one that is there as .gz counts as present.
        download: fills the folder whose path it is given with the wanted files, checksums verified.
        advice: what somebody without a network can do, for the message.

    Raises:
        UserError: files are missing and the download failed, or `download` raised it.
    """

    def missing() -> list[Path]:
        return [file for file in wanted if present(base / file) is None]

    if not missing():
        return
    lock = base / f".{name}.lock"
    new_folders = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        with locked(lock, timeout=-1):
            # Another process may have finished the download while this one waited.
            if missing():
                with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as staging, _patient_network():
                    download(staging)
                    for file in missing():
                        (base / file).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(Path(staging) / file, base / file)
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as error:
        names = ", ".join(file.name for file in missing())
        raise UserError(
            f"{name}: {names} not found in {base / wanted[0].parent} and not downloaded: {advice}, or name another "
            f"folder with --base_path, or try the embedded data of --dataset seq-digits ({one_line(error)})"
        ) from error
    finally:
        # Processes that then hold different lock files do no harm: each download is put in place in one step.
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
            for folder in new_folders:
                folder.rmdir()


@contextlib.contextmanager
def _patient_network() -> Iterator[None]:
    """A time limit for silent connections, and no progress bars in log files."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_SECONDS)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
