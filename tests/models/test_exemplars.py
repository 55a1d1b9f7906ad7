"""The formulas of icarl, lwf_mc, slda, bic, lucir, xder and their exemplar store against numbers worked by hand or by a
plain loop.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from palimpsest.models.bic import BiC
from palimpsest.models.icarl import ICaRL
from palimpsest.models.lucir import LUCIR
from palimpsest.models.lwf_mc import LwFMC
from palimpsest.models.slda import SLDA
from palimpsest.models.utils.exemplars import class_means, features_of, herding, nearest_mean_scores, refill, share
from palimpsest.models.utils.extended_dark import excess, implant
from palimpsest.models.utils.polytope import simplex
from palimpsest.models.xder import supcon
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.training import train
from tests.models.helpers import enter, experiment, finished, first_batch, image, options, small

BUFFER = ["--buffer_size", "60"]


# ---- the store


def test_herding_is_a_plain_loop():
    torch.manual_seed(0)
    features, chosen = torch.randn(40, 5), []
    for k in range(1, 13):
        rest = [i for i in range(40) if i not in chosen]
        chosen.append(min(rest, key=lambda i: (features.mean(0) - features[[*chosen, i]].sum(0) / k).norm().item()))
    assert herding(features, 12).tolist() == chosen
    assert sorted(herding(features, 99).tolist()) == list(range(40))


def test_shares_are_cut_from_the_tail():
    buffer = Buffer(7)

    def rows(*x):
        return {"examples": torch.tensor(x).view(-1, 1), "labels": torch.full((len(x),), x[0] // 10)}

    sizes = refill(buffer, [], share(buffer, 2), [rows(0, 1, 2, 3, 4), rows(10, 11)])
    assert sizes == [3, 2] and buffer.get_all_data()[0].flatten().tolist() == [0, 1, 2, 10, 11]
    sizes = refill(buffer, sizes, share(buffer, 3), [rows(20, 21, 22)])
    assert sizes == [2, 2, 2] and buffer.get_all_data()[0].flatten().tolist() == [0, 1, 10, 11, 20, 21]
    assert buffer.get_all_data()[1].tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="leaves no exemplar for each of 8 classes"):
        share(buffer, 8)


def test_nearest_mean_by_hand():
    features, labels = torch.tensor([[2.0, 0], [0, 5], [3, 0], [-1, 0]]), torch.tensor([0, 0, 1, 3])
    means = class_means(features, labels, 4)
    # Lengths do not count: class 0 is the diagonal, not the mean (1, 2.5). There is no class 2.
    torch.testing.assert_close(means[[0, 1, 3]], torch.tensor([[0.5**0.5, 0.5**0.5], [1, 0], [-1, 0]]))
    scores = nearest_mean_scores(torch.tensor([[10.0, 9], [9, 1], [-2, 1]]), means)
    assert scores.argmax(1).tolist() == [0, 1, 3] and (scores[:, 2] == -torch.inf).all()


def test_exemplars_are_herded_images_of_their_class():
    exp = finished("icarl", *BUFFER, "--stop_after", "1", "--n_epochs", "1")
    data, (examples, labels) = exp.dataset.task_data(0), exp.model.buffer.get_all_data()
    own = data.data[data.targets == 1]
    features = F.normalize(features_of(exp.model, own))
    assert torch.equal(examples[labels == 1], own[herding(features, 30)])
    assert exp.model.sizes == [30, 30] and labels.tolist() == [0] * 30 + [1] * 30


# ---- icarl, lwf_mc


@pytest.mark.parametrize("cls, more", [(ICaRL, [*BUFFER, "--opt_wd", "0"]), (LwFMC, [])])
def test_old_outputs_are_targets(cls, more):
    model = small(cls, *more, task=1)
    bias = model.net.classifier.bias
    with torch.no_grad():
        bias.copy_(torch.tensor([1.0, -2, 0, 0]))
        model.teacher.take(model.net)
        bias.copy_(torch.tensor([0.0, 0, 1, -1]))
    loss = model.observe(image(0, 0), torch.tensor([2]), image(0, 0))
    # Targets sigmoid(1), sigmoid(-2), 1, 0; outputs sigmoid(0) twice, sigmoid(1), sigmoid(-1).
    expected = (2 * math.log(2) + 2 * math.log(1 + math.exp(-1))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # dL/db = (g - q) / 4.
    sigmoid = [1 / (1 + math.exp(-b)) for b in (1, -2)]
    moved = [-0.1 * (0.5 - q) / 4 for q in sigmoid] + [0.1 * (1 - 1 / (1 + math.exp(-1))) / 4]
    torch.testing.assert_close(bias.detach()[:3], torch.tensor([moved[0], moved[1], 1 + moved[2]]))


def test_icarl_predicts_by_means_between_tasks_only():
    exp = finished("icarl", *BUFFER, "--stop_after", "2", "--n_epochs", "1")
    model, x = exp.model, exp.dataset.task_data(0).data[:5].float() / 255
    model.eval()
    with torch.no_grad():
        assert (model(x)[:, 4:] == -torch.inf).all() and model(x)[:, :4].abs().max() <= 1 + 1e-5
        model.begin_task(exp.dataset)
        torch.testing.assert_close(model(x), model.net(x))


def test_weight_decay_by_hand():
    model = small(LwFMC, "--wd_reg", "0.5", zero=False)
    norm = model.net.get_params().square().sum()
    plain = F.binary_cross_entropy_with_logits(model.net(image(1, 2))[:, :2], torch.tensor([[0.0, 1]]))
    torch.testing.assert_close(model.observe(image(1, 2), torch.tensor([1]), None), plain + 0.5 * norm)
    assert small(ICaRL, *BUFFER, "--opt_wd", "0.3").opt.param_groups[0]["weight_decay"] == 0.3


# ---- slda


def test_slda_streaming_is_the_batch_formula():
    model = small(SLDA, "--shrinkage", "0.1")
    torch.manual_seed(1)
    z, y = torch.randn(50, 2) * 3 + 1, torch.randint(0, 3, (50,))
    for part, labels in zip(z.split([1, 7, 30, 12]), y.split([1, 7, 30, 12]), strict=True):
        model.update(part, labels)
    means = torch.stack([z[y == c].mean(0) for c in range(3)])
    centred = z - means[y]
    torch.testing.assert_close(model.means[:3], means)
    torch.testing.assert_close(model.scatter, centred.T @ centred, rtol=1e-5, atol=1e-4)
    one_by_one = small(SLDA)
    for row, label in zip(z, y, strict=True):
        one_by_one.update(row.view(1, 2), label.view(1))
    torch.testing.assert_close(one_by_one.scatter, model.scatter, rtol=1e-5, atol=1e-4)
    model.frozen = True
    precision = torch.linalg.inv(0.9 * centred.T @ centred / 50 + 0.1 * torch.eye(2))
    x, scores = image(1, 2), model(image(1, 2))
    for c in range(3):
        expected = means[c] @ precision @ x.flatten() - means[c] @ precision @ means[c] / 2
        torch.testing.assert_close(scores[0, c], expected)
    assert scores[0, 3] == -torch.inf


def test_slda_freezes_the_network_and_counts_every_example_once():
    exp = finished("slda", "--stop_after", "3", "--n_epochs", "2")
    again = finished("slda", "--stop_after", "1", "--n_epochs", "2")
    assert torch.equal(exp.model.net.get_params(), again.model.net.get_params())
    counts = [int((exp.dataset.task_data(c // 2).targets == c).sum()) for c in range(6)]
    assert exp.model.counts.tolist() == counts + [0] * 4


# ---- bic


def test_bic_terms_by_hand():
    model = small(BiC, *BUFFER, task=1)
    with torch.no_grad():
        model.net.classifier.weight.zero_()
        model.net.classifier.bias.copy_(torch.tensor([1.0, 0, 5, 5]))
    model.teacher.take(model.net)
    model.old_correction[:, :2] = torch.tensor([[3.0], [7.0]])  # logits (10, 7): softmax at T = 2 of a gap of 3
    with torch.no_grad():
        model.net.classifier.bias.zero_()
    terms = model.observe(image(0, 0), torch.tensor([3]), None)
    assert terms["ce"].item() == pytest.approx(0.5 * math.log(4), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(0.5 * math.log(2), rel=1e-5)
    # Gradient of the distillation: lambda / T (q - p) with p = sigmoid(1.5); of the rest: (1 - lambda) 1/4.
    p, lr = 1 / (1 + math.exp(-1.5)), model.args.lr
    moved = -lr * (0.5 / 2 * (0.5 - p) + 0.5 / 4)
    assert model.net.classifier.bias[0].item() == pytest.approx(moved, rel=1e-4)


def test_bic_fits_the_best_affine_map():
    model = small(BiC, *BUFFER, "--bic_epochs", "4000", "--batch_size", "32", task=1, zero=False)
    torch.manual_seed(1)
    x, y = torch.randn(32, 1, 1, 2), torch.arange(32) % 4
    with torch.no_grad():
        model.net.classifier.bias[2:] += 2  # the bias towards new classes
    model.fit(x, y)
    z = model.net(x).detach()
    affine = torch.tensor([1.0, 0.0], requires_grad=True)
    F.cross_entropy(torch.cat((z[:, :2], affine[0] * z[:, 2:] + affine[1]), 1), y).backward()
    assert affine.grad.abs().max() > 0.2  # where the fit begins
    assert model.correction[:, :2].tolist() == [[1, 1], [0, 0]]
    assert torch.equal(model.correction[:, 2], model.correction[:, 3])
    affine = model.correction[:, 2].clone().requires_grad_()
    F.cross_entropy(torch.cat((z[:, :2], affine[0] * z[:, 2:] + affine[1]), 1), y).backward()
    assert affine.grad.abs().max() < 0.01  # where it ends; the problem is convex
    torch.testing.assert_close(model(x)[:, 2:], affine[0] * z[:, 2:] + affine[1])


def test_bic_never_trains_on_validation_examples():
    exp = experiment("bic", *BUFFER, "--stop_after", "3", "--n_epochs", "1")
    trained, original = set(), exp.model.observe
    digest = lambda x: [bytes(row.flatten().tolist()) for row in x]  # noqa: E731
    vars(exp.model)["observe"] = lambda i, y, raw, **k: trained.update(digest(raw)) or original(i, y, raw, **k)
    train(exp)
    model, examples = exp.model, exp.model.buffer.get_all_data()[0]
    assert model.sizes == [10] * 6
    kept = model.slots(validation=True)
    assert kept.tolist() == [0, 10, 20, 30, 40, 50]
    assert not trained & set(digest(examples[kept]))
    assert set(digest(examples[[i for i in range(60) if i % 10]])) <= trained


# ---- lucir


def test_lucir_terms_by_hand():
    model = small(LUCIR, *BUFFER, "--lamda_base", "3", "--lamda_mr", "2", "--mr_margin", "0.5", n_tasks=3, task=2)
    model._n_past_classes, model._n_classes_current_task = 4, 1
    cosines = torch.tensor([[0.9, 0, 0, 0, 0.6], [0, 0.2, 0, 0, 0.5], [0, 0, 0, 0, 0.3]])
    # Old 0: .5 - .9 + .6 = .2; old 1: .5 - .2 + .5 = .8; the third is new and does not count.
    assert model.margin(cosines, torch.tensor([0, 1, 4])).item() == pytest.approx(0.5)
    assert model.margin(cosines, torch.tensor([4, 4, 4])).item() == 0
    model._n_classes_current_task = 2
    wide = torch.tensor([[0.4, 0, 0, 0, 0.6, -0.3]])  # the two nearest new classes: .7 and 0 (its hinge is negative)
    assert model.margin(wide, torch.tensor([0])).item() == pytest.approx(0.35)
    model.teacher.take(model.net)
    model.old_weight = model.net.classifier.weight[:4].detach().clone()
    model.teacher.copy.features = lambda x: torch.tensor([[1.0, 1], [0, 2]])
    terms = model.observe(image(1, 0, 3, 0), torch.tensor([4, 5]), None)
    # Cosines sqrt(1/2) and 0; weight 3 sqrt(4 / 2).
    assert terms["direction"].item() == pytest.approx(3 * 2**0.5 * (1 - 0.5**0.5 / 2), rel=1e-5)
    assert torch.equal(model.net.classifier.weight[:4], model.old_weight)


def test_lucir_classifier_by_hand():
    net = small(LUCIR, *BUFFER).net
    with torch.no_grad():
        net.classifier.weight.copy_(torch.tensor([[2.0, 0], [0, 1], [3, 3], [-1, 0]]))
        net.classifier.eta.fill_(4)
    torch.testing.assert_close(net(image(5, 0)), torch.tensor([[4.0, 0, 4 * 0.5**0.5, -4]]))


def test_lucir_new_classes_start_at_their_mean():
    exp = finished("lucir", *BUFFER, "--stop_after", "1", "--n_epochs", "1")
    model, dataset = exp.model, exp.dataset
    enter(model, dataset, 1)
    data, weight = dataset.task_data(1), model.net.classifier.weight
    features = F.normalize(features_of(model, data.data[data.targets == 3]))
    torch.testing.assert_close(F.normalize(weight[3], dim=0), F.normalize(features.mean(0), dim=0))
    torch.testing.assert_close(weight[3].norm(), weight[:2].norm(dim=1).mean())


# ---- xder


def test_implant_by_hand():
    stored = torch.tensor([[4.0, 1, 9, 9], [4, 1, 9, 9], [-1, 0, 9, 9]])
    fresh = torch.tensor([[7.0, 7, 2, 3], [7, 7, 8, -4], [7, 7, 2, 1]])
    # Row 0 stays below 4; row 1 is scaled by .5 * 4 / 8; row 2 would turn its signs.
    expected = torch.tensor([[4.0, 1, 2, 3], [4, 1, 2, -1], [-1, 0, 0, 0]])
    torch.testing.assert_close(implant(stored, fresh, torch.tensor([0, 0, 0]), 2, 4, 0.5), expected)
    assert torch.equal(implant(stored, fresh, torch.tensor([0, 0, 0]), 0, 0, 0.5), stored)


def test_excess_by_hand():
    low, high = torch.tensor([1.0, 0, 5]), torch.tensor([1.0, 2, 4])
    assert excess(low, high, 0.5).item() == pytest.approx((0.5 + 1.5) / 2)
    assert excess(low, high + 9, 0.5).item() == 0


def test_supcon_is_a_plain_loop():
    torch.manual_seed(0)
    x, y, t = torch.randn(6, 3), [0, 0, 1, 1, 1, 2], 0.7
    v, total = F.normalize(x), 0.0
    for i in range(6):
        partners = [j for j in range(6) if j != i and y[j] == y[i]]
        below = sum(math.exp(v[i] @ v[a] / t) for a in range(6) if a != i)
        total -= sum(math.log(math.exp(v[i] @ v[p] / t) / below) for p in partners) / max(len(partners), 1)
    assert supcon(x, torch.tensor(y), t).item() == pytest.approx(total / 6, rel=1e-5)


def test_xder_terms():
    exp = experiment(
        "xder", *BUFFER, "--alpha", "0.3", "--beta", "0.7", "--constr_eta", "0.2", "--constr_margin", "0.4"
    )
    model, (x, y, raw) = first_batch(exp, task=1)
    assert model.buffer.logits.shape == (60, 10) and model.sizes == [30, 30]
    before, draws, original = model.net.get_params(), [], model.buffer.get_data
    model.buffer.get_data = lambda *a, **k: draws.append([r.clone() for r in original(*a, **k)]) or draws[-1]
    terms = model.observe(x, y, raw)
    (rows, x1, y1, z1), (_, x2, y2, _) = draws[:2]
    assert torch.equal(model.buffer.logits[rows][:, :2], z1[:, :2])  # the past part stays
    model.net.set_params(before)
    with torch.no_grad():
        z, r1, r2 = model.net(x), model.net(x1), model.net(x2)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(z[:, 2:4], y - 2))
    torch.testing.assert_close(terms["logits"], 0.3 * F.mse_loss(r1, z1))
    torch.testing.assert_close(terms["replay"], 0.7 * F.cross_entropy(r2[:, :2], y2))
    p = torch.softmax(z[:, :4], 1)
    gaps = [max(row[:2]) + 0.4 - max(row[2:]) for row in p.tolist()]
    assert terms["past"].item() == pytest.approx(0.2 * mean_positive(gaps), rel=1e-4)
    gaps = [max(row[4:]) + 0.4 - max(row[2:4]) for row in z.tolist()]
    gaps += [max(row[4:]) + 0.4 - max(row[:2]) for row in torch.cat((r1, r2)).tolist()]
    assert terms["future"].item() == pytest.approx(0.2 * mean_positive(gaps), rel=1e-4)
    assert "consistency" in terms
    enter(model, exp.dataset, 4)
    assert not {"future", "consistency"} & set(model.observe(x, y + 6, raw))


def mean_positive(values):
    above = [v for v in values if v > 0]
    return sum(above) / max(len(above), 1)


def test_xder_brings_past_exemplars_up_to_date():
    exp = finished("xder", *BUFFER, "--alpha", "0.3", "--beta", "0.7", "--stop_after", "2", "--n_epochs", "1")
    model = exp.model
    x, y, z = model.buffer.get_all_data()
    with torch.no_grad():
        now = model.outputs(x)
    # Of the first task's rows the second and later heads are new, of the second's the first head was scaled.
    for stored, present, own in zip(
        [*z[:30, 2:], *z[30:, :2]], [*now[:30, 2:], *now[30:, :2]], z.gather(1, y.unsqueeze(1)), strict=True
    ):
        top, own = present.max().item(), own.item()
        scale = min(1.0, max(0.0, 0.85 * own / top)) if top > own else 1.0
        torch.testing.assert_close(stored, scale * present)
    torch.testing.assert_close(z[30:, 2:], now[30:, 2:])


@pytest.mark.parametrize("n", [2, 3, 10])
def test_simplex(n):
    p = simplex(n)
    expected = torch.full((n, n), -1 / (n - 1)).fill_diagonal_(1)
    torch.testing.assert_close(p.T @ p, expected)


def test_xder_names_of_older_commands():
    args = options("xder", *BUFFER, "--alpha", "1", "--beta", "1", "--m", "0.7", "--eta", "0.001")
    assert (args.constr_margin, args.constr_eta) == (0.7, 0.001)
