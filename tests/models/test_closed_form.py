"""Closed-form heads: sums that no order changes, the formulas by hand or by a second implementation, and what each
method reads of a stream.
"""

import math

import numpy as np
import pytest
import sklearn.covariance
import torch
import torch.nn.functional as F

from palimpsest.models.fecam import moments_of, normalise_covariance
from palimpsest.models.ncm import NCM
from palimpsest.models.slda import SLDA
from palimpsest.models.utils.closed_form import (
    ExactSum,
    Gram,
    LeastSquares,
    oas,
    solvable,
    solve_ridge,
    update_recursively,
)
from palimpsest.utils.errors import UserError
from tests.models.helpers import experiment, finished, image, learn_task, small

MLP, FROZEN = ["--backbone", "mnistmlp"], ["--no_base_training", "--n_epochs", "1"]
FEW, SHORT = ["--n_features", "60"], ["--n_epochs", "1", "--stop_after", "3"]
NETWORK = ["ncm", "ridge", "acil", "ranpac", "gkeal", "ds_al", "fecam"]
EXPANDED = ["acil", "ranpac", "gkeal", "ds_al", "randumb"]


def options(name: str, *more: str) -> list[str]:
    return [*MLP, *(FEW if name in EXPANDED else []), *more]


def examples(exp, tasks: int):
    """Features (n, d) in float64, one-hot labels (n, 10) and labels of the training examples of the first tasks."""
    data = [exp.dataset.task_data(t) for t in range(tasks)]
    labels = torch.cat([part.targets for part in data])
    model = exp.model.eval()
    with torch.no_grad():
        h = model.embed(model.normalization_transform(torch.cat([part.data for part in data]))).double()
    return h, F.one_hot(labels, 10).double(), labels


def joint_head(h, y, ridge):
    """Ridge regression on all examples at once."""
    return torch.linalg.solve(h.T @ h + ridge * torch.eye(h.shape[1], dtype=h.dtype), h.T @ y)


# ---- sums


def test_a_sum_has_the_same_bits_in_any_order():
    torch.manual_seed(0)
    terms = torch.randn(12, 5, dtype=torch.float64) * 10.0 ** torch.arange(-6, 6, dtype=torch.float64).unsqueeze(1)
    found, plain = [], []
    for order in (range(12), reversed(range(12)), torch.randperm(12).tolist()):
        total, simple = ExactSum(5), torch.zeros(5, dtype=torch.float64)
        for i in order:
            total.add(terms[i])
            simple += terms[i]
        found.append(total.value())
        plain.append(simple)
    assert all(torch.equal(found[0], other) for other in found)
    assert not all(torch.equal(plain[0], other) for other in plain)
    exact = torch.tensor([math.fsum(column) for column in terms.T.tolist()], dtype=torch.float64)
    assert (found[0] - exact).abs().max() <= 12 * 2.0**-51 + 1e6 * 2.0**-53


def test_parts_of_a_sum_are_added_exactly():
    torch.manual_seed(1)
    terms = torch.randn(4, 3, dtype=torch.float64) * 1e3
    whole, a, b = ExactSum(3), ExactSum(3), ExactSum(3)
    for i, term in enumerate(terms):
        whole.add(term)
        (a, b)[i % 2].add(term)
    a.merge(b)
    assert torch.equal(a.value(), whole.value())


@pytest.mark.parametrize("entry", [2.0**40, -(2.0**41), math.inf, math.nan])
def test_a_term_that_does_not_fit_is_refused(entry):
    with pytest.raises(UserError, match="too large for a closed form, or not finite"):
        ExactSum(2).add(torch.tensor([1.0, entry], dtype=torch.float64))


def test_a_gram_matrix_is_that_of_all_chunks():
    torch.manual_seed(2)
    h = torch.randn(40, 600, dtype=torch.float64)  # wider than a block
    gram = Gram(600)
    gram.add(iter(h.split(7)))
    gram.add([h[:5]])
    torch.testing.assert_close(gram.value(), h.T @ h + h[:5].T @ h[:5], rtol=0, atol=1e-11)
    assert torch.equal(gram.value(), gram.value().T)


