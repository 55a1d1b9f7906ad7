"""What replay methods store and draw, and which classes compete in their losses."""

import pytest
import torch
import torch.nn.functional as F

from palimpsest.models.agem import AGEM
from palimpsest.models.agem_r import AGEMReservoir
from palimpsest.models.der import DER
from palimpsest.models.derpp import DERpp
from palimpsest.models.er import ER
from palimpsest.models.er_ace import ERACE
from palimpsest.models.fdr import FDR
from palimpsest.models.gem import GEM
from palimpsest.models.gss import GSS
from palimpsest.models.hal import HAL
from palimpsest.models.mer import MER
from palimpsest.models.mir import MIR
from palimpsest.models.utils.exemplars import features_of
from palimpsest.models.utils.extended_dark import ExtendedDark
from palimpsest.models.xder import XDER
from palimpsest.models.xder_ce import XDERCE
from palimpsest.utils.run.config import declared_options
from tests.models.helpers import Flat, enter, experiment, first_batch, image, small

STORE = ["--buffer_size", "8", "--minibatch_size", "2", "--batch_size", "1"]
DARK = ["--buffer_size", "60", "--minibatch_size", "60", "--alpha", "0.3", "--beta", "0.7"]


@pytest.mark.parametrize(
    "cls, more",
    [(ER, []), (ERACE, []), (DER, ["--alpha", "1"]), (DERpp, ["--alpha", "1", "--beta", "1"]), (GSS, []), (HAL, []),
     (AGEMReservoir, []), (MIR, []), (MER, ["--beta", "1", "--gamma", "1"])],
)  # fmt: skip
def test_raw_images_are_stored_not_what_the_network_saw(cls, more):
    model = small(cls, *STORE, *more)
    model.observe(image(1, 2), torch.tensor([0]), image(3, 4))
    buffer = model.buffer[0] if cls is ER else model.buffer
    assert buffer.get_all_data()[0].flatten().tolist() == [3, 4]


@pytest.mark.parametrize(
    "cls, more",
    [(ER, []), (ERACE, []), (DER, ["--alpha", "1"]), (DERpp, ["--alpha", "1", "--beta", "1"]), (GSS, []), (HAL, []),
     (AGEM, []), (AGEMReservoir, []), (MIR, []), (MER, ["--beta", "1", "--gamma", "1"]), (FDR, []), (GEM, []),
     (XDER, ["--alpha", "1", "--beta", "1", "--lambd", "0"])],
)  # fmt: skip
def test_replayed_images_are_augmented_anew(cls, more):
    replayed_from = STORE if "--minibatch_size" in option_names(cls) else [*STORE[:2], *STORE[4:]]
    model = small(cls, *replayed_from, *more, n_tasks=3)
    learn_fake_task(model, 0)
    enter(model, model.dataset, 1)
    model.transform = lambda x: -x.float()  # stored pixels are not negative
    seen = []
    model.net.classifier.register_forward_hook(lambda _, given, out: seen.append(given[0].detach()))
    model.observe(image(1, 2), torch.tensor([2]), image(1, 2))
    found = ((features < 0).any() for features in seen)
    assert any(found)
    if cls in (DERpp, XDER):  # a second draw, for the labels
        assert any(found)


def option_names(cls) -> set[str]:
    return {name for action in declared_options(cls)._actions for name in action.option_strings}


def learn_fake_task(model, task: int) -> None:
    """One pass over the white images of a task, its end included."""
    loader = model.dataset.train_loader = model.dataset.enter_task(task)
    for x, y, raw in loader:
        model.meta_observe(x.float(), y, raw, 0)
    model.meta_end_task(model.dataset)


