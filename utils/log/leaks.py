"""The leak detector of a scored run: what the reads, the state and the predictions of a method say, at little cost.

Reads are counted all the time (`utils.leaks.reads`). After every task the state is searched for images
(`utils.leaks.memory`); after the first and at the end predictions are asked for in other company
(`utils.leaks.probe`); weights that `end_eval` changes are weights chosen by test scores. What the method or the stream
declares in `declared_leaks` is no finding but a mark. `main.py --check` does more.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.leaks.kinds import TEST
from palimpsest.utils.leaks.memory import Known, kept_images
from palimpsest.utils.leaks.probe import TOLERANCE, Probe, take_images
from palimpsest.utils.leaks.reads import TESTED, TRAINED
from palimpsest.utils.log.events import Logger
from palimpsest.utils.record import Evaluation, Run

TASKS, PER_TASK, ALONE = 8, 12, 3  # tasks looked at, images of each, and of these in a batch of one


def declared_leaks(model: Any, dataset: Any) -> dict[str, str]:
    """Kind of leak -> what stands in tables, of a method and its stream."""
    out: dict[str, str] = {}
    for owner in (dataset, model):
        given = getattr(owner, "declared_leaks", {})
        out |= given if isinstance(given, dict) else {}
    return out


class LeakWatch(Logger):
    """Watches one run and fills its `leaks`.

    Args:
        exp: the experiment, built and not yet started.
    """

    def __init__(self, exp: Any):
        self.model, self.dataset, self.run, self.args = exp.model, exp.dataset, exp.run, exp.args
        self.declared = declared_leaks(self.model, self.dataset)
        self.known = known_images(self.model, self.dataset)
        self._versions: list[int] | None = None
        self.take(self.dataset.reads.found)

    def take(self, found: dict[str, list[str]]) -> None:
        """Add findings to those of the run, the declared ones left out."""
        for kind, sentences in found.items():
            if kind not in self.declared:
                told = [f"{kind}: {one_line(sentence)}" for sentence in sentences]
                self.run.leaks += [text for text in told if text not in self.run.leaks]

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        if evaluation.epoch is not None:
            return
        self._search()
        if evaluation.task == 0 and self.dataset.EVAL_TASKS > 1:
            self._look(lambda: self._probe().look_at_unseen())
        # The method hears of the scores next.
        self._versions = [p._version for p in self.model.parameters()]

    def task_ended(self) -> None:
        """After the method has heard of the scores. After the last task it may change the network for its own reasons,
        and is scored again then.
        """
        now = [p._version for p in self.model.parameters()]
        if self._versions not in (None, now) and self.model._current_task < self.dataset.N_TASKS:
            self.take({TEST: ["weights are changed in end_eval, which is told the test scores"]})
        self._versions = None
        self.take(self.dataset.reads.found)

    def saving(self, run: Run) -> None:
        self.take(self.dataset.reads.found)

    def finish(self) -> None:
        """At the end of the run."""
        self._search()
        self._look(lambda: self._probe().look(ALONE))

    def _search(self) -> None:
        self.take(self.dataset.reads.found)
        if self.known:
            self._look(lambda: kept_images(self.model, self.known))

    def _probe(self) -> Probe:
        """A few images of the tasks so far."""
        trained = self.run.history[-1].task
        tasks = range(min(trained + 1, len(self.dataset.test_loaders)))
        chosen = sorted({round(i * (len(tasks) - 1) / max(TASKS - 1, 1)) for i in range(TASKS)}) if tasks else []
        images = take_images(self.dataset, chosen, PER_TASK)
        coarse = self.args.code_optimization >= 1 and self.model.device.type == "cuda"
        return Probe(self.model, self.dataset, trained, images, TOLERANCE * (100 if coarse else 1))

    def _look(self, look: Callable[[], dict[str, list[str]]]) -> None:
        """A look that fails ends no run; what could not be looked at is a note."""
        try:
            self.take(look())
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, UserError) as e:
            self.run.notes["leaks"] = f"not all could be looked at: {type(e).__name__}: {one_line(e)[:200]}"


def known_images(model: Any, dataset: Any) -> Known | None:
    """The images of a stream that are in memory as bytes; None on a stream of something else."""
    size = getattr(dataset, "SIZE", ())
    if len(size) != 3 or dataset.INPUT != "images":
        return None

    def resident(parts: Iterable[Any]) -> Iterator[Tensor]:
        for data in parts:
            source = getattr(data, "source", None)
            if isinstance(getattr(source, "_images", None), Tensor) and source._images.dtype == torch.uint8:
                yield source.images_of(data.rows)

    def tested() -> Iterator[Tensor]:
        return resident(loader.dataset for loader in dataset.test_loaders if hasattr(loader, "dataset"))

    def trained() -> Iterator[Tensor]:
        return resident(dataset.task_data(stage) for stage in range(len(dataset.stages)))

    return Known(size, dataset.get_normalization_transform(), {TESTED: tested, TRAINED: trained})
