"""Vision streams: images, masks and boxes moved together, the loader, the tasks and their order."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from palimpsest.datasets.utils.loaders import EvalLoader, TrainLoader
from palimpsest.datasets.utils.streaming import Cache, Streamed
from palimpsest.datasets.utils.vision.data import Scene, VisionData, augment, equally_spaced
from palimpsest.datasets.utils.vision.formats import Examples
from palimpsest.datasets.utils.vision.kinds import BinaryMaskTask, BoxTask, ImageClassTask, MaskTask, PresenceTask
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import permutation, random_state
from tests.datasets import test_vision_data
from tests.datasets.test_vision_data import SIZE, equal, small, stream

base, mini, official = test_vision_data.base, test_vision_data.mini, test_vision_data.official  # fixtures

# ---- joint transforms


def scene():
    """A bright rectangle, its mask and its box, on 40 x 40 pixels."""
    image, mask = torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8)
    image[:, 10:22, 10:26], mask[10:22, 10:26] = 255, 7
    boxes = tv_tensors.BoundingBoxes([[10.0, 10, 26, 22]], format="XYXY", canvas_size=(40, 40))
    return Scene(tv_tensors.Image(image), tv_tensors.Mask(mask), boxes, torch.tensor([4]), torch.tensor([False]))


def test_image_mask_and_box_move_together():
    seen = set()
    for i in range(40):
        moved = scene()
        augment(moved, torch.Generator().manual_seed(i))
        assert moved.image.shape == (3, 40, 40) and moved.mask.shape == (40, 40) and moved.mask.dtype == torch.uint8
        object_ = moved.mask == 7
        rows, columns = object_.any(1).nonzero().flatten(), object_.any(0).nonzero().flatten()
        assert moved.boxes[0].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert (moved.image[0] > 127).eq(object_).all() and {*moved.mask.unique().tolist()} <= {0, 7, 255}
        assert moved.classes.tolist() == [4]
        seen.add(tuple(moved.boxes[0].tolist()))
    # Columns 10 to 26, mirrored 14 to 30; shifted by 3 pixels at most.
    assert {left for left, *_ in seen} == {*range(7, 18)} and {top for _, top, *_ in seen} == {*range(7, 14)}


def test_what_comes_in_from_outside_is_void():
    for i in range(20):
        moved = scene()
        moved.mask = tv_tensors.Mask(torch.ones(40, 40, dtype=torch.uint8))
        augment(moved, torch.Generator().manual_seed(i), mirror=False)
        right, down = (int(corner) - 10 for corner in moved.boxes[0, :2])
        expected = torch.full((40, 40), 255, dtype=torch.uint8)
        expected[max(down, 0) : 40 + min(down, 0), max(right, 0) : 40 + min(right, 0)] = 1
        assert torch.equal(moved.mask.as_subclass(torch.Tensor), expected)


def test_a_mask_made_smaller_stays_where_its_image_is(tmp_path):
    image = np.arange(500) >= 200 + np.arange(500).reshape(-1, 1) // 8  # an edge that moves by a pixel every 8 rows
    Image.fromarray(np.uint8(255 * image)).save(tmp_path / "image.png")
    Image.fromarray(np.uint8(image)).save(tmp_path / "mask.png")
    task = MaskTask("seg", ["background", "object"])
    examples = Examples(tmp_path, [tmp_path / "image.png"], [tmp_path / "mask.png"], task.class_names)
    small, mask = VisionData(examples, task, 96).example(0)
    difference = mask.double().sum(1) - small[0].double().sum(1) / 255
    assert small.shape == (3, 96, 96) and mask.shape == (96, 96)
    assert difference.mean().abs() < 0.05 and difference.abs().max() <= 0.6


def test_an_object_pushed_over_the_border_is_none_any_more():
    kept = []
    for i in range(40):
        here = scene()
        here.boxes = tv_tensors.wrap(torch.tensor([[0.0, 0, 2, 40], [5, 5, 30, 30]]), like=here.boxes)
        here.classes, here.crowd = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool)
        augment(here, torch.Generator().manual_seed(i))
        kept.append(here.classes.tolist())
    assert [1, 2] in kept and [2] in kept and [1] not in kept and [] not in kept


# ---- the loader


class Numbers(Streamed):
    """Example i is a 1 x 2 x 2 image of i, its label (i, the first random number of the epoch); some files are bad."""

    def __init__(self, n=10, bad=(), workers=0):
        super().__init__(workers)
        self.n, self.bad, self.cache = n, bad, Cache((1, 2, 2), n)

    def __len__(self):
        return self.n

    def example(self, row, epoch=None):
        if row in self.bad:
            raise UserError(f"{row}.jpg: truncated")
        pixels = self.cache.get(row, lambda: torch.full((1, 2, 2), row, dtype=torch.uint8))
        return pixels, torch.tensor([row, -1 if epoch is None else 10 * int(epoch) + row])


def numbers(workers=0, **more):
    source = Numbers(workers=workers)
    order = lambda n, epoch: permutation(n, 0, epoch)  # noqa: E731
    return TrainLoader(source, torch.arange(len(source)), 4, lambda x: x.float(), order, **more)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_batch(workers):
    loader, before = numbers(workers), random_state()["torch"]
    whole = list(loader.epoch(1))
    assert torch.equal(random_state()["torch"], before)  # no number of the method's is drawn
    assert len(loader) == len(whole) == 3 and [len(x) for x, _, _ in whole] == [4, 4, 2]
    rows = torch.cat([labels[:, 0] for _, labels, _ in whole])
    assert torch.equal(rows, permutation(10, 0, 1)) and torch.equal(rows, torch.cat([r[:, 0, 0, 0] for *_, r in whole]))
    for start in range(4):
        assert equal(list(loader.epoch(1, start)), whole[start:])
    assert not equal(list(loader.epoch(2)), whole)
    assert loader.dataset.source.waited > 0


def test_drop_last_keep_and_the_debug_limit():
    assert len(numbers(drop_last=True)) == len(list(numbers(drop_last=True).epoch(0))) == 2
    assert len(list(numbers(max_batches=1).epoch(0))) == 1
    loader = numbers()
    loader.keep(torch.tensor([7, 2]))
    assert sorted(next(loader.epoch(0))[1][:, 0].tolist()) == [2, 7]
    assert loader.dataset.data[:, 0, 0, 0].tolist() == [7, 2] and loader.dataset.targets[:, 1].tolist() == [-1, -1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_met_on_the_way_is_one_line(workers):
    loader = EvalLoader(Numbers(bad=[9], workers=workers), torch.arange(10), 4, lambda x: x)
    batches = iter(loader)
    assert next(batches)[1][:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="^9.jpg: truncated$"):
        list(batches)


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


def test_rows_at_equal_distances():
    assert equally_spaced(10, 4) == [0, 2, 5, 7] and equally_spaced(3, 4) == [0, 1, 2]


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
    own = small(base).enter_task(2).dataset.source  # held-out images are read from it too, in no epoch
    first, second, looked_at = (torch.stack([own.example(i, epoch)[0] for i in range(24)]) for epoch in (0, 1, None))
    assert not torch.equal(first, second)
    assert torch.equal(looked_at, torch.stack([plain.dataset.source.example(i)[0] for i in range(24)]))


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
        ("--vision_order=seg,det", "seg,det,cls"),
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
    assert "\n" not in str(e.value)
