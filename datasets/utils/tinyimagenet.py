"""Tiny ImageNet, from the official folder or straight from its archive: one file instead of a hundred thousand."""

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from palimpsest.datasets.utils.checks import checked
from palimpsest.datasets.utils.source_files import REPLACE, RawData, fetch, reading
from palimpsest.utils.errors import UserError

TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SHAPE = (3, 64, 64)
N_CLASSES, N_TRAIN, N_TEST = 200, 500, 10000  # classes, training images of each, test images of all


def read_tinyimagenet(name: str, base: Path) -> RawData:
    archive = f"{name}.zip"
    if (base / name).is_dir():
        return _decode(base / name)

    def download(staging: str) -> None:
        from torchvision.datasets.utils import download_url

        download_url(TINY_URL, staging, archive, TINY_MD5)

    advice = f"put {TINY_URL} or the folder unpacked from it into {base}"
    fetch(name, base, wanted=[Path(archive)], download=download, advice=advice)
    if not _is_official(base / archive):
        raise UserError(f"{base / archive}: truncated or altered, the MD5 checksum is not the official one: {REPLACE}")
    return _decode(base / archive)


def _is_official(archive: Path) -> bool:
    from torchvision.datasets.utils import check_integrity

    return check_integrity(archive, TINY_MD5)


@contextlib.contextmanager
def _opened(origin: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Yields the names of the training images, relative to the folder, and a function that reads such a file."""
    if origin.is_dir():
        archive, checksums = origin.with_name(f"{origin.name}.zip"), {}
        if archive.is_file() and _is_official(archive):  # each unpacked file is compared with what it was unpacked from
            with zipfile.ZipFile(archive) as packed:
                checksums = {info.filename.removeprefix(f"{origin.name}/"): info.CRC for info in packed.infolist()}

        def read(name: str) -> bytes:
            content = (origin / name).read_bytes()
            if zlib.crc32(content) != checksums.get(name, zlib.crc32(content)):
                raise ValueError(f"not the file in {archive.name}")
            return content

        yield [path.relative_to(origin).as_posix() for path in origin.glob("train/*/images/*.JPEG")], read
    else:
        root = f"{origin.stem}/"
        with reading(origin):
            archive = zipfile.ZipFile(origin)
        with archive:
            names = [name.removeprefix(root) for name in archive.namelist() if name.endswith(".JPEG")]
            yield [name for name in names if name.startswith("train/")], lambda name: archive.read(root + name)


def _decode(origin: Path) -> RawData:
    with _opened(origin) as (listing, read):
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
        # An unpacking that was interrupted leaves classes smaller.
        sizes = {wnid: len(names) for wnid, names in images.items()}
        found = {f"train/{wnid}/images holds {n} images": n - N_TRAIN for wnid, n in sizes.items()}
        found |= {f"wnids.txt names {len(wnids)} classes": len(wnids) - N_CLASSES}
        found |= {f"val/val_annotations.txt names {len(annotations)} images": len(annotations) - N_TEST}
        for fact, surplus in found.items():
            if surplus:
                raise UserError(
                    f"{origin}: {fact}, {abs(surplus)} too {'many' if surplus > 0 else 'few'}: the copy is not the "
                    "official one, unpack or download the archive again"
                )
        train_x = _decode_images(origin, read, [name for names in images.values() for name in names])
        test_x = _decode_images(origin, read, [f"val/images/{file}" for file, _ in annotations])
        train_y = [label for label, names in enumerate(images.values()) for _ in names]
        return RawData(
            *checked(origin / "train", train_x, train_y, SHAPE, len(wnids), REPLACE),
            *checked(origin / "val", test_x, test_y, SHAPE, len(wnids), REPLACE),
        )


def _decode_images(origin: Path, read: Callable[[str], bytes], names: list[str]) -> np.ndarray:
    """Decodes JPEG files to (N, 3, 64, 64) uint8; grey ones become RGB. Decoding releases the GIL, so threads help."""
    from PIL import Image

    pixels = np.empty((len(names), *SHAPE), np.uint8)

    def decode(i: int) -> None:
        with reading(origin / names[i]):
            image = Image.open(io.BytesIO(read(names[i]))).convert("RGB")
            if image.size != SHAPE[1:]:
                raise ValueError(f"{image.width}x{image.height} pixels, expected 64x64")
        pixels[i] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(names))):
            pass  # raises what decoding raised
    return pixels
