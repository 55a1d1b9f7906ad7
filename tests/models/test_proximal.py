"""The proximal step on a quadratic penalty comes to rest where loss and penalty balance, whatever the optimiser."""

import pytest
import torch

from palimpsest.models.ewc import EWC
from palimpsest.models.utils.quadratic import regularised_step, step_sizes
from palimpsest.utils.errors import UserError
from tests.models.helpers import Flat, small


@pytest.mark.parametrize(
    "options",
    [
        "--optimizer sgd", "--optimizer sgd --optim_mom 0.9", "--optimizer sgd --optim_mom 0.9 --optim_nesterov",
        "--optimizer adam", "--optimizer adamw --optim_wd 0", "--optimizer sgd --clip_grad 0.1",
        "--optimizer sgd --optim_mom 0.9 --clip_grad 0.1", "--optimizer adam --clip_grad 0.1",
        "--optimizer sgd --optim_mom 0.5 --optim_wd 1", "--optimizer adam --optim_wd 1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("curvature", [0.1, 9.0, 1000.0])
def test_the_proximal_step_rests_at_the_minimum_under_every_optimiser(options, curvature):
    # 1/2 (x - 1)^2 + decay/2 x^2 + curvature/2 x^2 has its minimum at 1 / (1 + decay + curvature).
    model = small(EWC, *options.split())
    model.penalty.replace(torch.full((12,), curvature), torch.zeros(12))
    for _ in range(1000):
        model.opt.zero_grad()
        loss = 0.5 * sum((p - 1).square().sum() for p in model.net.parameters())
        loss.backward()
        regularised_step(model, loss, model.penalty, 1.0)
    expected = 1 / (1 + model.args.optim_wd + curvature)
    torch.testing.assert_close(model.net.get_params(), torch.full((12,), expected), rtol=0.01, atol=1e-4)


def test_the_proximal_step_refuses_an_optimiser_that_it_does_not_know():
    model = small(EWC)
    model.opt = torch.optim.Adagrad(model.net.parameters())
    with pytest.raises(UserError, match="Adagrad: give --ewc_update explicit"):
        step_sizes(model.opt, model.net)


def test_step_sizes_of_several_groups():
    net = Flat(1, 1)
    opt = torch.optim.SGD(
        [{"params": [net.classifier.bias], "lr": 1.0, "momentum": 0.5}, {"params": [net.classifier.weight]}], lr=0.1
    )
    assert step_sizes(opt, net).tolist() == pytest.approx([0.1, 2.0])
    assert step_sizes(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.75), net) == pytest.approx(0.4)
