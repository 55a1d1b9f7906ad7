"""Losses of the vision tasks; that of boxes is in `datasets.utils.vision.boxes`.

'seg': logits (B, n, H, W), labels (B, H, W) with `VOID` for pixels that count nowhere; n = 1: labels 0 and 1.
'det': logits (B, C), labels (B, C) in {0, 1}, the classes present.
'cls': logits (B, C), labels (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
