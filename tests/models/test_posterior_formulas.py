"""The formulas behind the posterior methods, in hand-worked numbers: divergences, the regulariser, hypernetworks, the
score estimate, task inference, predictions and samples.
"""

import math

import pytest
import torch

from palimpsest.backbone.mnistmlp import MNISTMLP
from palimpsest.backbone.utils.external import ExternalWeights
from palimpsest.backbone.utils.task_hypernetwork import TaskHypernetwork, WeightGenerator
from palimpsest.models.utils.posterior import gaussian, ssge
from palimpsest.models.utils.posterior.task_inference import mean_log_probabilities, uncertainties
from tests.models.helpers import experiment, first_batch

# ---- divergences

A = torch.tensor([0.0, 0]), torch.tensor([1.0, 1])  # means, variances
B = torch.tensor([1.0, 0]), torch.tensor([4.0, 1])
AB, BA = 0.4431472, 1.3068528


@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_the_divergence_from_the_prior_is_a_special_case(variance):
    prior = torch.zeros(2), torch.full((2,), variance)
    torch.testing.assert_close(gaussian.kl_to_prior(*B, variance), gaussian.kl(*B, *prior))


def test_a_fresh_posterior_is_narrow():
    mean, std = gaussian.gaussian(torch.zeros(4))
    assert mean.tolist() == [0, 0] and std[0].item() == pytest.approx(0.07888973, abs=1e-7)
    assert gaussian.kl_to_prior(mean, std.square(), 1.0)[0].item() == pytest.approx(2.0428160, abs=1e-5)


def test_distances_are_from_the_target_to_what_is_now():
    def phi(mean, variance):
        return torch.cat([mean, torch.log(torch.expm1(variance.sqrt())) + gaussian.OFFSET]).unsqueeze(0)

    old, new = phi(*A), phi(*B)
    for kind, value in {"fkl": AB, "rkl": BA, "w2": 2.0}.items():
        assert gaussian.distance(kind, old, new).sum().item() == pytest.approx(value, abs=1e-5), kind
    rho = math.log(math.expm1(2)) - math.log(math.expm1(1))
    assert gaussian.distance("mse", old, new).sum().item() == pytest.approx(1 + rho**2, abs=1e-5)


# ---- the regulariser

REGULARISED = [
    ("pr_dirac",), ("pr_bbb", "--reg", "mse"), ("pr_bbb", "--reg", "fkl"), ("pr_bbb", "--reg", "rkl"),
    ("pr_bbb", "--reg", "w2"), ("pr_radial",), ("pr_ssge",), ("pr_avb",),
]  # fmt: skip
BY_HEAD = [case for case in REGULARISED if case[0] not in ("pr_ssge", "pr_avb")]


def in_third_task(method, *more):
    """A method after two tasks of the Gaussian modes, the third begun; (model, batch)."""
    exp = experiment(method, *more, "--beta", "1", "--hnet_arch", "10", dataset="seq-gmm2d")
    return first_batch(exp, 2)


def regulariser(model, batch):
    return model.fit(*batch[:2])["reg"]


@torch.no_grad()
def perturb(model):
    for parameter in model.hyper.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("case", REGULARISED, ids=" ".join)
