"""The vision stream piece by piece, by the names of `palimpsest.vision`."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from palimpsest.datasets.utils.vision.mini import mini_folder
from palimpsest.models.utils.fisher import fisher_diagonal
from palimpsest.utils.check.cases import vision_folder
from palimpsest.utils.errors import UserError
from palimpsest.utils.registry import ROOT
from palimpsest.utils.run import balanced_learner
from palimpsest.vision import (
    BalancedContinualLearner,
    BalancedMultiTaskModel,
    COCODataset,
    EnhancedEWC,
    ImageNetDataset,
    VOCSegmentationDataset,
    create_data_loaders,
    set_random_seed,
)


@pytest.fixture(scope="module")
def folder():
    return mini_folder(vision_folder(), 0, 32, "digits")


def test_the_names_lead_to_what_there_is():
    assert BalancedContinualLearner is balanced_learner.BalancedContinualLearner


def test_data_sets_read_the_official_files(folder):
    masks = VOCSegmentationDataset(folder, "val", 32, 20)
    image, mask = masks[0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and -3 < image.mean() < 3
    assert mask.shape == (32, 32) and {*mask.unique().tolist()} <= {0, 1, 255} and masks.task.n_outputs == 1
    assert VOCSegmentationDataset(folder, "val", 32, 20, classes="semantic")[0][1].max() > 1
    assert len(masks) == 4 and len(VOCSegmentationDataset(folder, "train", 32, 20)) == 16
    _, present = COCODataset(folder, "val", 32, 20)[1]
    _, boxes = COCODataset(folder, "val", 32, 20, detection="boxes")[1]
    assert present.shape == (10,) and {*boxes["classes"].tolist()} - {-1} == {*present.nonzero().flatten().tolist()}
    names = ImageNetDataset(folder, "train", 32, 0)
    assert len(names) == 240 and names[239][1] == 9 and names[-1][1] == 9 and len(names.task.class_names) == 10
    with pytest.raises(IndexError):
        names[240]


def test_augmentation_is_of_the_epoch(folder):
    shifted, plain = (ImageNetDataset(folder, "train", 32, 20, augment=augment) for augment in (True, False))
    first = [shifted[row][0] for row in range(4)]
    shifted.set_epoch(1), plain.set_epoch(1)
    second = [shifted[row][0] for row in range(4)]
    shifted.set_epoch(0)
    assert all(torch.equal(shifted[row][0], image) for row, image in enumerate(first))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(plain[row][0], image) for row, image in enumerate(first))


@pytest.mark.parametrize("make, words", [
    (lambda f: VOCSegmentationDataset(f, "test"), "split is 'test': expected 'train' or 'val'"),
    (lambda f: VOCSegmentationDataset(f, classes="all"), "classes is 'all': expected 'binary' or 'semantic'"),
    (lambda f: COCODataset(f, detection="points"), "detection is 'points': expected 'multilabel' or 'boxes'"),
    (lambda f: ImageNetDataset(f / "nowhere"), "not found: put Imagenette or ImageNet there"),
    (lambda f: EnhancedEWC(nn.Linear(2, 2)), "model is Linear: expected a network of backbone/"),
])  # fmt: skip
def test_wrong_uses_are_one_line(make, words, folder):
    with pytest.raises(UserError, match=words) as error:
        make(folder)
    assert "\n" not in str(error.value)


def trained(folder, protect):
    """The loss on the masks after learning the classes, and before."""
    set_random_seed(3)
    loaders = create_data_loaders(folder, batch_size=8, size=32, subset=20, seed=1)
    assert [*loaders] == ["seg", "det", "cls"]
    net = BalancedMultiTaskModel(10, 10, 1, trunk="small", bn_policy="groupnorm")
    ewc, (masks, _), (classes, _) = EnhancedEWC(net, strength=1e4), loaders["seg"], loaders["cls"]

    def loss_on(loader, name, images, labels):
        return loader.dataset.task.loss(net(images, name), labels)

    for loader, name in ((masks, "seg"), (classes, "cls")):
        opt = torch.optim.SGD(net.parameters(), 0.05)
        for _ in range(3):
            for images, labels in loader:
                opt.zero_grad()
                loss_on(loader, name, images, labels).backward()
                opt.step()
                if protect:
                    ewc.step(opt)
        if name == "seg":
            before = net.get_params().detach().clone()
            ewc.consolidate(masks, masks.dataset.task)
            assert ewc.penalty().item() == 0
    moved = (net.get_params().detach() - before).abs()
    return moved[net.shared()].max().item(), moved[~net.shared()].max().item(), ewc


def test_ewc_holds_what_is_shared(folder):
    held, own, ewc = trained(folder, True)
    free, _, free_ewc = trained(folder, False)
    assert held < 0.1 * free and own > held
    assert ewc.penalty().item() < free_ewc.penalty().item()
    free_ewc.penalty().backward()
    (net,) = free_ewc._model
    assert max(float(p.grad.abs().max()) for p in net.trunk.parameters()) > 0
    again = trained(folder, True)
    assert again[0] == held and again[1] == own  # a seed decides all


def test_the_penalty_is_that_of_the_formula(folder):
    set_random_seed(0)
    data = ImageNetDataset(folder, "val", 32, 20)
    net = BalancedMultiTaskModel(0, 10, 0, trunk="small", bn_policy="groupnorm")
    ewc, batch = EnhancedEWC(net, strength=2.0, drift=0.5), [torch.utils.data.default_collate([*data])]
    torch.manual_seed(1)
    ewc.consolidate(batch, data.task)
    torch.manual_seed(1)
    net.select("cls")
    fisher, shared, theta = fisher_diagonal(net, batch, "mc", data.task), net.shared(), net.get_params().detach()
    drift = torch.randn(len(theta)) * 0.01
    net.set_params(theta + drift)
    weights = (fisher / fisher[shared].mean() + 0.5)[shared]
    assert ewc.penalty().item() == pytest.approx(float((weights * drift[shared] ** 2).sum()), rel=1e-3)


def test_the_example_of_the_page(folder, tmp_path, monkeypatch, capsys):
    """With fewer and smaller images, and one epoch."""
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "vision.md").read_text(), re.S)
    for old, new in (("size=96", "size=32"), ("subset=300", "subset=20"), ("range(20)", "range(1)")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "data").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "vision.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["seg", "det", "cls"] and "'mAP_cls'" in lines[1]


def test_a_seed_is_for_every_generator():
    draws = []
    for _ in range(2):
        set_random_seed()
        draws.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
    assert draws[0] == draws[1] and torch.are_deterministic_algorithms_enabled()


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)
