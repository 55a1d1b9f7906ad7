"""PASCAL VOC 2012, COCO and class folders as they are published: what examples there are, checked before training.

    <base_path>/VOCdevkit/VOC2012/{JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt}
    <base_path>/coco/{train2017, val2017, annotations/instances_{train,val}2017.json}
    <base_path>/{imagenette2, imagenette2-320, imagenette2-160, imagenet}/{train,val}/<class>/<image>

torchvision's VOCSegmentation, CocoDetection and ImageFolder list the files. The official training part is trained on,
the official validation part is the test set. Nothing is downloaded: the hosts are slow or closed to many. A file that
is missing, truncated or contradicts another one is a one-line UserError that names it.
"""

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from palimpsest.datasets.utils.vision.losses import VOID
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import permutation

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
FOLDERS = ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenet")
TEST_SHARE = 0.2  # of a subset: 60 of 300
TOLERANCE = 1.0  # pixels by which a box may stick out of its image: published coordinates are rounded
REPAIR = "put the official file back; of seq-vision-mini delete the folder, it is made again"


@dataclass
class Boxes:
    """Objects of one image of `size` (width, height): corners (k, 4) x1, y1, x2, y2 in its pixels, classes (k,) from 0,
    and which are crowds (k,).
    """

    size: tuple[int, int]
    corners: Tensor
    classes: Tensor
    crowd: Tensor


@dataclass
class Examples:
    """One part (training or test) of a task as it lies on the disk.

    Attributes:
        base: the data folder, to which names are relative.
        files: image files.
        targets: per file the mask's file, its Boxes, or its class.
        class_names: of all classes of the task, in the order of their numbers.
    """

    base: Path
    files: list[Path]
    targets: list[Any]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def facts(self) -> dict:
        """Names of the files and a SHA-256 over the names, the files' sizes and the targets."""
        names, digest = [Path(os.path.relpath(path, self.base)).as_posix() for path in self.files], hashlib.sha256()
        for name, path, target in zip(names, self.files, self.targets, strict=True):
            if isinstance(target, Path):
                target = target.stat().st_size
            elif isinstance(target, Boxes):
                target = [target.size, target.corners.tolist(), target.classes.tolist(), target.crowd.tolist()]
            digest.update(json.dumps([name, path.stat().st_size, target]).encode())
        return {"files": names, "sha256": digest.hexdigest()}


Parts = tuple[Examples, Examples]  # training, test


def voc(base_path: str, subset: int, seed: int, names: tuple[str, ...] = VOC_CLASSES) -> Parts:
    """Images with a palette PNG of class numbers, 0 the background and 255 void.

    Args:
        base_path: folder that holds `VOCdevkit`.
        subset: images in all, four fifths of them for training; 0 for all there are.
        seed: decides which.
        names: of the classes.
    """
    from torchvision.datasets import VOCSegmentation

    base, parts = _absolute(base_path), []
    for split in ("train", "val"):
        listing = base / f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt"
        _require(listing, "VOC 2012", base)
        try:
            source = VOCSegmentation(str(base), "2012", split)
        except UnicodeError:
            raise UserError(f"{listing}: no list of names: {REPAIR}") from None
        rows = _chosen(len(source), subset, split, seed, "voc", listing)
        files, masks = [Path(source.images[r]) for r in rows], [Path(source.targets[r]) for r in rows]
        for file, mask in zip(files, masks, strict=True):
            size = checked_image(file)
            if not mask.is_file():
                raise UserError(f"{mask}: no such mask, but {listing.name} lists {file.stem}: {REPAIR}")
            if read_mask(mask, len(names)).shape[::-1] != size:
                raise UserError(f"{mask}: not of the size of its image {file}: {REPAIR}")
        parts.append(Examples(base, files, masks, list(names)))
    return tuple(parts)


