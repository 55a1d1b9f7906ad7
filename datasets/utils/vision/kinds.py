"""The kinds of vision task: masks of one or of several classes, classes present, boxes, and one class per image.

Dice, focal loss and label smoothing are no likelihoods: the Fisher information is that of independent pixels and
classes, log p summed over all outputs of an image (a mean over M of them would make it M^2 times smaller).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.datasets.utils.task import ClassTask, Task
from palimpsest.datasets.utils.vision.boxes import box_loss, dense_log_likelihood, detections, draw_dense, parts
from palimpsest.datasets.utils.vision.losses import VOID, cls_loss, det_loss, seg_loss
from palimpsest.datasets.utils.vision.scores import BoxScore, MultiLabelScore, SegmentationScore, TopScore
from palimpsest.utils.distillation import kd

SHOWN_BOXES, SURE = 10, 0.3  # boxes of an image that is shown at most, and the least score of one


class VisionTask(Task):
    """A task whose inputs are images and whose answer comes from a branch of the network.

    Class attributes:
        HEAD: the branch it needs, a key of `backbone.multitask.HEADS`.
        MASKED: its labels are masks.
        TITLE: of a picture of predictions, {} being the task's name.

    Args:
        name: of the task and of its branch: 'seg', 'det' or 'cls'.
        class_names: names of the classes; the background of a mask is the first.

    Attributes:
        n_outputs: channels of a mask, else classes.
    """

    NAME = "vision"
    HEAD: str
    MASKED = False
    TITLE = "Test images of {}"

    def __init__(self, name: str, class_names: list[str]):
        self.name = self.branch = name
        self.class_names, self.n_outputs = class_names, len(class_names)

    def label(self, scene, target: Any, training: bool, max_boxes: int) -> Any:
        """The label of an example as a batch holds it.

        Args:
            scene: the `Scene` as it is shown; `target` what the file says.
            training: regions of crowds are no objects then.
            max_boxes: rows of padded boxes.
        """
        raise NotImplementedError

    def presence(self, labels: Any) -> Tensor:
        """(B, C) bool: which classes an image shows, by its labels."""
        raise NotImplementedError

    def truth(self, labels: Any) -> dict[str, Tensor]:
        """Labels in the form of `decode`, 'present' (B, C) bool in place of scores."""
        return {"present": self.presence(labels)}

    def class_name(self, c: int) -> str:
        """Name of class `c` in a picture's legend."""
        return self.class_names[c]


class MaskTask(VisionTask):
    """Semantic segmentation: logits (B, n, H, W), labels (B, H, W), 255 for pixels that count nowhere."""

    METRIC, HEAD, MASKED = "mIoU", "mask", True
    NOTE = "mIoU in percent over all labelled pixels of the test set"

    loss = staticmethod(seg_loss)

    def score(self, last=None):
        return SegmentationScore(self.n_outputs, self.class_names)

    def label(self, scene, target, training, max_boxes):
        """(S, S) int64."""
        return scene.mask.as_subclass(Tensor).long()

    def distance(self, outputs, taught, tau, direction="teacher"):
        """tau^2 * KL between the classes of a pixel, mean over pixels and images."""
        return kd(outputs.movedim(1, -1), taught.movedim(1, -1), tau, direction).mean()

    def sample(self, outputs, labels):
        p = outputs.movedim(1, -1).softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1).view(labels.shape)
        return torch.where(labels == VOID, labels, drawn)

    def log_likelihood(self, output, label):
        pixels, classes = output.flatten(1).T, label.flatten()
        return -F.cross_entropy(pixels, classes, ignore_index=VOID, reduction="sum")

    def decode(self, outputs):
        """'mask' (B, S, S) uint8 classes."""
        return {"mask": outputs.float().cpu().argmax(1).byte()}

    def presence(self, labels):
        n = max(self.n_outputs, 2)
        return torch.stack([(labels == c).flatten(1).any(1) for c in range(n)], 1)

    def truth(self, labels):
        return {"mask": labels}


class BinaryMaskTask(MaskTask):
    """Object or not: logits (B, 1, H, W), labels as `MaskTask`'s, 0 and 1."""

    METRIC = "IoU_fg"
    NOTE = "IoU_fg in percent over all labelled pixels of the test set"

    def __init__(self, name, class_names):
        super().__init__(name, class_names)
        self.n_outputs = 1

    def label(self, scene, target, training, max_boxes):
        mask = super().label(scene, target, training, max_boxes)
        return torch.where((mask > 0) & (mask != VOID), 1, mask)

    def distance(self, outputs, taught, tau, direction="teacher"):
        """Yes or no at each pixel."""
        return yes_or_no(outputs, taught, tau, direction).mean()

    def sample(self, outputs, labels):
        drawn = torch.bernoulli(outputs[:, 0].sigmoid()).to(labels.dtype)
        return torch.where(labels == VOID, labels, drawn)

    def log_likelihood(self, output, label):
        counted, y = (label != VOID).to(output.dtype), (label == 1).to(output.dtype)
        return -F.binary_cross_entropy_with_logits(output[0], y, counted, reduction="sum")

    def decode(self, outputs):
        return {"mask": (outputs[:, 0].float().cpu() > 0).byte()}

    def class_name(self, c):
        return "object"


