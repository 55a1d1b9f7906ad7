"""Teachers of distillation answer in eval mode: what one says of an image does not depend on the batch around it."""

import pytest
import torch
from torch import nn

from palimpsest.models.utils.snapshot import Distillation, Snapshot
from palimpsest.utils import registry
from palimpsest.utils.check import cases
from tests.models.helpers import experiment, first_batch

TAUGHT = [m for m in registry.names("model") if issubclass(registry.load("model", m), Distillation)]


def test_who_is_taught():
    assert set(TAUGHT) == {"lwf", "lwf_mc", "icarl", "bic", "lucir"}


@pytest.mark.parametrize("model", TAUGHT)
def test_the_teacher_speaks_of_each_image_alone(model):
    more = [*cases.required_options(model), "--backbone", "resnet18", "--num_filters", "4", "--label_perc", "0.1"]
    method, (x, y, raw) = first_batch(experiment(model, *more), task=1)
    assert any(isinstance(part, nn.BatchNorm2d) for part in method.teacher.modules())
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    for mode in (True, False):
        method.train(mode)
        assert not any(part.training for part in method.teacher.modules())
        with torch.no_grad():
            together = method.teacher(x[:6])
            alone = torch.cat([method.teacher(image) for image in x[:6].split(1)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    method.train()
    net = method.net
    assert all(part.training for part in net.modules())
    method.meta_observe(x, y, raw, 0)
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_pah_keeps_batch_statistics():
    """Its prototypes are matched under the batch's own statistics, as published."""
    exp = experiment("pah", "--backbone", "resnet18", "--num_filters", "4", "--label_perc", "0.1")
    method, _ = first_batch(exp, task=1)
    assert method.teacher.copy.training


def test_a_snapshot_in_train_mode_normalises_by_the_batch_and_remembers_none():
    net, snapshot = nn.Sequential(nn.BatchNorm1d(2)), Snapshot()
    snapshot.take(net)
    snapshot.train()
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert snapshot(x).mean(0).abs().max() < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(snapshot.copy.buffers(), net.buffers(), strict=True))