# ---- ridge regression


def test_ridge_with_a_free_bias_by_hand():
    """x = 0, 1, 2, y = 5, 6, 10: centred squares 2, products 5; slope 5 / (2 + 0.5) = 2, bias 7 - 2 * 1 = 5."""
    h = torch.tensor([[0.0, 1], [1, 1], [2, 1]], dtype=torch.float64)
    y = torch.tensor([[5.0], [6], [10]], dtype=torch.float64)
    w = solve_ridge(h.T @ h, h.T @ y, 0.5, free=1)
    torch.testing.assert_close(w, torch.tensor([[2.0], [5]], dtype=torch.float64))
    assert abs(float(solve_ridge(h.T @ h, h.T @ y, 0.5)[1]) - 5) > 0.5  # regularised, the bias is smaller


def test_the_recursion_ends_at_the_joint_solution():
    torch.manual_seed(3)
    h, y = torch.randn(80, 12, dtype=torch.float64), F.one_hot(torch.randint(0, 4, (80,)), 4).double()
    inverse, weights = torch.eye(12, dtype=torch.float64) / 0.1, torch.zeros(12, 4, dtype=torch.float64)
    sums = LeastSquares(12, 4)
    for rows in torch.arange(80).split([1, 30, 9, 40]):
        inverse, weights = update_recursively(inverse, weights, h[rows], y[rows])
        sums.add([(h[rows], y[rows])])
    torch.testing.assert_close(weights, joint_head(h, y, 0.1), rtol=0, atol=1e-8)
    torch.testing.assert_close(sums.solve(0.1), joint_head(h, y, 0.1), rtol=0, atol=1e-8)


def test_a_ridge_within_rounding_is_refused():
    sums = LeastSquares(2, 1)
    sums.add([(torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))])
    assert sums.solve(1e-30) is None and sums.solve(1e-3) is not None
    with pytest.raises(UserError, match="--ridge 1e-30 is too small"):
        solvable(None, 1e-30)


@pytest.mark.parametrize("name, free", [("ridge", True), ("acil", False), ("gkeal", False), ("randumb", False)])
def test_a_run_ends_at_the_joint_solution(name, free):
    exp = finished(name, *options(name, *SHORT))
    h, y, _ = examples(exp, 3)
    h, ridge = exp.model.expand(h), exp.args.ridge
    if free:  # an unregularised bias is the same as centring
        assert torch.equal(h[:, -1], torch.ones(len(h), dtype=h.dtype))
        expected = joint_head(h[:, :-1] - h[:, :-1].mean(0), y, ridge)
        torch.testing.assert_close(exp.model.weights[:-1], expected, rtol=0, atol=1e-8)
        h, ridge = h[:, :-1], None
    else:
        torch.testing.assert_close(exp.model.weights, joint_head(h, y, ridge), rtol=0, atol=1e-8)


def test_acil_by_recursion_and_by_sums_has_one_head():
    heads = [finished("acil", *options("acil", *SHORT, *more)).model.weights for more in ([], ["--recursive"])]
    torch.testing.assert_close(*heads, rtol=0, atol=1e-8)
    assert heads[0].abs().max() > 0.1


@pytest.mark.parametrize("name", ["ncm", "ridge", "acil", "fecam", "randumb"])
def test_the_order_of_classes_and_tasks_changes_no_bit(name):
    frozen = FROZEN if name in NETWORK else ["--gamma", "0.1"]
    order = [7, 2, 9, 0, 4, 1, 3, 8, 6, 5]
    plain, other, cut = (
        finished(name, *options(name, *frozen, *more)).model
        for more in ([], ["--custom_class_order", ",".join(map(str, order))], ["--init_cls", "4", "--increment", "3"])
    )
    if name == "ncm":
        assert torch.equal(plain.sums.value()[order], other.sums.value())
        assert torch.equal(plain.sums.value(), cut.sums.value())
    elif name == "fecam":
        assert torch.equal(plain.precisions[order], other.precisions) and torch.equal(plain.means, cut.means)
    else:
        assert torch.equal(plain.weights[:, order], other.weights) and torch.equal(plain.weights, cut.weights)


