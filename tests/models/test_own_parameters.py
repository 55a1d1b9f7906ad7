"""What a task owns: PackNet's rules for biases and normalisation, rows of heads, and embeddings that are new."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.models.hat import HAT
from palimpsest.models.packnet import PackNet
from palimpsest.utils.distillation import kd
from tests.models.helpers import clones, enter, experiment, first_batch, learn_task
from tests.models.test_isolation import method, sequential

MLP = ["--backbone", "mnistmlp", "--mlp_hidden_size", "8", "--batch_size", "32"]


def batch(task: int):
    return torch.randn(16, 3), torch.arange(16) % 2 + 2 * task, None


@pytest.mark.parametrize("bias", ["freeze", "per_task"])
@pytest.mark.parametrize("bn", ["freeze", "per_task"])
def test_packnets_two_rules(bias, bn):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    model = method(PackNet, net, 2, 2, "--packnet_bias", bias, "--packnet_bn", bn)
    parts = {"bias": net[0].bias, "gain": net[1].weight, "shift": net[1].bias}
    later = ({"bias"} if bias == "per_task" else set()) | ({"gain", "shift"} if bn == "per_task" else set())
    for task, moves in enumerate((set(parts), later)):
        enter(model, model.dataset, task)
        model.train()
        before = {name: p.detach().clone() for name, p in parts.items()}
        for _ in range(3):
            model.observe(*batch(task))
        assert {name for name, p in parts.items() if not torch.equal(p, before[name])} == moves
        model.prune(0.5, None)  # the next task needs room


@pytest.mark.parametrize("flags", [[], ["--optimizer", "adam", "--optim_wd", "0.1"]])
def test_packnets_retraining_leaves_free_weights_at_zero_and_earlier_ones_where_they_are(flags):
    exp = experiment("packnet", *MLP, "--prune_percentage", "0.5", "--lr", "0.01", *flags)
    model, kept = exp.model, {}
    for task in range(3):
        learn_task(exp, task)
        for name, owner in model.owners().items():
            weight = model.weights()[name].clone()
            assert (owner == 0).any() and not weight[owner == 0].any()
            if task:
                before, owned = kept[name]
                assert torch.equal(weight[owned], before[owned])
            kept[name] = weight, owner != 0


@pytest.mark.parametrize("cls", [PackNet, HAT])
def test_of_the_classifier_a_task_moves_its_own_rows(cls):
    torch.manual_seed(0)
    model = method(cls, sequential(3, 8, 4), 2, 2)
    for task in range(2):
        enter(model, model.dataset, task)
        head = clones(model.net.classifier.parameters())
        for _ in range(3):
            model.observe(*batch(task))
        for before, now in zip(head, model.net.classifier.parameters(), strict=True):
            moved = (before != now).view(4, -1).any(1)
            assert moved.tolist() == [task == 0, task == 0, task == 1, task == 1]
        if cls is PackNet:
            model.prune(0.5, None)  # the next task needs room


# ---- embeddings


@pytest.mark.parametrize(
    "name, more, of",
    [
        ("hyper", [], lambda m: m.embeddings),
        ("pah", ["--pah_proto_size", "4"], lambda m: m.embeddings),
        ("hat", [], lambda m: m.embeddings),
        ("pr_dirac", ["--hnet_arch", "8"], lambda m: m.hyper.embeddings),
        ("pr_bbb", ["--hnet_arch", "8", "--train_sample_size", "2"], lambda m: m.hyper.embeddings),
    ],
)
def test_a_new_tasks_embedding_is_made_and_moves(name, more, of):
    exp = experiment(name, *MLP, *more)
    for task in range(3):
        model, given = first_batch(exp, task)
        assert len(of(model)) == task + 1
        before = clones(of(model))
        model.meta_observe(*given, 0)
        assert not torch.equal(of(model)[task], before[task])
        if name == "hat":  # the others belong to finished tasks
            assert all(torch.equal(a, b) for a, b in zip(before[:task], of(model), strict=False))


def test_hyper_distils_every_old_head_of_the_network_before_the_task():
    exp = experiment("hyper", *MLP, "--hyper_w", "2")
    for task in range(2):
        learn_task(exp, task)
    model, (x, y, raw) = first_batch(exp, task=2)
    with torch.no_grad():
        taught = model(x)[:, :4]
        for p in model.net.parameters():
            p.add_(0.05 * torch.randn_like(p))
        now = model(x)
    terms = model.observe(x, y, raw)
    old = [slice(0, 2), slice(2, 4)]
    expected = 2 * sum(kd(now[:, own], taught[:, own], 2.0).mean() for own in old)
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(now[:, 4:6], y - 4), rtol=1e-4, atol=1e-6)
