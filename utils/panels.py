"""What a method has to say about itself, as plain data: the report words and draws it."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

BINS = 60


@dataclass(frozen=True)
class Panel:
    """One picture that is not drawn yet.

    Attributes:
        name: of its file, without the ending.
        shows: what it shows, in words.
        draw: what draws it, 'module:function', imported when the report is written; it returns a matplotlib Figure.
        data: the arguments of that function: numbers, text, arrays.
        wide: whether it takes the whole width of the page.
    """

    name: str
    shows: str
    draw: str
    data: dict[str, Any]
    wide: bool = False

    def figure(self) -> Any:
        """The picture, drawn."""
        module, function = self.draw.split(":")
        return getattr(import_module(module), function)(**self.data)


@dataclass
class Report:
    """See `ContinualModel.report`.

    Attributes:
        notes: what a reader of the scores must know: about -> note.
        shares: names of the terms of `observe` that are shares, in [0, 1], and no losses: drawn apart.
        numbers: name -> number found at the end of the run.
        panels: pictures of the end of the run.
    """

    notes: dict[str, str] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)

    def show(self, *panels: Panel | None) -> "Report":
        """Add pictures; None, of which there is nothing to show, is left out. Returns the report."""
        self.panels += [panel for panel in panels if panel is not None]
        return self


def capacity(owned: list[int], total: int) -> Panel | None:
    """Parameters that each task so far owns, of `total` there are to own: for methods that divide a network among
    tasks; None before the first task's end.
    """
    if not owned:
        return None
    data = {"owned": [int(n) for n in owned], "total": int(total)}
    return Panel("capacity", "parameters in use", "palimpsest.utils.log.plots:capacity_bars", data)


def importance(values: Tensor | None) -> Panel | None:
    """Histogram, over powers of ten, of how much each parameter matters to past tasks (P,); None without any."""
    if values is None or not values.numel():
        return None
    values = values.detach().float().flatten().cpu().numpy()
    logarithms = np.log10(values[np.isfinite(values) & (values > 0)].astype(np.float64))
    counts, edges = np.histogram(logarithms, BINS)
    data = {"counts": counts, "edges": edges, "zeros": 1 - logarithms.size / values.size}
    return Panel("importance", "importance of the parameters", "palimpsest.utils.log.plots:importance_histogram", data)
