"""Examples of a vision task as the network gets them: decoded, resized, kept, flipped and shifted with their labels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from palimpsest.datasets.utils.streaming import Cache, Streamed
from palimpsest.datasets.utils.vision.formats import VOID, Boxes, Examples, read_image, read_mask
from palimpsest.datasets.utils.vision.kinds import VisionTask
from palimpsest.utils.randomness import generator

SHIFT = 12  # an image is shifted by at most a twelfth of its side: 8 of 96 pixels
LEFT = 0.25  # share of its box by which an object at the border still counts


@dataclass
class Scene:
    """An image and what is true of it, which move together.

    Attributes:
        image: (3, S, S) uint8.
        mask: (S, S) uint8 class numbers, of segmentation.
        boxes: (k, 4) corners, of detection, with `classes` (k,) and `crowd` (k,).
    """

    image: tv_tensors.Image
    mask: tv_tensors.Mask | None = None
    boxes: tv_tensors.BoundingBoxes | None = None
    classes: Tensor | None = None
    crowd: Tensor | None = None

    def move(self, function) -> None:
        """Apply a function of tv_tensors to every part."""
        for name in ("image", "mask", "boxes"):
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))


def augment(scene: Scene, rng: torch.Generator, mirror: bool = True) -> None:
    """With `mirror` mirrored with probability one half; shifted by up to a twelfth of the side in each direction.

    What comes in from outside continues the border, and is void: an edge of another colour would be a feature that no
    test image has. Boxes are cut at the border; an object of which less than a quarter is left then is none any more.
    """
    size, whole = scene.image.shape[-1], scene.boxes
    far = size // SHIFT
    flip, top, left = torch.rand(3, generator=rng).tolist()
    if mirror and flip < 0.5:
        scene.move(v2.functional.horizontal_flip)
    top, left = (int(part * (2 * far + 1)) for part in (top, left))

    def shift(x):
        outside = {"padding_mode": "edge"} if isinstance(x, tv_tensors.Image) else {"fill": VOID}
        return v2.functional.crop(v2.functional.pad(x, [far], **outside), top, left, size, size)

    scene.move(shift)
    if whole is not None:
        before, after = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (whole, scene.boxes))
        kept = after >= LEFT * before
        scene.boxes = tv_tensors.wrap(scene.boxes[kept], like=scene.boxes)
        scene.classes, scene.crowd = scene.classes[kept], scene.crowd[kept]


def equally_spaced(length: int, n: int) -> list[int]:
    """`n` of `length` rows, all if there are fewer, at equal distances, since they may be sorted by class."""
    n = min(n, length)
    return [i * length // n for i in range(n)]


class VisionData(Streamed):
    """One part (training or test) of a task, to be read example by example.

    Args:
        examples: what lies on the disk.
        task: the `VisionTask`, which says what the labels are.
        size: side of the images.
        augment, mirror: whether `example` augments in training, and whether that may mirror.
        capacity: decoded examples kept in memory.
        max_boxes: rows of the padded boxes.
        seed: what the augmentation is a function of, with task, epoch and example.
        num_workers: processes that decode.
    """

    def __init__(
        self,
        examples: Examples,
        task: VisionTask,
        size: int,
        augment: bool = False,
        mirror: bool = True,
        capacity: int = 0,
        max_boxes: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(num_workers)
        self.examples, self.task, self.size, self.augment = examples, task, size, augment
        self.mirror, self.max_boxes, self.seed = mirror, max_boxes, seed
        self.cache = Cache((3 + task.MASKED, size, size), min(capacity, len(examples)))

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, row: int, epoch: int | str | None = None) -> tuple[Tensor, Any]:
        """Raw image (3, S, S) uint8 and label, see `VisionTask.label`; augmented as in `epoch`, unless that is None.

        Raises:
            UserError: a file that cannot be read.
        """
        pixels = self.cache.get(row, lambda: self._decoded(row))
        scene, target = Scene(tv_tensors.Image(pixels[:3])), self.examples.targets[row]
        if self.task.MASKED:
            scene.mask = tv_tensors.Mask(pixels[3])
        elif isinstance(target, Boxes):
            boxes = tv_tensors.BoundingBoxes(target.corners, format="XYXY", canvas_size=target.size[::-1])
            scene.boxes = v2.functional.resize(boxes, [self.size, self.size])
            scene.classes, scene.crowd = target.classes, target.crowd
        if epoch is not None and self.augment:
            augment(scene, generator(self.seed, "augmentation", self.task.name, epoch, row), self.mirror)
        label = self.task.label(scene, target, training=epoch is not None, max_boxes=self.max_boxes)
        return scene.image.as_subclass(Tensor), label

    def _decoded(self, row: int) -> Tensor:
        """(3, S, S), with the mask as a fourth channel where there is one."""
        resize, size, nearest = v2.functional.resize_image, [self.size] * 2, v2.InterpolationMode.NEAREST_EXACT
        image = resize(v2.functional.pil_to_tensor(read_image(self.examples.files[row])), size)
        if not self.task.MASKED:
            return image
        # Pixels have their middles at halves; v2's own resizing of masks takes them at whole numbers.
        mask = torch.from_numpy(read_mask(self.examples.targets[row], len(self.examples.class_names)))
        return torch.cat((image, resize(mask.unsqueeze(0), size, interpolation=nearest)))
