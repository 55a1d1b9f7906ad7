"""How well a network does on vision tasks, see `datasets.utils.scores`.

Beside the first number of a result there is its 'floor', which is what the best answer that never looks at the image
gets of it on the same data, and, last, the ends of its 95 % interval, 'NAME low' and 'NAME high', where it has one:
nan for fewer than `FEWEST` images.
"""

import math

import torch
from torch import Tensor

from palimpsest.datasets.utils.vision.boxes import detections
from palimpsest.datasets.utils.vision.losses import VOID
from palimpsest.utils.metrics import FEWEST

RESAMPLES = 500
NOTHING = torch.full((1,), math.nan, dtype=torch.float64)


class SegmentationScore:
    """Intersection over union per class from one confusion matrix over all labelled pixels of the test set.

    R holds the mean over classes that are in the labels or the predictions ('mIoU'); of a mask of one channel that of
    the foreground ('IoU_fg'), which is another number and never called mIoU.

    Args:
        channels: one per class; a single one is foreground where its logit is positive.
        class_names: for 'IoU NAME' of each class; left out where there are none.
    """

    def __init__(self, channels: int, class_names=()):
        self.n_classes, self.binary = max(channels, 2), channels == 1
        self.class_names, self.confusions = list(class_names), []

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Logits (B, n, H, W), labels (B, H, W); pixels labelled 255 count nowhere."""
        predicted = (outputs[:, 0] > 0).long() if self.binary else outputs.argmax(1)
        valid, n = labels != VOID, self.n_classes
        pairs = torch.where(valid, labels * n + predicted, n * n)
        cells, images = n * n + 1, torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
        counts = torch.bincount((pairs + cells * images).flatten(), minlength=cells * len(labels))
        self.confusions.append(counts.view(-1, cells)[:, :-1].view(-1, n, n))

    def result(self) -> dict[str, float]:
        confusion = self.per_image().sum(0)
        iou = intersection_over_union(confusion)
        pixels = confusion.sum(1).double()
        share = pixels / pixels.sum()  # 0 / 0 is nan
        if self.binary:
            result = {"IoU_fg": _percent(iou[1]), "floor": _percent(share[1]), "IoU_bg": _percent(iou[0])}
            return result | self.interval()
        # Always the most frequent class: its share there, 0 for the other classes present.
        result = {"mIoU": _percent(iou.nanmean()), "floor": _percent(share.max() / (pixels > 0).sum())}
        each = {f"IoU {name}": _percent(v) for name, v in zip(self.class_names, iou, strict=False)}
        return result | each | self.interval()

    def per_image(self) -> Tensor:
        """(N, C, C) the confusion matrices so far."""
        nothing = torch.zeros(0, self.n_classes, self.n_classes, dtype=torch.long)
        return torch.cat(self.confusions) if self.confusions else nothing

    def interval(self) -> dict[str, float]:
        """By `bootstrap`."""
        confusions = self.per_image().double().cpu()
        if len(confusions) < FEWEST:
            return _ends("IoU_fg" if self.binary else "mIoU", NOTHING)
        sums = bootstrap(len(confusions)) @ confusions.flatten(1)
        iou = intersection_over_union(sums.view(-1, *confusions.shape[1:]))
        return _ends("IoU_fg", iou[:, 1]) if self.binary else _ends("mIoU", iou.nanmean(1))


def intersection_over_union(confusion: Tensor) -> Tensor:
    """(..., C) n_cc / (n_c. + n_.c - n_cc) from counts (..., C, C), row the true class; nan for a class that is
    nowhere.
    """
    confusion = confusion.double()
    hit = confusion.diagonal(dim1=-2, dim2=-1)
    return hit / (confusion.sum(-2) + confusion.sum(-1) - hit)  # 0 / 0 is nan


def bootstrap(n: int) -> Tensor:
    """(`RESAMPLES`, n) how often each of n images is in a sample of n drawn with replacement; always the same."""
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.bincount(rows, minlength=n) for rows in drawn]).double()


def _ends(name: str, values: Tensor) -> dict[str, float]:
    """The middle 95 % of the values of resamples; nan where none is defined."""
    low, high = (values.nanquantile(q) for q in (0.025, 0.975))
    return {f"{name} low": _percent(low), f"{name} high": _percent(high)}


class MultiLabelScore:
    """Average precision of the ranking of images, per class; the mean over classes with a positive image ('mAP_cls').

    Not the mAP of box detection. Its floor is the mean share of positive images, which a random ranking gets.
    """

    def __init__(self, class_names=()):
        self.class_names, self.logits, self.labels = list(class_names), [], []

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Logits (B, C), labels (B, C) in {0, 1}."""
        self.logits.append(outputs.detach()), self.labels.append(labels)

    def result(self) -> dict[str, float]:
        if not self.labels:
            each = {f"AP {name}": math.nan for name in self.class_names}
            return {"mAP_cls": math.nan, "floor": math.nan} | each | _ends("mAP_cls", NOTHING)
        labels = torch.cat(self.labels).double().cpu()
        (ap,), shares = self.average_precision(torch.ones(1, len(labels)).double()), labels.mean(0)
        result = {"mAP_cls": _percent(ap.nanmean()), "floor": _percent(shares[shares > 0].mean())}
        each = {f"AP {name}": _percent(v) for name, v in zip(self.class_names, ap, strict=False)}
        return result | each | self.interval()

    def interval(self) -> dict[str, float]:
        """By `bootstrap`; a class that a resample does not have is left out of its mean."""
        n = sum(map(len, self.labels))
        return _ends("mAP_cls", self.average_precision(bootstrap(n)).nanmean(1) if n >= FEWEST else NOTHING)

    def average_precision(self, weights: Tensor) -> Tensor:
        """(R, C) of each class where image n counts weights[r, n] times; nan for a class without a positive image."""
        logits, labels, each = torch.cat(self.logits).float().cpu(), torch.cat(self.labels).cpu() > 0, []
        for scores, positive in zip(logits.T, labels.T, strict=True):
            order = scores.argsort(descending=True)
            w, hits = weights[:, order], weights[:, order] * positive[order]
            # Images of one score are one threshold: all have the precision of the last of them.
            counts = scores[order].unique_consecutive(return_counts=True)[1]
            last = (counts.cumsum(0) - 1).repeat_interleave(counts)
            precision = (hits.cumsum(1) / w.cumsum(1).clamp(min=1))[:, last]
            each.append((hits * precision).sum(1) / hits.sum(1))  # 0 / 0 is nan
        return torch.stack(each, 1)