class PresenceTask(VisionTask):
    """The classes that are there: logits (B, C), labels (B, C) float in {0, 1}."""

    METRIC, HEAD = "mAP_cls", "presence"
    NOTE = "mAP_cls: mean average precision of the classes present in an image, in percent; no boxes"
    TITLE = "Test images of {}: classes with the best scores"

    loss = staticmethod(det_loss)

    def score(self, last=None):
        return MultiLabelScore(self.class_names)

    def label(self, scene, target, training, max_boxes):
        """(C,) float."""
        return torch.zeros(self.n_outputs).index_fill_(0, scene.classes, 1.0)

    def distance(self, outputs, taught, tau, direction="teacher"):
        """Each class is a distribution over yes and no; the classes of an image are one answer: theirs add up."""
        return yes_or_no(outputs, taught, tau, direction).sum(1).mean()

    def sample(self, outputs, labels):
        return torch.bernoulli(outputs.sigmoid()).to(labels.dtype)

    def log_likelihood(self, output, label):
        return -F.binary_cross_entropy_with_logits(output, label.to(output.dtype), reduction="sum")

    def decode(self, outputs):
        """'scores' (B, C) in [0, 1]."""
        return {"scores": outputs.float().cpu().sigmoid()}

    def presence(self, labels):
        return labels > 0


class BoxTask(VisionTask):
    """Boxes: outputs of a dense detector, see `datasets.utils.vision.boxes`; labels 'boxes' (B, M, 4) corners,
    'classes' (B, M) with -1 for padding, 'crowd' (B, M) bool.
    """

    METRIC, HEAD, FISHERS = "mAP_box", "boxes", ("mc",)
    NOTE = "mAP_box: COCO's mAP@[.5:.95] of boxes, in percent"
    TITLE = "Test images of {}, boxes with scores"

    loss = staticmethod(box_loss)
    sample = staticmethod(draw_dense)
    log_likelihood = staticmethod(dense_log_likelihood)

    def score(self, last=None):
        return BoxScore(self.class_names)

    def label(self, scene, target, training, max_boxes):
        shown = ~scene.crowd if training else torch.ones_like(scene.crowd)
        boxes, missing = scene.boxes.as_subclass(Tensor)[shown], max_boxes - int(shown.sum())
        return {
            "boxes": F.pad(boxes, (0, 0, 0, missing)),
            "classes": F.pad(scene.classes[shown], (0, missing), value=-1),
            "crowd": F.pad(scene.crowd[shown], (0, missing)),
        }

    def distance(self, outputs, taught, tau, direction="teacher"):
        """Classes as those of an image, at each location; sides by their squared difference, where the teacher sees
        any.
        """
        logits, sides, *_ = parts(outputs)
        old, old_sides, *_ = parts(taught)
        seen = old.sigmoid().amax(-1)
        moved = ((sides - old_sides).square().mean(-1) * seen).sum() / seen.sum()
        return yes_or_no(logits.flatten(0, 1), old.flatten(0, 1), tau, direction).sum(1).mean() + moved

    def decode(self, outputs):
        """'boxes' (B, K, 4) corners, 'classes' (B, K), -1 for padding, and 'scores' (B, K)."""
        outputs = outputs.float().cpu()
        b, k = len(outputs), SHOWN_BOXES
        out = {"boxes": torch.zeros(b, k, 4), "classes": torch.full((b, k), -1), "scores": torch.zeros(b, k)}
        for i, found in enumerate(detections(outputs)):
            n = int((found["scores"][:k] >= SURE).sum())  # best first
            for name, rows in out.items():
                rows[i, :n] = found[name][:n]
        return out

    def presence(self, labels):
        return torch.stack([(labels["classes"] == c).any(1) for c in range(self.n_outputs)], 1)

    def truth(self, labels):
        return labels


class ImageClassTask(VisionTask, ClassTask):
    """One class per image: logits (B, C), labels (B,)."""

    METRIC, HEAD, FISHERS, low, whole = "top-1", "class", Task.FISHERS, 0, True
    NOTE = "top-1 accuracy in percent"
    TITLE = "Test images of {}: class with the best score"

    loss = staticmethod(cls_loss)

    def score(self, last=None):
        return TopScore(self.n_outputs)

    def label(self, scene, target, training, max_boxes):
        """() int64."""
        return torch.tensor(target)

    def decode(self, outputs):
        """'scores' (B, C) in [0, 1]."""
        return {"scores": outputs.float().cpu().softmax(1)}

    def presence(self, labels):
        return F.one_hot(labels, self.n_outputs) > 0


def yes_or_no(outputs: Tensor, taught: Tensor, tau: float, direction: str) -> Tensor:
    """`kd` of logits that are each a distribution over yes and no, of their shape."""
    return kd(*(torch.stack((z, torch.zeros_like(z)), -1) for z in (outputs, taught)), tau, direction)


SEGMENTATION = {"binary": BinaryMaskTask, "semantic": MaskTask}  # of `--seg_classes`
DETECTION = {"multilabel": PresenceTask, "boxes": BoxTask}  # of `--detection`
