"""Vision streams: the files they write and read, what is found wrong with them, and the loader that streams them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CocoDetection, ImageFolder, VOCSegmentation

from palimpsest.datasets.utils.vision import formats
from palimpsest.datasets.utils.vision.mini import COUNTS, Painter, build, item_pools, item_source, mini_folder
from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import build_parser, chosen
from tests.datasets import vision_formats_on_disk as disk

SIZE = 32


def stream(name, base, *more):
    """A stream with its own defaults and these options, without a method."""
    cls = registry.load("dataset", name)
    argv = [f"--dataset={name}", f"--base_path={base}", "--n_epochs=1", "--lr=1", "--batch_size=8", *more]
    parser = build_parser(chosen(argv), None)
    parser.set_defaults(**{k: v for k, v in cls.DEFAULTS.items() if k not in ("num_workers", "vision_size")})
    return cls(parser.parse_args(argv), "cpu")


def small(base, *more):
    """24 training and 6 test images of digits per task, 32 pixels a side."""
    return stream("seq-vision-mini", base, "--vision_items=digits", "--vision_size=32", "--vision_subset=30", *more)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "subsets")
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest() for path in files}


def equal(a, b):
    """Whether two batches, or lists of them, hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(equal, a, b))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def mini(base):
    return mini_folder(str(base), 0, SIZE, "digits")


@pytest.fixture
def official(tmp_path):
    disk.write_voc(tmp_path), disk.write_coco(tmp_path), disk.write_folders(tmp_path)
    return tmp_path


# ---- the embedded stream


