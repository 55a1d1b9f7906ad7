"""The formulas of ewc, ewc_on, si, mas, rwalk, gem, agem and agem_r against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.datasets.utils.continual_dataset import MultiHeadLoss
from palimpsest.datasets.utils.task import ClassTask
from palimpsest.models.agem import AGEM
from palimpsest.models.ewc import EWC
from palimpsest.models.ewc_on import EWCOnline
from palimpsest.models.gem import GEM
from palimpsest.models.utils.episodic import gradient_at, gradients_at
from palimpsest.models.utils.fisher import fisher_diagonal
from palimpsest.models.utils.projection import project, project_one, solve_dual
from palimpsest.models.utils.quadratic import Quadratic
from palimpsest.utils.errors import UserError
from tests.models.helpers import Flat, clones, experiment, finished, first_batch, image, small


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


class OneWeight(nn.Module):
    """Logits (w x, 0)."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        return torch.stack((self.w * x, torch.zeros_like(x)), 1)


# ---- Fisher information


def test_fisher_of_drawn_labels_approaches_the_exact_one():
    torch.manual_seed(0)
    n, p = 20_000, 0.75
    got = fisher_diagonal(OneWeight(math.log(3)), [(torch.ones(n), torch.zeros(n, dtype=torch.int64))], "mc", chunk=n)
    # g^2 is (1-p)^2 with probability p and p^2 otherwise: its variance by hand.
    second_moment = p * (1 - p) ** 4 + (1 - p) * p**4
    assert abs(got.item() - 0.1875) < 3 * math.sqrt((second_moment - 0.1875**2) / n)


@pytest.mark.parametrize("kind", ["empirical", "weighted", "exact"])
def test_fisher_by_a_plain_loop(kind):
    torch.manual_seed(0)
    net, x, y = Flat(2, 3), torch.randn(7, 1, 1, 2), torch.randint(0, 3, (7,))
    total = torch.zeros_like(net.get_params())
    for i in range(7):
        for c in range(3) if kind == "exact" else [y[i]]:
            net.zero_grad()
            log_p = torch.log_softmax(net(x[i : i + 1]), 1)[0, c]
            log_p.backward()
            total += (1 if kind == "empirical" else log_p.detach().exp()) * net.get_grads() ** 2
    got = fisher_diagonal(net, [(x[:4], y[:4]), (x[4:], y[4:])], kind, chunk=3)
    torch.testing.assert_close(got, total / 7)


def test_fisher_of_an_example_does_not_depend_on_dropout_and_leaves_modes_alone():
    torch.manual_seed(0)
    net, x, y = Flat(6, 3), torch.randn(4, 1, 1, 6), torch.randint(0, 3, (4,))
    plain = fisher_diagonal(net, [(x, y)], "exact")
    net.classifier.register_forward_pre_hook(lambda part, given: (F.dropout(given[0], 0.5, part.training),))
    torch.testing.assert_close(fisher_diagonal(net.train(), [(x, y)], "exact"), plain)
    assert net.training and net.classifier.training


def test_fisher_of_one_head_leaves_the_others_out():
    torch.manual_seed(0)
    net, x, y = Flat(2, 4), torch.randn(5, 1, 1, 2), torch.tensor([2, 3, 2, 2, 3])
    got = fisher_diagonal(net, [(x, y)], "exact", ClassTask(2, 4, whole=False))
    alone = Flat(2, 2)
    alone.set_params(torch.cat([net.classifier.weight[2:].flatten(), net.classifier.bias[2:]]).detach())
    expected = fisher_diagonal(alone, [(x, y - 2)], "exact")
    torch.testing.assert_close(got, torch.cat([torch.zeros(4), expected[:4], torch.zeros(2), expected[4:]]))


def test_examples_ends_with_the_batch_that_holds_the_nth():
    stream = experiment("sgd", "--batch_size", "10").dataset
    assert [sum(len(x) for x, _ in stream.examples(n)) for n in (1, 10, 11)] == [10, 10, 20]


# ---- the quadratic penalty


