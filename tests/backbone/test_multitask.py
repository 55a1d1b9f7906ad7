"""The network with a branch per vision task: shapes, sizes, and what its BatchNorm does from task to task."""

import pytest
import torch
from torch import nn

from palimpsest.backbone.multitask import BalancedMultiTaskModel
from palimpsest.backbone.utils.bn_policy import POLICIES, StoppableBatchNorm2d, TaskBatchNorm2d
from palimpsest.datasets.utils.vision.kinds import ImageClassTask
from palimpsest.utils.errors import UserError
from tests.models.helpers import clones


def small(**more) -> BalancedMultiTaskModel:
    return BalancedMultiTaskModel(5, 4, 3, trunk="small", **more)


@pytest.mark.parametrize("head", ["branches", "unified"])
def test_branches_of_the_whole_network(head):
    net = BalancedMultiTaskModel(head=head).eval()
    with torch.no_grad():
        outputs = net(torch.rand(2, 3, 224, 224))
    shapes = {task: tuple(z.shape) for task, z in outputs.items()}
    assert shapes == {"seg": (2, 1, 224, 224), "det": (2, 80), "cls": (2, 30)}
    total = sum(p.numel() for p in net.parameters())
    assert total == sum(net.parts().values()) < 8_000_000
    assert f"{total:,}" in net.describe()


def test_sizes_of_the_reference_network():
    one, two = (BalancedMultiTaskModel(num_classes_cls=n, bn_policy="shared").parts() for n in (30, 1000))
    assert one == {"trunk": 4_007_548, "seg": 652_321, "det": 401_488, "cls": 794_910}
    assert sum(two.values()) - sum(one.values()) == 249_290


def test_a_network_that_is_too_large_is_refused():
    with pytest.raises(UserError, match="limit is 8,000,000"):
        BalancedMultiTaskModel(num_classes_cls=10_000)


def test_one_head_for_all_tasks():
    net, width = BalancedMultiTaskModel(head="unified"), 96
    norms = 3 * 5 * 2 * width  # three tasks, five layers, scale and shift
    convolutions = (40 + 112 + 320) * width + 2 * 9 * width**2 + (width + 1) * 111
    assert net.parts()["head"] == convolutions + norms and list(net.parts()) == ["trunk", "head"]
    with pytest.raises(UserError, match="--detection multilabel"):
        net.set_tasks({"det": 5}, {"det": "boxes"})


@pytest.mark.parametrize("head", ["branches", "unified"])
def test_presence_begins_as_rare(head):
    net = small(head=head)
    bias = net.unified.last.bias[3:8] if net.unified else net.heads["det"].last.bias
    assert torch.allclose(bias.sigmoid(), torch.full((5,), 0.01))
    others = torch.cat((net.unified.last.bias[:3], net.unified.last.bias[8:])) if net.unified else net.classifier.bias
    assert others.abs().max() < 1


def test_the_channels_of_one_head_are_those_of_its_tasks():
    net, x = small(head="unified"), torch.rand(2, 3, 32, 32)
    net.begin_tasks(["seg"])
    net(x, "det").sum().backward()
    rows = net.classifier.weight.grad.flatten(1).any(1)
    assert rows.tolist() == [False] * 3 + [True] * 5 + [False] * 4
    assert net.shared().sum() == sum(p.numel() for n, p in net.named_parameters() if ".norms." not in n)
    assert net(x, "features").shape == (2, net.feature_dim)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("head", ["branches", "unified"])
def test_statistics_of_one_task_move_those_of_another_only_where_they_are_shared(head, policy):
    net, x = small(head=head, bn_policy=policy).train(), torch.rand(4, 3, 32, 32)
    net.begin_tasks(["seg"])
    net(x, "seg").sum().backward()
    before = net.eval()(x, "seg")
    net.train().begin_tasks(["det"])
    net(5 * x + 1, "det")
    assert torch.equal(net.eval()(x, "seg"), before) == (policy != "shared")
    kinds = {type(m) for m in net.trunk.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm | TaskBatchNorm2d)}
    assert (
        kinds
        == {
            "shared": {nn.BatchNorm2d},
            "freeze_after_first": {StoppableBatchNorm2d},
            "per_task": {TaskBatchNorm2d, nn.BatchNorm2d},
            "groupnorm": {nn.GroupNorm},
        }[policy]
    )