# ---- the methods


@pytest.mark.parametrize("name", [*NETWORK, "randumb"])
def test_only_classes_seen_have_scores(name):
    exp = experiment(name, *options(name, "--n_epochs", "1"))
    model, x = exp.model, torch.randn(3, *exp.dataset.SIZE)
    for task in range(2):
        learn_task(exp, task)
        assert model.classes.tolist() == list(range(2 * task + 2))
        with torch.no_grad():
            scores = model.eval()(x)
        assert scores[:, : 2 * task + 2].isfinite().all() and (scores[:, 2 * task + 2 :] == -torch.inf).all()
        model.train()


@pytest.mark.parametrize("name", NETWORK)
def test_the_network_is_frozen_after_the_first_task_or_from_the_start(name):
    exp = experiment(name, *options(name, "--n_epochs", "1"))
    begun = exp.model.net.get_params()
    learn_task(exp, 0)
    first = exp.model.net.get_params()
    learn_task(exp, 1)
    assert torch.equal(first, exp.model.net.get_params()) and not torch.equal(begun, first)
    exp.model.train()
    assert exp.model.training and not exp.model.net.training
    never = experiment(name, *options(name, *FROZEN))
    learn_task(never, 0)
    assert torch.equal(begun, never.model.net.get_params())


def test_before_any_class_no_class_is_more_likely():
    exp = experiment("randumb", *options("randumb"))
    assert torch.equal(exp.model(torch.randn(2, *exp.dataset.SIZE)), torch.zeros(2, 10))


def test_ncm_by_hand():
    """Means (3, 4) and (1, 0), so the point (0, 2) has cosines 4 / 5 and 0."""
    model = small(NCM, "--no_base_training")
    model.sums.add(torch.tensor([[6.0, 8], [1, 0], [0, 0], [0, 0]], dtype=torch.float64))
    model.counts += torch.tensor([2, 1, 0, 0])
    model.classes = torch.tensor([0, 1])
    expected = torch.tensor([[0.8, 0, -torch.inf, -torch.inf]])
    torch.testing.assert_close(model(image(0, 2)), expected)


def test_ncm_has_the_mean_of_all_domains():
    exp = finished("ncm", *MLP, *FROZEN, "--stop_after", "2", dataset="perm-digits")
    h, _, labels = examples(exp, 2)
    means = exp.model.sums.value() / exp.model.counts.unsqueeze(1)
    torch.testing.assert_close(means[3], h[labels == 3].mean(0), rtol=0, atol=1e-6)


def test_ranpac_takes_the_strength_that_is_best_on_a_fifth_of_the_last_task():
    exp = finished("ranpac", *options("ranpac", *SHORT))
    model, data = exp.model, exp.dataset.task_data(2)
    with torch.no_grad():
        h = model.expand(model.embed(model.normalization_transform(data.data)).double())
    y, held = F.one_hot(data.targets, 10).double(), torch.zeros(len(h), dtype=torch.bool)
    for c in (4, 5):
        held[(data.targets == c).nonzero().squeeze(1)[4::5]] = True
    errors = {}
    for k in range(-8, 9):
        w = joint_head(h[~held], y[~held], 10.0**k)
        errors[10.0**k] = float((h[held] @ w - y[held]).square().sum())
    assert model.ridge == min(errors, key=errors.get)
    whole, targets, _ = examples(exp, 3)
    expected = joint_head(model.expand(whole), targets, model.ridge)
    torch.testing.assert_close(model.weights, expected, rtol=0, atol=1e-8)
    assert model.report(exp.dataset, range(3)).numbers == {"ridge": model.ridge}
    assert finished("ranpac", *options("ranpac", *SHORT, "--ridge", "3")).model.ridge == 3