@pytest.mark.parametrize("name", ["icarl", "fdr"])
def test_what_is_stored_at_a_tasks_end_is_of_the_network_in_eval_mode(name):
    options = ["--backbone", "convnet", "--norm", "batch", "--width", "4", "--buffer_size", "20"]
    exp = experiment(name, *options, *([] if name == "icarl" else ["--minibatch_size", "10"]), "--batch_size", "32")
    first_batch(exp, task=1)  # the first task is learned
    net, buffer = exp.model.net, exp.model.buffer
    assert net.training and all(part.training for part in net.modules())
    if name == "fdr":
        examples, _, stored = buffer.get_all_data()
        with torch.no_grad():
            torch.testing.assert_close(stored, net.eval()(exp.model.normalization_transform(examples)))
        return
    data = exp.dataset.task_data(0)
    own = data.data[data.targets == 1]
    found = features_of(exp.model, own)
    assert net.training
    with torch.no_grad():
        torch.testing.assert_close(found, net.eval().features(exp.model.normalization_transform(own)))


def test_the_first_batch_finds_an_empty_memory():
    for cls, more in ((ER, []), (AGEMReservoir, []), (DER, ["--alpha", "1"]), (MIR, [])):
        model = small(cls, *STORE, *more)
        buffer = model.buffer[0] if cls is ER else model.buffer
        drawn, original = [], buffer.get_data
        buffer.get_data = lambda *a, drawn=drawn, original=original, **k: drawn.append(a) or original(*a, **k)
        model.observe(image(1, 2), torch.tensor([0]), image(1, 2))
        assert not drawn and len(buffer) == 1


def test_only_right_answers_enter_the_buffer_of_the_network_without_gates():
    options = ["--nf", "4", "--buffer_size", "40", "--alpha", "0.2", "--beta", "2", "--batch_size", "10"]
    model, (x, y, raw) = first_batch(experiment("derpp_single", *options))
    right = torch.tensor([True, False] * 5)
    logits = F.one_hot(torch.where(right, y, 9 - y), 10).float()
    forward = model.net.forward
    model.net.forward = lambda x: 0 * forward(x) + logits
    model.observe(x, y, raw)
    assert int(model.buffer.num_admitted) == 5
    assert torch.equal(model.buffer.get_all_data()[0], raw[right])
    assert torch.equal(model.buffer.get_all_data()[1], y[right])


# ---- er-ace


def test_er_ace_lets_classes_to_come_compete_and_old_ones_not():
    model = small(ERACE, *STORE, n_tasks=3)
    first = [model.observe(image(1, 0), torch.tensor([0]), image(1, 0)) for _ in range(2)]
    assert not any("replay" in terms for terms in first)  # it begins with the second task
    enter(model, model.dataset, 1)
    logits = torch.tensor([9.0, 9, 1, 0, 2, -1])
    with torch.no_grad():
        model.net.classifier.weight.zero_()
        model.net.classifier.bias.copy_(logits)
    terms = model.observe(image(0, 0), torch.tensor([3]), image(0, 0))
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(logits[None, 2:], torch.tensor([1])).item(), rel=1e-5)
    assert terms["replay"].item() == pytest.approx(F.cross_entropy(logits[None], torch.tensor([0])).item(), rel=1e-5)


# ---- gem, a-gem


def test_gem_has_a_constraint_for_each_past_task():
    held = 0
    for seed in range(20):
        model = small(GEM, "--buffer_size", "8", "--gamma", "0", n_tasks=3, zero=False)
        torch.manual_seed(seed)
        model.buffer.add_data(examples=torch.randn(4, 1, 1, 2), labels=torch.tensor([0, 1, 2, 3]))
        model.sizes = [2, 2]
        before, x, y = model.net.get_params().detach(), torch.randn(2, 1, 1, 2), torch.tensor([4, 5])
        model.observe(x, y, x)
        step = before - model.net.get_params().detach()
        past, net = [], Flat(2, 6)
        for rows in (slice(0, 2), slice(2, 4)):
            net.set_params(before)
            net.zero_grad()
            F.cross_entropy(net(model.buffer.examples[rows]), model.buffer.labels[rows]).backward()
            past.append(net.get_grads())
        overlaps = [(step @ g / g.norm() / step.norm()).item() for g in past]
        assert min(overlaps) > -1e-3
        held += min(overlaps) < 1e-3
    assert held > 3  # a constraint was active