def test_the_regulariser_begins_at_zero_whatever_keeps_the_targets(case):
    torch.manual_seed(0)
    model, batch = in_third_task(*case)
    model.previous.take(model.hyper)
    for targets in ("stored", "online"):
        model.args.reg_targets = targets
        assert abs(regulariser(model, batch).item()) <= 1e-6 * model.n_phi
    perturb(model)
    moved = {}
    for model.args.reg_targets in ("stored", "online"):
        value = moved[model.args.reg_targets] = regulariser(model, batch)
        assert value > 1e-3
        gradients = torch.autograd.grad(value, [*model.hyper.embeddings[:2], model.hyper.layers[0].weight])
        assert all(g.abs().sum() > 0 for g in gradients)
    torch.testing.assert_close(moved["stored"], moved["online"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [("pr_dirac",), ("pr_bbb", "--reg", "fkl"), ("pr_ssge",)], ids=" ".join)
@pytest.mark.parametrize("targets", ["stored", "online"])
def test_a_random_subset_of_tasks_has_the_same_mean(case, targets):
    model, batch = in_third_task(*case, "--reg_targets", targets)
    perturb(model)
    full = regulariser(model, batch).item()
    model.args.hnet_reg_batch_size = 1
    seen = {round(regulariser(model, batch).item() / full, 4) for _ in range(25)}
    assert len(seen) == 2 and sum(seen) / 2 == pytest.approx(1, abs=1e-3)
    model.args.hnet_reg_batch_size = 2
    assert regulariser(model, batch).item() == pytest.approx(full, rel=1e-4)


@pytest.mark.parametrize("case", [("pr_dirac",), ("pr_bbb", "--reg", "fkl")], ids=" ".join)
def test_task_by_task_has_the_same_value_and_gradient(case, monkeypatch):
    model, batch = in_third_task(*case)
    perturb(model)
    found = []
    for limit in (2**22, 1):
        monkeypatch.setattr("models.utils.posterior.meta_replay.IN_CACHE", limit)
        torch.manual_seed(1)
        model.zero_grad()
        terms = model.fit(*batch[:2])
        sum(terms.values()).backward()
        found.append((terms["reg"].detach(), [p.grad.clone() for p in model.get_parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", BY_HEAD, ids=" ".join)
def test_heads_of_other_tasks_are_left_out(case):
    model, _ = in_third_task(*case)
    old = torch.randn(2, model.n_phi)
    moved = old.clone()
    other = torch.ones(2, 6)
    for task in range(2):
        other[task, 2 * task : 2 * task + 2] = 0
    for half in moved.view(2, -1, model.net.size).unbind(1):  # W, or mu and rho
        for part in model.net.head_parts(half):
            part.add_(other.view(2, 6, *[1] * (part.dim() - 2)))
    assert not torch.equal(moved, old)
    assert model.distance(old, moved, [0, 1]).abs().max() < 1e-5
    assert model.distance(old, moved, [1, 2]).min() > 0.01
    shared = old.clone()
    shared[:, 0] += 1
    assert model.distance(old, shared, [0, 1]).min() > 0.01


def test_all_weights_of_a_generator_count():
    model, _ = in_third_task("pr_ssge")
    old = torch.zeros(2, model.n_phi)
    assert model.distance(old, torch.ones_like(old), [0, 1]).tolist() == [model.n_phi] * 2


# ---- hypernetworks


@pytest.mark.parametrize(
    ("outputs", "hidden", "embedding", "chunk", "chunk_embedding", "conditional", "tasks", "expected"),
    [
        (206, [10, 10], 2, 0, 32, False, 3, (1, 2_412)),
        (412, [50, 50], 32, 0, 32, False, 3, (1, 25_308)),
        (31_806, [100, 100], 2, 0, 32, False, 3, (1, 3_222_812)),  # as many as the generator below has weights
        (89_610, [10] * 4, 32, 8_000, 32, False, 5, (12, 89_524)),
        (179_220, [], 32, 2_500, 32, True, 5, (72, 174_180)),
        (930_580, [100, 100], 16, 9_000, 16, False, 5, (104, 924_144)),
        (6_054_000, [100, 100], 32, 55_000, 32, False, 100, (111, 5_578_352)),
    ],
)
def test_hypernetworks_have_the_published_sizes(
    outputs, hidden, embedding, chunk, chunk_embedding, conditional, tasks, expected
):
    net = TaskHypernetwork(outputs, hidden, embedding, "relu", chunk, chunk_embedding, conditional)
    for _ in range(tasks):
        net.add_task()
    assert (net.n_chunks, sum(p.numel() for p in net.parameters())) == expected
    assert WeightGenerator(206, [100, 100], 8).size == 31_806


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("hidden", [[], [5, 4]])
def test_chunks_are_the_outputs_for_task_and_chunk_embedding_side_by_side(hidden, conditional):
    net = TaskHypernetwork(23, hidden, 3, "sigmoid", 6, 2, conditional)
    for _ in range(3):
        net.add_task()
    together = net([0, 1, 2])
    assert net.n_chunks == 4 and together.shape == (3, 23)
    assert len(net.chunk_embeddings) == (3 if conditional else 1)
    for task in range(3):
        torch.testing.assert_close(net([task])[0], together[task])
        rows = []
        for c in net.chunk_embeddings[task if conditional else 0]:
            h = net.layers[0](torch.cat([net.embeddings[task], c]))
            for layer in net.layers[1:]:
                h = layer(torch.sigmoid(h))
            rows.append(h)
        torch.testing.assert_close(together[task], torch.cat(rows)[:23])  # the last chunk has one too many


@pytest.mark.parametrize("samples", [0, 4])
@pytest.mark.parametrize("hidden", [[], [5]])
def test_a_chunked_generator_reads_noise_and_chunk_embedding_side_by_side(hidden, samples):
    generator = WeightGenerator(11, hidden, 3, activation="tanh", chunk=4, chunk_embedding=2)
    phi, z = torch.randn(2, generator.size), generator.noise(samples, torch.device("cpu"))
    made = generator(phi, z)
    assert made.shape == (2, samples, 11)
    for k in range(2):
        parts = [p.view(s) for p, s in zip(phi[k].split(generator.sizes), generator.shapes, strict=True)]
        for n in range(samples):
            rows = []
            for c in parts[-1]:
                h = parts[0] @ torch.cat([z[n], c]) + parts[1]
                for weight, bias in zip(parts[2:-1:2], parts[3:-1:2], strict=True):
                    h = weight @ torch.tanh(h) + bias
                rows.append(h)
            torch.testing.assert_close(made[k, n], torch.cat(rows)[:11])


# ---- the score estimate


@pytest.mark.parametrize(("a", "width"), [(1.0, 2.0), (0.7, 0.9)])
def test_the_score_of_two_points(a, width):
    x = torch.tensor([[-a], [a]])
    k = math.exp(-2 * a**2 / width**2)
    expected = 2 * a / width**2 * k / (1 - k)
    assert ssge.score(x, x, width, 1.0)[:, 0].tolist() == pytest.approx([expected, -expected], rel=1e-5)
    if (a, width) == (1, 2):
        assert expected == pytest.approx(0.7707470, abs=1e-7)
    assert ssge.score(x, x, width, eigenvalues=1).abs().max() < 1e-7  # psi_1 is even


def test_the_score_of_three_points_and_of_one():
    x = torch.tensor([[-1.0], [0], [1]])
    found = ssge.score(x, x, 1.0, 1.0)[:, 0].tolist()
    assert found == pytest.approx([1.0144987, 0, -1.0144987], abs=1e-6)
    assert ssge.score(torch.randn(1, 3), torch.randn(4, 3), 1.0, 1.0).tolist() == [[0, 0, 0]] * 4


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_score_of_a_gaussian(dimension):
    x = torch.randn(500, dimension, generator=torch.Generator().manual_seed(dimension)).double()
    found, exact = ssge.score(x, x), -x
    assert ((found - exact).norm() / exact.norm()).item() <= 0.45
    assert torch.cosine_similarity(found.flatten(), exact.flatten(), 0).item() >= 0.9
    assert ssge.score(x, x, ratio=1.0).isfinite().all()  # with all eigenvalues too


def test_the_entropy_enters_by_the_gradient_of_its_samples():
    model, batch = in_third_task("pr_ssge", "--train_sample_size", "4", "--num_ssge_samples", "9", "--kl_scale", "0.5")
    phi = model.phi([2])[0].detach().requires_grad_()
    torch.manual_seed(3)
    (found,) = torch.autograd.grad(model.fit_phi(phi, *batch[:2])["entropy"], phi)
    torch.manual_seed(3)
    weights = model.generator.draw(phi, 4)
    score = model.score_at(weights, torch.cat([weights, model.generator.draw(phi.detach(), 5)]))
    (explicit,) = torch.autograd.grad(weights, phi, 0.5 * score / 4)
    assert explicit.abs().sum() > 0
    torch.testing.assert_close(found, explicit)


# ---- task inference


def told(*probabilities):
    """What a head with these samples of class probabilities says about one input."""
    logits = torch.tensor(probabilities).log().unsqueeze(1)
    return {name: value.item() for name, value in uncertainties(*mean_log_probabilities(logits)).items()}


def test_samples_that_contradict_each_other_and_samples_that_agree_on_not_knowing():
    contradict, unknown = told((1.0, 0.0), (0.0, 1.0)), told((0.5, 0.5), (0.5, 0.5))
    assert contradict["ent"] == pytest.approx(1) and contradict["agree"] == pytest.approx(0.5)
    assert math.exp(contradict["conf"]) == pytest.approx(1 - 0.5)  # conf ranks by what the best class leaves over
    assert unknown["ent"] == pytest.approx(1) and unknown["agree"] == 0
    assert told((0.9, 0.1), (0.7, 0.3))["agree"] == pytest.approx(0.1)  # biased deviation, mean over the classes


@pytest.mark.parametrize("gaps", [(20.0, 30.0), (60.0, 80.0)])
def test_very_certain_heads_are_told_apart_and_a_point_mass_does_not_agree(gaps):
    less, more = (mean_log_probabilities(torch.tensor([[[0.0, gap]]])) for gap in gaps)
    assert torch.softmax(torch.tensor([0.0, gaps[0]]), 0)[1] == 1  # in float32 they tie
    for criterion in ("ent", "conf"):
        assert uncertainties(*more)[criterion] < uncertainties(*less)[criterion]
    assert uncertainties(*more)["agree"].isnan().all()


# ---- predictions


def heads(samples, widths, batch=200):
    """Outputs (S, B, C_j), from undecided to very certain, the samples of a head not far apart."""
    scale = torch.logspace(-1, 2, batch).unsqueeze(1)
    return [scale * torch.randn(batch, width) + torch.randn(samples, batch, width) for width in widths]


def by_hand(outputs):
    """Head of least entropy and best class of every head, for each input."""
    entropies, best = [], []
    for o in outputs:
        p = o.double().softmax(-1).mean(0)
        best.append(p.argmax(-1))
        others = p.scatter(1, best[-1].unsqueeze(1), 0)
        left = others.sum(1)
        entropies.append(-torch.xlogy(others, others).sum(1) - (1 - left) * torch.log1p(-left))
    return torch.stack(entropies).argmin(0), torch.stack(best)


@pytest.mark.parametrize("begun", [3, 2])
def test_one_set_of_scores_has_the_prediction_with_the_task_inferred_and_with_it_given(begun, monkeypatch):
    torch.manual_seed(0)
    model = experiment("pr_bbb", dataset="seq-gmm2d").model
    outputs = heads(7, [2] * begun)
    model.n_begun = begun
    monkeypatch.setattr(model, "sampled_outputs", lambda x: outputs)
    scores = model(torch.zeros(200, 2))
    inferred, best = by_hand(outputs)
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert inferred.unique().tolist() == list(range(begun))
    rows = torch.arange(200)
    assert torch.equal(scores.argmax(1), 2 * inferred + best[inferred, rows])
    for task in range(begun):
        assert torch.equal(scores[:, 2 * task : 2 * task + 2].argmax(1), best[task])


def test_on_a_stream_of_domains_the_task_given_chooses_the_head(monkeypatch):
    torch.manual_seed(0)
    model = experiment("pr_bbb", "--n_tasks", "3", dataset="perm-digits").model
    outputs = heads(7, [10] * 3)
    assert [model.head(task) for task in range(3)] == [(0, 10), (10, 20), (20, 30)]
    model.n_begun = 3
    monkeypatch.setattr(model, "sampled_outputs", lambda x: outputs)
    inferred, best = by_hand(outputs)
    labels = torch.randint(10, (200,))
    scores, more = model.evaluate_batch(torch.zeros(200, 64), labels, 1, ["domain-il", "task-il"])
    assert torch.equal(scores["domain-il"].argmax(1), best[inferred, torch.arange(200)])
    assert torch.equal(scores["task-il"].argmax(1), best[1])
    assert more["task_inference_ent"][1].item() == 100 * (inferred == 1).sum().item()
    p = outputs[1].double().softmax(-1).mean(0)
    nll = -p.gather(1, labels.unsqueeze(1)).log().sum().item()
    assert more["nll"][0] == "task-il" and more["nll"][1].item() == pytest.approx(nll, rel=1e-5)


# ---- samples


def test_radial_samples_are_as_far_from_the_mean_in_every_tensor():
    model = experiment("pr_radial", dataset="seq-gmm2d").model
    mean, std = torch.randn(model.net.size), torch.rand(model.net.size) + 0.1
    drawn = (model.draw(mean, std, 4000, torch.Generator().manual_seed(0)) - mean) / std
    lengths = torch.stack([part.norm(dim=1) for part in drawn.split(model.net.sizes, 1)])
    assert len(lengths) == 6
    # |r|, r ~ N(0, 1), whatever the size of the tensor
    torch.testing.assert_close(lengths.mean(1), torch.full((6,), math.sqrt(2 / math.pi)), rtol=0, atol=0.05)
    torch.testing.assert_close(lengths.square().mean(1), torch.ones(6), rtol=0, atol=0.12)
    two = torch.stack([mean, mean + 1]), torch.stack([std, 2 * std])
    a, b = model.draw(*two, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(b - two[0][1], 2 * (a - two[0][0]))  # the same noise for both


def test_gaussian_samples_share_the_noise_of_all_posteriors():
    mean, std = torch.tensor([[0.0, 1], [2, 3]]), torch.tensor([[1.0, 2], [3, 0.5]])
    drawn = gaussian.draw(mean, std, 20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close((drawn[0] - mean[0]) / std[0], (drawn[1] - mean[1]) / std[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(drawn.mean(1), mean, rtol=0, atol=0.08)
    torch.testing.assert_close(drawn.std(1), std, rtol=0.02, atol=0)


def test_the_local_trick_and_weight_samples_agree_on_each_example():
    torch.manual_seed(0)
    net = ExternalWeights(MNISTMLP((3,), 2, hidden=4, layers=2))
    mean, variance, x = torch.randn(net.size), 0.2 * torch.rand(net.size), torch.randn(4, 3)
    local = net.local(mean, variance, x, (0, 2), 20000)
    weights = net(gaussian.draw(mean, variance.sqrt(), 20000), x)
    torch.testing.assert_close(local.mean(0), weights.mean(0), rtol=0.02, atol=0.05)
    torch.testing.assert_close(local.std(0), weights.std(0), rtol=0.04, atol=0)
    # fresh for every example: those of two examples are independent
    assert torch.corrcoef(local[:, :2, 0].T)[0, 1].abs() < 0.03


def test_perturbed_weights_have_full_support():
    torch.manual_seed(0)
    generator = WeightGenerator(9, [], latent=2, latent_std=0.5, perturbation=0.4)
    z = generator.noise(20000, torch.device("cpu"))
    assert z.shape == (20000, 9)
    still = generator(torch.zeros(1, generator.size), z)[0]
    torch.testing.assert_close(torch.cov(still.T), (0.5 * 0.4) ** 2 * torch.eye(9), rtol=0, atol=2e-3)
    # W = A z_1..2 + b + 0.4 z: what the generator does not reach has the variance of the perturbation alone
    phi = torch.randn(1, generator.size)
    a = phi[0, :18].view(9, 2)
    exact = torch.cat([a, torch.zeros(9, 7)], 1) + 0.4 * torch.eye(9)
    torch.testing.assert_close(torch.cov(generator(phi, z)[0].T), 0.25 * exact @ exact.T, rtol=0.05, atol=0.05)
    bare = WeightGenerator(9, [], latent=2)
    flat = bare(phi, bare.noise(50, torch.device("cpu")))[0]
    assert torch.linalg.matrix_rank(flat - flat.mean(0), rtol=1e-4) == 2
