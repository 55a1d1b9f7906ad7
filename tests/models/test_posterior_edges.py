"""Posterior methods at the edges of what can be asked of them: streams entered late, options that do not go together,
networks with BatchNorm, more weight samples than fit into memory at once.
"""

from copy import deepcopy

import pytest
import torch

from palimpsest.backbone.utils.task_hypernetwork import TaskHypernetwork
from palimpsest.models.utils.posterior.task_inference import mean_log_probabilities, uncertainties
from palimpsest.models.utils.state import describe
from palimpsest.utils.check.sync import SyncDetector
from palimpsest.utils.errors import UserError
from tests.models.helpers import experiment, finished, first_batch

SHORT = ["--n_iters", "2", "--train_sample_size", "2", "--val_sample_size", "3", "--hnet_arch", "4"]


def modes(method, *more):
    """A finished short run on the Gaussian modes."""
    return finished(method, *SHORT, *more, dataset="seq-gmm2d").model


@pytest.mark.parametrize("more", [(), ("--reg_targets", "online"), ("--chunk_size", "20")], ids=" ".join)
def test_a_stream_may_be_entered_late(more):
    model = modes("pr_bbb", "--start_from", "1", *more)
    assert model.n_begun == 3
    assert model.forward(torch.zeros(4, 2)).shape == (4, 6)


@pytest.mark.parametrize(
    ("method", "stream", "more", "reason"),
    [
        ("vcl", "seq-gmm2d", "--heads single", "--heads single"),
        ("vcl", "seq-digits", "--local_reparam --backbone convnet", "fully connected"),
        ("pr_bbb", "seq-gmm2d", "--coreset_size 3 --joint", "drop it"),
        ("ewc_post", "perm-digits", "--ewc_head growing", "share their classes"),
    ],
)
def test_what_does_not_go_together_is_refused_at_the_start(method, stream, more, reason):
    with pytest.raises(UserError, match=reason):
        experiment(method, *more.split(), dataset=stream)


@pytest.mark.parametrize("more", [(), ("--no_hnet",)], ids=" ".join)
def test_coresets_tell_separate_posteriors_apart_too(more):
    """All of them are trained in the last stage, not the newest alone."""
    exp = experiment("pr_bbb", *SHORT, "--coreset_size", "3", "--separate", *more, dataset="seq-gmm2d")
    model, batch = first_batch(exp, 2)
    model.meta_observe(*batch, 0)
    before = model.phi([0, 1, 2]).detach()
    model.end_task(exp.dataset)
    assert ((model.phi([0, 1, 2]) - before).abs().amax(1) > 0).all()


@pytest.mark.parametrize("random_labels", [False, True])
def test_a_coresets_loss_by_hand(random_labels):
    flag = ["--coreset_random_labels"] if random_labels else []
    exp = experiment("pr_bbb", *SHORT, "--coreset_size", "2", *flag, dataset="seq-gmm2d")
    model, _ = first_batch(exp, 2)
    model.coreset_images = torch.arange(12.0).view(3, 2, 2) / 12
    model.coreset_labels = torch.tensor([[0, 1], [3, 2], [4, 4]])
    model.drawn_outputs = lambda mean, std, inputs, task: inputs.unsqueeze(0)  # two inputs, two logits
    log_p = torch.log_softmax(model.normalization_transform(model.coreset_images.flatten(0, 1)), 1)
    own = log_p[2, 1] + log_p[3, 0]  # labels 3 and 2 of task 1, whose first is 2
    found = torch.stack([model._coreset_loss(model.phi([1])[0], 1).detach() for _ in range(30)])
    others = log_p[[0, 1, 4, 5]]
    if random_labels:
        low, high = -own - others.max(1).values.sum(), -own - others.min(1).values.sum()
        assert found.std() > 1e-3 and (found >= low - 1e-5).all() and (found <= high + 1e-5).all()
    else:
        torch.testing.assert_close(found, (-own - others.mean(1).sum()).expand(30))


