"""packnet, pnn, hat: counts, masks and gradients by hand, and old tasks that stay as they are to the last bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.convnet import ConvNet
from palimpsest.backbone.gated_resnet import GatedResNet
from palimpsest.backbone.mnistmlp import MNISTMLP
from palimpsest.backbone.resnet32 import ResNet32
from palimpsest.backbone.utils.resnet import SmallImageResNet
from palimpsest.backbone.utils.wrapped import Wrapped
from palimpsest.models.hat import HAT
from palimpsest.models.packnet import PackNet
from palimpsest.models.pnn import PNN
from palimpsest.models.utils.held import Held
from palimpsest.utils.errors import TrainingFailed, UserError
from tests.models.helpers import FakeStream, enter, experiment, learn_task, options


def sequential(*widths):
    layers = [nn.Linear(widths[0], widths[1])]
    for i, o in zip(widths[1:], widths[2:], strict=False):
        layers += [nn.ReLU(), nn.Linear(i, o)]
    return nn.Sequential(*layers)


def method(cls, net, n_tasks, cpt, *more):
    """A method around a plain network, one batch of zeros as its stream."""
    inputs = next(m for m in net.modules() if isinstance(m, nn.Linear)).in_features
    stream = FakeStream(n_tasks, cpt)
    stream.train_loader = [(torch.zeros(2, inputs), torch.zeros(2, dtype=torch.long), None)]
    args = options(cls.NAME, "--lr", "0.1", *more)
    return cls(Wrapped(net, n_tasks * cpt), F.cross_entropy, args, lambda x: x, stream)


def capacity(model):
    (panel,) = model.report(model.dataset, range(0)).panels
    return panel.data


@pytest.mark.parametrize(
    "net",
    [
        MNISTMLP((1, 8, 8), 3, hidden=5, layers=3),
        *(ConvNet((1, 8, 8), 3, norm, 4) for norm in ("group", "batch", "none")),
        SmallImageResNet((1, 8, 8), 3, [4, 8, 16], blocks=1, padded=True),
        GatedResNet((1, 8, 8), 3, nf=4),
    ],
)
def test_the_chain_is_the_trunk(net):
    x = torch.randn(4, 1, 8, 8)
    h = x
    net.eval()
    for body, activation in net.chain():
        h = activation(body(h))
    assert torch.equal(h, net.features(x))


def test_the_chain_of_a_plain_sequence():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)
    ).eval()
    chain, x = Wrapped(net, 2).chain(), torch.randn(5, 2, 2)
    h = x
    for body, activation in chain:
        h = activation(body(h))
    assert len(chain) == 2 and torch.equal(net[-1](h), net(x))
    with pytest.raises(UserError, match="nn.Sequential that ends in an nn.Linear"):
        Wrapped(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 2).chain()


# ---- values that must not move


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_held_entries_stay_whatever_the_optimiser_does(optimizer):
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    opt = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    }[optimizer](net.parameters())
    F.mse_loss(net(torch.randn(4, 3)), torch.randn(4, 2)).backward()
    opt.step()  # fills the moments
    net.weight.data.copy_(before)
    held, mask = Held(), torch.tensor([[True, False, True], [False, False, True]])
    held.hold(net, {"weight": mask, "bias": torch.tensor(True)})
    for _ in range(3):
        opt.zero_grad()
        F.mse_loss(net(torch.randn(4, 3)), torch.randn(4, 2)).backward()
        held.step(net, opt)
    assert torch.equal(net.weight == before, ~mask)


CASES = [
    "packnet mnistmlp sgd --optim_mom 0.9",
    "packnet mnistmlp adamw --packnet_bias per_task --no_use_magnitude_pruning",
    "packnet convnet adamw --norm batch --width 4 --packnet_bn per_task",
    "pnn mnistmlp sgd --optim_mom 0.9 --no_pnn_adapter",
    "pnn convnet adamw --norm batch --width 4",
    "hat mnistmlp sgd --optim_mom 0.9",
    "hat convnet adamw --width 4",
]


@pytest.mark.parametrize("case", CASES)
def test_old_outputs_stay_bit_for_bit(case):
    name, net, optimizer, *more = case.split()
    flags = ["--backbone", net, "--optimizer", optimizer, *more, "--optim_wd", "0.1", "--batch_size", "64"]
    exp = experiment(name, *flags, "--lr", "0.03", "--n_epochs", "1")
    model = exp.model
    learn_task(exp, 0)
    x = next(iter(exp.dataset.train_loader))[0]

    def outputs(task):
        model.eval()
        with torch.no_grad():
            out = model.predict(x, task)[:, slice(*model.get_offsets(task))]
        model.train()
        return out

    after_first = outputs(0)
    learn_task(exp, 1)
    after_second = outputs(1)
    assert torch.equal(outputs(0), after_first)
    learn_task(exp, 2)
    assert torch.equal(outputs(0), after_first) and torch.equal(outputs(1), after_second)
    assert not torch.equal(outputs(1), outputs(2))


# ---- packnet


def owned_by_first(model, weights):
    enter(model, model.dataset, 0)
    model.net.net[0].weight.data.copy_(torch.tensor([weights]))


@pytest.mark.parametrize(
    "weights, share, flags, owner",
    [
        ([0.5, -0.1, 0.3, -0.8, 0.05, 0.2, -0.4, 0.6], 0.75, [], [0, 0, 0, 1, 0, 0, 0, 1]),  # k = 6, threshold .5
        ([0.5, 0.5, 0.5, 0.9], 0.5, [], [0, 0, 0, 1]),  # k = 2, but three are equal
        ([0.1, 0.6, 0.8, 0.9], 0.25, ["--prune_threshold", "0.7"], [0, 0, 1, 1]),  # k = 1; .6 goes by the floor
    ],
)
def test_packnet_prunes_the_smallest(weights, share, flags, owner):
    model = method(PackNet, sequential(len(weights), 1, 4), 2, 2, *flags)
    owned_by_first(model, weights)
    model.prune(share, None)
    assert model.owner.tolist() == owner
    assert model.net.net[0].weight.tolist()[0] == pytest.approx([w * o for w, o in zip(weights, owner, strict=True)])


def test_packnet_may_rank_by_gradient_times_weight():
    model = method(PackNet, sequential(2, 1, 4), 2, 2, "--no_use_magnitude_pruning")
    model.dataset.train_loader = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), None)]
    model.net.net[0].bias.data.fill_(1.0)  # the unit is awake
    owned_by_first(model, [0.1, 5.0])
    model.prune(0.5, model.dataset)  # the second input is always 0
    assert model.owner.tolist() == [1, 0]
    model.dataset.train_loader = [(torch.tensor([[1.0, 0.5]]), torch.tensor([0]), None)]
    owned_by_first(model, [0.1, 5.0])
    model.prune(0.5, model.dataset)  # half the gradient, fifty times the weight
    assert model.owner.tolist() == [0, 1]


@pytest.mark.parametrize(
    "flags, owned",
    [([], [250, 188, 140, 422]), (["--equal_share"], [250, 250, 250, 250])],
)
def test_packnet_shares(flags, owned):
    model = method(PackNet, sequential(1000, 1, 8), 4, 2, *flags)
    for task in range(4):
        enter(model, model.dataset, task)
        free = model.owners()["net.0.weight"] == task + 1
        model.net.net[0].weight.data[free] = torch.randn(int(free.sum()))
        if share := model.share(model.dataset):
            model.prune(share, None)
    model._current_task = 4
    assert capacity(model) == {"owned": owned, "total": 1000}
    model.dataset.n_tasks = None
    if flags:
        with pytest.raises(UserError, match="--equal_share needs the number of tasks"):
            model.share(model.dataset)


def test_packnet_without_room_names_layer_and_task():
    model = method(PackNet, sequential(1, 1, 6), 3, 2, "--prune_percentage", "0.5")
    enter(model, model.dataset, 0)
    with pytest.warns(UserWarning, match="nothing to prune in net.0.weight"):
        model.prune(0.5, None)  # round(.5) = 0
    with pytest.raises(TrainingFailed, match="net.0.weight for task 1"):
        enter(model, model.dataset, 1)
    with pytest.raises(UserError, match="--prune_percentage 1: expected"):
        method(PackNet, sequential(1, 1, 6), 3, 2, "--prune_percentage", "1")


# ---- pnn


@pytest.mark.parametrize(
    "flags, totals",
    [
        (["--no_pnn_adapter"], {1: 235_146, 2: 504_340, 3: 807_582, 5: 1_516_210}),
        ([], {1: 235_146, 2: 586_646, 3: 1_020_068, 5: 2_132_678}),
    ],
)
def test_pnn_parameter_counts(flags, totals):
    model = method(PNN, sequential(784, 256, 128, 50), 5, 10, *flags)
    found = {}
    for task in range(5):
        enter(model, model.dataset, task)
        model._current_task = task + 1
        found[task + 1] = capacity(model)["total"]
    assert {k: found[k] for k in totals} == totals
    trained = sum(p.numel() for group in model.opt.param_groups for p in group["params"])
    assert trained == capacity(model)["owned"][-1]


@pytest.mark.parametrize("flags", [[], ["--no_pnn_adapter"]])
def test_pnn_laterals_reach_the_new_column_alone(flags):
    torch.manual_seed(0)
    model = method(PNN, sequential(6, 16, 16, 4), 2, 2, *flags)
    enter(model, model.dataset, 0), enter(model, model.dataset, 1)
    x, new = torch.randn(8, 6), model.columns[1]
    model.observe(x, torch.tensor([2, 3] * 4), None)
    assert all(lateral.out.weight.grad.abs().sum() > 0 for lateral in new.laterals)
    assert all(p.grad is None for p in (*model.columns[0].parameters(), *model.net.parameters()))
    with_laterals = model(x, 1)
    for lateral in new.laterals:
        lateral.out.weight.data.zero_()
    alone = model(x, 1)[:, 2:]
    assert not torch.equal(with_laterals[:, 2:], alone)
    assert torch.equal(alone, new.net(x))
    assert model(x, 1)[:, :2].isneginf().all()


def test_pnn_layer_by_hand():
    model = method(PNN, sequential(1, 1, 4), 2, 2, "--alpha_init", "0.5")
    enter(model, model.dataset, 0), enter(model, model.dataset, 1)
    for column in model.columns:
        for parameter in column.parameters():
            parameter.data.fill_(1.0)
    model.columns[1].laterals[0].scales.data.fill_(0.5)
    # x = 1: both columns h = relu(1 + 1) = 2; the head 2 + 1, its lateral relu(1 * .5 * 2 + 1) = 2.
    assert model(torch.ones(1, 1), 1)[0, 2:].tolist() == [5.0, 5.0]


# ---- hat


def test_hat_protects_weights_between_used_units():
    model = method(HAT, sequential(2, 2, 3, 4), 2, 2)
    free = {n: model.free(torch.tensor([1, 0, 1, 1, 0], dtype=torch.bool))[id(p)] for n, p in named_layers(model)}
    assert free["net.0.weight"].tolist() == [[False, False], [True, True]]
    assert free["net.0.bias"].tolist() == [False, True]
    assert free["net.2.weight"].tolist() == [[False, True], [False, True], [True, True]]
    assert free["net.2.bias"].tolist() == [False, False, True]


def named_layers(model):
    return [(n, p) for n, p in model.net.named_parameters() if not n.startswith("net.4")]


@pytest.mark.parametrize("used", [[False, True], [False, False]])
def test_hat_step_by_hand(used):
    model = method(HAT, sequential(1, 2, 4), 2, 2, "--hat_lambda", "2", "--hat_smax", "4")
    model.dataset.train_loader = [None] * 5
    enter(model, model.dataset, 0)
    model._epoch_iteration = 2  # the third of five batches: s = 1/4 + (4 - 1/4) / 2
    s, e = 2.125, torch.tensor([0.5, -1.0])
    model.embeddings[0].data.copy_(e)
    model.used = torch.tensor(used)
    w = [p.detach().clone() for p in model.net.parameters()]
    leaf = e.clone().requires_grad_()
    a = torch.sigmoid(s * leaf)
    logits = F.linear(F.relu(F.linear(torch.ones(3, 1), w[0], w[1])) * a, w[2], w[3])[:, :2]
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 1])) + 2 * a[~model.used].mean()  # over the free units
    expected.backward()
    factor = 4 * (torch.cosh(s * e) + 1) / (s * (torch.cosh(e) + 1))
    terms = model.observe(torch.ones(3, 1), torch.tensor([0, 1, 1]), None)
    assert terms["loss"].item() == pytest.approx(expected.item())
    torch.testing.assert_close(model.embeddings[0].detach(), e - 0.1 * factor * leaf.grad)


def test_hat_capacity_counts_what_each_task_holds_first():
    model = method(HAT, sequential(2, 2, 4), 2, 2)
    enter(model, model.dataset, 0), enter(model, model.dataset, 1)
    model.embeddings[0].data.copy_(torch.tensor([1.0, -1.0]))
    model.embeddings[1].data.copy_(torch.tensor([1.0, 1.0]))
    model._current_task = 2
    assert capacity(model) == {"owned": [3, 3], "total": 6}


def test_networks_that_do_not_fit_are_refused():
    for net in (ResNet32((3, 8, 8), 4, [4, 4], 1, True), ConvNet((1, 8, 8), 4, "batch", 4)):
        with pytest.raises(UserError, match="hat needs a chain of layers"):
            HAT(net, F.cross_entropy, options("hat", "--lr", "0.1"), None, FakeStream())
    with pytest.raises(UserError, match="cannot be taken apart into layers"):
        experiment("pnn", "--backbone", "mobilenet-v2")
