"""A folder of somebody's files, or the same inside a zip archive, which is read in place."""

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from palimpsest.utils.errors import UserError, one_line

IMAGES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip


@dataclass
class Folder:
    """One folder of a tree.

    Attributes:
        path: as messages show it.
        folders: sub-folders by name, sorted.
        images: names, within the tree, of the image files that lie directly in it, sorted.
    """

    path: str
    folders: dict[str, "Folder"] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)

    def all_images(self) -> list[str]:
        """Those of its sub-folders as well."""
        below = (name for folder in self.folders.values() for name in folder.all_images())
        return sorted([*self.images, *below])


class Tree:
    """The files below `path`, a folder or a zip archive, or a folder inside an archive (`photos.zip/small`).

    What begins with a dot and `__MACOSX` is left out, as is what has no image's ending. Where all lies in one folder,
    as in most archives, `root` is still the folder that was named, see `unwrap`.

    Attributes:
        root: the folder that was named.
        stamps: name -> (bytes, CRC-32) in an archive, (bytes, time of change in ns) in a folder.

    Raises:
        UserError: there is no such folder, or it is neither a folder nor a whole archive that can be read.
    """

    def __init__(self, path: str):
        self.path = Path(path).expanduser()
        self.archive = next((p for p in (self.path, *self.path.parents) if p.is_file()), None)
        if self.archive is None and not self.path.is_dir():
            raise UserError(f"{path}: there is no such folder or zip archive")
        self.stamps: dict[str, tuple[int, int]] = {}
        self.root = Folder(str(self.path))
        self._process, self._zip = 0, None
        try:
            for name, stamp in sorted(self._packed() if self.archive else self._loose()):
                self._add(name, stamp)
        except OSError as e:
            raise UserError(f"{e.filename or path}: cannot be read ({e.strerror or one_line(e)})") from None

    def read(self, name: str) -> bytes:
        """Content of a file; raises what the system or the archive raises."""
        return self._opened().read(self._inside + name) if self.archive else (self.path / name).read_bytes()

    def _opened(self) -> zipfile.ZipFile:
        if self._process != os.getpid():  # a process that was forked must not move the other's place in the file
            self._process, self._zip = os.getpid(), zipfile.ZipFile(self.archive)
        return self._zip

    @property
    def _inside(self) -> str:
        """Folder in the archive, with a `/` at its end unless it is the whole archive."""
        inside = self.path.relative_to(self.archive).as_posix()
        return "" if inside == "." else f"{inside}/"

    def _packed(self) -> list[tuple[str, tuple[int, int]]]:
        try:
            listing = self._opened().infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as e:
            raise UserError(
                f"{self.archive}: no zip archive, or damaged ({one_line(e)}): give a folder or a .zip"
            ) from None
        inside = [info for info in listing if info.filename.startswith(self._inside)]
        if not inside:
            raise UserError(f"{self.path}: there is no such folder in the archive")
        if any(info.flag_bits & 1 for info in inside):
            raise UserError(f"{self.archive}: encrypted: unpack it, and give the folder")
        return [(info.filename.removeprefix(self._inside), (info.file_size, info.CRC)) for info in inside]

    def _loose(self) -> list[tuple[str, tuple[int, int]]]:
        def refuse(error: OSError):
            raise error

        found = []
        for folder, _, files in os.walk(self.path, onerror=refuse, followlinks=True):
            below = Path(folder).relative_to(self.path).as_posix()
            prefix = "" if below == "." else f"{below}/"
            found.append((prefix, (0, 0)))
            for file in files:
                if Path(file).suffix.lower() in IMAGES:
                    facts = os.stat(Path(folder, file))
                    found.append((prefix + file, (facts.st_size, facts.st_mtime_ns)))
        return found

    def _add(self, name: str, stamp: tuple[int, int]) -> None:
        *folders, file = name.split("/")
        if any(part.startswith(".") or part == "__MACOSX" for part in (*folders, file)):
            return
        place = self.root
        for part in folders:
            place = place.folders.setdefault(part, Folder(f"{place.path}/{part}"))
        if Path(file).suffix.lower() in IMAGES:
            place.images.append(name)
            self.stamps[name] = stamp


def unwrap(folder: Folder, levels: int) -> Folder:
    """The folder itself, or the one that holds all there is: an archive often has one folder around everything.

    Args:
        levels: folders above the images that are needed at least.
    """
    while len(folder.folders) == 1 and not folder.images:
        (only,) = folder.folders.values()
        if only.path.rsplit("/", 1)[1].lower() in ("train", "test", "val") or _depth(only) < levels:
            break
        folder = only
    return folder


def _depth(folder: Folder) -> int:
    """Folders between this one and its deepest images."""
    return max((1 + _depth(below) for below in folder.folders.values()), default=0)
