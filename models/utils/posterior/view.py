"""What the posteriors of a run say about the tests at its end: calibration, uncertainty on their own and on other
tasks' data, and pictures of both.

`Posterior.report` tells it. Own data of posterior j are the test examples of task j, other data
those of all other tasks trained; every number is a mean over tasks. At most 2000 examples of a task and 40000 in all
are looked at.
"""

import numpy as np
import torch
from torch import Tensor

from models.utils.posterior.calibration import auroc, ece, reliability
from utils.panels import Panel

LOOKED_AT, IN_ALL = 2000, 40000  # examples per task, and of all tasks together
CRITERIA = ("ent", "agree")  # of task inference, by which own and other data are told apart
GRID = 100  # points along each side of a map
NAMES = {"given": "task given", "inferred": "task inferred", "joint": "one softmax"}

PLOTS = "models.utils.posterior.plots"


def numbers_and_panels(model, dataset, tasks: range) -> tuple[dict[str, float], list[Panel]]:
    """Numbers and pictures of a `Report`; every task of `tasks` has a posterior."""
    seen = gather(model, dataset, tasks)
    numbers = regression_numbers(seen) if model.regression else calibration_numbers(seen)
    numbers |= {} if model.joint_softmax else uncertainty_numbers(model, seen) | own_numbers(model)
    numbers = {name: float(value) for name, value in numbers.items() if np.isfinite(value)}
    panels = [] if model.joint_softmax else uncertainty_panels(model, seen)
    if not model.regression:
        bins = {
            name: reliability(seen[f"{kind} confidence"], seen[f"{kind} correct"])
            for kind, name in NAMES.items()
            if f"{kind} correct" in seen
        }
        panels.append(Panel("reliability", "reliability diagram", f"{PLOTS}:reliability", {"bins": bins}))
    if model.regression and hasattr(dataset, "plot_inputs"):
        panels.append(functions(model, dataset, tasks))
    if hasattr(dataset, "plot_grid"):
        panels += maps(model, dataset, tasks)
    return numbers, panels


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
    first = model.head(task)[0] if model.by_class else 0
    answers |= _classes("given", look.means[task], labels - first)
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


def _mean_over_tasks(seen: dict[str, np.ndarray], value) -> float:
    """Mean over tasks of value(rows of the task, its number); nan without tasks."""
    tasks = np.unique(seen["task"]).astype(np.int64).tolist()
    return float(np.mean([value(seen["task"] == task, task) for task in tasks]))


def calibration_numbers(seen: dict[str, np.ndarray]) -> dict[str, float]:
    """Expected calibration error and negative log-likelihood, for the predictions there are."""
    numbers = {}
    for kind, name in NAMES.items():
        if f"{kind} correct" in seen:
            confidence, correct = seen[f"{kind} confidence"], seen[f"{kind} correct"]
            error = _mean_over_tasks(seen, lambda own, _, p=confidence, y=correct: ece(p[own], y[own]))
            numbers[f"expected calibration error, {name} (%)"] = error
        if f"{kind} nll" in seen:
            nll = seen[f"{kind} nll"]
            numbers[f"negative log-likelihood, {name} (nats)"] = _mean_over_tasks(
                seen, lambda own, _, v=nll: v[own].mean()
            )
    return numbers


def regression_numbers(seen: dict[str, np.ndarray]) -> dict[str, float]:
    """Squared errors, and how many targets lie within two standard deviations of spread and noise together."""
    named = {
        "mean squared error, task given": ("given error", 1),
        "mean squared error, task inferred": ("inferred error", 1),
        "targets within two standard deviations (%)": ("covered", 100),
    }
    return {
        name: factor * _mean_over_tasks(seen, lambda own, _, v=seen[column]: v[own].mean())
        for name, (column, factor) in named.items()
    }


