"""A look at the trained network at the end of a run: what it costs, who owns it, how it sees the tasks apart.

Nothing here changes a weight, a mode or a random state, so a run with and without the look is the same.
"""

import inspect
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.state import describe
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.evaluation import eval_mode
from palimpsest.utils.panels import Report
from palimpsest.utils.record import Analysis

EMBEDDED = 500  # test examples in the embedding, of all tasks together
MOST_CLASSES = 100  # of a confusion matrix


@torch.no_grad()
def analyse(model: ContinualModel, dataset, trained: int, pictures: Sequence = ()) -> Analysis:
    """Everything that can be told of this method on this stream.

    Args:
        model, dataset: as they are at the end.
        trained: last task trained; those up to it are looked at.
        pictures: see `Run`; drawn where there are any.
    """
    dataset.extend_test_loaders(trained)  # a run that was resumed at its end has not met them
    tasks = range(trained + 1)
    with eval_mode(model):
        views = look_at_tests(model, dataset, tasks)
        report = report_of(model, dataset, tasks)
    found = Analysis(costs(model), *views, report.numbers, report.panels)
    if pictures:
        from palimpsest.datasets.utils.vision.plots import prediction_figures

        found.figures = prediction_figures(dataset, pictures)
    return found


def report_of(model: ContinualModel, dataset, tasks: range) -> Report:
    """What the method tells; a plain method file may have something else under the name `report`."""
    try:
        inspect.signature(model.report).bind(dataset, tasks)
    except (TypeError, ValueError):
        return ContinualModel.report(model, dataset, tasks)
    report = model.report(dataset, tasks)
    return report if isinstance(report, Report) else ContinualModel.report(model, dataset, tasks)


def costs(model: ContinualModel) -> dict[str, int]:
    """Parameters of the method with its network; bytes of the network, of the replay buffers, and of everything the
    method keeps besides the network (the buffers too, the optimisers' state not).
    """
    optimizers = tuple(f"{name}." for name, part in vars(model).items() if isinstance(part, torch.optim.Optimizer))
    state = {
        name: value
        for name, value in describe(model).items()
        if isinstance(value, Tensor)
        and not value.is_meta
        and not name.startswith(optimizers)
        and not name.endswith(".grad")
    }
    network = {name: value for name, value in state.items() if name.startswith("net.")}
    buffers = [tensor for part in model.modules() if isinstance(part, Buffer) for tensor in part.buffers()]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "network_bytes": _bytes(network.values()),
        "buffer_bytes": _bytes(buffers),
        "method_bytes": _bytes(state.values()) - _bytes(network.values()),
    }


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Most memory in use so far: of the GPU since its statistics were reset, else of this process, Python included."""
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device), "peak_memory_of": "device"}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}


def look_at_tests(model: ContinualModel, dataset, tasks: range) -> tuple[Any, Any]:
    """Embedding and confusion matrix from one pass over the tests of `tasks`; None for either that is not defined.

    Both need one label per example. The confusion matrix is that of class-IL, for as many classes as one can read.
    """
    seen = dataset.task_classes(tasks[-1])[1]
    wanted = dataset.SETTING == "class-il" and model.scores_class_il and seen <= MOST_CLASSES
    confusion = torch.zeros(seen * seen, device=model.device) if wanted else None
    features, owners, labels_of = [], [], []
    for task in tasks:
        loader = dataset.test_loaders[task]
        stride, first = max(len(loader.dataset) * len(tasks) // EMBEDDED, 1), 0
        for inputs, labels in loader:
            if isinstance(labels, dict) or labels.dim() != 1 or not len(labels):
                return None, None
            rows = torch.arange(-first % stride, len(labels), stride, device=inputs.device)  # every stride-th example
            first += len(labels)
            if len(rows):
                features.append(_features(model, inputs[rows], task))
                owners += [task] * len(rows)
                labels_of.append(labels[rows])
            if confusion is not None:
                predicted = model.predict(inputs, task)[:, :seen].argmax(1)
                confusion += torch.bincount(labels * seen + predicted, minlength=seen * seen)
    embedding = None
    if features and all(f is not None for f in features):
        embedding = _embed(torch.cat(features), owners, torch.cat(labels_of))
    return embedding, None if confusion is None else confusion.view(seen, seen).long().cpu().numpy()


def _features(model: ContinualModel, inputs: Tensor, task: int) -> Tensor | None:
    """What the classifier reads when inputs of `task` are predicted, (B, d); the network's features where the method
    has another classifier; None where there is no telling, as when it predicts by copies of the network.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as hooks:
        for part in model.net.modules():
            hook = part.register_forward_pre_hook(lambda part, given: seen.extend((part, x) for x in given[:1]))
            hooks.callback(hook.remove)
        model.predict(inputs, task)
    read = [x for part, x in seen if part is getattr(model.net, "classifier", None)]
    if len(read) != 1 and seen and hasattr(model.net, "features"):
        read = [model.net.features(inputs)]
    return read[0] if len(read) == 1 and read[0].dim() == 2 else None


def _embed(features: Tensor, tasks: list[int], labels: Tensor) -> tuple[np.ndarray, ...] | None:
    values = features.double().cpu().numpy()
    if min(values.shape) < 2 or not np.isfinite(values).all():
        return None
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(values)
    return points, np.array(tasks), labels.cpu().numpy(), np.nan_to_num(pca.explained_variance_ratio_)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each piece of memory counted once."""
    return sum(size for _, size in {(t.data_ptr(), t.numel() * t.element_size()) for t in tensors})