def test_merged_penalties_are_their_sum_up_to_a_constant():
    rng = torch.Generator().manual_seed(0)
    terms = [(torch.rand(6, generator=rng).double(), torch.randn(6, generator=rng).double()) for _ in range(3)]
    terms[0][0][0] = terms[1][0][0] = terms[2][0][0] = 0  # a weight that no task needs
    merged = Quadratic()
    for weight, centre in terms:
        merged.merge(weight, centre)
    differences = []
    for _ in range(10):
        theta = torch.randn(6, generator=rng).double()
        gradient = sum(a * (theta - c) for a, c in terms)
        torch.testing.assert_close(merged.weight * (theta - merged.centre), gradient)
        differences.append(sum(0.5 * (a * (theta - c) ** 2).sum() for a, c in terms) - merged.value(theta))
    torch.testing.assert_close(torch.stack(differences), differences[0].expand(10))


def test_proximal_step():
    net, penalty = Flat(1, 1), Quadratic()
    net.set_params(torch.ones(2))
    penalty.replace(torch.tensor([1.0, 0.0]), torch.zeros(2))
    penalty.contract(net, strength=10.0, lr=0.1)
    assert net.get_params().tolist() == [0.5, 1.0]
    for _ in range(100):
        penalty.contract(net, strength=1e4, lr=0.1)
    assert 0 <= net.get_params()[0] < 1e-6


def test_proximal_step_follows_whatever_it_is_made_of():
    torch.manual_seed(0)
    net, penalty = Flat(3, 2), Quadratic()

    def check(strength, lr):
        theta, scaled = net.get_params().detach(), lr * strength * penalty.weight
        penalty.contract(net, strength, lr)
        torch.testing.assert_close(net.get_params().detach(), (theta + scaled * penalty.centre) / (1 + scaled))

    for _ in range(2):
        penalty.replace(torch.rand(8), torch.randn(8))
        check(2.0, 0.1)
        check(2.0, 0.1)
        check(2.0, 0.5)
        check(2.0, torch.rand(8))
        check(1.0, torch.tensor(0.5))
        penalty.weight.mul_(3)  # as when a state is read into it
        check(1.0, 0.5)
        penalty.centre.zero_()
        check(1.0, 0.5)


@pytest.mark.parametrize("cls, strength", [(EWC, 3.0), (EWCOnline, 6.0)])
def test_explicit_ewc_step(cls, strength):
    model = small(cls, "--e_lambda", "3", "--gamma", "0.5", "--ewc_update", "explicit")
    torch.manual_seed(0)
    model.net.set_params(torch.randn(12))
    weight, centre = torch.rand(12), torch.randn(12)
    model.penalty.replace(weight, centre)
    theta, x, y = model.net.get_params(), image(1, 2), torch.tensor([0])
    model.net.zero_grad()
    F.cross_entropy(model.net(x), y).backward()
    expected = theta - 0.1 * (model.net.get_grads() + strength * weight * (theta - centre))
    terms = model.observe(x, y, None)
    torch.testing.assert_close(terms["penalty"], strength / 2 * (weight * (theta - centre) ** 2).sum())
    torch.testing.assert_close(model.net.get_params(), expected)


def test_online_ewc_decays_the_old_fisher_and_moves_the_centre():
    for name in ("ewc", "ewc_on"):
        more = ["--ewc_mode", "online"] if name == "ewc" else []
        exp = experiment(name, "--e_lambda", "1", "--gamma", "0.25", "--ewc_fisher", "empirical", *more)
        model, _ = first_batch(exp)
        old = torch.rand_like(model.net.get_params())
        model.penalty.replace(old.clone(), torch.zeros_like(old))
        model.end_task(exp.dataset)
        new = fisher_diagonal(model.net, exp.dataset.examples(), "empirical")
        torch.testing.assert_close(model.penalty.weight, 0.25 * old + new)
        assert torch.equal(model.penalty.centre, model.net.get_params())


