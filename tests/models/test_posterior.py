"""Posteriors that are known in closed form: every method finds its own (y = w x + noise, prior N(0, 1), two tasks)."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.datasets.utils.task import RegressionTask
from palimpsest.models.vcl import VCL
from palimpsest.utils import registry
from palimpsest.utils.evaluation import eval_mode, kept_in_evaluation
from tests.models.helpers import FakeStream, enter, experiment, finished, first_batch, options

NOISE, EXAMPLES = 0.5, 8  # standard deviation; x = 1 so many times: precision 32 per task


class OneWeight(Backbone):
    """f(x) = w x."""

    NAME = "one_weight"

    def __init__(self):
        super().__init__()
        self.feature_dim, self.num_classes = 1, 1
        self.classifier = nn.Linear(1, 1, bias=False)

    def stages(self, x):
        return [x]


class LinearStream(FakeStream):
    """Task t: y = targets[t] for x = 1, eight times."""

    SETTING, TASK, SIGMA = "domain-il", RegressionTask, NOISE

    def __init__(self, targets):
        super().__init__(len(targets), 1)
        self.N_CLASSES, self.targets, self.train_loader = 1, targets, self

    @property
    def dataset(self):
        return range(EXAMPLES)

    def __iter__(self):
        yield self.batch

    def get_offsets(self, task):
        return 0, 1

    def enter_task(self, task):
        x = torch.ones(EXAMPLES, 1)
        self.batch = x, torch.full((EXAMPLES, 1), float(self.targets[task])), x
        return self

    def get_loss(self):
        return F.mse_loss


def posterior(targets) -> tuple[float, float]:
    """Exact mean and standard deviation of w given tasks with these targets, prior N(0, 1)."""
    precision = EXAMPLES / NOISE**2
    return precision * sum(targets) / (1 + precision * len(targets)), (1 + precision * len(targets)) ** -0.5


def learn(method: str, targets, *more: str, steps: int = 250, lr: float = 0.05):
    """A method after all tasks, the learning rate falling as a cosine within each; (model, w of each task after it)."""
    args = options(method, *more, dataset="seq-poly1d")
    stream = LinearStream(targets)
    torch.manual_seed(args.seed)
    args.lr = lr
    model = registry.load("model", method)(OneWeight(), F.mse_loss, args, lambda x: x, stream)
    model.train()
    after = []
    for task in range(len(targets)):
        enter(model, stream, task)
        for step in range(steps):
            for group in model.opt.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            model.meta_observe(*stream.batch, 0)
        model.meta_end_task(stream)
        after.append(weights(model, task))
    return model, after


@torch.no_grad()
def weights(model, task: int, samples: int = 20000) -> tuple[float, float]:
    """Mean and standard deviation of w under the posterior of a task."""
    w = model.weights([task], samples, torch.Generator().manual_seed(0))[0, :, 0]
    return w.mean().item(), w.std().item()


HYPERNETWORK = ["--hnet_arch", "16", "--hnet_act", "tanh", "--cond_emb_size", "4", "--beta", "1"]
LINEAR_GENERATOR = ["--imp_arch", "", "--full_support_perturbation", "0", "--train_sample_size", "32"]
SSGE = [*LINEAR_GENERATOR, "--num_ssge_samples", "64"]
AVB = [*LINEAR_GENERATOR, "--num_kl_samples", "32"]
APART, NEAR = (2, -1), (2, 1.8)
LONGER = dict.fromkeys(("pr_ssge", "pr_avb", "pf_ssge", "pf_avb", "w2"), {"steps": 1500, "lr": 0.02})


def agrees(found, exact, mean=0.05, std=0.15):
    return abs(found[0] - exact[0]) <= mean and abs(found[1] / exact[1] - 1) <= std


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("pr_bbb", ["--train_sample_size", "32"]),
        pytest.param("pr_bbb", ["--beta", "100"], marks=pytest.mark.slow),
        pytest.param("pr_bbb", ["--reg", "fkl"], marks=pytest.mark.slow),
        pytest.param("pr_bbb", ["--reg", "w2"], marks=pytest.mark.slow),
        pytest.param("pr_bbb", ["--reg_targets", "online"], marks=pytest.mark.slow),
        pytest.param("pr_radial", [], marks=pytest.mark.slow),
        pytest.param("pr_ssge", SSGE, marks=pytest.mark.slow),
        pytest.param("pr_avb", AVB, marks=pytest.mark.slow),
        ("pr_bbb", ["--separate", "--no_hnet"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_meta_replay_keeps_the_posterior_of_each_task(method, more):
    own = [] if "--no_hnet" in more else HYPERNETWORK
    given = {flag: value for flag, value in zip(own[::2], own[1::2], strict=True) if flag not in more}
    longer = LONGER.get("w2" if "w2" in more else method, {})
    model, _ = learn(method, APART, *[x for pair in given.items() for x in pair], *more, **longer)
    for task, target in enumerate(APART):
        assert agrees(weights(model, task), posterior([target])), weights(model, task)


@pytest.mark.slow
def test_without_the_regulariser_the_first_posterior_drifts():
    model, after = learn("pr_bbb", APART, *HYPERNETWORK[:-1], "0")
    assert agrees(after[0], posterior([2]))
    assert abs(weights(model, 0)[0] - after[0][0]) > 0.3


@pytest.mark.parametrize(
    ("method", "targets", "more"),
    [
        ("vcl", APART, []),
        ("ewc_post", APART, ["--fisher", "exact", "--no_det_multi_head"]),
        pytest.param("pf_ssge", NEAR, SSGE, marks=pytest.mark.slow),
        pytest.param("pf_avb", NEAR, AVB, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_prior_focused_methods_find_the_recursive_posterior(method, targets, more):
    model, after = learn(method, targets, *more, **LONGER.get(method, {}))
    assert agrees(after[0], posterior(targets[:1])), after[0]
    mean_within = 0.04 if targets is NEAR else 0.05
    assert agrees(weights(model, 0), posterior(targets), mean_within), weights(model, 0)


def test_heads_not_learned_yet_keep_the_prior_in_vcl():
    model, _ = first_batch(experiment("vcl", "--backbone", "mnistmlp", "--n_epochs", "1"), task=1)
    assert isinstance(model, VCL)
    weight = model.net.head_parts(model.prior_var)[0]
    assert (weight[:2] != 1).all()
    assert (weight[2:] == 1).all()
    assert (model.net.head_parts(model.prior_mean)[0][2:] == 0).all()


def test_the_fisher_information_enters_once_a_task():
    """The defect of a decay applied at every step: gamma acts on the precision when a task ends, not on the way."""
    model, batch = first_batch(
        experiment("ewc_post", "--backbone", "mnistmlp", "--n_epochs", "1", "--gamma", "0.5"), task=1
    )
    before = model.precision.clone()
    model.meta_observe(*batch, 0)
    assert torch.equal(model.precision, before)
    learned = before.clone()
    model.meta_end_task(model.dataset)
    assert (model.precision >= 0.5 * learned - 1e-6).all()


def test_growing_and_fixed_heads_of_ewc():
    growing = finished("ewc_post", "--backbone", "mnistmlp", "--n_epochs", "2", "--ewc_head", "growing",
                       "--det_multi_head", "--stop_after", "2")  # fmt: skip
    assert growing.model.head(1) == (0, 4)
    assert growing.run.matrices["class-il"][0, 0] > 90
    assert not growing.run.history[-1].others


def test_a_kernel_too_narrow_for_the_weights_is_told():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        finished("pr_ssge", "--backbone", "mnistmlp", "--n_epochs", "1", "--stop_after", "1", "--hnet_arch", "4",
                 "--rbf_kernel_width", "0.01", "--num_ssge_samples", "4", "--train_sample_size", "2")  # fmt: skip
    assert any("drop --rbf_kernel_width" in str(w.message) for w in seen)


def test_coresets_are_left_out_of_training_and_told_apart_at_the_end():
    exp = finished("pr_bbb", "--n_iters", "4", "--coreset_size", "5", "--train_sample_size", "2", "--val_sample_size",
                   "4", dataset="seq-gmm2d")  # fmt: skip
    model = exp.model
    assert model.coreset_labels.shape == (3, 5)
    assert model.n_train == len(exp.dataset.task_data(2)) - 5
    for task in range(3):
        low, high = exp.dataset.get_offsets(task)
        assert ((model.coreset_labels[task] >= low) & (model.coreset_labels[task] < high)).all()


def test_separate_hypernetworks_leave_earlier_tasks_alone():
    exp = experiment("pr_dirac", "--separate", "--backbone", "mnistmlp", "--hnet_arch", "8", "--n_epochs", "1")
    model, batch = first_batch(exp, task=1)
    with torch.no_grad():
        before = model.phi([0])
    for _ in range(3):
        model.meta_observe(*batch, 0)
    with torch.no_grad():
        assert torch.equal(model.phi([0]), before)


@pytest.mark.parametrize("method", ["pr_bbb", "pr_ssge"])
def test_the_short_way_to_the_squared_change_of_all_outputs(method):
    """By the Gram matrix of the last layer, as by making all outputs; masks and the cut last chunk included."""
    exp = experiment(method, "--backbone", "mnistmlp", "--mlp_hidden_size", "7", "--hnet_arch", "5",
                     "--chunk_size", "53", "--n_epochs", "1", "--train_sample_size", "2")  # fmt: skip
    model, batch = first_batch(exp, task=2)
    model.previous.take(model.hyper)
    with torch.no_grad():
        for parameter in model.hyper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        targets, phi = model.previous.copy([0, 1]), model.phi([0, 1])
    torch.testing.assert_close(model.squared_change([0, 1]), model.distance(targets, phi, [0, 1]).sum())
    direct = torch.autograd.grad(
        model.distance(model.previous.copy([0, 1]), model.phi([0, 1]), [0, 1]).sum(),
        list(model.hyper.layers.parameters()),
    )
    short = torch.autograd.grad(model.squared_change([0, 1]), list(model.hyper.layers.parameters()))
    torch.testing.assert_close(short, direct, rtol=1e-4, atol=1e-3)
    model.previous.take(model.hyper)
    assert model.squared_change([0, 1]) == 0


@pytest.mark.parametrize("method", ["pr_bbb", "vcl"])
def test_an_evaluation_draws_the_weights_once_and_the_next_one_anew(method):
    torch.manual_seed(0)
    model, (x, *_) = first_batch(experiment(method, "--backbone", "mnistmlp", "--n_epochs", "1"))
    drawn, weights = [], model.weights
    model.weights = lambda *args: drawn.append(args[0]) or weights(*args)
    with torch.no_grad():
        outside = [model(x[:3]), model(x[3:6])]
        assert drawn == [[0], [0]]
        with eval_mode(model), eval_mode(model):
            inside = [model(x[:3]), model(x[3:6])]
        assert drawn == [[0]] * 3
        assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))
        for parameter in model.get_parameters():
            parameter.add_(1)
        with eval_mode(model):
            assert not torch.equal(model(x[:3]), inside[0])
    assert kept_in_evaluation(model) is None
