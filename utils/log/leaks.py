"""The leak detector of a scored run: what the reads, the state and the predictions of a method say, at little cost.

Reads are counted all the time (`utils.leaks.reads`). After every task the state is searched for images
(`utils.leaks.memory`); after the first and at the end predictions are asked for in other company
(`utils.leaks.probe`); weights that `end_eval` changes are weights chosen by test scores. What the method or the stream
declares in `declared_leaks` is no finding but a mark. `main.py --check` does more.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from palimpsest.models.utils.outside import note_of
from palimpsest.models.utils.state import describe, origin_of
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.leaks.kinds import TEST, UNBOUND
from palimpsest.utils.leaks.memory import Known, kept_images
from palimpsest.utils.leaks.probe import TOLERANCE, Images, Probe, take_images
from palimpsest.utils.leaks.reads import TESTED, TRAINED
from palimpsest.utils.leaks.statistics import foreign_statistics
from palimpsest.utils.leaks.terms import LooseTerms, Pulls, trained_by
from palimpsest.utils.log.events import Logger
from palimpsest.utils.record import Evaluation, Position, Run

STEPS = (1, 4, 16)  # of the first task that has one before it: the steps after these are looked at
WEAK = 1e-10  # share of the strongest gradient below which there is none, as so few steps see it
FILE = ("global ", "class attribute ")  # names in `note_of` of what a file holds besides the method
GENERATORS = ("torch", "numpy", "bits")  # forms of random generators in a description
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
        self.pulls, self._versions = Pulls(), None
        self._first, self._terms = exp.args.start_from, not exp.args.compile  # compiled code is left alone
        self.take(self.dataset.reads.found)
        if self.known:
            self._look(lambda: foreign_statistics(self.dataset, self.known))

    def after_step(self, at: Position) -> None:
        """After every iteration: in a few of the first later task the next one's loss is looked at term by term."""
        if at.task == self._first or at.batch not in STEPS or at.epoch or not self._terms:
            return
        left = operator.length_hint(self.dataset.train_loader, 0) - at.batch
        if left > 0 and at.task == self._first + 1:
            self._look_at_terms()

    def _look_at_terms(self) -> None:
        held, observe = vars(self.model), self.model.observe

        def watched(*args: Any, **kwargs: Any) -> Any:
            del held["observe"]  # for this step alone: nothing of it may be in a checkpoint
            with LooseTerms(trained_by(self.model), self.pulls) as terms:
                out = observe(*args, **kwargs)
            self.take({UNBOUND: [f"a term of the loss reaches no weight, added in {p}" for p in terms.places()[:1]]})
            return out

        held["observe"] = watched

    def take(self, found: dict[str, list[str]]) -> None:
        """Add findings to those of the run, the declared ones left out."""
        for kind, sentences in found.items():
            if kind not in self.declared:
                told = [f"{kind}: {one_line(sentence)}" for sentence in sentences]
                self.run.leaks += [text for text in told if text not in self.run.leaks]

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        vars(self.model).pop("observe", None)  # a task that ended before the step that was to be looked at
        if evaluation.epoch is not None:
            return
        self._search()
        if evaluation.task == 0 and self.dataset.EVAL_TASKS > 1:
            self._look(lambda: self._probe().look_at_unseen())
        # The method hears of the scores next.
        self._versions = self._trained_as()

    def task_ended(self) -> None:
        """After the method has heard of the scores. After the last task it may change the network for its own reasons,
        and is scored again then.
        """
        now = self._trained_as()
        if self._versions not in (None, now) and self.model._current_task < self.dataset.N_TASKS:
            what = "weights are" if self._versions[0] != now[0] else "the optimiser's settings are"
            self.take({TEST: [f"{what} changed in end_eval, which is told the test scores"]})
        self._versions = None
        self.take(self.dataset.reads.found)

    def _trained_as(self) -> tuple[list[int], list[Any]]:
        """How often each weight was written; the optimiser's numbers, as the learning rate."""
        groups = getattr(getattr(self.model, "opt", None), "param_groups", [])
        numbers = [v for group in groups for v in group.values() if isinstance(v, int | float | tuple)]
        return [p._version for p in self.model.parameters()], numbers

    def saving(self, run: Run) -> None:
        self.take(self.dataset.reads.found)

    def finish(self) -> None:
        """At the end of the run."""
        self._search()
        for place in self.pulls.unbound(WEAK)[:1]:
            self.take({UNBOUND: [f"a term of the loss has no gradient where it is not 0, added in {place}"]})
        scored = self.run.history[-1].scores.get("class-il")
        before = self._held()
        probe = self._probe()
        self._look(lambda: probe.look(ALONE, scored))
        self._look(lambda: probe.look_closely(self._whole_batch()))
        self._look(lambda: probe.ask_strange() or {})
        now = self._held()
        if changed := [name for name in before | now if before.get(name) != now.get(name)]:
            self.take({TEST: [f"predicting test images changes '{changed[0]}', which the method keeps"]})

    def _held(self) -> dict[str, Any]:
        """What the method and its file hold, tensors by where they lie and how often they were written. Random numbers
        may be drawn in a prediction and calls be counted: generators and whole numbers are left out. Of a method whose
        state cannot be told only the file.
        """
        held: dict[str, Any] = {k: v for k, v in note_of(origin_of(self.model)).items() if k.startswith(FILE)}
        try:
            flat = describe(self.model)
        except UserError:
            return held
        drawn = [n.removesuffix(" as") for n, v in flat.items() if n.endswith(" as") and v[0] in GENERATORS]
        for name, value in flat.items():
            if type(value) is int or any(name.startswith(f"{path}.") for path in drawn):
                continue
            held[name] = (value.data_ptr(), value._version, value.shape) if isinstance(value, Tensor) else value
        return held

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
        coarse = self.args.precision != "fp32" and self.model.device.type == "cuda"
        return Probe(self.model, self.dataset, trained, images, TOLERANCE * (100 if coarse else 1))

    def _whole_batch(self) -> list[Images]:
        """As many images of the first task as an evaluation predicts at once."""
        return take_images(self.dataset, [0], self.args.eval_batch_size)

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