class TopScore:
    """The share of images whose class has the largest logit ('top-1'), and is among the five largest ('top-5')."""

    def __init__(self, n_classes: int):
        self.n_classes, self.top1, self.top5, self.labels = n_classes, 0, 0, 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Logits (B, C), labels (B,)."""
        best = outputs.topk(min(5, self.n_classes), 1).indices == labels.unsqueeze(1)
        self.top1, self.top5 = self.top1 + best[:, 0].sum(), self.top5 + best.sum()
        self.labels = self.labels + torch.bincount(labels, minlength=self.n_classes)

    def result(self) -> dict[str, float]:
        """The interval is Wilson's of 1927."""
        from scipy.stats import binomtest

        hits, n = int(self.top1), int(torch.as_tensor(self.labels).sum())
        low = high = math.nan
        if not n:
            return dict.fromkeys(("top-1", "floor", "top-5", "top-1 low", "top-1 high"), math.nan)
        if n >= FEWEST:
            low, high = binomtest(hits, n).proportion_ci(method="wilson")
        result = {"top-1": 100 * hits / n, "floor": 100 * int(self.labels.max()) / n, "top-5": 100 * int(self.top5) / n}
        return result | {"top-1 low": 100 * float(low), "top-1 high": 100 * float(high)}


class BoxScore:
    """COCO's average precision of boxes: the mean over IoU thresholds .5 to .95 ('mAP_box'), and at .5 and .75.

    Crowd regions are ignored as COCO does it. Its floor is 0. There is no interval: COCO's evaluation once per resample
    would take longer than training.
    """

    def __init__(self, class_names=()):
        from torchmetrics.detection import MeanAveragePrecision

        self.class_names, self.metric = list(class_names), MeanAveragePrecision(extended_summary=True)

    def add(self, outputs: Tensor | list[dict[str, Tensor]], labels: dict[str, Tensor]) -> None:
        """Outputs of a dense detector, or detections of each image as `datasets.utils.vision.boxes.detections` has
        them; labels 'boxes' (B, M, 4), 'classes' (B, M) with -1 for padding, 'crowd' (B, M) bool.
        """
        outputs = detections(outputs) if isinstance(outputs, Tensor) else outputs
        labels, found, true = {name: values.cpu() for name, values in labels.items()}, [], []
        for i, one in enumerate(outputs):
            found.append({"boxes": one["boxes"].cpu(), "scores": one["scores"].cpu(), "labels": one["classes"].cpu()})
            boxes, classes, crowd = (
                labels[name][i][labels["classes"][i] >= 0] for name in ("boxes", "classes", "crowd")
            )
            true.append({"boxes": boxes, "labels": classes, "iscrowd": crowd.long()})
        self.metric.update(found, true)

    def result(self) -> dict[str, float]:
        # Precision in float64, -1 where it is not defined: (thresholds of IoU, of recall, classes), all sizes of boxes
        # and the most detections; the summary that torchmetrics makes of it is rounded to float32.
        found = self.metric.compute() if self.metric.groundtruth_labels else {}
        precision, classes = torch.zeros(10, 1, 0, dtype=torch.float64), []
        if "precision" in found:
            precision, classes = found["precision"][..., 0, -1], found["classes"].flatten().tolist()
        result = {"mAP_box": _mean_precision(precision), "floor": 0.0 if found else math.nan}
        result |= {"AP50": _mean_precision(precision[0]), "AP75": _mean_precision(precision[5])}
        each = {c: _mean_precision(precision[..., k]) for k, c in enumerate(classes)}
        return result | {f"AP {name}": each.get(c, math.nan) for c, name in enumerate(self.class_names)}


def _percent(value: Tensor) -> float:
    """nan as the one object `math.nan`, so that equal results compare equal."""
    number = 100 * float(value)
    return math.nan if math.isnan(number) else number


def _mean_precision(values: Tensor) -> float:
    """In percent, of the values that are defined."""
    return _percent(values[values >= 0].mean())
