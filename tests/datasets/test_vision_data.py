"""Vision streams: the files they write and read, what is found wrong with them, and the loader that streams them."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, ImageFolder, VOCSegmentation

from datasets.utils.streaming import Cache, StreamEvalLoader, StreamLoader
from datasets.utils.vision import formats
from datasets.utils.vision.data import Scene, augmented, resized
from datasets.utils.vision.kinds import BinaryMaskTask, BoxTask, ImageClassTask, MaskTask, PresenceTask
from datasets.utils.vision.mini import COUNTS, Painter, build, item_pools, item_source, mini_folder, run_lengths
from tests.datasets import vision_formats_on_disk as disk
from tests.models.helpers import Command
from utils import registry
from utils.check import case_runs
from utils.errors import UserError
from utils.randomness import permutation, random_state
from utils.run.config import build_parser, chosen

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


def test_embedded_boxes_are_those_of_their_run_length_masks(mini):
    from pycocotools import mask as rle

    for split in COUNTS:
        content = json.loads((mini / f"coco/annotations/instances_{split}2017.json").read_text())
        assert {o["image_id"] for o in content["annotations"]} == {i["id"] for i in content["images"]}
        for o in content["annotations"]:
            code = rle.frPyObjects(o["segmentation"], SIZE, SIZE)
            assert rle.toBbox(code).tolist() == o["bbox"] and int(rle.area(code)) == o["area"]
            x, y, w, h = o["bbox"]
            assert min(x, y) >= 0 and x + w <= SIZE and y + h <= SIZE and min(w, h) >= 1


def test_run_lengths_by_hand():
    mask = np.array([[0, 1], [1, 1], [0, 0]], bool)  # columns 0 1 0 and 1 1 0
    assert run_lengths(mask) == [1, 1, 1, 2, 1]
    assert run_lengths(~mask) == [0, 1, 1, 1, 2, 1]


def test_test_images_show_no_item_of_the_training_images(mini):
    pools = item_pools(np.arange(1000) % 10, seed=3)
    train, test = (set(np.concatenate(pools[split]).tolist()) for split in COUNTS)
    assert train.isdisjoint(test) and train | test == {*range(1000)} and len(test) == 200
    items = json.loads((mini / "manifest.json").read_text())["items"]
    assert set(items["train"]).isdisjoint(items["val"]) and len(items["train"]) + len(items["val"]) == 1797


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


def coco_with(change):
    def damage(base):
        path = base / "coco/annotations/instances_val2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def remove(*parts):
    return lambda base: [path.unlink() for part in parts for path in [base / part]]


VOC = "VOCdevkit/VOC2012"
IMAGE, MASK = f"{VOC}/JPEGImages/2007_000002.jpg", f"{VOC}/SegmentationClass/2007_100001.png"
LISTING = f"{VOC}/ImageSets/Segmentation/val.txt"
INSTANCES = "coco/annotations/instances_val2017.json"
FOLDER = f"imagenette2-160/val/{disk.WNIDS[2]}"
WRONG = {
    "missing mask": (remove(MASK), f"{MASK}: no such mask"),
    "missing image": (remove(IMAGE), f"{IMAGE}: no such file"),
    "truncated image": (lambda b: disk.truncate(b / IMAGE), f"{IMAGE}: truncated"),
    "image that is none": (lambda b: (b / IMAGE).write_text("<html>"), f"{IMAGE}: truncated or no image"),
    "truncated mask": (lambda b: disk.truncate(b / MASK), f"{MASK}: truncated"),
    "class of a mask": (
        lambda b: disk.save_mask(b / MASK, np.full(disk.SIZE[::-1], 21, np.uint8)), "class 21 in a mask of 21 classes"
    ),
    "size of a mask": (lambda b: disk.save_mask(b / MASK, np.zeros((3, 3), np.uint8)), f"{MASK}: not of the size"),
    "coloured mask": (lambda b: disk.picture(b / MASK), f"{MASK}: a mask in mode RGB"),
    "empty listing": (
        lambda b: (b / LISTING).write_text(""), "val.txt: lists no image"
    ),
    "image of the JSON": (remove("coco/val2017/000000000101.jpg"), "000000000101.jpg: no such image, but"),
    "size in the JSON": (coco_with(lambda c: c["images"][0].update(width=5)), "another size than in"),
    "truncated JSON": (lambda b: disk.truncate(b / INSTANCES), f"{INSTANCES}: truncated or no instances JSON"),
    "box outside": (
        coco_with(lambda c: c["annotations"][0].update(bbox=[40, 8, 20, 16])),
        f"{INSTANCES}: object 1 of image 101 has the box \\[40, 8, 20, 16\\] outside its 48x32",
    ),
    "box that is none": (coco_with(lambda c: c["annotations"][0].update(bbox=[1, 2])), "expected \\[x, y, width"),
    "unknown category": (coco_with(lambda c: c["annotations"][0].update(category_id=4)), "category 4"),
    "unknown image": (coco_with(lambda c: c["annotations"][0].update(image_id=4)), "objects of image 4"),
    "categories": (
        coco_with(lambda c: c["categories"].append({"id": 91, "name": "x"})), "4 categories are not the 3"
    ),
    "missing class": (lambda b: [p.unlink() for p in (b / FOLDER).iterdir()] and (b / FOLDER).rmdir(), disk.WNIDS[2]),
    "empty class": (lambda b: [p.unlink() for p in (b / FOLDER).iterdir()], disk.WNIDS[2]),
    "listing that is none": (
        lambda b: (b / LISTING).write_bytes(bytes(range(256))), "val.txt: no list of names"
    ),
    "blank line in the listing": (
        lambda b: (b / LISTING).write_text((b / LISTING).read_text() + "\n\n"), "val.txt: has a line without a name"
    ),
    "listing that is a folder": (
        lambda b: [(b / LISTING).unlink(), (b / LISTING).mkdir()], f"{LISTING}: Is a directory"
    ),
    "a file for a folder": (
        lambda b: [(b / "imagenette2-160/val").rename(b / "gone"), (b / "imagenette2-160/val").write_text("")],
        "imagenette2-160/val: Not a directory",
    ),
    "a name too long": (coco_with(lambda c: c["images"][0].update(file_name=400 * "x")), "xxx: File name too long"),
    "unknown images": (
        coco_with(lambda c: [c["annotations"][i].update(image_id=n) for i, n in enumerate((4, "x"))]),
        "objects of image 4",
    ),
    "box in letters": (coco_with(lambda c: c["annotations"][0].update(bbox="1234")), "expected \\[x, y, width"),
    "a training image for testing": (
        coco_with(lambda c: c["images"][0].update(file_name="../train2017/000000000001.jpg")), "among the test images"
    ),
    "truncated photo": (lambda b: disk.truncate(b / FOLDER / f"{disk.WNIDS[2]}_0.JPEG"), "_0.JPEG: truncated"),
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


# ---- joint transforms


def scene():
    """A bright rectangle, its mask and its box, on 60 x 40 pixels; void around the mask."""
    image, mask = torch.zeros(3, 40, 60, dtype=torch.uint8), torch.zeros(40, 60, dtype=torch.uint8)
    image[:, 10:22, 15:39], mask[10:22, 15:39] = 255, 7
    boxes = tv_tensors.BoundingBoxes([[15.0, 10, 39, 22]], format="XYXY", canvas_size=(40, 60))
    return Scene(
        tv_tensors.Image(image), tv_tensors.Mask(mask), boxes, torch.tensor([4]), torch.tensor([False])
    )  # fmt: skip


def box_of(mask):
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_image_mask_and_box_move_together():
    seen = set()
    for i in range(40):
        moved = augmented(resized(scene(), 40), torch.Generator().manual_seed(i))
        assert moved.image.shape == (3, 40, 40) and moved.mask.shape == (40, 40) and moved.mask.dtype == torch.uint8
        object_ = moved.mask == 7
        torch.testing.assert_close(moved.boxes[0].as_subclass(torch.Tensor), torch.tensor(box_of(object_)).float())
        assert (moved.image[0] > 127).eq(object_).all() and {*moved.mask.unique().tolist()} <= {0, 7, 255}
        assert moved.classes.tolist() == [4]
        seen.add(tuple(moved.boxes[0].tolist()))
    # At 40 x 40: columns 10 to 26, mirrored 14 to 30; shifted by 3 pixels at most.
    assert {left for left, *_ in seen} == {*range(7, 18)} and {top for _, top, *_ in seen} == {*range(7, 14)}


def test_a_mask_made_smaller_stays_where_its_image_is():
    where = []
    for edge in range(200, 260):
        image, mask = torch.zeros(3, 500, 500, dtype=torch.uint8), torch.zeros(500, 500, dtype=torch.uint8)
        image[..., edge:], mask[:, edge:] = 255, 1
        small = resized(Scene(tv_tensors.Image(image), mask=tv_tensors.Mask(mask)), 96)
        assert isinstance(small.mask, tv_tensors.Mask) and small.mask.shape == (96, 96)
        where.append((small.mask[50].float().sum() - small.image[0, 50].float().sum() / 255).item())
    assert abs(np.mean(where)) < 0.05 and max(map(abs, where)) <= 0.6


def test_an_object_pushed_over_the_border_is_none_any_more():
    here = resized(scene(), 40)
    here.boxes = tv_tensors.wrap(torch.tensor([[0.0, 0, 2, 40], [5, 5, 30, 30]]), like=here.boxes)
    here.classes, here.crowd = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool)
    kept = [augmented(here, torch.Generator().manual_seed(i)).classes.tolist() for i in range(40)]
    assert [1, 2] in kept and [2] in kept and [1] not in kept and [] not in kept


# ---- the loader


class Numbers:
    """Example i is a 1 x 2 x 2 image of i, its label (i, the first random number of the epoch); some files are bad."""

    def __init__(self, n=10, bad=()):
        self.n, self.bad, self.cache = n, bad, Cache((1, 2, 2), n)

    def __len__(self):
        return self.n

    def example(self, row, epoch):
        if row in self.bad:
            raise UserError(f"{row}.jpg: truncated")
        pixels = self.cache.get(row, lambda: torch.full((1, 2, 2), row, dtype=torch.uint8))
        return pixels, torch.tensor([row, -1 if epoch is None else 10 * int(epoch) + row])


def numbers(source, workers=0, **more):
    return StreamLoader(
        source, torch.arange(len(source)), 4, lambda x: x.float(), num_workers=workers,
        order=lambda n, epoch: permutation(n, 0, epoch), **more,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_batch(workers):
    loader = numbers(Numbers(), workers)
    whole = list(loader.epoch(1))
    assert len(loader) == len(whole) == 3 and [len(x) for x, _, _ in whole] == [4, 4, 2]
    rows = torch.cat([labels[:, 0] for _, labels, _ in whole])
    assert torch.equal(rows, permutation(10, 0, 1)) and torch.equal(rows, torch.cat([r[:, 0, 0, 0] for *_, r in whole]))
    for start in range(4):
        assert equal(list(loader.epoch(1, start)), whole[start:])
    assert not equal(list(loader.epoch(2)), whole)
    assert loader.waited > 0


def test_drop_last_keep_and_the_debug_limit():
    assert len(numbers(Numbers(), drop_last=True)) == len(list(numbers(Numbers(), drop_last=True).epoch(0))) == 2
    assert len(list(numbers(Numbers(), max_batches=1).epoch(0))) == 1
    loader = numbers(Numbers())
    loader.keep(torch.tensor([7, 2]))
    assert sorted(next(loader.epoch(0))[1][:, 0].tolist()) == [2, 7]
    assert loader.dataset.data[:, 0, 0, 0].tolist() == [7, 2] and loader.dataset.targets[:, 1].tolist() == [-1, -1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_met_on_the_way_is_one_line(workers):
    loader = StreamEvalLoader(Numbers(bad=[9]), torch.arange(10), 4, lambda x: x, num_workers=workers)
    batches = iter(loader)
    assert next(batches)[1][:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="^9.jpg: truncated$"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_draws_no_random_number_of_the_method(workers):
    before = random_state()["torch"]
    list(numbers(Numbers(), workers).epoch(0))
    assert torch.equal(random_state()["torch"], before)


def test_cache_keeps_no_more_than_it_may():
    cache, decoded = Cache((2,), 3), []

    def read(row):
        return cache.get(row, lambda: decoded.append(row) or torch.full((2,), row, dtype=torch.uint8)).tolist()

    for _ in range(2):
        assert [read(row) for row in range(5)] == [[row, row] for row in range(5)]
    assert decoded == [0, 1, 2, 3, 4, 3, 4] and cache.rows.shape == (3, 2)
    assert Cache((2,), 0).get(0, lambda: 5) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_images_are_found_again_by_every_worker(official, workers):
    more = ["--vision_size=32", f"--num_workers={workers}"]
    cached, not_cached = (stream("seq-vision", official, *more, f"--cache_mb={mb}") for mb in (512, 0))
    first = [list(dataset.enter_task(2).epoch(0)) for dataset in (cached, not_cached)]
    assert equal(*first)
    for path in official.rglob("*.JPEG"):
        path.unlink()
    assert equal(list(cached.train_loader.epoch(0)), first[0])
    with pytest.raises(UserError, match=r"\.JPEG: no such file"):
        list(not_cached.train_loader.epoch(0))


# ---- the streams


def test_cache_mb_bounds_all_parts_together(base, mini):
    dataset = small(base)
    assert all(data.cache.capacity == len(data) for pair in dataset._data for data in pair)
    capacity = 30 * (4 + 3 + 3) * SIZE**2  # bytes of all
    dataset.args.cache_mb = capacity / 2 / 2**20
    dataset._prepare()
    kept = sum(data.cache.rows.numel() for pair in dataset._data for data in pair)
    assert 0.4 * capacity < kept <= capacity / 2


def test_tasks_their_labels_and_their_order(base, mini):
    dataset = small(base, "--vision_order=cls,seg,det")
    assert [(t.name, type(t), t.n_outputs) for t in dataset.tasks] == [
        ("cls", ImageClassTask, 10), ("seg", MaskTask, 11), ("det", PresenceTask, 10),
    ]  # fmt: skip
    assert dataset.tasks[1].class_names[:2] == ["background", "digit 0"] and dataset.SIZE == (3, 32, 32)
    shapes = []
    for task in range(3):
        x, labels, raw = next(dataset.enter_task(task).epoch(0))
        assert x.shape == raw.shape == (8, 3, 32, 32) and raw.dtype == torch.uint8
        torch.testing.assert_close(x, dataset.get_normalization_transform()(raw))
        assert dataset.train_loader.task == task and len(dataset.test_loaders[task].dataset) == 6
        shapes.append((tuple(labels.shape), labels.dtype))
        data = dataset.task_data(task)
        assert len(data) == 24 and data.data.shape == (24, 3, 32, 32) and len(data.targets) == 24
    assert shapes == [((8,), torch.int64), ((8, 32, 32), torch.int64), ((8, 10), torch.float32)]
    boxes = small(base, "--detection=boxes", "--seg_classes=binary")
    assert [(type(t), t.n_outputs) for t in boxes.tasks] == [(BinaryMaskTask, 1), (BoxTask, 10), (ImageClassTask, 10)]
    labels = next(boxes.enter_task(0).epoch(0))[1]
    assert labels.unique().tolist() == [0, 1, 255]


def test_order_and_augmentation_depend_on_seed_task_epoch_and_image_alone(base, mini):
    a, b = small(base, "--detection=boxes"), small(base, "--detection=boxes", "--num_workers=2")
    for task in (2, 1):
        b.enter_task(task)
    torch.rand(3)
    whole = list(a.enter_task(1).epoch(3))
    assert equal(whole, list(b.train_loader.epoch(3))) and equal(whole[2:], list(b.train_loader.epoch(3, 2)))
    plain = small(base, "--augment=0").enter_task(2)
    rows = permutation(24, 0, "order", 2, 0)
    assert torch.equal(torch.cat([raw for *_, raw in plain.epoch(0)]), plain.dataset.data[rows])
    assert not equal(list(small(base).enter_task(2).epoch(0)), list(plain.epoch(0)))


def test_held_out_images_are_training_images_that_are_not_trained_on(base, mini):
    dataset = small(base, "--holdout=25")
    for task in range(3):
        train = dataset.enter_task(task).dataset
        held_out, test = dataset.held_out_loader.dataset, dataset.test_loaders[task].dataset
        assert train.source is held_out.source is not test.source
        assert sorted(train.rows.tolist() + held_out.rows.tolist()) == [*range(24)]
        assert abs(len(held_out) - 6) <= 4  # of 'cls' one of each class's two or three
    validation = small(base, "--validation=25")
    validation.enter_task(0)
    assert validation.test_loaders[0].dataset.source is validation.train_loader.dataset.source


def test_joint_batches_are_of_one_task_each_and_can_be_entered_anywhere(base, mini):
    dataset = small(base, "--joint", "--vision_order=det,seg,cls")
    loader = dataset.enter_task(0)
    assert dataset.N_TASKS == 1 and len(dataset.test_loaders) == 3 and len(loader) == 9 and len(loader.dataset) == 72
    whole = [(loader.task, labels) for _, labels, _ in loader.epoch(0)]
    assert sorted(task for task, _ in whole) == [0] * 3 + [1] * 3 + [2] * 3 != [task for task, _ in whole]
    assert [labels.dim() for _, labels in whole] == [{0: 2, 1: 3, 2: 1}[task] for task, _ in whole]
    rest = [(loader.task, labels) for _, labels, _ in loader.epoch(0, 5)]
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize(
    "option, said",
    [
        ("--vision_order=seg,det", "seg, det, cls in any order"),
        ("--custom_task_order=2,1,0", "--vision_order"),
        ("--permute_classes", "no meaning"),
        ("--multi_head", "head of its own"),
        ("--vision_size=8", ">= 16"),
        ("--vision_subset=4", "give 5 or more"),
        ("--vision_subset=5 --holdout=20", "task 3/3 has 0 examples"),
    ],
)
def test_options_that_cannot_be_are_one_line(base, mini, option, said):
    with pytest.raises(UserError, match=said) as e:
        small(base, *option.split()).enter_task(0)
    assert not re.search("\n", str(e.value))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_is_the_uninterrupted_one(base, mini, workers):
    options = [
        f"--base_path={base}", "--vision_items=digits", "--vision_size=32", "--vision_subset=30", "--trunk=small",
        "--batch_size=8", "--n_epochs=2", "--stop_after=1", f"--num_workers={workers}",
    ]  # fmt: skip
    case = Command("sgd", *options, dataset="seq-vision-mini")
    whole = case_runs.run(case)
    resumed = case_runs.resumed_run(case, 5)  # two of the three batches of the second epoch are done
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))
    assert whole.run.history[-1].scores == resumed.run.history[-1].scores
