"""Tiny ImageNet: the official folder or archive, decoded once and kept.

The decoded pixels are written anew when the number of source files or a modification time differs, and are enough on
their own when folder and archive are gone.
"""

import contextlib
import io
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datasets.utils.source_files import SPLITS, RawData, checked, fetch, lock, one_line, reading
from utils.errors import UserError

TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def read_tinyimagenet(name: str, base: Path) -> RawData:
    cache = base / f"{name}-decoded.npz"
    if _tiny_origin(base / name) is None:
        # Somebody may have kept only the decoded pixels: a hundred thousand small files are a burden on a cluster.
        if (data := _load_decoded(cache, None)) is not None:
            return data
        _fetch_tiny(name, base)
    origin, state = _tiny_origin(base / name)
    if (data := _load_decoded(cache, state)) is not None:
        return data
    with contextlib.ExitStack() as stack:
        # In a folder that cannot be written there is neither a cache nor anything to guard.
        with contextlib.suppress(OSError):
            stack.enter_context(lock(base, name))
        # Another process may have decoded while this one waited.
        if (data := _load_decoded(cache, state)) is None:
            data = _decode_tiny(origin)
            _save_decoded(cache, state, data)
    return data


def _fetch_tiny(name: str, base: Path) -> None:
    from torchvision.datasets.utils import download_url

    archive = f"{name}.zip"
    fetch(
        name,
        base,
        wanted=[Path(archive)],
        download=lambda staging: download_url(TINY_URL, staging, archive, TINY_MD5),
        advice=f"put {TINY_URL} or the folder unpacked from it into {base}",
    )


def _tiny_origin(folder: Path) -> tuple[Path, str] | None:
    """Returns the folder or the archive beside it, and a text that changes when its content does; None without both.

    A directory's modification time changes with every file added, removed or renamed in it; asking for the time of each
    image would take minutes on a network file system.
    """
    if folder.is_dir():
        files, times = 0, 0
        for part in ("train", "val"):
            for directory, _, names in os.walk(folder / part):
                files += len(names)
                times += os.stat(directory).st_mtime_ns
        for text in (folder / "wnids.txt", folder / "val/val_annotations.txt"):
            times += text.stat().st_mtime_ns if text.is_file() else 0
        return folder, f"folder, {files} files, times {times}"
    archive = folder.with_suffix(".zip")
    if archive.is_file():
        stat = archive.stat()
        return archive, f"archive, {stat.st_size} bytes, time {stat.st_mtime_ns}"
    return None


@contextlib.contextmanager
def _open_tiny(origin: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Yields the names of the training images, relative to the folder, and a function that reads such a file."""
    if origin.is_dir():
        yield (
            [path.relative_to(origin).as_posix() for path in origin.glob("train/*/images/*.JPEG")],
            lambda name: (origin / name).read_bytes(),
        )
    else:
        import zipfile

        root = f"{origin.stem}/"
        with reading(origin):
            archive = zipfile.ZipFile(origin)
        with archive:
            names = [name.removeprefix(root) for name in archive.namelist() if name.endswith(".JPEG")]
            yield [name for name in names if name.startswith("train/")], lambda name: archive.read(root + name)


def _decode_tiny(origin: Path) -> RawData:
    with _open_tiny(origin) as (listing, read):
        with reading(origin / "wnids.txt"):
            wnids = sorted(read("wnids.txt").decode().split())
        with reading(origin / "val/val_annotations.txt"):
            annotations = [line.split("\t")[:2] for line in read("val/val_annotations.txt").decode().splitlines()]
            label_of = {wnid: label for label, wnid in enumerate(wnids)}
            test_y = [label_of[wnid] for _, wnid in annotations]
        images = {wnid: [] for wnid in wnids}
        for name in sorted(listing):
            wnid = name.split("/")[1]
            if wnid in images:
                images[wnid].append(name)
        # The official classes are equally large; an unpacking that was interrupted leaves some smaller.
        largest = max(map(len, images.values()), default=0)
        for wnid, names in images.items():
            if len(names) < max(largest, 1):
                raise UserError(
                    f"{origin}: train/{wnid}/images holds {len(names)} images, other classes {largest}: "
                    "the copy is incomplete, unpack or download the archive again"
                )
        train_x = _decode_images(origin, read, [name for names in images.values() for name in names])
        test_x = _decode_images(origin, read, [f"val/images/{file}" for file, _ in annotations])
        train_y = [label for label, names in enumerate(images.values()) for _ in names]
        shape = (3, 64, 64)
        return RawData(
            *checked(origin / "train", train_x, train_y, shape, len(wnids)),
            *checked(origin / "val", test_x, test_y, shape, len(wnids)),
        )


def _decode_images(origin: Path, read: Callable[[str], bytes], names: list[str]) -> np.ndarray:
    """Decodes JPEG files to (N, 3, 64, 64) uint8; grey ones become RGB. Decoding releases the GIL, so threads help."""
    from PIL import Image

    pixels = np.empty((len(names), 3, 64, 64), np.uint8)

    def decode(indices: range) -> None:
        for i in indices:
            with reading(origin / names[i]):
                image = Image.open(io.BytesIO(read(names[i]))).convert("RGB")
                if image.size != (64, 64):
                    raise ValueError(f"{image.width}x{image.height} pixels, expected 64x64")
            pixels[i] = np.asarray(image).transpose(2, 0, 1)

    step = 500
    chunks = [range(first, min(first + step, len(names))) for first in range(0, len(names), step)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, chunks):
            pass
    return pixels


def _load_decoded(cache: Path, state: str | None) -> RawData | None:
    """Reads the decoded pixels; None when there are none, they are damaged, or they belong to another `state`."""
    # A damaged copy is only worth decoding again: whatever numpy raises for it means the same.
    with contextlib.suppress(Exception), np.load(cache, allow_pickle=False) as arrays:
        if state is None or str(arrays["state"]) == state:
            return RawData(*(torch.from_numpy(arrays[key]) for key in SPLITS))
    return None


def _save_decoded(cache: Path, state: str, data: RawData) -> None:
    """Writes the decoded pixels in one step, so that no reader ever meets half a file."""
    partial = cache.with_name(f".{cache.stem}-{uuid.uuid4().hex}.npz")
    try:
        with partial.open("xb") as file:
            np.savez(file, state=np.array(state), **{key: getattr(data, key).numpy() for key in SPLITS})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, cache)
    except OSError as error:
        warnings.warn(
            f"{cache}: cannot be written ({one_line(error)}); the images will be decoded again at the next start",
            stacklevel=2,
        )
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