@pytest.mark.parametrize("cls", [AGEM, AGEMReservoir])
def test_agem_is_held_by_a_fresh_draw_of_the_memory_at_every_step(cls):
    model = small(cls, *STORE, zero=False)
    torch.manual_seed(0)
    model.buffer.add_data(examples=torch.randn(8, 1, 1, 2), labels=torch.arange(8) % 4)
    model.sizes = [8]
    model.buffer.add_data = lambda **_: None  # the memory stays what it is
    drawn, original, projected = [], model.buffer.get_data, 0
    model.buffer.get_data = lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1]
    for step in range(12):
        x, y, before = image(1, step), torch.tensor([step % 4]), model.net.get_params().detach()
        model.observe(x, y, x)
        assert len(drawn) == step + 1 and len(drawn[-1][1]) == 2
        gradients, net = [], Flat(2, 4)
        for inputs, labels in ((x, y), drawn[-1]):
            net.set_params(before)
            net.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            gradients.append(net.get_grads())
        g, reference = gradients
        if g @ reference < 0:
            projected += 1
            g = g - (g @ reference) / (reference @ reference) * reference
        torch.testing.assert_close(model.net.get_params(), before - 0.1 * g)
    assert 0 < projected < 12
    pairs = {frozenset(map(tuple, x.flatten(1).tolist())) for x, _ in drawn}
    assert len(pairs) > 6 and all(len(pair) == 2 for pair in pairs)


# ---- x-der


def test_every_draw_of_a_stored_row_is_as_likely_to_be_the_last_implanted():
    model, (x, y, raw) = first_batch(experiment("xder", *DARK), task=1)
    model.observe(x, y, raw)
    assert (model.draws == 2).all()  # both replays of the step draw all sixty rows
    rows, labels, kept = torch.arange(60), model.buffer.labels[:60], torch.zeros(4)
    torch.manual_seed(0)
    for _ in range(30):
        model.draws.zero_()
        model.buffer.logits.fill_(100.0)  # no implant is scaled down
        for k in range(4):
            model.refresh(rows, torch.full((60, 10), float(k)), labels)
        kept += torch.stack([(model.buffer.logits[:, 9] == k).float().mean() for k in range(4)]) / 30
    torch.testing.assert_close(kept, torch.full((4,), 0.25), rtol=0, atol=0.04)
    assert (model.buffer.logits[:, :2] == 100).all()  # heads of past tasks are left alone
    model.meta_end_task(model.dataset)
    assert not model.draws.any()


def test_what_is_stored_has_no_gradient_and_past_heads_are_not_pushed_down():
    model, (x, y, raw) = first_batch(experiment("xder", *DARK, "--constr_eta", "0.2", "--constr_margin", "0.9"), task=1)
    model.observe(x, y, raw)
    assert not model.buffer.logits.requires_grad and model.buffer.logits.grad_fn is None
    logits = torch.randn(16, 10, requires_grad=True)
    term = ExtendedDark.past_constraint(model, logits)["past"]
    (found,) = torch.autograd.grad(term, logits)
    p = torch.softmax(logits[:, :4], 1)
    past, present = p[:, :2].max(1).values, p[:, 2:].max(1).values
    near = past + 0.9 > present
    (expected,) = torch.autograd.grad(0.2 * ((past.detach() + 0.9 - present) * near).sum() / near.sum(), logits)
    torch.testing.assert_close(found, expected)


def test_only_heads_to_come_are_prepared():
    model, (_, y, raw) = first_batch(experiment("xder", *DARK), task=1)
    assert isinstance(model, XDER)
    model.net.zero_grad()
    model.consistency(raw, y).backward()
    moved = model.net.classifier.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [False] * 4 + [True] * 6


def test_heads_to_come_compete_in_the_baseline_of_x_der():
    model, (x, y, raw) = first_batch(experiment("xder_ce", *DARK), task=1)
    assert isinstance(model, XDERCE)
    with torch.no_grad():
        expected = F.cross_entropy(model.net(x)[:, 2:], y - 2)
    torch.testing.assert_close(model.observe(x, y, raw)["ce"], expected)