def test_coresets_leave_running_statistics_alone():
    exp = experiment("pr_bbb", "--backbone", "resnet32", "--no_hnet", "--separate", "--coreset_size", "3",
                     "--train_sample_size", "1", "--label_perc", "0.05", "--n_epochs", "1")  # fmt: skip
    model, batch = first_batch(exp, 0)
    model.meta_observe(*batch, 0)
    kept = model.statistics.clone()
    model.coreset_images, model.coreset_labels = batch[2][:3].unsqueeze(0), batch[1][:3].unsqueeze(0)
    model.separate_tasks(1)
    assert torch.equal(model.statistics, kept)
    assert describe(model)  # nothing that a call left on the layers, which no checkpoint could hold


def test_one_task_is_not_inferred():
    exp = finished("pr_bbb", *SHORT, "--joint", dataset="seq-gmm2d")
    assert not any(name.startswith(("task_inference", "accuracy_")) for name in exp.run.history[-1].others)
    one_softmax = experiment("ewc_post", "--ewc_head", "growing", dataset="seq-gmm2d").model
    for model in (exp.model, one_softmax):
        assert "TGiven, TInfer" not in model.report(model.dataset, range(0)).notes


def test_gaussian_initialisation_keeps_the_deviations_beside_means_of_an_ordinary_network():
    model = experiment("pr_bbb", "--hnet_init", "gauss", "--keep_orig_init", dataset="seq-gmm2d").model
    mean, rho = model.hyper.layers[-1].bias.split(model.net.size)
    assert (mean == 0).all()
    assert rho.var().item() == pytest.approx(0.083, rel=0.3)


def test_the_short_way_to_the_squared_change_does_not_wait():
    exp = experiment("pr_bbb", "--hnet_arch", "2", "--chunk_size", "20", "--n_iters", "2", dataset="seq-gmm2d")
    model, batch = first_batch(exp, 1)
    calls = []
    with SyncDetector(calls):
        model.observe(*batch)
    assert not calls


def test_the_short_way_to_the_squared_change_is_exact_in_mixed_precision():
    torch.manual_seed(0)
    hyper = TaskHypernetwork(600, [4], 3, chunk=20, chunk_embedding=3)
    hyper.add_task()
    before, whole = deepcopy(hyper), torch.arange(hyper.n_chunks)
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    direct = (hyper([0]) - before([0]).detach()).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        short = hyper.squared_change(before, [0], whole)
    torch.testing.assert_close(short, direct, rtol=1e-3, atol=0)
    weight = hyper.layers[-1].weight
    torch.testing.assert_close(
        *(torch.autograd.grad(value, weight)[0] for value in (short, direct)), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("backbone", [("mnistmlp", "--mlp_hidden_size", "8"), ("resnet32",)], ids=lambda b: b[0])
def test_predictions_are_the_same_however_many_posteriors_fit_into_memory(backbone, monkeypatch):
    model = experiment("pr_bbb", "--backbone", *backbone, "--no_hnet", "--separate", "--val_sample_size", "3").model
    model.make_tasks(3)
    if model.statistics is not None:  # each task has variances of its own
        model.statistics *= torch.tensor([[1.0], [2.0], [3.0]])
    x = torch.randn(4, 1, 8, 8)
    at_once = model.eval().sampled_outputs(x)
    asked, weights = [], model.weights
    monkeypatch.setattr(model, "weights", lambda tasks, *more: asked.append(tasks) or weights(tasks, *more))
    for place in ("palimpsest.models.utils.posterior.base", "palimpsest.backbone.utils.external"):
        monkeypatch.setattr(f"{place}.LARGEST_CALL", 1)
    torch.testing.assert_close(model.sampled_outputs(x), at_once, rtol=1e-3, atol=1e-3)
    assert asked == [[0], [1], [2]]


def test_a_head_that_is_not_a_number_is_not_taken_for_certain():
    values = uncertainties(*mean_log_probabilities(torch.full((2, 1, 3), torch.nan)))
    assert all(value.isnan().all() for value in values.values())
    certain = uncertainties(*mean_log_probabilities(torch.tensor([[[0.0, 2000.0]]])))
    assert certain["ent"].item() == 0


def test_gauss_initialisation_of_chunks_where_task_embeddings_are_large():
    torch.manual_seed(0)
    hyper = TaskHypernetwork(2000, [], 32, chunk=50)
    hyper.initialise_gauss([(2000, 0.003)])
    hyper.add_task()
    assert hyper([0]).var().item() == pytest.approx(0.003, rel=0.6)
    assert hyper.chunk_std > 0.01
