"""Priors and evidence of the posterior methods: every factor by a plain loop or by PyTorch's distributions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from palimpsest.models.utils.posterior.gaussian import gaussian
from tests.models.helpers import enter, experiment, first_batch, learn_task

MLP = ["--backbone", "mnistmlp", "--mlp_hidden_size", "6", "--batch_size", "32"]


def new_weights(model, task: int) -> torch.Tensor:
    """(P,) 1 for what a task is the first to use: its rows of the classifier, and in the first task all before it."""
    mask = torch.full((model.net.size,), float(task == 0))
    for part in model.net.head_parts(mask):
        part.zero_()
        part[2 * task : 2 * task + 2] = 1
    return mask


def summed_squares(model, loader, task: int) -> torch.Tensor:
    """sum_n (d log p(y_n | x_n) / d w)^2, one example after the other."""
    total, weights = torch.zeros(model.net.size), model.means.detach().clone().requires_grad_()
    for x, y, _ in loader:
        for i in range(len(x)):
            logits = model.net(weights.unsqueeze(0), x[i : i + 1], (2 * task, 2 * task + 2))[0]
            total += torch.autograd.grad(F.cross_entropy(logits, y[i : i + 1] - 2 * task), weights)[0] ** 2
    return total


def test_precision_of_the_ewc_posterior_is_that_of_the_prior_plus_the_evidence():
    exp = experiment("ewc_post", *MLP, "--prior_variance", "0.25", "--gamma", "0.5")
    expected = 0.0
    for task in range(3):
        learn_task(exp, task)
        exp.model._current_task = task
        evidence = summed_squares(exp.model, exp.dataset.train_loader, task)
        expected = 0.5 * expected + new_weights(exp.model, task) / 0.25 + evidence
        torch.testing.assert_close(exp.model.precision, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(exp.model.anchor, exp.model.means)


def test_terms_of_the_ewc_posterior():
    exp = experiment("ewc_post", *MLP, "--prior_variance", "0.25", "--e_lambda", "3")
    for task in range(2):
        model, (x, y, _) = first_batch(exp, task)
        with torch.no_grad():
            model.means += 0.01 * torch.randn_like(model.means)
        terms, w = model.fit(x, y), model.means.detach()
        logits = model.net(w.unsqueeze(0), x, (2 * task, 2 * task + 2))[0]
        n = len(exp.dataset.train_loader.dataset)
        torch.testing.assert_close(terms["nll"], n * F.cross_entropy(logits, y - 2 * task))
        torch.testing.assert_close(terms["prior"], (new_weights(model, task) * w**2).sum() / (2 * 0.25))
        if task:
            expected = 3 / 2 * (model.precision * (w - model.anchor) ** 2).sum()
            assert terms["ewc"] > 0
            torch.testing.assert_close(terms["ewc"], expected)


def test_heads_not_learned_yet_have_the_prior_of_the_ewc_posterior():
    exp = experiment("ewc_post", *MLP, "--prior_variance", "0.04", "--no_det_multi_head")
    learn_task(exp, 0)
    model = exp.model
    drawn = model.weights([0], 4000, torch.Generator().manual_seed(0))[0]
    assert (model.net.head_parts(model.precision)[0][2:] == 0).all()
    expected = torch.where(model.precision > 0, model.precision.rsqrt(), 0.2)
    torch.testing.assert_close(drawn.std(0), expected, rtol=0.08, atol=0)


def test_running_statistics_follow_the_batches_of_their_task_slowly():
    options = ["--backbone", "convnet", "--norm", "batch", "--width", "4", "--hnet_arch", "4", "--batch_size", "32"]
    exp = experiment("pr_dirac", *options)
    for task in range(2):
        model, (x, y, raw) = first_batch(exp, task)
        before, weights = model.statistics.clone(), model.phi([task])[0].detach()
        kernel = weights[: 4 * 9].view(4, 1, 3, 3)  # of the first layer
        model.observe(x, y, raw)
        means = F.conv2d(x, kernel, padding=1).mean((0, 2, 3))
        torch.testing.assert_close(model.statistics[task, :4], 0.9 * before[task, :4] + 0.1 * means)
        assert torch.equal(model.statistics[:task], before[:task])


# ---- divergences


def test_entropy_and_prior_of_the_radial_posterior():
    model, (x, y, _) = first_batch(experiment("pr_radial", *MLP, "--prior_variance", "1e12", "--hnet_arch", "4"))
    phi = model.phi([0])[0].detach()
    _, std = gaussian(phi)
    used = torch.zeros_like(std)
    used[: model.net.head_at] = 1
    for part in model.net.head_parts(used):
        part[:2] = 1
    # Under a prior without an end only the entropy is left.
    assert model.fit_phi(phi, x, y)["kl"].item() == pytest.approx(-(std.log() * used).sum().item(), rel=1e-3)
    model.args.prior_variance = 0.5
    torch.manual_seed(3)
    found = model.fit_phi(phi, x, y)["kl"].item()
    torch.manual_seed(3)
    model.draw(*gaussian(phi), model.args.train_sample_size)
    w = model.draw(*gaussian(phi), model.args.num_kl_samples)
    prior = (w.square().mean(0) / (2 * 0.5) * used).sum()
    assert found == pytest.approx((prior - (std.log() * used).sum()).item(), rel=1e-4)


AVB = [*MLP, "--hnet_arch", "4", "--imp_arch", "4", "--num_kl_samples", "5", "--prior_variance", "0.3"]


def test_a_task_begins_with_a_fresh_discriminator():
    model, batch = first_batch(exp := experiment("pr_avb", *AVB))
    model.meta_observe(*batch, 0)
    before = [p.detach().clone() for p in model.discriminator.parameters()]
    assert model.dis_opt.state
    model.meta_end_task(exp.dataset)
    enter(model, exp.dataset, 1)
    assert not model.dis_opt.state
    assert not any(torch.equal(p, b) for p, b in zip(model.discriminator.parameters(), before, strict=True))


def test_samples_of_the_prior_have_its_variance():
    model, _ = first_batch(experiment("pr_avb", *AVB, "--dis_batch_size", "64"))
    seen, loss = [], model.discriminator.loss
    model.discriminator.loss = lambda q, p: seen.append((q, p)) or loss(q, p)
    model.train_discriminator(model.phi([0])[0], contrast=False)
    assert seen[0][1].std().item() == pytest.approx(0.3**0.5, rel=0.05)


def test_the_discriminator_is_positive_on_the_posterior():
    model, _ = first_batch(experiment("pr_avb", *AVB))
    q, p = torch.randn(8, model.net.size), torch.randn(8, model.net.size)
    d = model.discriminator
    expected = F.binary_cross_entropy_with_logits(d(q), torch.ones(8))
    expected = expected + F.binary_cross_entropy_with_logits(d(p), torch.zeros(8))
    torch.testing.assert_close(d.loss(q, p), expected)


@pytest.mark.parametrize("contrast", [True, False])
def test_divergence_by_a_discriminator(contrast):
    model, _ = first_batch(experiment("pr_avb", *AVB))
    torch.manual_seed(0)
    size = model.net.size
    w, mean, std = torch.randn(5, size), torch.randn(size), torch.rand(size) + 0.5
    moments = (mean, std) if contrast else (0.0, 1.0)
    expected = model.discriminator((w - moments[0]) / moments[1])
    if contrast:  # E_q[D + ln alpha - ln p]
        expected = expected + (Normal(mean, std).log_prob(w) - Normal(0, math.sqrt(0.3)).log_prob(w)).sum(1)
    torch.testing.assert_close(model.divergence(w, contrast, moments), expected.mean())
