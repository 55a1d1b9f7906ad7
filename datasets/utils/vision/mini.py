"""Three small vision tasks in the file formats of the large ones, composed once into the data folder; no download.

Source items are those of Fashion-MNIST where its files are, else scikit-learn's digits. They are divided into 80 % for
training and 20 % for testing, class by class, before anything is composed, so that no test image shows a training item.

    segmentation     1 to 4 items in bright colours on a dark striped ground; PASCAL VOC 2012: palette PNG with class
                     + 1, one pixel of 255 around the objects, an item is refused where it would hide > 15 % of another
    detection        1 to 4 dark items on a bright ground; COCO: instances JSON with the box, area and run-length
                     mask of what is visible, objects with less than 12 visible pixels (at 96) left out
    classification   one large item on a dark ground; class folders as Imagenette has them

Every task has 240 training and 60 test images. Image i of a split is a function of (seed, task, split, i) alone, so two
builds give the same bytes.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from palimpsest.datasets.utils.sources import digits, fashion_mnist, has_fashion_mnist
from palimpsest.utils.errors import UserError

VERSION = 3  # of the recipe; part of the folder's name
PARTS = ("VOCdevkit", "coco", "imagenette2-160")
CONTENTS = "contents.json"  # checksums of the files that were made
COUNTS = {"train": 240, "val": 60}
SEG, DET, CLS = range(3)
HIDDEN = 0.15  # largest share of an object that a later one may hide
TRIES = 20
# The 256 colours of VOC's masks: bit k of the class, in threes, goes to bit 7 - k of red, green and blue.
VOC_PALETTE = [sum((c >> (3 * k + rgb) & 1) << (7 - k) for k in range(3)) for c in range(256) for rgb in range(3)]
NAMES = {
    "fashion": (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "digits": tuple(f"digit {d}" for d in range(10)),
}  # fmt: skip
# Share of an item's brightest pixel above which a pixel belongs to the object: garments are grey inside.
THRESHOLDS = {"fashion": 0.1, "digits": 0.35}


def item_source(base_path: str, wanted: str) -> str:
    """'fashion' or 'digits': what `wanted` ('auto' too) means on this machine.

    Raises:
        UserError: Fashion-MNIST is asked for and not there.
    """
    found = has_fashion_mnist(base_path)
    if wanted == "fashion" and not found:
        raise UserError(
            f"--vision_items fashion: no Fashion-MNIST in {base_path}/FashionMNIST/raw nor from Debian's package: put "
            "its four .gz files there, or use --vision_items digits"
        )
    return wanted if wanted != "auto" else "fashion" if found else "digits"


def mini_folder(base_path: str, seed: int, size: int, source: str) -> Path:
    """The folder that holds the three tasks, made if it is not there.

    Args:
        base_path: the data folder.
        seed: of everything random.
        size: side of an image in pixels.
        source: 'fashion' or 'digits'.

    Raises:
        UserError: the folder cannot be written, or holds other files than were made.
    """
    base = Path(base_path).expanduser().resolve()
    name = hashlib.blake2b(f"{VERSION} {seed} {size} {source}".encode(), digest_size=6).hexdigest()
    folder = base / f"vision-mini-{name}"
    if folder.is_dir():
        refuse_altered(folder)
        return folder
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base, prefix=".vision-mini-") as staging:
            build(whole := Path(staging) / "whole", seed, size, source, base_path)
            # Another process may have put its own, equal one there meanwhile.
            if not folder.is_dir():
                os.rename(whole, folder)
    except OSError as e:
        if not folder.is_dir():
            raise UserError(
                f"cannot write {folder}: {e.strerror or e}; free some space or give another --base_path"
            ) from None
    return folder


def checksums(folder: Path) -> dict[str, str]:
    """Relative name -> BLAKE2b, of the files that `build` makes."""
    files = [p for part in PARTS for p in sorted((folder / part).rglob("*")) if p.is_file()]
    return {
        p.relative_to(folder).as_posix(): hashlib.blake2b(p.read_bytes(), digest_size=16).hexdigest() for p in files
    }


def refuse_altered(folder: Path) -> None:
    """Refuse a folder whose files are not those that were made, and name the first of them."""
    again = f"delete {folder} to have it made again"
    try:
        made, now = dict(json.loads((folder / CONTENTS).read_text())), checksums(folder)
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}: {again}") from None
    except (ValueError, TypeError):
        raise UserError(f"{folder / CONTENTS}: truncated or damaged: {again}") from None
    other = next((name for name in sorted({*made, *now}) if made.get(name) != now.get(name)), None)
    if other:
        what = "is missing" if other not in now else "is not the file that was made" if other in made else "was added"
        raise UserError(f"{folder / other} {what}: {again}")


def build(folder: Path, seed: int, size: int, source: str, base_path: str) -> None:
    """Write the three tasks."""
    raw = fashion_mnist(base_path) if source == "fashion" else digits(base_path)
    items = np.concatenate([raw.train_x.numpy(), raw.test_x.numpy()])[:, 0]
    labels = np.concatenate([raw.train_y.numpy(), raw.test_y.numpy()])
    pools = item_pools(labels, seed)
    for task, write in ((SEG, _write_voc), (DET, _write_coco), (CLS, _write_folders)):
        for split in COUNTS:
            write(folder, split, Painter(items, pools[split], source, seed, task, split, size))
    sets = folder / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (sets / "trainval.txt").write_text((sets / "train.txt").read_text() + (sets / "val.txt").read_text())
    (folder / CONTENTS).write_text(json.dumps(checksums(folder), indent=1))


def item_pools(labels: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """Split -> the items of each class that its images may show; 80 % and 20 % of every class, without overlap."""
    rng, pools = np.random.default_rng([seed, len(labels)]), {"train": [], "val": []}
    for c in range(10):
        rows = rng.permutation(np.flatnonzero(labels == c))
        cut = round(0.8 * len(rows))
        pools["train"].append(rows[:cut])
        pools["val"].append(rows[cut:])
    return pools


class Painter:
    """Draws the images of one split of one task."""

    def __init__(self, items, pools: list[np.ndarray], source: str, seed: int, task: int, split: str, size: int):
        self.items, self.pools, self.names, self.threshold = items, pools, NAMES[source], THRESHOLDS[source]
        self.task, self.size, self.stream = task, size, (seed, task, list(COUNTS).index(split))
        self.scale = size / 96  # lengths are given for a canvas of 96 pixels
        self.columns, self.rows = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))

    def ground(self, rng: np.random.Generator) -> np.ndarray:
        """Background (S, S, 3) in [0, 1]: a dark gradient with stripes and noise, for detection a bright one."""
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        along = np.cos(angle) * self.columns + np.sin(angle) * self.rows
        ends = rng.uniform(0, 0.3, (2, 3))
        image = ends[0] + (along[..., None] + 1.5) / 3 * (ends[1] - ends[0])
        image = image + (0.06 * np.sin(2 * np.pi * rng.uniform(3, 8) * along + phase))[..., None]
        image = image + rng.normal(0, 0.03, image.shape)
        return 1 - image if self.task == DET else image

    def item(self, rng: np.random.Generator, c: int, low: int, high: int) -> np.ndarray:
        """A random item of class c, `low` to `high` pixels a side (at 96), brightness (s, s) in [0, 1]."""
        side = min(max(round(rng.integers(low, high + 1) * self.scale), 4), self.size)
        pixels = self.items[rng.choice(self.pools[c])]
        grown = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(grown, np.float32) / max(pixels.max(), 1)

    def place(self, rng: np.random.Generator, item: np.ndarray) -> np.ndarray:
        """The pixels (S, S) bool that an item covers at a random place."""
        side = len(item)
        top, left = rng.integers(0, self.size - side + 1, 2)
        mask = np.zeros((self.size, self.size), bool)
        mask[top : top + side, left : left + side] = item > self.threshold
        return mask

    def paint(self, rng: np.random.Generator, image: np.ndarray, item: np.ndarray, mask: np.ndarray) -> None:
        """Paint an item in a random colour on the pixels that it covers."""
        colour = rng.uniform(0, 0.35, 3) if self.task == DET else rng.uniform(0.55, 1, 3)
        shade = (0.4 + 0.6 * item)[item > self.threshold, None]
        image[mask] = 1 - (1 - colour) * shade if self.task == DET else colour * shade

    def scene(self, i: int, low: int, high: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        """Image i with 1 to 4 items, and (class, visible pixels (S, S)) of each, in the order they were painted."""
        rng = np.random.default_rng([*self.stream, i])
        image, objects = self.ground(rng), []
        for _ in range(rng.integers(1, 5)):
            c = int(rng.integers(10))
            item = self.item(rng, c, low, high)
            for _ in range(TRIES):
                new = self.place(rng, item)
                if all((old & new).sum() <= HIDDEN * whole for _, old, whole in objects):
                    self.paint(rng, image, item, new)
                    objects = [(k, old & ~new, whole) for k, old, whole in objects] + [(c, new, new.sum())]
                    break
        return _bytes(image), [(c, mask) for c, mask, _ in objects]

    def portrait(self, i: int) -> tuple[np.ndarray, int]:
        """Image i with one large item, and its class: the classes in turn."""
        rng, c = np.random.default_rng([*self.stream, i]), i % 10
        image, item = self.ground(rng), self.item(rng, c, 56, 84)
        self.paint(rng, image, item, self.place(rng, item))
        return _bytes(image), c


def _write_voc(folder: Path, split: str, painter: Painter) -> None:
    root = folder / "VOCdevkit/VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(COUNTS[split]):
        image, objects = painter.scene(i, 24, 44)
        name = f"2012_{list(COUNTS).index(split)}{i:05d}"
        by_class, by_object = np.zeros((2, *image.shape[:2]), np.uint8)
        for number, (c, mask) in enumerate(objects, 1):
            by_class[mask], by_object[mask] = c + 1, number
        ring = binary_dilation(by_class, np.ones((3, 3))) & (by_class == 0)
        for part, mask in (("SegmentationClass", by_class), ("SegmentationObject", by_object)):
            mask[ring] = 255
            png = Image.fromarray(mask)
            png.putpalette(VOC_PALETTE)
            png.save(root / part / f"{name}.png")
        _save_jpeg(image, root / "JPEGImages" / f"{name}.jpg")
        names.append(name)
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _write_coco(folder: Path, split: str, painter: Painter) -> None:
    from pycocotools import mask as rle

    root, images, annotations = folder / "coco", [], []
    for part in (f"{split}2017", "annotations"):
        (root / part).mkdir(parents=True, exist_ok=True)
    first = 1 + (COUNTS["train"] if split == "val" else 0)
    for i in range(COUNTS[split]):
        image, objects = painter.scene(i, 24, 48)
        name, size = f"{first + i:012d}.jpg", painter.size
        images.append({"id": first + i, "file_name": name, "width": size, "height": size})
        _save_jpeg(image, root / f"{split}2017" / name)
        for c, mask in objects:
            code = rle.encode(np.asfortranarray(mask, np.uint8))
            area = int(rle.area(code))
            if area < max(12 * painter.scale**2, 1):
                continue
            segmentation = {"counts": code["counts"].decode(), "size": [size, size]}
            annotations.append(
                {
                    "id": first * 10 + len(annotations), "image_id": first + i, "category_id": c + 1, "iscrowd": 0,
                    "bbox": rle.toBbox(code).tolist(), "area": area, "segmentation": segmentation,
                }
            )  # fmt: skip
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(painter.names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def _write_folders(folder: Path, split: str, painter: Painter) -> None:
    for i in range(COUNTS[split]):
        image, c = painter.portrait(i)
        place = folder / "imagenette2-160" / split / f"d{c}"
        place.mkdir(parents=True, exist_ok=True)
        _save_jpeg(image, place / f"{split}_{i:05d}.JPEG")


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def _save_jpeg(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path, quality=92, subsampling=0)