def coco(base_path: str, subset: int, seed: int) -> Parts:
    """Images with boxes. Classes are the categories in the order of their numbers, which may have gaps.

    Boxes narrower or lower than one pixel are left out; an image without boxes stays. Arguments as `voc`.
    """
    base = _absolute(base_path)
    parts, categories = [], {}
    for split in ("train", "val"):
        listing = base / f"coco/annotations/instances_{split}2017.json"
        _require(listing, "COCO 2017", base)
        images, objects, classes = _instances(listing, base / f"coco/{split}2017")
        categories[split] = classes
        rows = _chosen(len(images), subset, split, seed, "coco", listing)
        files, targets, number = [], [], {c: i for i, c in enumerate(classes)}
        for row in rows:
            image = images[row]
            file = Path(os.path.normpath(base / f"coco/{split}2017/{image['file_name']}"))
            if not file.is_file():
                raise UserError(f"{file}: no such image, but {listing} names it: {REPAIR}")
            size = checked_image(file)
            if (image.get("width", size[0]), image.get("height", size[1])) != size:
                raise UserError(f"{file}: {size[0]}x{size[1]} pixels, another size than in {listing}: {REPAIR}")
            files.append(file)
            targets.append(_boxes(objects.get(image["id"], []), size, number, listing))
        parts.append(Examples(base, files, targets, list(classes.values())))
    if categories["train"] != categories["val"]:
        n = {split: len(classes) for split, classes in categories.items()}
        raise UserError(
            f"{listing}: its {n['val']} categories are not the {n['train']} of instances_train2017.json: {REPAIR}"
        )
    return tuple(parts)


def folders(base_path: str, subset: int, seed: int, names: tuple[str, ...] | None = None) -> Parts:
    """Images in a folder per class; of a subset as many of each class as there can be. Arguments as `voc`."""
    from torchvision.datasets import ImageFolder, Imagenette

    base = _absolute(base_path)
    root = next((base / name for name in FOLDERS if (base / name).is_dir()), base / FOLDERS[0])
    known = Imagenette._WNID_TO_CLASS if root.name.startswith("imagenette2") else {}
    parts, classes = [], []
    for split in ("train", "val"):
        _require(root / split, "Imagenette or ImageNet", base)
        try:
            source = ImageFolder(str(root / split))
        except FileNotFoundError as e:
            raise UserError(f"{root / split}: {str(e).splitlines()[0]}: put the missing images there") from None
        classes.append(source.classes)
        rows = _chosen_by_class(source.targets, subset, split, seed)
        files = [Path(source.samples[r][0]) for r in rows]
        for file in files:
            checked_image(file)
        class_names = names or [known.get(name, (name,))[0] for name in source.classes]
        parts.append(Examples(base, files, [source.targets[r] for r in rows], list(class_names)))
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise UserError(
            f"{root}: train has {len(classes[0])} class folders, val {len(classes[1])}; only in one of them: "
            f"{', '.join(odd[:3])}: put the missing ones there"
        )
    return tuple(parts)


def checked_image(path: Path) -> tuple[int, int]:
    """(width, height) of an image file whose header is right and whose end is there.

    Raises:
        UserError: it is missing, no image, or truncated.
    """
    with _readable(path), Image.open(path) as image:
        if image.format == "JPEG":
            with open(path, "rb") as f:
                f.seek(-min(32, os.path.getsize(path)), os.SEEK_END)
                if b"\xff\xd9" not in f.read():  # bytes after the end marker are allowed: only decoding can tell
                    image.load()
        return image.size


def read_image(path: Path) -> Image.Image:
    """The image in RGB."""
    with _readable(path), Image.open(path) as image:
        return image.convert("RGB")


def read_mask(path: Path, n_classes: int) -> np.ndarray:
    """Class numbers (H, W) uint8 of a palette PNG, below `n_classes` or 255."""
    with _readable(path), Image.open(path) as image:
        mode, mask = image.mode, np.array(image)
    if mode not in ("P", "L"):
        raise UserError(f"{path}: a mask in mode {mode}, expected a palette PNG of class numbers: {REPAIR}")
    wrong = mask[(mask >= n_classes) & (mask != VOID)]
    if wrong.size:
        raise UserError(
            f"{path}: class {wrong.max()} in a mask of {n_classes} classes (below that, or {VOID} for void): {REPAIR}"
        )
    return mask


