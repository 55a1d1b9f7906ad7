"""Dense detection of boxes (Tian et al. 2019, "FCOS"): every location of the maps says which classes are there, how far
the four sides of the box are, and how central it is.

Outputs are one tensor (B, L, C + 8): class logits, the distances left, top, right, bottom >= 0 in strides, the logit of
centrality, then x, y and stride of the location itself in pixels, which are no outputs but say how to read them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 1.5  # a location belongs to a box if it is within so many strides of its middle
SMALLEST, LARGEST = 4, 8  # and its farthest side between so many strides away; the finest and coarsest maps go on
BEST, FOUND, LEAST, OVERLAP = 300, 100, 0.05, 0.6  # candidates and detections per image, lowest score, IoU of doubles


def parts(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Class logits (..., C), distances (..., 4), centrality (...), middles (..., 2), strides (...)."""
    classes = outputs.shape[-1] - 8
    logits, sides, central, middle, stride = outputs.split((classes, 4, 1, 2, 1), -1)
    return logits, sides, central.squeeze(-1), middle, stride.squeeze(-1)


def corners(sides: Tensor, middle: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy of distances in strides."""
    far = sides * stride.unsqueeze(-1)
    return torch.cat((middle - far[..., :2], middle + far[..., 2:]), -1)


def assigned(outputs: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each location should say: members (B, L, C), sides (B, L, 4) in strides, centrality (B, L) in [0, 1], and
    whether it has a box at all (B, L), where alone the latter two count. Of several boxes it has the smallest.
    """
    logits, _, _, middle, stride = parts(outputs)
    boxes, classes = labels["boxes"].unsqueeze(1), labels["classes"].unsqueeze(1)  # (B, 1, M, ...)
    x, step = middle.unsqueeze(2), stride.unsqueeze(2)
    sides = torch.cat((x - boxes[..., :2], boxes[..., 2:] - x), -1)  # (B, L, M, 4)
    near = (x - (boxes[..., :2] + boxes[..., 2:]) / 2).abs().amax(-1) < RADIUS * step
    far, finest, coarsest = sides.amax(-1), stride.min(), stride.max()
    low = torch.where(step == finest, 0.0, SMALLEST * step)
    high = torch.where(step == coarsest, torch.inf, LARGEST * step)
    mine = near & (sides.amin(-1) > 0) & (far > low) & (far < high) & (classes >= 0)
    mine &= ~labels["crowd"].unsqueeze(1)  # a box around many is no object
    area = torch.where(mine, (boxes[..., 2:] - boxes[..., :2]).prod(-1), torch.inf)
    smallest, which = area.min(2)
    positive = smallest < torch.inf
    own = sides.gather(2, which[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
    kind = classes.expand(-1, which.shape[1], -1).gather(2, which.unsqueeze(2)).squeeze(2)
    members = F.one_hot(kind.clamp(min=0), logits.shape[-1]).to(logits.dtype) * positive.unsqueeze(-1)
    own = torch.where(positive.unsqueeze(-1), own, 1.0)
    ends = torch.stack((own[..., [0, 2]], own[..., [1, 3]]), -1)
    central = (ends.amin(-2) / ends.amax(-2)).prod(-1).sqrt()
    return members, own / stride.unsqueeze(-1), central, positive


def box_loss(outputs: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Focal loss of the classes, 1 - GIoU of the boxes and binary cross-entropy of the centrality, each per location
    that has a box.
    """
    from torchvision.ops import sigmoid_focal_loss

    logits, sides, central, middle, stride = parts(outputs)
    members, own, goal, positive = assigned(outputs, labels)
    boxes, wanted = corners(sides, middle, stride), corners(own, middle, stride)
    what = sigmoid_focal_loss(logits, members, reduction="sum")
    where = ((1 - generalised_iou(boxes, wanted)) * positive).sum()
    how = (F.binary_cross_entropy_with_logits(central, goal, reduction="none") * positive).sum()
    return (what + where + how) / positive.sum().clamp(min=1)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU minus the share of the smallest box around both that neither covers, of pairs (..., 4) xyxy; in (-1, 1].

    Rezatofighi et al. 2019. torchvision's waits for the device.
    """

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    common = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    around = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - common
    return common / union.clamp(min=1e-7) - (around - union) / around.clamp(min=1e-7)


def draw_dense(outputs: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """(B, L, C + 6): classes and centrality drawn from the network, sides with deviation 1 around its own, and which
    locations have a box.
    """
    logits, sides, central, _, _ = parts(outputs)
    positive = assigned(outputs, labels)[3].unsqueeze(-1).to(outputs.dtype)
    drawn = torch.bernoulli(torch.cat((logits, central.unsqueeze(-1)), -1).sigmoid())
    return torch.cat((drawn, sides + torch.randn_like(sides), positive), -1)


def dense_log_likelihood(output: Tensor, drawn: Tensor) -> Tensor:
    """log p of one image up to a constant: Bernoulli for classes everywhere and for centrality where there is a box,
    Gaussian of deviation 1 (stride) for its sides there.
    """
    logits, sides, central, _, _ = parts(output)
    members, middle, goal, positive = drawn.split((logits.shape[-1], 1, 4, 1), -1)
    what = F.binary_cross_entropy_with_logits(logits, members, reduction="sum")
    how = F.binary_cross_entropy_with_logits(central.unsqueeze(-1), middle, weight=positive, reduction="sum")
    return -what - how - ((sides - goal).square() * positive).sum() / 2


@torch.no_grad()
def detections(outputs: Tensor) -> list[dict[str, Tensor]]:
    """Of each image: 'boxes' (K, 4) xyxy, 'scores' (K,) = sqrt(class * centrality), 'classes' (K,), best first; doubles
    of a class are left out. Boxes end where the finest map does.
    """
    from torchvision.ops import batched_nms

    logits, sides, central, middle, stride = parts(outputs)
    scores = (logits.sigmoid() * central.sigmoid().unsqueeze(-1)).sqrt().flatten(1)
    finest = (stride == stride.min()).unsqueeze(-1)
    ends = ((middle + stride.unsqueeze(-1) / 2) * finest).amax(1, keepdim=True).repeat(1, 1, 2)
    boxes, classes, found = corners(sides, middle, stride).clamp(min=0).minimum(ends), logits.shape[-1], []
    best, index = scores.topk(min(BEST, scores.shape[1]), 1)
    for each, values, rows in zip(boxes, best, index, strict=True):
        each, kinds, enough = each[rows // classes], rows % classes, values > LEAST
        each, kinds, values = each[enough], kinds[enough], values[enough]
        kept = batched_nms(each, values, kinds, OVERLAP)[:FOUND]
        found.append({"boxes": each[kept], "scores": values[kept], "classes": kinds[kept]})
    return found
