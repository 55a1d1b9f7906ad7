"""Losses of the vision tasks, and the likelihoods that their Fisher information is taken of.

'seg': logits (B, n, H, W), labels (B, H, W) with `VOID` for pixels that count nowhere; n = 1: labels 0 and 1.
'det': logits (B, C), labels (B, C) in {0, 1}, the classes present; with boxes see `datasets.utils.boxes`.
'cls': logits (B, C), labels (B,).

Dice and focal loss are no likelihoods: the Fisher information is that of independent pixels and classes, log p summed
over all outputs of an image (a mean over M of them would make it M^2 times smaller).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.utils.boxes import box_loss, dense_log_likelihood, draw_dense

VOID = 255  # the pixels of a mask that count nowhere


def seg_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over labelled pixels, plus `dice_loss` over the classes present in the batch; for one
    channel binary cross-entropy plus that of the foreground. 0 where all is void.
    """
    valid = labels != VOID
    count = valid.sum().clamp(min=1)
    target = torch.where(valid, labels, 0)
    if logits.shape[1] == 1:
        z, y = logits[:, 0], target.to(logits.dtype)
        entropy = (F.binary_cross_entropy_with_logits(z, y, reduction="none") * valid).sum() / count
        return entropy + dice_loss(z.sigmoid().unsqueeze(1), y.unsqueeze(1), valid)
    entropy = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum") / count
    members = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    return entropy + dice_loss(logits.softmax(1), members, valid)


def dice_loss(probabilities: Tensor, members: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 sum p y + 1) / (sum p + sum y + 1) over the batch's valid pixels, the mean over its classes.

    Of several classes those without a pixel in the batch are left out; a single one is always counted.

    Args:
        probabilities, members: (B, C, H, W), members in {0, 1}.
        valid: (B, H, W) bool.

    Reference: Milletari et al. 2016, "V-Net", section 3, with sums for their squares.
    """
    mask, over = valid.unsqueeze(1).to(probabilities.dtype), (0, 2, 3)
    p, y = probabilities * mask, members * mask
    size = y.sum(over)
    loss = 1 - (2 * (p * y).sum(over) + 1) / (p.sum(over) + size + 1)
    counted = (size > 0).to(loss.dtype) if len(loss) > 1 else torch.ones_like(loss)
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def det_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid focal loss, alpha 0.25, gamma 2, mean over images and classes (Lin et al. 2017)."""
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, labels.to(logits.dtype), alpha=0.25, gamma=2, reduction="mean")


def cls_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with label smoothing 0.1."""
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


LOSSES = {"seg": seg_loss, "det": det_loss, "cls": cls_loss, "boxes": box_loss}


def log_likelihood(task: str, output: Tensor, label: Tensor) -> Tensor:
    """log p(y | x) of one image, summed over its outputs, void pixels left out.

    Args:
        task: 'seg', 'det' or 'cls'.
        output: (n, H, W) or (C,); of boxes (L, C + 8).
        label: (H, W), (C,) or (); of boxes what `draw_labels` returned.
    """
    if task == "det" and output.dim() == 2:
        return dense_log_likelihood(output, label)
    if task == "cls":
        return output.log_softmax(0).gather(0, label.unsqueeze(0)).squeeze(0)
    if task == "seg" and len(output) > 1:
        target = torch.where(label == VOID, 0, label)
        each = output.log_softmax(0).gather(0, target.unsqueeze(0)).squeeze(0)
        return torch.where(label == VOID, 0.0, each).sum()
    if task == "seg":
        output = output[0]
    y = torch.where(label == VOID, 0, label).to(output.dtype)
    each = -F.binary_cross_entropy_with_logits(output, y, reduction="none")
    return torch.where(label == VOID, 0.0, each).sum()


def draw_labels(task: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """Labels drawn from p(y | x), one for every output by itself, void where `labels` are; shaped and typed like them,
    but dense where they are boxes.

    Args:
        outputs: logits of a batch.
    """
    if task == "det" and outputs.dim() == 3:
        return draw_dense(outputs, labels)
    if task == "det":
        return torch.bernoulli(outputs.sigmoid()).to(labels.dtype)
    if outputs.dim() == 4 and outputs.shape[1] == 1:
        drawn = torch.bernoulli(outputs[:, 0].sigmoid()).to(labels.dtype)
    else:
        p = outputs.movedim(1, -1).softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1).view(labels.shape)
    return torch.where(labels == VOID, labels, drawn) if task == "seg" else drawn