def write_manifest(path: Path, parts: dict[str, Parts]) -> str:
    """Write which files every task uses (task -> part -> 'files', 'sha256'); a checksum of it all, 32 digits.

    A folder that cannot be written goes without.
    """
    from palimpsest.utils.atomic import write_text

    facts = {task: dict(zip(("train", "test"), (p.facts() for p in pair), strict=True)) for task, pair in parts.items()}
    text = json.dumps(facts, indent=1)
    with contextlib.suppress(OSError, UserError):
        if not path.is_file() or path.read_bytes() != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _instances(listing: Path, folder: Path) -> tuple[list[dict], dict[Any, list[dict]], dict[int, str]]:
    """Images, objects by image, and category number -> name, in order, of an instances JSON."""
    from torchvision.datasets import CocoDetection

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the reader announces its progress
            source = CocoDetection(str(folder), str(listing))
        images = [source.coco.imgs[i] for i in source.ids]
        classes = {int(c): str(source.coco.cats[c]["name"]) for c in sorted(source.coco.cats)}
        for image in images:
            image["file_name"]  # noqa: B018 - refused here rather than during training
        stray = source.coco.imgToAnns.keys() - source.coco.imgs.keys()
    except (OSError, ValueError, LookupError, TypeError, AssertionError) as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:120]
        raise UserError(f"{listing}: truncated or no instances JSON ({reason}): {REPAIR}") from None
    if not (classes and source.coco.anns):
        raise UserError(f"{listing}: no categories or no objects: {REPAIR}")
    if stray:
        raise UserError(f"{listing}: objects of image {min(stray, key=str)}, which is not among its images: {REPAIR}")
    return images, source.coco.imgToAnns, classes


def _boxes(objects: list[dict], size: tuple[int, int], number: dict[int, int], listing: Path) -> Boxes:
    """The boxes of one image of `size` (width, height), clamped to it."""
    kept, (width, height) = [], size
    for o in objects:
        name = f"{listing}: object {o.get('id')} of image {o.get('image_id')}"
        try:
            x, y, w, h = map(float, o["bbox"] if isinstance(o["bbox"], list) else ())
        except (LookupError, TypeError, ValueError):
            raise UserError(f"{name} has the box {o.get('bbox')!r}, expected [x, y, width, height]: {REPAIR}") from None
        if o.get("category_id") not in number:
            raise UserError(f"{name} is of category {o.get('category_id')!r}, which is not listed: {REPAIR}")
        inside = min(x, y) >= -TOLERANCE and x + w <= width + TOLERANCE and y + h <= height + TOLERANCE
        if not (all(map(math.isfinite, (x, y, w, h))) and min(w, h) >= 0 and inside):
            raise UserError(f"{name} has the box {o['bbox']} outside its {width}x{height} pixels: {REPAIR}")
        if min(w, h) >= 1:
            corners = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
            kept.append((corners, number[o["category_id"]], bool(o.get("iscrowd", 0))))
    corners, classes, crowd = zip(*kept, strict=True) if kept else ((), (), ())
    return Boxes(
        size,
        torch.tensor(corners, dtype=torch.float32).view(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(crowd, dtype=torch.bool),
    )


def _wanted(subset: int, split: str) -> int:
    """Images of a part of a subset."""
    test = round(TEST_SHARE * subset)
    return test if split == "val" else subset - test


def _chosen(n: int, subset: int, split: str, seed: int, name: str, listing: Path) -> list[int]:
    """Which of the n images of a part are used, in ascending order."""
    if n == 0:
        raise UserError(f"{listing}: lists no image: {REPAIR}")
    if not subset:
        return list(range(n))
    return permutation(n, seed, "vision subset", name, split)[: _wanted(subset, split)].sort().values.tolist()


def _chosen_by_class(targets: list[int], subset: int, split: str, seed: int) -> list[int]:
    """The same with the classes in turn, each in a random order of its own."""
    if not subset:
        return list(range(len(targets)))
    labels, turns = torch.tensor(targets), []
    for c in range(max(targets) + 1):
        rows = (labels == c).nonzero().squeeze(1)
        mixed = rows[permutation(len(rows), seed, "vision subset", "folders", split, c)]
        turns += [(turn, c, row) for turn, row in enumerate(mixed.tolist())]
    return sorted(row for _, _, row in sorted(turns)[: _wanted(subset, split)])


def _absolute(base_path: str) -> Path:
    return Path(base_path).expanduser().resolve()


def _require(path: Path, what: str, base: Path) -> None:
    if not path.exists():
        raise UserError(
            f"{path}: not found: put {what} there, or name another folder with --base_path (now {base}), or try the "
            "embedded --dataset seq-vision-mini"
        )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: {REPAIR}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # what Pillow raises
        reason = " ".join(str(e).split())[:150]
        raise UserError(f"{path}: truncated or no image ({reason}): {REPAIR}") from None
