"""What the posteriors of a run say about the tests at its end: calibration, uncertainty on their own and on other
tasks' data, and pictures of both.

Own data of posterior j are the test examples of task j, other data those of all other tasks trained; every number is a
mean over tasks. At most 2000 examples of a task and 40000 in all are looked at.
"""

import numpy as np
import torch
from torch import Tensor

from palimpsest.models.utils.posterior.calibration import auroc, ece, reliability
from palimpsest.utils.panels import Panel

LOOKED_AT, IN_ALL = 2000, 40000  # examples per task, and of all tasks together
CRITERIA = ("ent", "agree")  # of task inference, by which own and other data are told apart
GRID = 100  # points along each side of a map
NAMES = {"given": "task given", "inferred": "task inferred", "joint": "one softmax"}
PLOTS = "models.utils.posterior.plots"


def numbers_and_panels(model, dataset, tasks: range) -> tuple[dict[str, float], list[Panel]]:
    """Numbers and pictures of a `Report`; every task of `tasks` has a posterior."""
    seen = gather(model, dataset, tasks)
    numbers, panels = quality_numbers(seen), []
    if len(tasks) > 1 and not model.joint_softmax and model.criteria:
        numbers |= uncertainty_numbers(model, seen)
        panels += uncertainty_panels(model, seen)
    numbers |= hypernetwork_numbers(model)
    kinds = [kind for kind in NAMES if f"{kind} correct" in seen]
    if kinds:
        bins = {NAMES[kind]: reliability(seen[f"{kind} confidence"], seen[f"{kind} correct"]) for kind in kinds}
        panels.append(Panel("reliability", "reliability diagram", f"{PLOTS}:reliability", {"bins": bins}))
    if model.regression and hasattr(dataset, "plot_inputs"):
        panels.append(functions(model, dataset, tasks))
    if hasattr(dataset, "plot_grid"):
        panels += maps(model, dataset, tasks)
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}, panels


# ---- what is looked at


