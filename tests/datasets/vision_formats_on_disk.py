"""Writes tiny files in the official layouts of PASCAL VOC 2012, COCO and Imagenette, for tests without a network."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import Imagenette

SIZE = (48, 32)  # width, height of every image
CATEGORIES = {3: "car", 17: "cat", 90: "toothbrush"}  # COCO's numbers have gaps
WNIDS = list(Imagenette._WNID_TO_CLASS)


def picture(path: Path, seed: int = 0) -> None:
    """A smooth random picture as a JPEG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize(SIZE, Image.Resampling.BILINEAR).save(path, "JPEG", quality=95)


def write_voc(base: Path, n: int = 4) -> None:
    """`n` images in train and in val: class 1 + i in a rectangle with a void ring."""
    root = base / "VOCdevkit/VOC2012"
    for part in ("SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for k, split in enumerate(("train", "val")):
        names = [f"2007_{k}{i:05d}" for i in range(n)]
        for i, name in enumerate(names):
            picture(root / f"JPEGImages/{name}.jpg", 10 * k + i)
            mask = np.zeros(SIZE[::-1], np.uint8)
            mask[7:25, 9:31] = 255
            mask[8:24, 10:30] = 1 + i % 20
            save_mask(root / f"SegmentationClass/{name}.png", mask)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")


def save_mask(path: Path, mask: np.ndarray) -> None:
    """A palette PNG of class numbers."""
    image = Image.fromarray(mask)
    image.putpalette([v for c in range(256) for v in (c, 255 - c, 128)])
    image.save(path)


def write_coco(base: Path, n: int = 4) -> None:
    """`n` images in train2017 and val2017. Image 0: a car at [10, 8, 20, 16] and a crowd of cats; image 1: a toothbrush
    and a box half a pixel wide; the others: nothing.
    """
    root = base / "coco"
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for k, split in enumerate(("train", "val")):
        ids = [100 * k + 7 * i + 1 for i in range(n)]
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in ids]
        for image in images:
            picture(root / f"{split}2017" / image["file_name"], image["id"])
        objects = [
            {"image_id": ids[0], "category_id": 3, "bbox": [10, 8, 20, 16], "iscrowd": 0},
            {"image_id": ids[0], "category_id": 17, "bbox": [0, 0, 48.4, 10], "iscrowd": 1},
            {"image_id": ids[1], "category_id": 90, "bbox": [4.5, 2, 12, 10], "iscrowd": 0},
            {"image_id": ids[1], "category_id": 3, "bbox": [4, 2, 0.5, 10], "iscrowd": 0},
        ]
        for number, o in enumerate(objects, 1):
            o |= {"id": number, "area": o["bbox"][2] * o["bbox"][3], "segmentation": []}
        categories = [{"id": c, "name": name, "supercategory": "thing"} for c, name in CATEGORIES.items()]
        content = {"info": {}, "licenses": [], "images": images, "annotations": objects, "categories": categories}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def write_folders(base: Path, n: int = 2, name: str = "imagenette2-160", classes: tuple[str, ...] = WNIDS[:3]) -> None:
    """`n` images of each class in train and in val."""
    for k, split in enumerate(("train", "val")):
        for c, label in enumerate(classes):
            for i in range(n):
                picture(base / name / split / label / f"{label}_{i}.JPEG", 100 * k + 10 * c + i)


def truncate(path: Path) -> None:
    """Cut off the end of a file, as a broken download leaves it."""
    os.truncate(path, int(0.6 * path.stat().st_size))
