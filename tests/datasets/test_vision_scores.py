"""Losses and scores of the vision tasks against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from palimpsest.datasets.utils.vision import boxes
from palimpsest.datasets.utils.vision.kinds import BinaryMaskTask, BoxTask, ImageClassTask, MaskTask, PresenceTask
from palimpsest.datasets.utils.vision.losses import VOID, cls_loss, det_loss, dice_loss, seg_loss
from palimpsest.datasets.utils.vision.scores import (
    BoxScore,
    MultiLabelScore,
    SegmentationScore,
    TopScore,
    intersection_over_union,
)


def scored(score, *batches) -> dict[str, float]:
    for outputs, labels in batches:
        score.add(outputs, labels)
    return score.result()


# ---- losses


def test_dice_of_perfect_and_of_disjoint_masks():
    y = torch.zeros(2, 1, 8, 8)
    y[:, :, :4] = 1
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    assert dice_loss(y, y, valid) == 0
    assert dice_loss(1 - y, y, valid).item() == pytest.approx(1 - 1 / 129)  # 64 foreground pixels, 64 predicted
    wrong = y.clone()
    wrong[:, :, 4:] = 1  # wrong only where all is void
    valid[:, 4:] = False
    assert dice_loss(wrong, y, valid) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_void_pixels_is_no_loss(channels):
    logits = torch.randn(2, channels, 4, 4, requires_grad=True)
    loss = seg_loss(logits, torch.full((2, 4, 4), VOID))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_segmentation_loss_is_entropy_plus_dice():
    logits, labels = torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 1], [0, VOID]]])
    # p = .5 on three pixels of which two are foreground: dice 1 - (2 * 1 + 1) / (1.5 + 2 + 1)
    assert seg_loss(logits, labels).item() == pytest.approx(math.log(2) + 1 - 3 / 4.5)
    logits = torch.zeros(1, 4, 2, 2)  # p = .25; classes 1 (two pixels) and 0 (one pixel) are there
    dice = 0.5 * ((1 - (2 * 0.5 + 1) / (0.75 + 2 + 1)) + (1 - (2 * 0.25 + 1) / (0.75 + 1 + 1)))
    assert seg_loss(logits, labels).item() == pytest.approx(math.log(4) + dice)


def test_focal_loss_and_label_smoothing():
    assert det_loss(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(0.25 * 0.25 * math.log(2))
    logits = torch.tensor([[2.0, 0.0]])
    p = logits.softmax(1).log()[0]
    assert cls_loss(logits, torch.tensor([0])).item() == pytest.approx(-(0.95 * p[0] + 0.05 * p[1]).item())


def test_likelihoods_are_sums_over_outputs():
    z = torch.randn(3, 4, 4)
    y = torch.randint(3, (4, 4))
    y[0] = VOID
    whole = -F.cross_entropy(z.unsqueeze(0), y.unsqueeze(0), ignore_index=VOID, reduction="sum")
    torch.testing.assert_close(MaskTask("seg", ["b", "c", "d"]).log_likelihood(z, y), whole)
    z, y = torch.zeros(1, 2, 2), torch.tensor([[1, 0], [1, VOID]])
    of_pixels, of_classes = BinaryMaskTask("seg", ["b", "o"]), PresenceTask("det", [*"abcde"])
    assert of_pixels.log_likelihood(z, y).item() == pytest.approx(3 * math.log(0.5))
    assert of_classes.log_likelihood(torch.zeros(5), torch.ones(5)).item() == pytest.approx(5 * math.log(0.5))


@pytest.mark.parametrize("kind, channels", [(PresenceTask, 1), (ImageClassTask, 2), (BinaryMaskTask, 1), (MaskTask, 2)])
def test_drawn_labels_follow_the_network(kind, channels):
    torch.manual_seed(0)
    masks, n = kind.MASKED, 4000
    outputs = torch.full((1, channels, 60, 80) if masks else (n, channels), math.log(3))  # p = .75
    if channels == 2:
        outputs[:, 0] = 0
    shape = {PresenceTask: (n, 1), ImageClassTask: (n,)}.get(kind, (1, 60, 80))
    labels = torch.zeros(shape, dtype=torch.long)
    if masks:
        labels[:, :10] = VOID
    drawn = kind("any", ["a", "b"][:channels]).sample(outputs, labels)
    assert (
        drawn.dtype == torch.long and bool((drawn == VOID).any()) == masks and not (drawn != VOID)[labels == VOID].any()
    )
    assert drawn[drawn != VOID].float().mean().item() == pytest.approx(0.75, abs=0.03)


KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # from (.75, .25) to (.5, .5)


@pytest.mark.parametrize(
    "task, shape, answers",
    [
        (BinaryMaskTask("seg", ["b", "o"]), (2, 1, 4, 4), 1),
        (MaskTask("seg", ["b", "o"]), (2, 2, 4, 4), 1),
        (PresenceTask("det", [*"abc"]), (2, 3), 3),  # the classes of an image are one answer
        (ImageClassTask("cls", ["a", "b"]), (2, 2), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_distances_by_hand(task, shape, answers):
    tau, student, teacher = 2.0, torch.zeros(shape), torch.full(shape, 2 * math.log(3))
    if isinstance(task, ImageClassTask) or type(task) is MaskTask:
        teacher[:, 1] = 0
    assert task.distance(student, teacher, tau).item() == pytest.approx(4 * answers * KL, rel=1e-5)
    assert task.distance(teacher, student, tau, "student").item() == pytest.approx(4 * answers * KL, rel=1e-5)
    assert task.distance(teacher, teacher, tau).item() == pytest.approx(0, abs=1e-6)


def test_distance_of_boxes_counts_sides_where_the_teacher_sees_any():
    task, student, teacher = BoxTask("det", ["a", "b"]), dense(), dense()
    teacher[..., :2] = -20  # p = 0, but for one location
    teacher[0, 3, 0], teacher[0, 3, 2:6], teacher[0, 5, 2:6] = 20.0, 2.0, 9.0
    student[..., :2] = teacher[..., :2]
    assert task.distance(student, teacher, 1.0).item() == pytest.approx(4, rel=1e-4)


# ---- scores


def test_intersection_over_union_by_hand():
    iou = intersection_over_union(torch.tensor([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
    assert iou[:2].tolist() == pytest.approx([2 / 3, 1 / 2]) and math.isnan(iou[2])
    labels = torch.tensor([[[0, 0], [0, 1]]])
    logits = F.one_hot(torch.tensor([[[0, 0], [1, 1]]]), 3).movedim(-1, 1).float()
    result = scored(SegmentationScore(3, class_names=["a", "b", "c"]), (logits, labels))
    assert result["mIoU"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert math.isnan(result["IoU c"]) and result["IoU a"] == pytest.approx(200 / 3)
    assert result["floor"] == pytest.approx(100 * 0.75 / 2)  # all of it class 0


def test_void_pixels_count_nowhere():
    torch.manual_seed(0)
    labels, logits = torch.randint(3, (2, 8, 8)), torch.randn(2, 3, 8, 8)
    labels[:, :3] = VOID
    flipped = logits.clone()
    flipped[:, :, :3] *= -1
    whole = scored(SegmentationScore(3), (logits, labels))
    assert whole == scored(SegmentationScore(3), (flipped, labels))
    # In one go or batch by batch.
    assert whole == scored(SegmentationScore(3), (logits[:1], labels[:1]), (logits[1:], labels[1:]))


def test_the_mask_of_one_channel_is_scored_by_its_foreground():
    labels = torch.tensor([[[1, 0], [VOID, 0]]])
    logits = torch.tensor([[[[1.0, 1.0], [1.0, -1.0]]]])
    result = scored(SegmentationScore(1), (logits, labels))
    assert next(iter(result)) == "IoU_fg" and "mIoU" not in result
    assert result["IoU_fg"] == pytest.approx(50) and result["IoU_bg"] == pytest.approx(50)
    assert result["floor"] == pytest.approx(100 / 3)  # everything is foreground


def test_average_precision_by_hand():
    logits, labels = torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert scored(MultiLabelScore(), (logits, labels))["mAP_cls"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    # A class without positives is no class.
    more = torch.cat((logits, logits), 1), torch.cat((labels, torch.zeros(3, 1)), 1)
    result = scored(MultiLabelScore(["a", "b"]), more)
    assert result["mAP_cls"] == pytest.approx(100 * 5 / 6) and math.isnan(result["AP b"])
    assert result["floor"] == pytest.approx(200 / 3)


def test_top_one_top_five_and_their_floor():
    logits = torch.arange(10.0).expand(4, 10)
    labels = torch.tensor([9, 9, 6, 0])
    result = scored(TopScore(10), (logits[:1], labels[:1]), (logits[1:], labels[1:]))
    assert result["top-1"] == 50 and result["top-5"] == 75 and result["floor"] == 50
    right = torch.eye(10)[:1].expand(60, 10)
    for wrong, ends in ((0, (94.0, 100)), (1, (91.1, 99.7))):  # Wilson's interval
        result = scored(TopScore(10), (right, (torch.arange(60) >= 60 - wrong).long()))
        assert (result["top-1 low"], result["top-1 high"]) == pytest.approx(ends, abs=0.05)


def test_box_precision_by_hand():
    labels = {
        "boxes": torch.tensor([[[0.0, 0, 10, 12], [0, 0, 0, 0]], [[5.0, 5, 20, 20], [0, 0, 0, 0]]]),
        "classes": torch.tensor([[0, -1], [1, -1]]),
        "crowd": torch.zeros(2, 2, dtype=torch.bool),
    }
    found = [
        {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.tensor([0.9]), "classes": torch.tensor([0])},
        {"boxes": torch.tensor([[5.0, 5, 20, 20]]), "scores": torch.tensor([0.8]), "classes": torch.tensor([1])},
    ]
    result = scored(BoxScore(["a", "b", "c"]), (found, labels))
    assert result["AP a"] == pytest.approx(70) and result["AP b"] == pytest.approx(100)  # IoU .8333: seven thresholds
    assert result["mAP_box"] == pytest.approx(85) and math.isnan(result["AP c"])


def dense(n_classes=2) -> torch.Tensor:
    """Outputs (1, 20, C + 8) for an image of 32 pixels at strides 8 and 16, which say nothing yet."""
    places = [(s * (i + 0.5), s * (j + 0.5), s) for s, n in ((8, 4), (16, 2)) for j in range(n) for i in range(n)]
    return torch.cat((torch.zeros(20, n_classes + 5), torch.tensor(places)), 1).unsqueeze(0)


def one_box(*box, kind=1) -> dict:
    return {
        "boxes": torch.tensor([[[*map(float, box)], [0.0] * 4]]),
        "classes": torch.tensor([[kind, -1]]),
        "crowd": torch.zeros(1, 2, dtype=torch.bool),
    }


def test_locations_that_have_a_box():
    members, sides, central, positive = boxes.assigned(dense(), one_box(6, 6, 20, 18))
    # Its middle is (13, 12): the finer locations within 12 pixels of it and inside, of sides at most 64 away.
    places = dense()[0, :, -3:-1]
    assert [tuple(p) for p in places[positive[0]].tolist()] == [(12.0, 12.0)]
    row = positive[0].nonzero().item()
    assert (sides[0, row] * 8).tolist() == [6, 6, 8, 6]
    assert central[0, row].item() == pytest.approx(math.sqrt(6 / 8))
    assert members[0].sum() == 1 and members[0, row, 1] == 1
    assert not boxes.assigned(dense(), one_box(6, 6, 20, 18, kind=-1))[3].any()


def test_generalised_iou_is_torchvisions():
    from torchvision.ops import generalized_box_iou_loss

    torch.manual_seed(0)
    a, b = (torch.cat((x, x + torch.rand(50, 2)), 1) for x in (torch.rand(50, 2), torch.rand(50, 2)))
    torch.testing.assert_close(1 - boxes.generalised_iou(a, b), generalized_box_iou_loss(a, b))


def test_a_perfect_detector_has_no_loss_and_all_precision():
    labels, outputs = one_box(6, 6, 20, 18), dense()
    members, sides, central, positive = boxes.assigned(outputs, labels)
    outputs[..., :2] = 40 * members - 20
    outputs[..., 2:6], outputs[..., 6] = sides, torch.where(central < 1, torch.logit(central), 20.0)
    entropy = -(central * central.log() + (1 - central) * (1 - central).log())
    assert boxes.box_loss(outputs, labels).item() == pytest.approx(entropy[positive].mean().item(), abs=1e-4)
    (found,) = boxes.detections(outputs)
    assert found["boxes"].tolist() == [[6, 6, 20, 18]] and found["classes"].tolist() == [1]
    assert scored(BoxScore(["a", "b"]), (outputs, labels))["mAP_box"] == pytest.approx(100)
    assert torch.equal(boxes.corners(sides, outputs[..., -3:-1], outputs[..., -1])[positive], labels["boxes"][0, :1])


def test_a_box_ends_where_the_image_does():
    outputs = dense()
    outputs[..., :2], outputs[..., 6] = -20, 20
    outputs[0, [0, 15], [0, 1]] = 20  # the corners of the finer map, middles (4, 4) and (28, 28)
    outputs[0, 0, 2:6], outputs[0, 15, 2:6] = torch.tensor([2.0, 2, 1, 1]), torch.tensor([1.0, 1, 3, 0.25])
    (found,) = boxes.detections(outputs)
    assert sorted(found["boxes"].tolist()) == [[0, 0, 12, 12], [20, 20, 32, 30]]


def test_an_image_without_boxes_teaches_that_nothing_is_there():
    outputs = dense().requires_grad_()
    boxes.box_loss(outputs, one_box(0, 0, 0, 0, kind=-1)).backward()
    assert outputs.grad[..., :2].all() and not outputs.grad[..., 2:].any()


def test_likelihood_of_boxes():
    torch.manual_seed(0)
    outputs, labels = dense(), one_box(6, 6, 20, 18)
    drawn = boxes.draw_dense(outputs, labels)
    assert drawn.shape == (1, 20, 8) and drawn[..., -1].sum() == 1
    row = drawn[0, drawn[0, :, -1] == 1][0]
    expected = 40 * math.log(0.5) + math.log(0.5) - row[3:7].square().sum().item() / 2
    assert boxes.dense_log_likelihood(outputs[0], drawn[0]).item() == pytest.approx(expected, rel=1e-5)
