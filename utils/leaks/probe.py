"""Asks a method for the same predictions in other company: what an answer may not depend on is changed, all else kept.

A probe is a few test images of every task. Answers are compared among the classes that compete: another class counts
only where its lead is more than `TOLERANCE`, relative to the largest number of the row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.utils.evaluation import eval_mode, scenarios
from palimpsest.utils.leaks.kinds import BATCH, IDENTITY, TEST, UNSEEN

TOLERANCE = 1e-4  # float32; a hundred times as much where products are rounded to TF32
LARGE, MODERATE = 1e9, 20.0  # by how much outputs of unseen classes are made to lead
SEEDS = 8  # draws of a prediction that is random
DEVIATIONS = 6  # standard deviations from the score of an evaluation that no sample explains
GUESTS = 4  # images of each other task in a mixed batch
NUDGE = 1e-3  # of an image's largest number, by which its numbers are moved
RECALLED = 0.15  # share of the images that such a move may cost; an honest network loses next to none
Findings = dict[str, list[str]]  # kind of leak -> sentences
Answers = dict[str, Tensor]  # scenario -> what its score reads, (B, ...)


@dataclass
class Images:
    """Test images of one task: network inputs, and their labels."""

    task: int
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def take_images(dataset: Any, tasks: Sequence[int], n: int) -> list[Images]:
    """Up to n test images of each task, equally spaced; the test loaders of these tasks must exist. Nothing of a task
    whose examples are no tensors.
    """
    out = []
    for task in tasks:
        loader = dataset.test_loaders[task]
        data = getattr(loader, "dataset", None)
        rows = getattr(data, "rows", None)
        if rows is None or not len(rows):
            continue
        chosen = rows[torch.linspace(0, len(rows) - 1, min(n, len(rows))).round().long().to(rows.device)]
        labels = data.source.targets_of(chosen)
        if not isinstance(labels, Tensor):
            continue
        raw = data.source.images_of(chosen).to(loader.device)
        out.append(Images(task, data.transform(raw), labels.to(loader.device)))
    return out


class Probe:
    """Predictions of a method for images of several tasks, and the same under other circumstances.

    Args:
        model, dataset: as trained so far.
        trained: last task trained.
        images: see `take_images`.
        tolerance: see the module.
    """

    def __init__(self, model: Any, dataset: Any, trained: int, images: list[Images], tolerance: float = TOLERANCE):
        self.model, self.dataset, self.images, self.tolerance = model, dataset, images, tolerance
        self.trained, self.scenarios = trained, scenarios(model, dataset)
        self._usual: dict[int, Answers] = {}

    def answers(self, inputs: Tensor, labels: Tensor, task: int, seed: int = 0) -> Answers:
        """What an evaluation would read for inputs (B, ...) of a task, in every scenario; always the same random
        numbers.
        """
        torch.manual_seed(seed)
        outputs, _ = self.model.evaluate_batch(inputs, labels, task, self.scenarios)
        return {scenario: outputs[scenario].detach() for scenario in self.scenarios}

    def usual(self, part: Images, seed: int = 0) -> Answers:
        """As in an evaluation: a batch of the task's images."""
        if seed:
            return self.answers(part.inputs, part.labels, part.task, seed)
        if part.task not in self._usual:
            self._usual[part.task] = self.answers(part.inputs, part.labels, part.task)
        return self._usual[part.task]

    def compared(self, usual: Tensor, other: Tensor, task: int, scenario: str) -> Tensor:
        """(B,) bool: whether the answers differ."""
        spec = self.dataset.tasks[task]
        score = spec.score(self.dataset.tasks[self.trained] if scenario == "class-il" else None)
        if usual.is_floating_point() and hasattr(score, "competing") and usual.shape == other.shape:
            places = score.competing(usual.shape[-1])
            return differing_answers(usual[..., places], other[..., places], self.tolerance)
        far = (usual - other).abs() > 100 * self.tolerance * usual.abs().amax().clamp(min=1)
        return far.flatten(1).any(1) if far.dim() > 1 else far

    def changed(self, part: Images, rows: Tensor, predict: Callable[[int], Answers], but: Sequence[str] = ()) -> dict:
        """scenario -> how many of some images (k,) of a task are predicted otherwise, with no random draw as the
        reason: where a method draws, under `SEEDS` seeds each of both answers is always the same.

        Args:
            predict: seed -> the other answers for these images.
            but: scenarios that are left out.
        """
        usual, other, counts = self.usual(part), predict(0), {}
        for scenario in self.scenarios:
            if scenario in but:
                continue
            mine, theirs = usual[scenario][rows], other[scenario]
            differing = self.compared(mine, theirs, part.task, scenario)
            for seed in range(1, SEEDS if differing.any() and self._draws(part) else 1):
                differing &= ~self.compared(mine, self.usual(part, seed)[scenario][rows], part.task, scenario)
                differing &= ~self.compared(theirs, predict(seed)[scenario], part.task, scenario)
            counts[scenario] = int(differing.sum())
        return counts

    def _draws(self, part: Images) -> bool:
        """Whether predictions are random."""
        first, second = self.usual(part), self.usual(part, 1)
        return not all(torch.equal(first[scenario], second[scenario]) for scenario in self.scenarios)

    # ---- what is changed

    def company(self, alone: int | None = None) -> Findings:
        """Each image alone, in another order, in half of the batch, among images of the other tasks.

        Args:
            alone: images of each task that are predicted in a batch of one, all by default.
        """
        ways = {"alone": self._alone, "in another order": self._shuffled, "in smaller batches": self._halves}
        if len(self.images) > 1:
            ways["among images of other tasks"] = self._mixed
        sums = {scenario: dict.fromkeys(ways, 0) for scenario in self.scenarios}
        asked = dict.fromkeys(ways, 0)
        for part in self.images:
            for name, predict in ways.items():
                rows = torch.arange(len(part))[: alone if name == "alone" else None]
                try:
                    counts = self.changed(part, rows, partial(predict, part, rows))
                except ValueError as e:
                    if "more than 1 value per channel" not in str(e):  # BatchNorm's words for a batch of one
                        raise
                    return {BATCH: [f"an image cannot be predicted {name}: {e}"]}
                asked[name] += len(rows)
                for scenario, n in counts.items():
                    sums[scenario][name] += n
        found = []
        for scenario, counts in sums.items():
            if told := [f"{n} of {asked[name]} {name}" for name, n in counts.items() if n]:
                found.append(f"other {scenario} predictions for the same images: {', '.join(told)}")
        return {BATCH: found} if found else {}

    def _alone(self, part: Images, rows: Tensor, seed: int) -> Answers:
        singles = [(part.inputs[r : r + 1], part.labels[r : r + 1]) for r in rows.tolist()]
        return joined([self.answers(x, y, part.task, seed) for x, y in singles])

    def _shuffled(self, part: Images, rows: Tensor, seed: int) -> Answers:
        order = fixed_order(len(part))
        shuffled = self.answers(part.inputs[order], part.labels[order], part.task, seed)
        return chosen(shuffled, order.argsort()[rows])

    def _halves(self, part: Images, rows: Tensor, seed: int) -> Answers:
        # Every second image: both halves hold images of all classes, wherever a file has them.
        halves = [torch.arange(start, len(part), 2) for start in range(min(2, len(part)))]
        parts = [self.answers(part.inputs[half], part.labels[half], part.task, seed) for half in halves]
        return chosen(joined(parts), torch.cat(halves).argsort()[rows])

    def _mixed(self, part: Images, rows: Tensor, seed: int) -> Answers:
        others = torch.cat([other.inputs[:GUESTS] for other in self.images if other is not part])
        # Their labels are of the task's own classes, as a method expects them that looks at labels.
        own = part.labels[:1].expand(len(others), *part.labels.shape[1:])
        inputs, labels = torch.cat([part.inputs, others]), torch.cat([part.labels, own])
        order = fixed_order(len(inputs))
        return chosen(self.answers(inputs[order], labels[order], part.task, seed), order.argsort()[: len(part)][rows])

    def withheld(self, scored: Sequence[float] | None = None) -> Findings:
        """class-IL without the task and the labels of the images: told another task, and each image another's label.

        Args:
            scored: what an evaluation gave each task, percent: a method may know labels in an evaluation alone.
        """
        if "class-il" not in self.scenarios or len(self.images) < 2:
            return {}
        but, changed, total = [name for name in self.scenarios if name != "class-il"], 0, 0
        right = expected = spread = 0.0
        for i, part in enumerate(self.images):
            other, rows = self.images[i - 1], torch.arange(len(part))
            wrong = other.labels[rows % len(other)]
            predict = partial(self.answers, part.inputs, wrong, other.task)
            changed, total = changed + self.changed(part, rows, predict, but)["class-il"], total + len(part)
            score = self.dataset.tasks[part.task].score(self.dataset.tasks[self.trained])
            if scored is not None and hasattr(score, "answers"):
                share, told = scored[part.task] / 100, predict(0)["class-il"]
                right += int((score.answers(told) == part.labels).sum())
                expected, spread = expected + share * len(part), spread + (share * (1 - share) + 0.02) * len(part)
        if expected - right > DEVIATIONS * math.sqrt(spread):
            told = f"without task and labels {100 * right / total:.0f} % of the images are right"
            return {IDENTITY: [f"{told}, in the evaluation {100 * expected / total:.0f} %"]}
        if not changed:
            return {}
        return {IDENTITY: [f"told another task and other labels, {changed} of {total} images are another class"]}

    def unseen(self) -> Findings:
        """Outputs of classes that no task has shown: made very large, they change no answer among those shown."""
        if "class-il" not in self.scenarios:
            return {}
        seen, total = getattr(self.dataset.tasks[self.trained], "high", None), self.model.num_classes
        if seen is None or seen >= total:
            return {}
        changed = asked = 0
        for part in self.images:
            usual, differing = self.usual(part)["class-il"], False
            for lead in (LARGE, MODERATE):
                with raised_outputs(self.model, seen, total, lead):
                    other = self.answers(part.inputs, part.labels, part.task)["class-il"]
                # Beside a very large number all others are equal to float32, as in the logarithm of a softmax; beside
                # a moderate one answers that were apart stay so.
                tied = other[:, :seen].amax(1) == other[:, :seen].amin(1)
                apart = usual[:, :seen].amax(1) > usual[:, :seen].amin(1)
                found = self.compared(usual, other, part.task, "class-il")
                differing |= found & ~tied if lead == LARGE else found | (tied & apart)
            changed, asked = changed + int(differing.sum()), asked + len(part)
        if not changed:
            return {}
        what = f"with large outputs for the {total - seen} unseen classes {changed} of {asked} images are predicted "
        return {UNSEEN: [what + "as another one of those seen"]}

    def look(self, alone: int | None = None, scored: Sequence[float] | None = None) -> Findings:
        """All that can be asked at the end of a run; nothing about the method changes."""
        with torch.no_grad(), eval_mode(self.model):
            return self.company(alone) | self.withheld(scored) | self.unseen()

    def recalled(self) -> Findings:
        """Images moved by less than an eye sees are answered as well: else a method knows these images again."""
        right = again = total = 0
        for part in self.images:
            score = self.dataset.tasks[part.task].score(self.dataset.tasks[self.trained])
            if "class-il" not in self.scenarios or not hasattr(score, "answers") or not part.inputs.is_floating_point():
                return {}
            signs = 2 * (torch.arange(part.inputs[0].numel(), device=part.inputs.device) % 2) - 1
            moved = part.inputs + NUDGE * part.inputs.abs().amax() * signs.view(part.inputs.shape[1:])
            before, after = self.usual(part), self.answers(moved, part.labels, part.task)
            right += int((score.answers(before["class-il"]) == part.labels).sum())
            again += int((score.answers(after["class-il"]) == part.labels).sum())
            total += len(part)
        if right - again <= max(RECALLED * total, GUESTS):
            return {}
        told = f"{right} of {total} test images are right, {again} where each is moved by a thousandth"
        return {TEST: [f"{told}: the method knows them again"]}

    def in_whole_batches(self, whole: list[Images]) -> Findings:
        """As many images as an evaluation predicts at once are answered as in batches of a few.

        Args:
            whole: such a batch of each task that is looked at.
        """
        changed = dict.fromkeys(self.scenarios, 0)
        for part in whole:
            rows = torch.arange(0, len(part), max(len(part) // (4 * SEEDS), 1))

            def few(seed: int, part: Images = part, rows: Tensor = rows) -> Answers:
                picks = rows.split(SEEDS)
                return joined([self.answers(part.inputs[r], part.labels[r], part.task, seed) for r in picks])

            # Not among the probe's own: these are other images of the same task.
            other = Probe(self.model, self.dataset, self.trained, [part], self.tolerance)
            for scenario, n in other.changed(part, rows, few).items():
                changed[scenario] += n
        found = [
            f"{n} images have other {scenario} predictions in small batches" for scenario, n in changed.items() if n
        ]
        return {BATCH: found} if found else {}

    def look_closely(self, whole: list[Images]) -> Findings:
        """What a few images in small batches do not show: whether they are known again, and whole batches."""
        with torch.no_grad(), eval_mode(self.model):
            return self.recalled() | self.in_whole_batches(whole)

    def ask_strange(self) -> None:
        """Predict images that no evaluation has shown: what this changes in the method, test images change, too. Of the
        last task, with which an evaluation ends: a network may note which of its branches answered last.
        """
        with torch.no_grad(), eval_mode(self.model):
            for part in self.images[-1:]:
                strange = part.inputs[:2].flip(-1)
                strange = 0.9 * strange if strange.is_floating_point() else strange
                self.answers(strange, part.labels[:2], part.task)

    def look_at_unseen(self) -> Findings:
        """What only an earlier moment can show: there are unseen classes."""
        with torch.no_grad(), eval_mode(self.model):
            return self.unseen()


def differing_answers(usual: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """(B,) bool: rows (B, ..., C) in which another class leads, by more than the tolerance in either of both."""
    mine, theirs = usual.argmax(-1, keepdim=True), other.argmax(-1, keepdim=True)
    scale = torch.where(usual.isfinite(), usual, 0).abs().amax(-1).clamp(min=1)
    lead = (usual.gather(-1, mine) - usual.gather(-1, theirs)).squeeze(-1)
    there = (other.gather(-1, theirs) - other.gather(-1, mine)).squeeze(-1)
    apart = (mine != theirs).squeeze(-1) & (torch.maximum(lead, there).nan_to_num(0, torch.inf) > tolerance * scale)
    return apart.flatten(1).any(1) if apart.dim() > 1 else apart


def fixed_order(n: int) -> Tensor:
    """A shuffled order of n, always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(n))


def joined(parts: list[Answers]) -> Answers:
    """Answers of several batches, one after the other."""
    return {scenario: torch.cat([part[scenario] for part in parts]) for scenario in parts[0]}


def chosen(answers: Answers, rows: Tensor) -> Answers:
    """Those of some images."""
    return {scenario: values[rows] for scenario, values in answers.items()}


@contextmanager
def raised_outputs(model: nn.Module, seen: int, total: int, lead: float) -> Iterator[None]:
    """Inside, whatever gives an output for each of `total` classes lets those from `seen` on lead: the network, and
    every classifier of the method's own, a linear layer over the network's features.
    """

    def raised(_, __, out):
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() != 2 or out.shape[1] != total:
            return None
        leading = (out[:, :seen].amax(1, keepdim=True) + lead).expand(-1, total - seen)
        return torch.cat([out[:, :seen], leading], 1)

    inside = {id(part) for part in model.net.modules()} - {id(getattr(model.net, "classifier", None))}
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    heads = [part for part in linear if part.in_features == getattr(model.net, "feature_dim", None)]
    hooks = [part.register_forward_hook(raised) for part in (model.net, *heads)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
