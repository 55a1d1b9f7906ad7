"""What the gates of a trained network do: which class uses which filters, how far classes share them, what it saves."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.models.utils.gates.losses import agent_macs, dense_macs, kept_fractions, kept_macs, soft_jaccard
from palimpsest.utils.evaluation import eval_mode
from palimpsest.utils.panels import Panel

EXAMINED = 1000  # test images, of all tasks together
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
ALWAYS = 0.99  # a filter that this share of the images of every class keeps is always on


@torch.no_grad()
def gate_analysis(model, dataset, tasks: range) -> dict[str, Any]:
    """Look at the gates on test images of `tasks`, evenly drawn; C classes, A gates, G agents.

    Args:
        model: a `GatedModel` whose gates are in use.
        dataset: the stream; its test loaders of `tasks` must exist.
        tasks: those trained.

    Returns:
        images: number of images looked at.
        classes: (C,) labels.
        rates: (C, A), share of a class's images that keep a filter.
        slices: first gate of each agent, and one past the last.
        kept: (G,), share of its channels that each agent keeps.
        probability: (G,), mean keep probability of each agent's gates; `saturated`: share of (image, gate) where it is
            below 0.01 or above 0.99.
        macs: share of the plain network's multiply-accumulates, the agents' own included.
        always_on, never_on: share of the filters kept by at least 99 % of the images of every class, and dropped by so
            many.
        masks: number of different masks.
        between: mean soft Jaccard index of the rates of two classes; `within`: of those of two halves of one class.
        different, same: mean Jaccard index of the masks of two images of different classes, and of one class.
        overlap, similarity: (C, C), soft Jaccard index of the rates, and cosine between the mean images.
        correlation: Spearman's, of overlap with similarity over pairs of classes; nan for fewer than three classes.
        curve: (tau, share of channels kept, macs, accuracy in percent) for each tau of THRESHOLDS.
    """
    net = model.net
    with eval_mode(model):
        images, labels = _test_images(dataset, tasks)
        actions, v, _ = _passes(net, images)
        shape = net.nf, tuple(dataset.SIZE[1:]), model.num_classes
        agents, dense = agent_macs(net.nf, model.args.hidden_dim_ratio), dense_macs(*shape)

        def macs(masks: Tensor) -> float:
            return (kept_macs(kept_fractions(masks, len(net.agents)), *shape).mean().item() + agents) / dense

        seen = dataset.task_classes(tasks[-1])[1]
        curve, tau = [], net.inf_thresh
        sample, net.sample = net.sample, False
        for net.inf_thresh in THRESHOLDS:
            masks, _, logits = _passes(net, images)
            right = (logits[:, :seen].argmax(1) == labels).double().mean().item()
            curve.append((net.inf_thresh, masks.mean().item(), macs(masks), 100 * right))
        net.inf_thresh, net.sample = tau, sample
    classes = labels.unique()
    rates = torch.stack([actions[labels == c].mean(0) for c in classes])
    halves = [(actions[labels == c][::2].mean(0), actions[labels == c][1::2].mean(0)) for c in classes]
    overlap = soft_jaccard(rates.unsqueeze(1), rates)
    means = torch.stack([images[labels == c].mean(0).flatten() for c in classes])
    similarity = F.cosine_similarity(means.unsqueeze(1), means, dim=2)
    pairs = torch.triu_indices(len(classes), len(classes), 1).unbind()
    probability = torch.sigmoid(v / net.temperature)
    same, different = _mask_overlap(actions, labels)
    return {
        "images": len(labels),
        "classes": classes.cpu().numpy(),
        "rates": rates.cpu().numpy(),
        "slices": net.slices,
        "kept": kept_fractions(actions, len(net.agents)).mean(0).tolist(),
        "probability": kept_fractions(probability, len(net.agents)).mean(0).tolist(),
        "saturated": ((probability < 0.01) | (probability > 0.99)).float().mean().item(),
        "macs": macs(actions),
        "always_on": (rates >= ALWAYS).all(0).float().mean().item(),
        "never_on": (rates <= 1 - ALWAYS).all(0).float().mean().item(),
        "masks": len(actions.unique(dim=0)),
        "between": overlap[pairs].mean().item(),
        "within": soft_jaccard(*(torch.stack(half) for half in zip(*halves, strict=True))).nanmean().item(),
        "different": different,
        "same": same,
        "overlap": overlap.cpu().numpy(),
        "similarity": similarity.cpu().numpy(),
        "correlation": _rank_correlation(overlap[pairs], similarity[pairs]),
        "curve": curve,
    }


def gate_numbers(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of `gate_analysis` under the names that the report shows; undefined ones are left out."""
    numbers = {f"kept by agent {g}": kept for g, kept in enumerate(found["kept"], start=1)}
    numbers |= {f"keep probability, agent {g}": p for g, p in enumerate(found["probability"], start=1)}
    numbers |= {
        "multiply-accumulates / without gates": found["macs"],
        "keep probabilities below 0.01 or above 0.99": found["saturated"],
        "filters always on": found["always_on"],
        "filters never on": found["never_on"],
        f"different masks on {found['images']} images": found["masks"],
        "overlap of filters, two classes": found["between"],
        "overlap of filters, halves of a class": found["within"],
        "overlap of masks, images of two classes": found["different"],
        "overlap of masks, images of a class": found["same"],
        "rank correlation of overlap with likeness": found["correlation"],
    }
    return {name: value for name, value in numbers.items() if np.isfinite(value)}


def gate_panels(found: dict[str, Any]) -> list[Panel]:
    """The pictures of what `gate_analysis` returns."""

    def panel(name: str, shows: str, *keys: str, wide: bool = False) -> Panel:
        return Panel(name, shows, f"models.utils.gates.plots:{name}", {key: found[key] for key in keys}, wide=wide)

    likeness = "overlap of the filters that two classes use, against the likeness of their mean images"
    by_threshold = "accuracy against multiply-accumulates, the agents' included, as --inf_thresh varies"
    return [
        panel("gate_rates", "share of each class's test images that keep each filter", "rates", "classes", "slices",
              wide=True),
        panel("gate_overlap", likeness, "overlap", "similarity", "classes"),
        panel("gate_accuracy", by_threshold, "curve", "images"),
    ]  # fmt: skip


def _test_images(dataset, tasks: range) -> tuple[Tensor, Tensor]:
    """Network inputs and labels of at most EXAMINED test images, every k-th of each task."""
    found = []
    for task in tasks:
        loader = dataset.test_loaders[task]
        stride, first = -(-len(loader.dataset) * len(tasks) // EXAMINED), 0
        for inputs, labels in loader:
            rows = torch.arange(-first % stride, len(labels), stride, device=inputs.device)
            first += len(labels)
            found.append((inputs[rows], labels[rows]))
    images, labels = zip(*found, strict=True)
    return torch.cat(images), torch.cat(labels)


def _passes(net, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Actions (N, A), v (N, A) and logits."""
    out = [(trace.actions, trace.v, logits) for logits, trace in map(net.traced, images.split(250))]
    return tuple(map(torch.cat, zip(*out, strict=True)))


def _mask_overlap(actions: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean Jaccard index of the masks of two images of one class, and of different classes."""
    common, size = actions @ actions.t(), actions.sum(1)
    jaccard = common / (size.unsqueeze(1) + size - common).clamp(min=1)
    same = labels.unsqueeze(1) == labels
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return jaccard[same & others].mean().item(), jaccard[~same].mean().item()


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    if len(a) < 3:
        return float("nan")
    from scipy.stats import spearmanr

    a, b = (x.double().cpu().numpy() for x in (a, b))
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")
