"""What a method carries from one task into the next: quadratics, teachers, corrections, old directions."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.helpers import enter, experiment, first_batch, learn_task

MLP = ["--backbone", "mnistmlp", "--mlp_hidden_size", "8", "--batch_size", "32"]


def empirical_fisher(net, loader) -> torch.Tensor:
    """mean_n (d log p(y_n | x_n) / d theta)^2, one example after the other."""
    total, n = torch.zeros_like(net.get_params().detach()), 0
    for x, y, _ in loader:
        for i in range(len(x)):
            net.zero_grad()
            F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
            total += net.get_grads() ** 2
            n += 1
    net.zero_grad()
    return total / n


@pytest.mark.parametrize("more, gamma", [([], 1.0), (["--ewc_mode", "online", "--gamma", "0.5"], 0.5)])
def test_ewc_holds_every_task_so_far(more, gamma):
    exp = experiment("ewc", *MLP, "--ewc_fisher", "empirical", "--ewc_update", "explicit", "--e_lambda", "1", *more)
    fishers, ends = [], []
    for task in range(3):
        learn_task(exp, task)
        fishers.append(empirical_fisher(exp.model.net, exp.dataset.train_loader))
        ends.append(exp.model.net.get_params().detach())
    weights = [gamma ** (2 - k) * f for k, f in enumerate(fishers)]
    penalty = exp.model.penalty
    torch.testing.assert_close(penalty.weight, sum(weights), rtol=1e-3, atol=1e-6)
    # The pull at any place is that of all quadratics together, each around the end of its own task.
    place = ends[-1] + 0.1
    pull = sum(w * (place - end) for w, end in zip(weights, ends if not more else ends[-1:] * 3, strict=True))
    torch.testing.assert_close(penalty.weight * (place - penalty.centre), pull, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name, more",
    [("lwf", []), ("lwf_mc", []), ("hyper", []), ("pah", ["--pah_proto_size", "4"]),
     *((name, ["--buffer_size", "60"]) for name in ("icarl", "bic", "lucir"))],
)  # fmt: skip
def test_the_teacher_is_the_network_before_this_task(name, more):
    quick = {"bic": ["--bic_epochs", "2"], "lucir": ["--fitting_epochs", "1"]}.get(name, [])
    exp = experiment(name, *MLP, *more, *quick)
    assert not exp.model.teacher
    for task in range(3):
        enter(exp.model, exp.dataset, task)
        if task:
            taught = dict(exp.model.teacher.copy.named_parameters())
            for part, value in exp.model.net.named_parameters():
                if part != "classifier.weight" or name != "lucir":  # its rows of new classes have just been set
                    assert torch.equal(taught[part], value), (task, part)
        learn_task(exp, task)


# ---- bic, lucir


def test_bic_begins_a_task_uncorrected_and_is_taught_by_corrected_logits():
    exp = experiment("bic", *MLP, "--buffer_size", "60", "--bic_epochs", "2")
    for task in range(2):
        learn_task(exp, task)
    model = exp.model
    assert not torch.equal(model.correction[:, 2], model.correction[:, 0])
    model.correction[0, 2:4], model.correction[1, 2:4] = 3.0, -2.0
    model, (x, y, raw) = first_batch(exp, task=2)
    assert model.correction.tolist() == [[1.0] * 10, [0.0] * 10]
    with torch.no_grad():
        logits = model.net(x)
        corrected = torch.cat((logits[:, :2], 3 * logits[:, 2:4] - 2), 1)
    terms = model.observe(x, y, raw)
    # Four of six classes are old.
    torch.testing.assert_close(terms["ce"], 1 / 3 * F.cross_entropy(logits[:, :6], y))
    taught = torch.softmax(corrected / 2, 1)
    torch.testing.assert_close(terms["kd"], 2 / 3 * F.cross_entropy(logits[:, :4] / 2, taught))


def test_lucirs_old_directions_do_not_move_whatever_the_optimiser_remembers():
    exp = experiment("lucir", *MLP, "--buffer_size", "60", "--fitting_epochs", "1", "--optim_mom", "0.9",
                     "--optim_wd", "0.1")  # fmt: skip
    model, batch = first_batch(exp, task=1)
    before = model.net.classifier.weight.detach().clone()
    for _ in range(3):
        model.meta_observe(*batch, 0)
    after = model.net.classifier.weight.detach()
    assert torch.equal(after[:2], before[:2]) and not torch.equal(after[2:4], before[2:4])


def test_lucirs_last_tuning_leaves_classes_to_come_alone():
    exp = experiment("lucir", *MLP, "--buffer_size", "60", "--fitting_epochs", "2")
    learn_task(exp, 0)
    model, _ = first_batch(exp, task=1)
    before = model.net.classifier.weight.detach().clone()
    model.meta_end_task(exp.dataset)
    after = model.net.classifier.weight.detach()
    moved = (after != before).any(1).tolist()
    assert moved == [True] * 4 + [False] * 6


def test_lucirs_last_tuning_goes_on_at_a_tenth_after_half_of_its_epochs(monkeypatch):
    exp = experiment("lucir", *MLP, "--buffer_size", "20", "--fitting_epochs", "3", "--lr_finetune", "0.2")
    learn_task(exp, 0)
    model, _ = first_batch(exp, task=1)
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda opt: rates.append(opt.param_groups[0]["lr"]) or step(opt))
    model.meta_end_task(exp.dataset)
    assert rates == pytest.approx([0.2, 0.2, 0.02])