def uncertainty_numbers(model, seen: dict[str, np.ndarray]) -> dict[str, float]:
    """How uncertain each posterior is on its own and on other tasks' data, and how well that tells them apart."""
    numbers, what = {}, "spread" if model.regression else "entropy"
    if len(np.unique(seen["task"])) < 2 or not model.criteria:
        return numbers
    values = seen["by ent"]
    own = _mean_over_tasks(seen, lambda rows, j: values[j, rows].mean())
    other = _mean_over_tasks(seen, lambda rows, j: values[j, ~rows].mean())
    numbers[f"{what} on own data"], numbers[f"{what} on other tasks' data"] = own, other
    if model.regression and own > 0:
        numbers["their ratio"] = other / own
    for criterion in [c for c in CRITERIA if c in model.criteria]:
        values = seen[f"by {criterion}"]
        name = what if criterion == "ent" else criterion
        area = _mean_over_tasks(seen, lambda rows, j, v=values: auroc(v[j, rows], v[j, ~rows]))
        numbers[f"AUROC of other tasks' data by {name}"] = area
    return numbers


def own_numbers(model) -> dict[str, float]:
    """Of methods with a hypernetwork: its size beside that of the network, and how far its outputs have moved."""
    numbers, hyper, drift = {}, getattr(model, "hyper", None), getattr(model, "drift", [])
    networks = [*([] if hyper is None else [hyper]), *getattr(model, "hypers", [])]
    if networks:
        weights = sum(p.numel() for network in networks for p in network.parameters())
        numbers["weights of the hypernetwork / of the network"] = weights / model.net.size
    if drift:
        numbers["drift of the hypernetwork's outputs"] = float(np.mean(drift))
    return numbers


# ---- pictures


def uncertainty_panels(model, seen: dict[str, np.ndarray]) -> list[Panel]:
    """Histogram of the uncertainty, and which task is inferred for which; where there are two tasks."""
    if len(np.unique(seen["task"])) < 2 or not model.criteria:
        return []
    values, what = seen["by ent"], "spread" if model.regression else "entropy"
    n = len(values)
    own = seen["task"] == np.arange(n)[:, None]
    histogram = {"own": values[own], "other": values[~own], "what": what}
    pairs = (seen["task"] * n + seen["inferred"]).astype(np.int64)
    counts = np.bincount(pairs, minlength=n * n).reshape(n, n)
    matrix = {"counts": counts, "what": what}
    return [
        Panel("uncertainty", f"{what} on own and other tasks' data", f"{PLOTS}:uncertainty_histogram", histogram),
        Panel("task_inference", "task inferred for each task", f"{PLOTS}:task_inference", matrix),
    ]


def curve(model, inputs: Tensor) -> Tensor:
    """Mean and spread (J, 2, n) of every posterior's first output over inputs (n, 1)."""
    look = model.look(inputs.to(model.device))
    return torch.stack([torch.stack([m[:, 0], s[:, 0]]) for m, s in zip(look.means, look.spread, strict=True)])


def functions(model, dataset, tasks: range) -> Panel:
    """Every task's prediction, right after the task was learned and now."""
    x = dataset.plot_inputs()
    now = curve(model, x).cpu().numpy()
    then = [model.curves[task].cpu().numpy() if task in model.curves else None for task in tasks]
    targets = [dataset.target(task, x)[:, 0].cpu().numpy() for task in tasks]
    parts = [dataset.task_data(task) for task in tasks]
    points = [(part.data[:, 0].cpu().numpy(), part.targets[:, 0].cpu().numpy()) for part in parts]
    rows = {"right after the task": then, "at the end": list(now)}
    domains = [dataset.domain(task) for task in tasks]
    data = {"x": x[:, 0].numpy(), "rows": rows, "targets": targets, "domains": domains, "points": points}
    data["noise"] = dataset.SIGMA
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
    ends = grid[0].tolist(), grid[-1].tolist()
    extent = (ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    data = [dataset.task_data(task) for task in tasks]
    points = [(part.data.cpu().numpy(), part.targets.cpu().numpy()) for part in data]
    predicted = torch.cat(classes).view(GRID, GRID).cpu().numpy()
    title = "Predicted class" if model.joint_softmax else "Predicted class, task inferred"
    panels = [Panel("class_map", "predicted class", f"{PLOTS}:class_map",
                    {"predicted": predicted, "extent": extent, "points": points, "title": title})]  # fmt: skip
    if entropies:
        data = {"entropies": torch.cat(entropies, 1).view(-1, GRID, GRID).cpu().numpy()}
        data |= {"extent": extent, "points": points}
        panels.append(Panel("entropy_map", "entropy over the plane", f"{PLOTS}:entropy_maps", data, wide=True))
    return panels