def test_embedded_files_open_with_torchvision_and_are_what_they_say(mini):
    for split, n in COUNTS.items():
        voc = VOCSegmentation(str(mini), "2012", split)
        coco = mini / "coco"
        coco = CocoDetection(str(coco / f"{split}2017"), str(coco / f"annotations/instances_{split}2017.json"))
        classes = ImageFolder(str(mini / "imagenette2-160" / split))
        assert len(voc) == len(coco) == len(classes) == n
        assert np.bincount(classes.targets).tolist() == [n // 10] * 10
        image, mask = voc[0]
        assert image.size == mask.size == (SIZE, SIZE) and mask.mode == "P"
        masks = {int(v) for path in voc.masks for v in np.unique(np.array(Image.open(path)))}
        assert masks == {*range(11), 255}
        assert sorted(coco.coco.cats) == [*range(1, 11)]
    trainval = VOCSegmentation(str(mini), "2012", "trainval")
    assert len(trainval) == 300


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
def test_embedded_boxes_are_those_of_their_run_length_masks(mini):
    from pycocotools import mask as rle

    for split in COUNTS:
        content = json.loads((mini / f"coco/annotations/instances_{split}2017.json").read_text())
        assert {o["image_id"] for o in content["annotations"]} == {i["id"] for i in content["images"]}
        for o in content["annotations"]:
            mask, (x, y, w, h) = rle.decode(o["segmentation"]), map(int, o["bbox"])
            assert mask.shape == (SIZE, SIZE) and mask.sum() == mask[y : y + h, x : x + w].sum() == o["area"] > 0
            assert all(edge.any() for edge in (mask[y], mask[y + h - 1], mask[:, x], mask[:, x + w - 1]))


def test_test_images_show_no_item_of_the_training_images():
    pools = item_pools(np.arange(1000) % 10, seed=3)
    train, test = (set(np.concatenate(pools[split]).tolist()) for split in COUNTS)
    assert train.isdisjoint(test) and train | test == {*range(1000)} and len(test) == 200


def test_two_builds_have_the_same_bytes_and_every_seed_and_image_its_own(mini, tmp_path):
    build(tmp_path / "again", 0, SIZE, "digits", str(tmp_path))
    assert contents(tmp_path / "again") == contents(mini)
    assert mini_folder(str(mini.parent), 0, SIZE, "digits") == mini  # not made anew
    assert not [path for path in mini.parent.iterdir() if path.name.startswith(".")]  # nothing left of the making
    items, pools = np.full((10, 8, 8), 16, np.uint8), [np.array([c]) for c in range(10)]

    def painted(seed, i):
        return Painter(items, pools, "digits", seed, 0, "train", SIZE).scene(i, 24, 44)[0]

    a, b, c = (painted(seed, i) for seed, i in ((0, 0), (1, 0), (0, 1)))
    assert not (a == b).all() and not (a == c).all()


def test_items_are_fashion_where_it_is_and_digits_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.utils.sources.SYSTEM_FASHION_MNIST", tmp_path)
    assert item_source(str(tmp_path), "auto") == item_source(str(tmp_path), "digits") == "digits"
    with pytest.raises(UserError, match="--vision_items digits"):
        item_source(str(tmp_path), "fashion")


# ---- the official layouts


def test_voc_masks_and_their_binary_reading(official):
    train, test = formats.voc(str(official), 0, seed=0)
    assert len(train) == len(test) == 4 and train.class_names[0] == "background" and len(train.class_names) == 21
    semantic = stream("seq-vision", official, "--vision_size=32").enter_task(0)
    binary = stream("seq-vision", official, "--vision_size=32", "--seg_classes=binary").enter_task(0)
    for i in range(4):
        (x, y, raw), (_, y2, _) = semantic.dataset[i], binary.dataset[i]
        assert x.shape == (3, 32, 32) and raw.dtype == torch.uint8 and y.dtype == torch.int64
        assert y.unique().tolist() == [0, 1 + i, 255]  # nearest: no class between two others
        assert torch.equal(y2, torch.where(y == 1 + i, 1, y))


def test_coco_numbers_gaps_crowds_and_small_boxes(official):
    train, _ = formats.coco(str(official), 0, seed=0)
    assert train.class_names == ["car", "cat", "toothbrush"]
    assert [t.classes.tolist() for t in train.targets] == [[0, 1], [2], [], []]
    assert train.targets[0].crowd.tolist() == [False, True]
    assert train.targets[0].corners.tolist() == [[10, 8, 30, 24], [0, 0, 48, 10]]  # rounding beyond the edge is cut

    dataset = stream("seq-vision", official, "--vision_size=24", "--detection=boxes", "--augment=0")
    loader = dataset.enter_task(1)
    label = loader.dataset[0][1]
    assert label["boxes"].tolist() == [[5, 6, 15, 18], [0, 0, 24, 7.5]]  # 48x32 pixels on 24x24
    assert label["classes"].tolist() == [0, 1] and label["crowd"].tolist() == [False, True]
    assert loader.dataset[1][1]["classes"].tolist() == [2, -1] and loader.dataset[2][1]["classes"].tolist() == [-1, -1]
    _, batch, _ = next(loader.epoch(0))  # training: without the crowd
    assert sorted(batch["classes"].tolist()) == [[-1, -1], [-1, -1], [0, -1], [2, -1]] and not batch["crowd"].any()

    loader = stream("seq-vision", official, "--vision_size=32").enter_task(1)
    assert torch.stack([loader.dataset[i][1] for i in range(4)]).tolist() == [[1, 1, 0], [0, 0, 1], [0] * 3, [0] * 3]


def test_class_folders_and_their_names(official, tmp_path):
    train, test = formats.folders(str(official), 0, seed=0)
    assert train.class_names == ["tench", "English springer", "cassette player"] and train.targets == [0, 0, 1, 1, 2, 2]
    disk.write_folders(tmp_path / "other", name="imagenet", classes=("b", "a"))
    assert formats.folders(str(tmp_path / "other"), 0, seed=0)[0].class_names == ["a", "b"]


def test_subsets_are_a_function_of_the_seed_and_written_down(official):
    disk.write_folders(official, n=10)
    disk.write_voc(official, n=30)
    for reader in (formats.voc, formats.folders):
        (train, test), (again, _), (other, _) = (reader(str(official), 15, seed) for seed in (0, 0, 1))
        assert (len(train), len(test)) == (12, 3) and train.files == again.files != other.files
        assert not set(train.files) & set(test.files)
    assert sorted(formats.folders(str(official), 15, 0)[0].targets) == [0] * 4 + [1] * 4 + [2] * 4
    a, b = (stream("seq-vision", official, "--vision_subset=15", f"--seed={seed}") for seed in (0, 1))
    assert a.checksum != b.checksum
    manifest = json.loads((official / "seq-vision-subsets/15-seed0.json").read_text())
    assert manifest["seg"]["train"]["files"][0].startswith("VOCdevkit/VOC2012/JPEGImages/2007_")
    assert {len(part["sha256"]) for pair in manifest.values() for part in pair.values()} == {64}


# ---- files that are wrong


def coco(part, **changes):
    """Damage: change the first entry of a part of the instances JSON."""

    def damage(base):
        content = json.loads((base / INSTANCES).read_text())
        content[part][0] |= changes
        (base / INSTANCES).write_text(json.dumps(content))

    return damage


def written(path, content):
    return lambda base: (base / path).write_bytes(content)


def drawn(mask):
    return lambda base: disk.save_mask(base / MASK, np.uint8(mask))


def without(path, instead=None):
    """Damage: a file or a folder is gone; a file or a folder in its place."""

    def damage(base):
        (base / path).rename(base / "gone")
        if instead:
            getattr(base / path, instead)()

    return damage


VOC = "VOCdevkit/VOC2012"
IMAGE, MASK = f"{VOC}/JPEGImages/2007_000002.jpg", f"{VOC}/SegmentationClass/2007_100001.png"
LISTING = f"{VOC}/ImageSets/Segmentation/val.txt"
INSTANCES = "coco/annotations/instances_val2017.json"
FOLDER = f"imagenette2-160/val/{disk.WNIDS[2]}"
PHOTO = f"{FOLDER}/{disk.WNIDS[2]}_0.JPEG"
WRONG = {
    "missing mask": (without(MASK), f"{MASK}: no such mask"),
    "missing image": (without(IMAGE), f"{IMAGE}: no such file"),
    "truncated image": (lambda b: disk.truncate(b / IMAGE), f"{IMAGE}: truncated"),
    "image that is none": (written(IMAGE, b"<html>"), f"{IMAGE}: truncated or no image"),
    "truncated mask": (lambda b: disk.truncate(b / MASK), f"{MASK}: truncated"),
    "class of a mask": (drawn(np.full(disk.SIZE[::-1], 21)), "class 21 in a mask of 21 classes"),
    "size of a mask": (drawn(np.zeros((3, 3))), f"{MASK}: not of the size"),
    "coloured mask": (lambda b: disk.picture(b / MASK), f"{MASK}: a mask in mode RGB"),
    "empty listing": (written(LISTING, b""), "val.txt: lists no image"),
    "listing that is none": (written(LISTING, bytes(range(256))), "val.txt: no list of names"),
    "blank line in the listing": (written(LISTING, b"2007_100000\n\n"), "JPEGImages/.jpg: no such file"),
    "listing that is a folder": (without(LISTING, "mkdir"), f"{LISTING}: Is a directory"),
    "image of the JSON": (without("coco/val2017/000000000101.jpg"), "000000000101.jpg: no such image, but"),
    "size in the JSON": (coco("images", width=5), "another size than in"),
    "a name too long": (coco("images", file_name=400 * "x"), "xxx: File name too long"),
    "a training image for testing": (
        coco("images", file_name="../train2017/000000000001.jpg"), "among the test images"
    ),
    "truncated JSON": (lambda b: disk.truncate(b / INSTANCES), f"{INSTANCES}: truncated or no instances JSON"),
    "box outside": (
        coco("annotations", bbox=[40, 8, 20, 16]),
        f"{INSTANCES}: object 1 of image 101 has the box \\[40, 8, 20, 16\\] outside its 48x32",
    ),
    "box that is none": (coco("annotations", bbox=[1, 2]), "expected \\[x, y, width"),
    "box in letters": (coco("annotations", bbox="1234"), "expected \\[x, y, width"),
    "unknown category": (coco("annotations", category_id=4), "category 4"),
    "unknown image": (coco("annotations", image_id=4), "objects of image 4"),
    "unknown name of an image": (coco("annotations", image_id="x"), "objects of image x"),
    "categories": (coco("categories", name="x"), "categories are not the 3"),
    "missing class": (without(FOLDER), disk.WNIDS[2]),
    "empty class": (without(FOLDER, "mkdir"), disk.WNIDS[2]),
    "a file for a folder": (without("imagenette2-160/val", "touch"), "imagenette2-160/val: Not a directory"),
    "truncated photo": (lambda b: disk.truncate(b / PHOTO), f"{PHOTO}: truncated"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_named_in_one_line_before_training(official, what):
    damage, said = WRONG[what]
    damage(official)
    with pytest.raises(UserError, match=said) as e:
        stream("seq-vision", official, "--vision_size=32", "--vision_subset=0")
    assert str(official) in str(e.value) and "\n" not in str(e.value)


def test_without_files_one_line_says_what_belongs_where(tmp_path):
    with pytest.raises(UserError, match="VOC 2012 there.*seq-vision-mini"):
        stream("seq-vision", tmp_path)


def test_a_composed_file_that_was_altered_added_or_removed_is_named(tmp_path):
    folder = mini_folder(str(tmp_path), 0, SIZE, "digits")
    image = folder / "imagenette2-160/val/d3" / min((folder / "imagenette2-160/val/d3").iterdir()).name
    other = min((folder / "imagenette2-160/val/d4").iterdir())
    whole = image.read_bytes()
    for change, words in (
        (lambda: image.write_bytes(other.read_bytes()), f"{image} is not the file that was made"),
        (image.unlink, f"{image} is missing"),
        (lambda: (image.write_bytes(whole), (image.parent / "x.JPEG").write_bytes(whole)), "x.JPEG was added"),
        ((folder / "contents.json").unlink, "contents.json"),
    ):
        change()
        with pytest.raises(UserError) as caught:
            mini_folder(str(tmp_path), 0, SIZE, "digits")
        assert words in str(caught.value) and f"delete {folder}" in str(caught.value)