def test_gkeal_kernels_by_hand():
    exp = experiment("gkeal", *options("gkeal"))
    model = exp.model
    model.centres, model.width = torch.tensor([[0.0, 0], [3, 4]], dtype=torch.float64), 5.0
    found = model.expand(torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[1, math.exp(-0.5)]], dtype=torch.float64))
    exp = experiment("gkeal", *options("gkeal", *FROZEN))
    learn_task(exp, 0)
    h = examples(exp, 1)[0]
    apart = torch.cdist(exp.model.centres, h).min(1).values
    assert exp.model.centres.shape == (60, 100) and apart.max() < 1e-5  # examples of the first task
    torch.testing.assert_close(exp.model.width, float(torch.pdist(exp.model.centres).median()))


def test_ds_al_fits_what_each_task_left():
    exp = experiment("ds_al", *options("ds_al", *FROZEN, "--compensation", "0.7", "--second_ridge", "2"))
    gram, cross = torch.zeros(60, 60, dtype=torch.float64), torch.zeros(60, 10, dtype=torch.float64)
    for task in range(2):
        learn_task(exp, task)
        model, data = exp.model, exp.dataset.task_data(task)
        with torch.no_grad():
            h = model.embed(model.normalization_transform(data.data)).double()
        left = F.one_hot(data.targets, 10).double() - torch.relu(h @ model.projection) @ model.weights
        left[:, : 2 * task], left[:, 2 * task + 2 :] = 0, 0
        k = torch.tanh(h @ model.projection)
        gram, cross = gram + k.T @ k, cross + k.T @ left
    second = torch.linalg.solve(gram + 2 * torch.eye(60, dtype=torch.float64), cross)
    torch.testing.assert_close(model.second_weights, second, rtol=0, atol=1e-8)
    expected = torch.relu(h @ model.projection) @ model.weights + 0.7 * k @ second
    torch.testing.assert_close(model.scores(h), expected[:, :4], rtol=0, atol=1e-8)


def test_fecam_by_hand():
    """S = [[2, 1], [1, 4]]: V1 = 3, V2 = 1; shrunk [[5, 2], [2, 7]], whose correlation is r = 2 / sqrt 35."""
    found = normalise_covariance(torch.tensor([[2.0, 1], [1, 4]], dtype=torch.float64))
    r = 2 / math.sqrt(35)
    torch.testing.assert_close(found, torch.tensor([[1, r], [r, 1]], dtype=torch.float64))
    exp = experiment("fecam", *MLP)
    model = exp.model
    model.means, model.classes = torch.tensor([[1.0, 2]], dtype=torch.float64), torch.tensor([0])
    model.precisions = torch.linalg.inv(found).unsqueeze(0)
    # (4, 9) becomes (2, 3), one from the mean in both: the distance is (1 + 1 - 2 r) / (1 - r^2) = 2 / (1 + r)
    scores = model.scores(torch.tensor([[4.0, 9]], dtype=torch.float64))
    torch.testing.assert_close(scores, torch.tensor([[-2 / (1 + r)]], dtype=torch.float64))


def test_fecam_has_each_classes_own_moments():
    exp = finished("fecam", *MLP, *SHORT)
    h, _, labels = examples(exp, 3)
    t = h[labels == 3].numpy() ** 0.5
    mean, covariance = moments_of(exp.model.sums["3"].value())
    np.testing.assert_allclose(mean, t.mean(0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(t.T), atol=1e-6)


def test_fecam_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="cannot be inverted with --shrink 0 0"):
        normalise_covariance(torch.ones(2, 2, dtype=torch.float64), 0, 0)
    exp = experiment("fecam", *MLP, *FROZEN)
    exp.model.embed = lambda x: x.flatten(1)[:, :1].expand(-1, 100) - 5
    with pytest.raises(UserError, match="negative, which have no power --tukey"):
        learn_task(exp, 0)


# ---- randumb