@pytest.mark.parametrize("method", ["ewc", "si", "mas", "rwalk"])
def test_no_strength_makes_the_proximal_step_diverge(method):
    option = {"si": "--c", "mas": "--mas_lambda"}.get(method, "--e_lambda")
    exp = finished(method, option, "1e4", "--lr", "0.1", "--n_epochs", "1", "--stop_after", "3",
                   "--backbone", "mnistmlp")  # fmt: skip
    assert exp.model.net.get_params().isfinite().all()
    assert exp.run.matrices["task-il"][2, :3].mean() > 50


@pytest.mark.parametrize("normalize", ["mean", "max"])
def test_normalised_fisher(normalize):
    exp = experiment("ewc", "--ewc_normalize", normalize, "--n_fisher", "20")
    model, _ = first_batch(exp)
    model.end_task(exp.dataset)
    assert getattr(model.penalty.weight, normalize)().item() == pytest.approx(1, rel=1e-5)


# ---- SI, MAS, RWalk


# ---- LwF


def test_lwf_warmup_moves_the_classifier_alone():
    exp = experiment("lwf", "--warmup_epochs", "1", "--n_epochs", "1")
    model, batch = first_batch(exp, task=1)
    trunk, head = clones(model.net.trunk_parameters()), model.net.classifier.weight.detach().clone()
    model.meta_observe(*batch, 0)
    assert all(torch.equal(a, b) for a, b in zip(trunk, model.net.trunk_parameters(), strict=True))
    assert not torch.equal(head, model.net.classifier.weight)
    model.meta_observe(*batch, 1)
    assert not all(torch.equal(a, b) for a, b in zip(trunk, model.net.trunk_parameters(), strict=True))


# ---- GEM


@pytest.mark.parametrize(
    "g, past, margin, v, expected",
    [
        ((1, 0), [(-1, 1)], 0, (0.5,), (0.5, 0.5)),
        ((1, 0), [(-1, 1)], 0.5, (0.5,), (0.5, 0.5)),
        ((1, 0), [(-1, 1)], 1, (1.0,), (0, 1)),
        ((0.5, -1), [(1, 1), (-1, 1)], 0, (0.25, 0.75), (0, 0)),
        ((1, 0.5), [(0, 1), (-1, 1)], 0, (0, 0.25), (0.75, 0.75)),
        ((0.05, -1, 1), [(1, 0, 0), (-1, 0.1, 0)], 0, (9.95, 10), (0, 0, 1)),
    ],
)
def test_projection_by_hand(g, past, margin, v, expected):
    g, past = double(*g), double(*past)
    got = solve_dual((past @ past.T).numpy(), (past @ g).numpy(), margin, 1e-12, True)
    np.testing.assert_allclose(got, v, atol=1e-6)
    torch.testing.assert_close(project(g, past, margin, 1e-12), double(*expected), rtol=0, atol=1e-6)


def test_absolute_regulariser():
    v = solve_dual(np.array([[2.0]]), np.array([-1.0]), 0, 1e-3, relative=False)
    assert v[0] == pytest.approx(1 / 2.001)  # .49975


def test_a_feasible_gradient_is_untouched():
    g = double(1.0, 1.0)
    assert project(g, double((1.0, 0.0)), margin=0.5) is g


def test_projection_is_the_nearest_feasible_point():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        t, p = rng.integers(1, 11), rng.integers(1, 51)
        G, g = rng.standard_normal((t, p)), rng.standard_normal(p)
        if t > 1 and rng.random() < 0.3:
            G[-1] = G[0]
        scale = 10.0 ** rng.integers(-4, 3)
        G, g = torch.from_numpy(G * scale), torch.from_numpy(g * scale)
        got = project(g, G)
        slack = G @ got
        size = G.norm(dim=1) * max(got.norm(), 1e-6 * g.norm())
        assert (slack >= -1e-6 * size - 1e-7 * scale**2).all()
        # Optimality without the solver's own v: no feasible direction brings the point nearer to g.
        for _ in range(3):
            other = project(torch.from_numpy(rng.standard_normal(p) * scale), G)
            assert (got - g) @ (other - got) >= -1e-5 * scale**2 * p