def gather(model, dataset, tasks: range) -> dict[str, np.ndarray]:
    """One pass over the tests: name -> (N,) values of all examples, or (J, N) by posterior.

    'task', 'inferred' (by the entropy), 'by <criterion>' (J, N). Classification: 'given nll' and, with the task given
    and inferred, 'confidence' and 'correct'. Regression: 'given error', 'inferred error' (squared), 'covered'.
    """
    parts: dict[str, list[Tensor]] = {}
    most = max(min(LOOKED_AT, IN_ALL // len(tasks)), 1)
    for task in tasks:
        loader = dataset.test_loaders[task]
        stride, first = max(-(-len(loader.dataset) // most), 1), 0
        for inputs, labels in loader:
            rows = torch.arange(-first % stride, len(labels), stride, device=inputs.device)  # every stride-th example
            first += len(labels)
            if not len(rows):
                continue
            answers = _answers(model, inputs[rows], labels[rows], task) | {"task": torch.full_like(rows, task)}
            for name, values in answers.items():
                parts.setdefault(name, []).append(values.double())
    return {name: torch.cat(values, -1).cpu().numpy() for name, values in parts.items()}


def _answers(model, inputs: Tensor, labels: Tensor, task: int) -> dict[str, Tensor]:
    if model.joint_softmax:
        return _classes("joint", model(inputs).double().log_softmax(1), labels)
    look = model.look(inputs)
    inferred = look.inferred("ent")
    answers = {"inferred": inferred} | {f"by {c}": look.uncertainty[c] for c in CRITERIA if c in model.criteria}
    if model.regression:
        mean, variance = look.means[task], look.spread[task].square() + model.dataset.SIGMA**2
        error = (mean - labels).square()
        answers["covered"] = (error <= 4 * variance).double().mean(1)
        answers["given error"] = error.mean(1)
        answers["inferred error"] = (model.predicted(look, inferred) - labels).square().mean(1)
        return answers
    answers |= _classes("given", look.means[task], labels - model.first_label(task))
    largest = torch.stack([mean.max(1).values.exp() for mean in look.means])
    answers["inferred confidence"] = largest.gather(0, inferred.unsqueeze(0))[0]
    answers["inferred correct"] = model.predicted(look, inferred).argmax(1) == labels
    return answers


def _classes(kind: str, log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    best = log_p.max(1)
    return {
        f"{kind} confidence": best.values.exp(),
        f"{kind} correct": best.indices == labels,
        f"{kind} nll": -log_p.gather(1, labels.unsqueeze(1)).squeeze(1),
    }


# ---- numbers


def quality_numbers(seen: dict[str, np.ndarray]) -> dict[str, float]:
    """How good the predictions are that there are: means over tasks."""

    def mean(value, *columns: str) -> float:
        cut = [[seen[column][seen["task"] == task] for column in columns] for task in np.unique(seen["task"])]
        return np.mean([value(*own) for own in cut])

    numbers = {}
    for kind, name in NAMES.items():
        if f"{kind} correct" in seen:
            numbers[f"expected calibration error, {name} (%)"] = mean(ece, f"{kind} confidence", f"{kind} correct")
        if f"{kind} nll" in seen:
            numbers[f"negative log-likelihood, {name} (nats)"] = mean(np.mean, f"{kind} nll")
        if f"{kind} error" in seen:
            numbers[f"mean squared error, {name}"] = mean(np.mean, f"{kind} error")
    if "covered" in seen:
        numbers["targets within two standard deviations (%)"] = 100 * mean(np.mean, "covered")
    return numbers


def uncertainty_numbers(model, seen: dict[str, np.ndarray]) -> dict[str, float]:
    """How uncertain each posterior is on its own and on other tasks' data, and how well that tells them apart."""
    numbers, task = {}, seen["task"]
    for criterion in CRITERIA:
        if criterion not in model.criteria:
            continue
        parts = [
            (values[task == j], values[task != j]) for j, values in enumerate(seen[f"by {criterion}"]) if j in task
        ]
        name = what(model) if criterion == "ent" else criterion
        if criterion == "ent":
            own, other = np.mean([[part.mean() for part in pair] for pair in parts], 0)
            numbers[f"{name} on own data"], numbers[f"{name} on other tasks' data"] = own, other
            if model.regression and own > 0:
                numbers["their ratio"] = other / own
        numbers[f"AUROC of other tasks' data by {name}"] = np.mean([auroc(*pair) for pair in parts])
    return numbers


def hypernetwork_numbers(model) -> dict[str, float]:
    """Size of the hypernetworks beside that of the network, and how far their outputs have moved."""
    numbers, drift = {}, getattr(model, "drift", [])
    weights = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("hyper.", "hypers.")))
    if weights:
        numbers["weights of the hypernetwork / of the network"] = weights / model.net.size
    if drift:
        numbers["drift of the hypernetwork's outputs"] = np.mean(drift)
    return numbers


def what(model) -> str:
    """What tells tasks apart."""
    return "spread" if model.regression else "entropy"


# ---- pictures


def uncertainty_panels(model, seen: dict[str, np.ndarray]) -> list[Panel]:
    """Histogram of the uncertainty, and which task is inferred for which."""
    values, name = seen["by ent"], what(model)
    n = len(values)
    own = seen["task"] == np.arange(n)[:, None]
    histogram = {"own": values[own], "other": values[~own], "what": name}
    pairs = (seen["task"] * n + seen["inferred"]).astype(np.int64)
    matrix = {"counts": np.bincount(pairs, minlength=n * n).reshape(n, n), "what": name}
    return [
        Panel("uncertainty", f"{name} on own and other tasks' data", f"{PLOTS}:uncertainty_histogram", histogram),
        Panel("task_inference", "task inferred for each task", f"{PLOTS}:task_inference", matrix),
    ]


def curve(model, inputs: Tensor) -> Tensor:
    """Mean and spread (J, 2, n) of every posterior's first output over inputs (n, 1)."""
    look = model.look(inputs.to(model.device))
    return torch.stack([torch.stack([m[:, 0], s[:, 0]]) for m, s in zip(look.means, look.spread, strict=True)])


def functions(model, dataset, tasks: range) -> Panel:
    """Every task's prediction, right after the task was learned and now."""
    x = dataset.plot_inputs()
    then = [model.curves[task].cpu().numpy() if task in model.curves else None for task in tasks]
    data = {
        "x": x[:, 0].numpy(),
        "rows": {"right after the task": then, "at the end": [*curve(model, x).cpu().numpy()]},
        "targets": [dataset.target(task, x)[:, 0].cpu().numpy() for task in tasks],
        "domains": [dataset.domain(task) for task in tasks],
        "points": [(inputs[:, 0], targets[:, 0]) for inputs, targets in training_examples(dataset, tasks)],
        "noise": dataset.SIGMA,
    }
    return Panel("functions", "predictions during and after", f"{PLOTS}:functions", data, wide=True)


def maps(model, dataset, tasks: range) -> list[Panel]:
    """What is predicted over the plane, and how uncertain every posterior is there."""
    grid = dataset.plot_grid(GRID).to(model.device)
    classes, entropies = [], []
    for points in grid.split(1000):
        if model.joint_softmax:
            classes.append(model(points).argmax(1))
            continue
        look = model.look(points)
        classes.append(model.predicted(look, look.inferred("ent")).argmax(1))
        entropies.append(look.uncertainty["ent"])
    (left, bottom), (right, top) = grid[0].tolist(), grid[-1].tolist()
    shown = {"extent": (left, right, bottom, top), "points": training_examples(dataset, tasks)}
    title = "Predicted class" if model.joint_softmax else "Predicted class, task inferred"
    data = {"predicted": torch.cat(classes).view(GRID, GRID).cpu().numpy(), "title": title, **shown}
    panels = [Panel("class_map", "predicted class", f"{PLOTS}:class_map", data)]
    if entropies:
        data = {"entropies": torch.cat(entropies, 1).view(-1, GRID, GRID).cpu().numpy(), **shown}
        panels.append(Panel("entropy_map", "entropy over the plane", f"{PLOTS}:entropy_maps", data, wide=True))
    return panels


def training_examples(dataset, tasks: range) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and labels of every task."""
    parts = [dataset.task_data(task) for task in tasks]
    return [(part.data.cpu().numpy(), part.targets.cpu().numpy()) for part in parts]
