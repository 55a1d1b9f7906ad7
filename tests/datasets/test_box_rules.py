"""Boxes and classes present: crowds, doubles of other classes, which of several boxes a location has, rankings."""

import pytest
import torch

from palimpsest.datasets.utils.vision import boxes
from palimpsest.datasets.utils.vision.kinds import BoxTask, PresenceTask
from tests.datasets.test_vision_scores import dense, one_box

NEIGHBOURS = (5, 6)  # of the finer map, middles (12, 12) and (20, 12)


def says(*kinds: int) -> torch.Tensor:
    """Outputs in which the two neighbours see the box (4, 4, 28, 20), of these classes."""
    outputs = dense(2)
    outputs[..., :2] = -20
    for row, kind in zip(NEIGHBOURS, kinds, strict=True):
        x = outputs[0, row, -3].item()
        outputs[0, row, kind], outputs[0, row, 6] = 4 - row % 2, 20
        outputs[0, row, 2:6] = torch.tensor([x - 4, 8, 28 - x, 8]) / 8
    return outputs


def test_doubles_are_left_out_within_a_class_alone():
    (same,), (different,) = boxes.detections(says(1, 1)), boxes.detections(says(0, 1))
    assert same["boxes"].tolist() == [[4, 4, 28, 20]] and same["classes"].tolist() == [1]
    assert different["boxes"].tolist() == [[4, 4, 28, 20]] * 2 and sorted(different["classes"].tolist()) == [0, 1]


def test_a_crowd_is_no_object_to_be_learned():
    labels = one_box(6, 6, 20, 18)
    outputs = dense().requires_grad_()
    assert boxes.assigned(outputs, labels)[3].any()
    labels["crowd"][0, 0] = True
    members, _, _, positive = boxes.assigned(outputs, labels)
    assert not positive.any() and not members.any()
    BoxTask("det", ["a", "b"]).loss(outputs, labels).backward()
    assert not outputs.grad[..., 2:].any()


def test_of_several_boxes_a_location_has_the_smallest():
    labels = one_box(6, 6, 20, 18)
    for first, second in ((0, 1), (1, 0)):
        labels["boxes"][0, first] = torch.tensor([6.0, 6, 20, 18])
        labels["boxes"][0, second] = torch.tensor([2.0, 2, 24, 22])  # the same middle, 13 and 12
        labels["classes"][0, first], labels["classes"][0, second] = 0, 1
        members, sides, _, positive = boxes.assigned(dense(), labels)
        row = NEIGHBOURS[0]
        assert positive[0, row] and members[0, row].tolist() == [1, 0]
        assert (sides[0, row] * 8).tolist() == [6, 6, 8, 6]


def test_what_is_found_in_a_crowd_and_a_crowd_that_is_not_found_cost_nothing():
    labels = one_box(0, 0, 10, 10, kind=0)
    labels["boxes"][0, 1], labels["classes"][0, 1] = torch.tensor([20.0, 20, 60, 60]), 0
    labels["crowd"][0, 1] = True
    right = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.tensor([0.5]), "classes": torch.tensor([0])}
    inside = {
        "boxes": torch.tensor([[25.0, 25, 40, 40], [0.0, 0, 10, 10]]),
        "scores": torch.tensor([0.9, 0.5]),
        "classes": torch.tensor([0, 0]),
    }
    for found in (right, inside):
        score = BoxTask("det", ["a"]).score()
        score.add([found], labels)
        assert score.result()["mAP_box"] == pytest.approx(100)


def test_sides_count_only_where_there_is_a_box():
    torch.manual_seed(0)
    labels, outputs = one_box(6, 6, 20, 18), dense()
    outputs[..., 2:6] = torch.rand(1, 20, 4)
    positive = boxes.assigned(outputs, labels)[3][0]
    loss, other = boxes.box_loss(outputs, labels), outputs.clone()
    other[0, ~positive, 2:7] = 5 * torch.rand(int((~positive).sum()), 5)
    torch.testing.assert_close(boxes.box_loss(other, labels), loss)
    other[0, positive, 2:6] += 1
    assert boxes.box_loss(other, labels) != loss


def test_the_best_images_come_first_in_average_precision():
    for labels, expected in (([1, 1, 0], 1), ([0, 1, 1], (1 / 2 + 2 / 3) / 2), ([0, 0, 1], 1 / 3)):
        score = PresenceTask("det", ["a"]).score()
        score.add(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor(labels).float().unsqueeze(1))
        assert score.result()["mAP_cls"] == pytest.approx(100 * expected)