def test_projection_scales_with_the_gradients():
    rng = torch.Generator().manual_seed(0)
    g, G = torch.randn(200, generator=rng).double(), torch.randn(5, 200, generator=rng).double()
    torch.testing.assert_close(project(1e-4 * g, 1e-4 * G), 1e-4 * project(g, G), rtol=1e-9, atol=0)


def test_projection_survives_zero_and_repeated_gradients():
    g = torch.tensor([1.0, -1.0, 0.0])
    past = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(project(g, past), torch.tensor([0.0, -1.0, 0.0]), rtol=0, atol=1e-5)


def test_averaged_projection():
    g, past = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert project_one(g, past).tolist() == [0.5, 0.5]
    assert torch.equal(project_one(g, -past), g)
    assert torch.equal(project_one(g, torch.zeros(2)), g)
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        g, past = torch.randn(30, generator=rng).double(), torch.randn(30, generator=rng).double()
        torch.testing.assert_close(project_one(g, past), project(g, past.unsqueeze(0)), rtol=1e-6, atol=1e-8)


def test_agem_is_gem_with_one_memory_and_no_margin():
    # One past task, its whole memory as A-GEM's reference batch: the same constraint, the same run.
    shared = ["--buffer_size", "40", "--stop_after", "2", "--n_epochs", "1", "--backbone", "mnistmlp"]
    gem = finished("gem", *shared, "--gamma", "0")
    agem = finished("agem", *shared, "--minibatch_size", "40")
    torch.testing.assert_close(gem.model.net.get_params(), agem.model.net.get_params(), rtol=1e-3, atol=1e-4)


def test_memory_of_past_tasks_is_shared_equally():
    exp = experiment("gem", "--buffer_size", "20")
    model = exp.model
    for task, expected in enumerate([[20], [10, 10], [6, 6, 6]]):
        model.add_task(exp.dataset.enter_task(task))
        assert model.sizes == expected and len(model.buffer) == sum(expected)
        labels = model.buffer.get_all_data()[1].split(expected)
        assert all((part // 2 == k).all() for k, part in enumerate(labels))
    model.buffer.buffer_size = 3
    with pytest.raises(UserError, match="--buffer_size 3"):
        model.add_task(exp.dataset.train_loader)


@pytest.mark.parametrize("cls", [GEM, AGEM])
def test_a_step_that_hurts_nobody_is_that_of_sgd(cls):
    model = small(cls, "--buffer_size", "40")
    model.buffer.add_data(examples=image(1, 0), labels=torch.tensor([0]))
    model.sizes = [1]
    model.observe(image(1, 0), torch.tensor([0]), None)  # the same example: the gradients agree
    torch.testing.assert_close(model.net.classifier.bias, torch.tensor([0.075, -0.025, -0.025, -0.025]))


# ---- one softmax per task


def test_multi_head_loss_sees_the_classes_of_the_examples_task():
    loss = MultiHeadLoss([(0, 2), (2, 5)], torch.device("cpu"))
    logits = torch.tensor([[1.0, 3.0, 9.0, 9.0, 9.0], [9.0, 9.0, 0.0, 1.0, 2.0]], requires_grad=True)
    value = loss(logits, torch.tensor([0, 4]))
    expected = (
        F.cross_entropy(logits[:1, :2], torch.tensor([0])) + F.cross_entropy(logits[1:, 2:], torch.tensor([2]))
    ) / 2
    torch.testing.assert_close(value, expected)
    value.backward()
    assert not logits.grad[0, 2:].any() and not logits.grad[1, :2].any()


@pytest.mark.parametrize("sizes", [[4], [3, 3, 3, 3], [3, 2, 3]])
@pytest.mark.parametrize("options", [[], ["--multi_head"]])
def test_gradients_of_memories_are_those_of_one_after_the_other(sizes, options):
    model = experiment("gem", "--buffer_size", "12", "--backbone", "mnistmlp", *options).model
    model.net.double()
    torch.manual_seed(0)
    batches = [(torch.randn(n, 1, 8, 8).double(), torch.randint(0, 10, (n,))) for n in sizes]
    got = gradients_at(model, *zip(*batches, strict=True))
    torch.testing.assert_close(got, torch.stack([gradient_at(model, x, y) for x, y in batches]))
