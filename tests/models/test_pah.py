"""Prototype-augmented hypernetworks: worked numbers, invariants, presets."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.backbone.utils.hypernetwork import HeadHypernetwork
from palimpsest.models.pah import PAH
from palimpsest.models.utils.generated_heads import task_logits
from palimpsest.utils.distillation import kd
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.run.config import resolve
from tests.models.helpers import FakeStream, clones, enter, experiment, finished, first_batch, options

D = torch.float64


def close(value, expected, tolerance=1.5e-6):
    torch.testing.assert_close(
        torch.as_tensor(value, dtype=D).detach(), torch.tensor(expected, dtype=D), rtol=0, atol=tolerance
    )


class MeanAndOne(Backbone):
    """Image -> [mean of all entries, 1]; takes any size."""

    NAME = "mean"
    feature_dim, num_classes = 2, 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=D))  # a network must have a parameter to train
        self.classifier = nn.Linear(2, 4)

    def features(self, x):
        mean = self.scale * x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, torch.ones_like(mean)], 1)


@pytest.fixture
def toy():
    """The two-task toy: prototypes of one pixel, hypernetwork 2-2-2-4, snapshot with other prototypes of task 0."""
    args = options("pah", "--pah_proto_size", "1", "--pah_hidden", "2", "--pah_w_sm", "0.5", "--pah_w_sp", "1")
    model = PAH(MeanAndOne(), F.cross_entropy, args, None, FakeStream(2, 2, (3, 1, 1))).double()
    with torch.no_grad():
        for layer, rows in zip(
            [m for m in model.hyper.body if isinstance(m, nn.Linear)],
            [[[1, 0.5], [-1, 1]], [[1, -1], [0.5, 1]], [[1, 0], [0, 1], [-1, 0.5], [0.5, -1]]],
            strict=True,
        ):
            layer.weight.copy_(torch.tensor(rows))
        for row in ([0.6, -0.4], [0.2, 1.0]):
            model.embeddings.append(nn.Parameter(torch.tensor(row, dtype=D)))
        model.teacher.take(model.net)
        snapshot = torch.tensor([[0.8, -0.4]], dtype=D)
        model.teacher_heads = model.hyper(snapshot)
        model.teacher_prototype_logits = model.prototype_logits(model.teacher.copy, snapshot, model.teacher_heads)
    model._current_task, model._n_past_classes, model._n_classes_current_task = 1, 2, 2
    inputs = torch.stack([torch.full((3, 1, 1), 2.0), torch.full((3, 1, 1), -1.0)]).double()
    return model, inputs, torch.tensor([2, 3])


def test_distillation_by_hand():
    student = torch.tensor([[2, 0], [1, -1]], dtype=D)
    teacher = torch.tensor([[0, 0], [3, 0]], dtype=D)
    close(kd(student, teacher, 2.0, "student"), [0.443776, 0.090489])
    close(kd(student, teacher, 2.0, "student").mean(), 0.267133)
    close(kd(student, teacher, 2.0, "teacher"), [0.480458, 0.082543])
    close(kd(student, teacher, 2.0, "teacher").mean(), 0.281500)


def test_toy_heads_and_logits(toy):
    model, inputs, _ = toy
    first = [m for m in model.hyper.body if isinstance(m, nn.Linear)]
    hidden = F.leaky_relu(first[0](model.embeddings[0]), 0.01)
    close(hidden, [0.4, -0.01])
    close(F.leaky_relu(first[1](hidden), 0.01), [0.41, 0.19])
    close(model.heads(2), [[[0.41, 0.19], [-0.315, 0.015]], [[-0.001, 1.15], [0.576, -1.1505]]])
    close(model.teacher_heads, [[[0.612, 0.288], [-0.468, 0.018]]])
    logits = task_logits(model.net.features(inputs), model.heads(2))
    close(logits[1], [[1.148, 0.0015], [1.151, -1.7265]])
    close(logits[0], [[1.01, -0.615], [-0.22, 0.33]])
    close(task_logits(model.teacher.copy.features(inputs), model.teacher_heads)[0], [[1.512, -0.918], [-0.324, 0.486]])


def test_toy_losses_and_gradients_of_the_first_update(toy):
    model, inputs, labels = toy
    logits = task_logits(model.net.features(inputs), model.heads(2))
    taught = task_logits(model.teacher.copy.features(inputs), model.teacher_heads)
    (F.cross_entropy(logits[1], labels - 2) + 0.5 * kd(logits[:1], taught, 2.0).mean(1).sum()).backward()
    close(model.embeddings[0].grad, [-0.193177, -0.093786])
    close(model.embeddings[1].grad, [-0.563527, 1.336576])
    linear = [m for m in model.hyper.body if isinstance(m, nn.Linear)]
    close(linear[0].weight.grad, [[-0.011712, 0.591889], [0.216900, 1.078146]])
    close(linear[1].weight.grad, [[-0.087166, -0.010945], [0.742796, 0.850301]])
    terms = model.observe(inputs, labels, None)
    close(terms["loss"], 1.622445)
    close(terms["hm"], 1.604086)
    close(terms["sm"], 0.5 * 0.036719)


def test_toy_prototype_loss_and_its_two_paths(toy):
    model, _, _ = toy
    rows = model.rows(2)[:1]
    logits = model.prototype_logits(model.net, rows, model.hyper(rows))
    close(logits, [[[0.436, -0.174], [0.026, 0.141]]])
    close(model.teacher_prototype_logits, [[[0.7776, -0.3564], [0.0432, 0.2052]]])
    loss = model.prototype_losses(1)["sp"]
    close(loss, 0.016641)
    gradient = torch.autograd.grad(loss, list(model.embeddings), allow_unused=True)
    close(gradient[0], [-0.146340, -0.046366])
    assert gradient[1] is None or not gradient[1].any()

    def through(image_path: bool):
        e = model.embeddings[0].detach().unsqueeze(0).requires_grad_()
        frozen = e.detach()
        images, heads = (e, model.hyper(frozen)) if image_path else (frozen, model.hyper(e))
        out = model.prototype_logits(model.net, images, heads)
        kd(out[0], model.teacher_prototype_logits[0], 2.0).mean().backward()
        return e.grad[0]

    close(through(True), [-0.046400, 0.004256])
    close(through(False), [-0.099940, -0.050622])


def test_poster_form_of_the_prototype_loss(toy):
    model, _, _ = toy
    rows = model.rows(1)
    logits = model.prototype_logits(model.net, rows, model.hyper(rows))
    close(kd(logits, model.teacher_prototype_logits, 2.0, "teacher").sum() / 4, 0.008168)
    model.args.pah_kl, model.args.pah_sp_classes = "teacher", "sum"
    close(model.prototype_losses(1)["sp"], 4 * 0.008168, 4e-6)


def test_reduction_over_tasks():
    model = experiment("pah").model
    values = torch.tensor([1.0, 2.0, 6.0])
    assert model.over_tasks(values) == 9
    model.args.pah_reduce = "mean"
    assert model.over_tasks(values) == 3


def test_hypernetwork_is_homogeneous_bias_free_and_batched():
    torch.manual_seed(0)
    hyper = HeadHypernetwork(12, 16, 1, 2, 5).double()
    e = torch.randn(3, 12, dtype=D)
    torch.testing.assert_close(hyper(3 * e), 3 * hyper(e))
    torch.testing.assert_close(hyper(e), torch.cat([hyper(row.unsqueeze(0)) for row in e]))
    assert not any("bias" in name for name, _ in hyper.named_parameters())
    assert hyper(e).shape == (3, 2, 5)


@pytest.mark.parametrize(
    "embedding, hidden, layers, classes, features, expected",
    [(200, 16, 1, 2, 1280, 44_416), (1000, 16, 1, 10, 512, 98_176), (2000, 16, 1, 20, 512, 196_096),
     (4000, 1024, 6, 10, 2048, 31_358_976)],
)  # fmt: skip
def test_parameter_counts(embedding, hidden, layers, classes, features, expected):
    with torch.device("meta"):
        hyper = HeadHypernetwork(embedding, hidden, layers, classes, features)
    assert sum(p.numel() for p in hyper.parameters()) == expected


def test_initialisation_scale():
    torch.manual_seed(0)
    hyper = HeadHypernetwork(400, 300, 1, 10, 64)
    weights = [m.weight for m in hyper.body if isinstance(m, nn.Linear)]
    assert weights[0].std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert weights[-1].std().item() == pytest.approx((2 / 300) ** 0.5 / 10, rel=0.02)


def test_shapes_and_no_unused_head():
    model, (inputs, *_) = first_batch(experiment("pah", "--pah_proto_size", "5"), task=1)
    assert model.embeddings[1].shape == (2 * 25,) and len(model.embeddings) == 2
    assert model.heads(2).shape == (2, 2, 64)
    assert task_logits(model.net.features(inputs), model.heads(2)).shape == (2, len(inputs), 2)
    expected = 2 * 50 + (50 * 16 + 16 * 16 + 16 * 128) + sum(p.numel() for p in model.net.parameters())
    learned = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) == expected


def test_prototypes_are_the_stated_crop_of_an_image_that_leaves_the_training_set():
    exp = experiment("pah", "--pah_proto_size", "4")
    model, _ = first_batch(exp)
    data = exp.dataset.task_data(0)
    positions = model.prototype_positions(data)
    assert data.targets[positions].tolist() == [0, 1]
    grey = exp.dataset.get_normalization_transform()(data.data[positions]).mean(1)
    torch.testing.assert_close(model.embeddings[0].view(2, 4, 4), grey[:, 2:6, 2:6])
    used = exp.dataset.train_loader.dataset.rows.tolist()
    assert len(used) == len(data) - 2 and not set(data.rows[positions].tolist()) & set(used)
    again, _ = first_batch(experiment("pah", "--pah_proto_size", "4"))
    assert torch.equal(again.embeddings[0], model.embeddings[0])
    other, _ = first_batch(experiment("pah", "--pah_proto_size", "4", "--seed", "1"))
    assert not torch.equal(other.embeddings[0], model.embeddings[0])


def test_a_small_image_is_resized_to_the_prototype_and_resize_is_a_choice():
    assert first_batch(experiment("pah", "--pah_proto_size", "10"))[0].embeddings[0].shape == (200,)
    cropped = first_batch(experiment("pah", "--pah_proto_size", "5"))[0].embeddings[0]
    resized = first_batch(experiment("pah", "--pah_proto_size", "5", "--pah_proto_init", "resize"))[0].embeddings[0]
    assert not torch.allclose(cropped, resized)


def test_gaussian_prototypes():
    model, _ = first_batch(experiment("pah", "--pah_proto_size", "28", "--pah_proto_init", "gauss"))
    assert model.embeddings[0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert model.embeddings[0].std().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("weights, moved", [(("0", "1"), 1), (("1", "0"), 0)])
def test_the_second_update_moves_the_prototypes_of_its_loss_alone(weights, moved):
    """Weight decay too: those of other tasks, the network and the hypernetwork stay as they are."""
    exp = experiment("pah", "--pah_wd", "0.5", "--pah_w_sp", weights[0], "--pah_w_hp", weights[1])
    model, _ = first_batch(exp, task=1)
    everything = [*model.embeddings, *model.net.parameters(), *model.hyper.parameters()]
    before = clones(everything)
    model.step_prototypes(1)
    changed = [i for i, (a, b) in enumerate(zip(before, everything, strict=True)) if not torch.equal(a, b)]
    assert changed == [moved]


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_distillation_starts_at_zero_and_the_teacher_never_moves(norm):
    model, batch = first_batch(experiment("pah", "--norm", norm, "--pah_proto_bn", "batch"), task=1)
    teacher = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    first = model.prototype_losses(1)["sp"]
    assert abs(first.item()) < 1e-5
    assert torch.autograd.grad(first, [model.embeddings[0]])[0].abs().max() < 1e-4
    terms = model.meta_observe(*batch, 0)
    assert abs(terms["sm"].item()) < 1e-5
    for _ in range(3):
        model.meta_observe(*batch, 0)
    assert all(torch.equal(v, teacher[k]) for k, v in model.teacher.state_dict().items())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_running_statistics_are_untouched_by_prototypes_and_evaluation():
    exp = experiment("pah", "--norm", "batch", "--pah_proto_bn", "batch")
    model, _ = first_batch(exp, task=1)
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    model.step_prototypes(1)
    evaluate(model, exp.dataset, range(2), trained=1)
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())


def test_scores_do_not_depend_on_the_test_batch_with_running_statistics():
    def scores(mode, size):
        exp = finished("pah", "--norm", "batch", "--stop_after", "2", "--n_epochs", "3", "--pah_test_bn", mode,
                       "--eval_batch_size", size)  # fmt: skip
        exp.model.eval()
        loader = exp.dataset.test_loaders[0]
        with torch.no_grad():
            return torch.cat([exp.model.predict(x, 0)[:, :4] for x, _ in loader])

    torch.testing.assert_close(scores("run", "7"), scores("run", "1000"), rtol=1e-4, atol=1e-4)
    assert (scores("batch", "7") - scores("batch", "1000")).abs().max() > 1e-2


@pytest.mark.parametrize("leak, factor", [("0", 1), ("1", 2)])
def test_first_step_moves_prototypes_by_the_learning_rate(leak, factor):
    model, batch = first_batch(experiment("pah", "--pah_wd", "0", "--pah_leak", leak))
    before = model.embeddings[0].detach().clone()
    loss = model.loss(task_logits(model.net.features(batch[0]), model.heads(1))[0], batch[1])
    strong = torch.autograd.grad(loss, model.embeddings[0])[0].abs() > 1e-5
    assert strong.any()
    model.meta_observe(*batch, 0)
    moved = (model.embeddings[0] - before).abs()[strong]
    torch.testing.assert_close(moved, torch.full_like(moved, factor * 1e-3), rtol=0.02, atol=0)


@pytest.mark.parametrize("dense, factor", [("0", 1.0), ("1", 3.16)])
def test_first_step_of_a_later_task(dense, factor):
    # A shared step counter has lost its bias correction: the first update of a late row is lr * 0.1 / sqrt(0.001).
    exp = experiment("pah", "--pah_wd", "0", "--pah_w_sp", "0", "--pah_dense", dense, "--pah_w_sm", "0")
    model, batch = first_batch(exp)
    for _ in range(6000):
        model.opt.zero_grad()
        model.embeddings[0].grad = torch.zeros_like(model.embeddings[0])
        model.opt.step()
    model.meta_end_task(exp.dataset)
    enter(model, exp.dataset, 1)
    batch = next(iter(exp.dataset.train_loader))
    before = model.rows(2)[1].detach().clone()
    model.meta_observe(*batch, 0)
    moved = (model.rows(2)[1] - before).abs()
    assert moved.median().item() == pytest.approx(factor * 1e-3, rel=0.05)


def test_rows_of_unseen_tasks_exist_only_when_dense():
    model, batch = first_batch(experiment("pah"))
    assert len(model.embeddings) == 1 and set(model.meta_observe(*batch, 0)) == {"loss", "hm"}
    dense, batch = first_batch(experiment("pah", "--pah_dense", "--pah_wd", "0.01", "--pah_leak"))
    before = dense.embeddings[0].detach().clone()
    dense.meta_observe(*batch, 0)
    torch.testing.assert_close(dense.embeddings[0][3], before[3] * (1 - 1e-5) ** 2, rtol=1e-6, atol=1e-8)


def test_weights_at_zero_switch_their_terms_off():
    model, batch = first_batch(experiment("pah", "--pah_w_sm", "0", "--pah_w_sp", "0"), task=1)
    old = model(batch[0])[:, :2].detach()
    terms = model.meta_observe(*batch, 0)
    assert set(terms) == {"loss", "hm"}
    assert (model(batch[0])[:, :2] - old).abs().max() > 0  # the shared hypernetwork moves old heads all the same
    assert not model.opt_proto.state
    everything = clones(model.parameters())
    model.step_prototypes(1)
    assert all(torch.equal(a, b) for a, b in zip(everything, model.parameters(), strict=True))


def test_prototype_cross_entropy_trains_the_current_prototypes():
    model, batch = first_batch(experiment("pah", "--pah_w_hp", "1", "--pah_w_sp", "0"), task=1)
    terms = model.meta_observe(*batch, 0)
    assert terms["hp"] > 0 and model.embeddings[1] in model.opt_proto.state


def test_masked_logits_are_the_heads_own_prediction():
    exp = finished("pah", "--stop_after", "3", "--n_epochs", "2")
    model = exp.model.eval()
    x, _ = next(iter(exp.dataset.test_loaders[1]))
    with torch.no_grad():
        logits = model(x)
        own = model.net.features(x) @ model.heads(3)[1].T
    assert torch.equal(logits[:, 2:4].argmax(1), own.argmax(1))
    assert torch.isinf(logits[:, 6:]).all() and torch.isfinite(logits[:, :6]).all()


def test_presets_set_what_they_name_and_the_command_line_wins():
    reference = options("pah", "--pah_preset", "reference", "--pah_temp", "3")
    assert (reference.pah_w_sm, reference.pah_w_sp, reference.pah_wd, reference.lr_backbone) == (0.5, 1, 0.01, 1e-4)
    assert reference.pah_leak and reference.pah_dense and reference.pah_test_bn == "batch" and reference.holdout == 10
    assert reference.pah_temp == 3 and reference.normalize == "half" and not reference.augment
    poster = options("pah", "--pah_preset", "paper-formula")
    assert (poster.pah_kl, poster.pah_reduce, poster.pah_sp_classes) == ("teacher", "mean", "sum")
    origins = resolve(["--model", "pah", "--dataset", "seq-digits", "--pah_preset", "reference"]).origins
    assert origins["pah_leak"] == "preset reference"


def test_the_reference_preset_runs():
    exp = finished("pah", "--pah_preset", "reference", "--pah_crop", "center", "--stop_after", "3", "--n_epochs", "2")
    assert exp.run.matrices["task-il"][2, :3].min() > 40
    assert "transductive" in exp.model.report(exp.dataset, range(0)).notes["evaluation mode"]
    assert exp.model.embeddings[0].shape[0] == 5 and len(exp.model.embeddings) == 1


def test_reference_windows_must_fit():
    with pytest.raises(UserError, match="use --pah_crop center"):
        experiment("pah", "--pah_crop", "reference", "--pah_proto_size", "5")


def test_prototypes_fit_a_network_of_fixed_input_size():
    exp = finished("pah", "--backbone", "mnistmlp", "--pah_proto_size", "5", "--stop_after", "2", "--n_epochs", "2")
    assert exp.run.matrices["task-il"][1, 1] > 50