def test_a_branch_is_named_or_selected():
    net, x = small().eval(), torch.rand(2, 3, 32, 32)
    every = net(x)
    for task in ("seg", "det", "cls"):
        torch.testing.assert_close(net(x, task), every[task])
        net.select(task)
        torch.testing.assert_close(net(x), every[task])
        net.select(None)


def test_only_the_branch_asked_for_gets_a_gradient():
    net = small(bn_policy="per_task")
    net(torch.rand(2, 3, 32, 32), "det").sum().backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None}
    assert any(name.startswith("heads.det.") for name in moved) and any(".norms.det." in name for name in moved)
    assert not any(name.startswith(("heads.seg.", "heads.cls.")) or ".norms.cls." in name for name in moved)
    mine = torch.cat([p.new_full((p.numel(),), p.grad is not None) for p in net.parameters()]).bool()
    assert (net.shared() <= mine).all() and net.shared().sum() == sum(
        m.weight.numel() for m in net.trunk.modules() if isinstance(m, nn.Conv2d)
    )


def test_statistics_stop_after_the_first_task():
    net, x = small(bn_policy="freeze_after_first").train(), torch.rand(4, 3, 32, 32)
    norm = next(m for m in net.trunk.modules() if isinstance(m, StoppableBatchNorm2d))
    start = norm.running_mean.clone()
    net.begin_tasks(["seg"])
    net(x, "seg")
    first = norm.running_mean.clone()
    assert not torch.equal(first, start)
    net.begin_tasks(["det"])
    net.eval(), net.train()
    net(x + 1, "det").sum().backward()
    assert torch.equal(norm.running_mean, first) and norm.weight.grad.any()


def test_a_task_not_begun_is_normalised_as_the_latest_and_begins_there():
    net, x = small(bn_policy="per_task").train(), torch.rand(4, 3, 32, 32)
    net.begin_tasks(["seg"])
    net(x, "seg")
    maps = net.eval().maps(x, "seg")
    torch.testing.assert_close(net.maps(x, "cls"), maps)
    net.train().begin_tasks(["det"])
    torch.testing.assert_close(net.eval().maps(x, "det"), maps)


def test_pretrained_weights_from_a_file(tmp_path):
    from torchvision.models import efficientnet_b0

    source = efficientnet_b0()
    torch.save(source.state_dict(), tmp_path / "b0.pt")
    net = BalancedMultiTaskModel(pretrained=str(tmp_path / "b0.pt"), bn_policy="shared")
    assert torch.equal(net.trunk.layers[0][0].weight, source.features[0][0].weight)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    for file, message in (("other.pt", "not the weights"), ("none.pt", "no such file")):
        with pytest.raises(UserError, match=message):
            BalancedMultiTaskModel(pretrained=str(tmp_path / file))
    with pytest.raises(UserError, match="--trunk small"):
        small(pretrained="cache")


@pytest.mark.parametrize("trunk, boxes", [("small", 64 + 16 + 4), ("efficientnet_b0", 16 + 4 + 1)])
def test_a_dense_detector_stays_small(trunk, boxes):
    net = BalancedMultiTaskModel(trunk=trunk)
    net.set_tasks({"det": 5, "cls": 3}, {"det": "boxes", "cls": "class"})
    out = net.eval()(torch.rand(2, 3, 32, 32), "det")
    assert out.shape == (2, boxes, 5 + 8) and sum(net.parts().values()) < 8_000_000
    finest = 4 if trunk == "small" else 8
    assert out[1, 0, -3:].tolist() == [finest / 2, finest / 2, finest] and out[0, -1, -1] == 4 * finest
    assert out[1, 1, -3:].tolist() == [3 * finest / 2, finest / 2, finest]  # the next one of the first row


def test_answers_of_old_branches_use_running_statistics():
    net, x = small(bn_policy="shared").train(), torch.rand(4, 3, 32, 32)
    old, own = (ImageClassTask(name, ["a"] * 3) for name in ("det", "cls"))
    statistics = clones(net.buffers())
    got_old, got_own = net.outputs(x, [old, own])
    moved = clones(net.buffers())
    assert any(not torch.equal(a, b) for a, b in zip(statistics, moved, strict=True))  # by the own branch
    assert all(part.training for part in net.modules())
    torch.testing.assert_close(got_old, net.eval()(x, "det"))
    assert not torch.allclose(got_own, net(x, "cls"))
    assert all(torch.equal(a, b) for a, b in zip(moved, clones(net.buffers()), strict=True))
    torch.testing.assert_close(net.outputs(x, [own, old])[0], net(x, "cls"))