def test_randumb_features_are_a_kernel_of_raw_pixels():
    exp = experiment("randumb", "--n_features", "20000", "--gamma", "0.05", dataset="seq-digits")
    raw = exp.dataset.task_data(0).data[:6]
    z = exp.model.embed(exp.model.normalization_transform(raw))
    apart = torch.cdist(raw.flatten(1).float() / 255, raw.flatten(1).float() / 255)
    torch.testing.assert_close(z @ z.T, (-0.05 * apart.square()).exp(), rtol=0, atol=0.03)
    other = experiment("randumb", "--n_features", "20000", "--gamma", "0.05", "--normalize", "none")
    torch.testing.assert_close(other.model.embed(other.model.normalization_transform(raw)), z, rtol=0, atol=1e-5)


def test_randumb_chooses_gamma_on_the_first_task_alone():
    exp = experiment("randumb", *FEW)
    learn_task(exp, 0)
    x = exp.dataset.task_data(0).data.flatten(1).double() / 255
    factor = exp.model.gamma * x.shape[1] * float(x.var())
    assert min(abs(factor - f) for f in (0.25, 0.5, 1, 2, 4)) < 1e-4
    chosen = exp.model.gamma
    learn_task(exp, 1)
    assert exp.model.gamma == chosen == exp.model.report(exp.dataset, range(2)).numbers["gamma"]
    reordered = experiment("randumb", *FEW, "--custom_class_order", "0,1,9,8,7,6,5,4,3,2")
    learn_task(reordered, 0)
    assert reordered.model.gamma == chosen


def test_randumb_errors_by_another_way():
    """The squared errors among which gamma is chosen, with all features and a solver of its own."""
    exp = experiment("randumb", "--n_features", "40", "--ridge", "0.5")
    learn_task(exp, 0)
    data, model = exp.dataset.task_data(0), exp.model
    x, errors = data.data.flatten(1).float() / 255, {}
    held = torch.zeros(len(x), dtype=torch.bool)
    for c in (0, 1):
        held[(data.targets == c).nonzero().squeeze(1)[4::5]] = True
    for factor in (0.25, 0.5, 1, 2, 4):
        gamma = factor / (x.shape[1] * float(x.double().var()))
        z = (math.sqrt(2 / 40) * torch.cos(x @ model.directions * math.sqrt(2 * gamma) + model.phases)).double()
        y = F.one_hot(data.targets, 2).double()
        errors[gamma] = float((z[held] @ joint_head(z[~held], y[~held], 0.5) - y[held]).square().sum())
    assert math.isclose(model.gamma, min(errors, key=errors.get), rel_tol=1e-6)


def test_randumb_reads_no_tokens():
    exp = experiment("randumb", *FEW)
    exp.dataset.INPUT = "tokens"
    with pytest.raises(UserError, match="randumb is for images and vectors"):
        type(exp.model)(exp.model.net, exp.model.loss, exp.args, exp.model.transform, exp.dataset)


# ---- shrinkage


@pytest.mark.parametrize("n, d", [(50, 4), (8, 20), (3, 2)])
def test_oas_is_that_of_scikit_learn(n, d):
    x = np.random.default_rng(n).normal(size=(n, d)) * np.arange(1, d + 1)
    covariance = torch.tensor(x.T @ x / n)
    expected = sklearn.covariance.oas(x, assume_centered=True)[1]
    torch.testing.assert_close(float(oas(covariance, n)), expected)
    assert float(oas(torch.eye(3, dtype=torch.float64), 5)) == 1  # nothing left to estimate


def test_slda_shrinks_by_oas():
    model = small(SLDA, "--shrinkage", "oas")
    torch.manual_seed(1)
    z, y = torch.randn(50, 2) * torch.tensor([3.0, 1]), torch.randint(0, 3, (50,))
    model.update(z, y)
    centred = (z - torch.stack([z[y == c].mean(0) for c in range(3)])[y]).double().numpy()
    expected = torch.tensor(sklearn.covariance.oas(centred, assume_centered=True)[0]).float()
    torch.testing.assert_close(model.covariance(), expected)
    with pytest.raises(UserError, match="expected a number"):
        small(SLDA, "--shrinkage", "ledoit")
