"""A look at the trained network at the end of a run: what it costs, who owns it, what it takes for what.

Nothing here changes a weight, a mode or a random state, so a run with and without the look is the same.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.backbone.utils.base import Backbone
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.snapshot import Snapshot
from palimpsest.models.utils.state import describe
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.evaluation import eval_mode, evaluate
from palimpsest.utils.panels import Report
from palimpsest.utils.record import Analysis, Counts

BYTES = ("bytes_parameters", "bytes_buffer", "bytes_teachers", "bytes_statistics")
MOST_CLASSES = 100  # of a confusion matrix


@torch.no_grad()
def analyse(
    model: ContinualModel, dataset, trained: int, pictures: Sequence = (), counts: dict[str, Counts] | None = None
) -> Analysis:
    """Everything that can be told of this method on this stream.

    Args:
        model, dataset: as they are at the end.
        trained: last task trained; those up to it are looked at.
        pictures: see `Run`; drawn where there are any.
        counts: of the last evaluation; counted again where there are none.
    """
    dataset.extend_test_loaders(trained)  # a run that was resumed at its end has not met them
    tasks = range(trained + 1)
    confusion = confusion_of(model, dataset, tasks, {} if counts is None else counts)
    with eval_mode(model):
        report = report_of(model, dataset, tasks)
    found = Analysis(costs(model), confusion, report.numbers, report.panels)
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
    """Parameters of the method with its network, and bytes of all that it keeps but for the optimisers' state, each
    counted once: `bytes_parameters`, the network and what else is trained; `bytes_buffer`, replay buffers as allocated;
    `bytes_teachers`, frozen copies of networks; `bytes_statistics`, everything else.
    """
    optimizers = tuple(f"{name}." for name, part in vars(model).items() if isinstance(part, torch.optim.Optimizer))
    state = {name: value for name, value in describe(model).items() if isinstance(value, Tensor) and not value.is_meta}
    state = {name: t for name, t in state.items() if not (name.startswith(optimizers) or name.endswith(".grad"))}
    buffers = [tensor for part in model.modules() if isinstance(part, Buffer) for tensor in part.buffers()]
    network = {id(part) for part in model.net.modules()}
    copies = [part for part in model.modules() if isinstance(part, Snapshot | Backbone) and id(part) not in network]
    teachers = [t for part in copies for t in (*part.parameters(), *part.buffers()) if not t.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = {"bytes_buffer": buffers, "bytes_teachers": teachers}
    parts["bytes_parameters"] = [*trained, *(tensor for name, tensor in state.items() if name.startswith("net."))]
    parts["bytes_statistics"] = state.values()
    pieces: dict[str, set] = {}
    for name, tensors in parts.items():  # what is in several parts belongs to the first of them
        pieces[name] = {(t.data_ptr(), t.numel() * t.element_size()) for t in tensors} - set().union(*pieces.values())
    sizes = {name: sum(size for _, size in pieces[name]) for name in BYTES}
    return {"parameters": sum(p.numel() for p in model.parameters()), **sizes}


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


def confusion_of(model: ContinualModel, dataset, tasks: range, counts: dict[str, Counts]) -> np.ndarray | None:
    """The confusion matrix of class-IL, for as many classes as one can read; None where it is not defined."""
    if dataset.SETTING != "class-il" or not model.scores_class_il:
        return None
    if not counts:  # a run that was resumed at its end
        evaluate(model, dataset, tasks, tasks[-1], counts)
    found = counts["class-il"].confusion if "class-il" in counts else np.zeros((0, 0))
    return found if 0 < len(found) <= MOST_CLASSES else None
