"""Asks a method for the same predictions in other company: what an answer may not depend on is changed, all else kept.

A probe is a few test images of every task. Answers are compared among the classes that compete: another class counts
only where its lead is more than `TOLERANCE`, relative to the largest number of the row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.utils.evaluation import eval_mode, scenarios
from palimpsest.utils.leaks.kinds import BATCH, IDENTITY, UNSEEN

TOLERANCE = 1e-4  # float32; a hundred times as much where products are rounded to TF32
LARGE = 1e9  # what unseen classes are given
SEEDS = 8  # draws of a prediction that is random, see `_settled`
Findings = dict[str, list[str]]


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

    def answers(self, inputs: Tensor, labels: Tensor, task: int, scenario: str, seed: int = 0) -> Tensor:
        """What an evaluation would read for inputs (B, ...) of a task: (B, ...); always the same random numbers."""
        torch.manual_seed(seed)
        outputs, _ = self.model.evaluate_batch(inputs, labels, task, self.scenarios)
        return outputs[scenario].detach()

    def usual(self, part: Images, scenario: str, seed: int = 0) -> Tensor:
        """As in an evaluation: a batch of the task's images."""
        return self.answers(part.inputs, part.labels, part.task, scenario, seed)

    def compared(self, usual: Tensor, other: Tensor, task: int, scenario: str) -> Tensor:
        """(B,) bool: whether the answers differ."""
        spec = self.dataset.tasks[task]
        score = spec.score(self.dataset.tasks[self.trained] if scenario == "class-il" else None)
        if usual.is_floating_point() and hasattr(score, "competing") and usual.shape == other.shape:
            places = score.competing(usual.shape[-1])
            return differing_answers(usual[..., places], other[..., places], self.tolerance)
        scale = usual.abs().amax().clamp(min=1)
        far = (usual - other).abs() > 100 * self.tolerance * scale
        return far.flatten(1).any(1) if far.dim() > 1 else far

    # ---- what is changed

    def company(self, alone: int | None = None) -> Findings:
        """Each image alone, in another order, in half of the batch, among images of the other tasks.

        Args:
            alone: images of each task that are predicted in a batch of one, all by default.
        """
        found = []
        ways = {
            "alone": self._alone,
            "in another order": self._shuffled,
            "in smaller batches": self._halves,
            "among images of other tasks": self._mixed,
        }
        for scenario in self.scenarios:
            changed = dict.fromkeys(ways, 0)
            asked = dict.fromkeys(ways, 0)
            for part in self.images:
                usual = self.usual(part, scenario)
                for name, predict in ways.items():
                    rows = torch.arange(len(part))[: alone if name == "alone" else None]
                    if name == "among images of other tasks" and len(self.images) == 1:
                        continue
                    try:
                        other = predict(part, rows, scenario, 0)
                    except ValueError as e:  # BatchNorm's words for a batch of one
                        return {BATCH: [f"an image cannot be predicted {name}: {e}"]}
                    differing = self.compared(usual[rows], other, part.task, scenario)
                    if differing.any():
                        differing = self._settled(part, rows, scenario, predict, differing)
                    changed[name] += int(differing.sum())
                    asked[name] += len(rows)
            told = [f"{n} of {asked[name]} {name}" for name, n in changed.items() if n]
            if told:
                found.append(f"other {scenario} predictions for the same images: {', '.join(told)}")
        return {BATCH: found} if found else {}

    def _settled(self, part: Images, rows: Tensor, scenario: str, predict: Callable, differing: Tensor) -> Tensor:
        """Of answers that differ those where no random draw explains it: under other seeds each of both is always the
        same, where the method draws at all.
        """
        first, spread = self.usual(part, scenario), torch.zeros(len(rows), dtype=torch.bool, device=differing.device)
        there = predict(part, rows, scenario, 0)
        for seed in range(1, SEEDS):
            spread |= self.compared(first[rows], self.usual(part, scenario, seed)[rows], part.task, scenario)
            spread |= self.compared(there, predict(part, rows, scenario, seed), part.task, scenario)
        return differing & ~spread

    def _alone(self, part: Images, rows: Tensor, scenario: str, seed: int) -> Tensor:
        singles = [(part.inputs[r : r + 1], part.labels[r : r + 1]) for r in rows.tolist()]
        return torch.cat([self.answers(x, y, part.task, scenario, seed) for x, y in singles])

    def _shuffled(self, part: Images, rows: Tensor, scenario: str, seed: int) -> Tensor:
        order = _turned(len(part))
        return self.answers(part.inputs[order], part.labels[order], part.task, scenario, seed)[order.argsort()][rows]

    def _halves(self, part: Images, rows: Tensor, scenario: str, seed: int) -> Tensor:
        # Every second image: both halves hold images of all classes, wherever a file has them.
        halves = [torch.arange(start, len(part), 2) for start in range(min(2, len(part)))]
        parts = [self.answers(part.inputs[h], part.labels[h], part.task, scenario, seed) for h in halves]
        return torch.cat(parts)[torch.cat(halves).argsort()][rows]

    def _mixed(self, part: Images, rows: Tensor, scenario: str, seed: int) -> Tensor:
        others = [other for other in self.images if other is not part]
        inputs = torch.cat([part.inputs, *(other.inputs[:4] for other in others)])
        # Labels of the task's own classes, as its score expects them.
        labels = torch.cat([part.labels, *(part.labels[:1].expand(len(o.labels[:4]), *part.labels.shape[1:]) for o in others)])
        order = _turned(len(inputs))
        mixed = self.answers(inputs[order], labels[order], part.task, scenario, seed)
        return mixed[order.argsort()][: len(part)][rows]

    def withheld(self) -> Findings:
        """class-IL without the task and the labels of the images: told another task, and each image another's label."""
        if "class-il" not in self.scenarios or len(self.images) < 2:
            return {}
        changed = total = 0
        for i, part in enumerate(self.images):
            other = self.images[i - 1]
            wrong = other.labels[torch.arange(len(part)) % len(other)]

            def predict(part, rows, scenario, seed, wrong=wrong, task=other.task):
                return self.answers(part.inputs, wrong, task, scenario, seed)[rows]

            rows = torch.arange(len(part))
            differing = self.compared(self.usual(part, "class-il"), predict(part, rows, "class-il", 0), part.task, "class-il")
            if differing.any():
                differing = self._settled(part, rows, "class-il", predict, differing)
            changed, total = changed + int(differing.sum()), total + len(part)
        if not changed:
            return {}
        what = f"told another task and other labels, {changed} of {total} images are predicted as another class"
        return {IDENTITY: [what]}

    def unseen(self) -> Findings:
        """Outputs of classes that no task has shown: made very large, they change no answer among those shown."""
        if "class-il" not in self.scenarios:
            return {}
        seen, total = self.dataset.tasks[self.trained].high, self.model.num_classes
        if seen is None or seen >= total:
            return {}
        changed = asked = 0
        for part in self.images:
            usual = self.usual(part, "class-il")
            with raised_outputs(self.model, seen, total):
                other = self.usual(part, "class-il")
            differing = self.compared(usual, other, part.task, "class-il")
            # Answers that were apart and are all equal now are no tie of the method's own.
            tied = other[:, :seen].amax(1) == other[:, :seen].amin(1)
            differing |= tied & (usual[:, :seen].amax(1) > usual[:, :seen].amin(1))
            changed, asked = changed + int(differing.sum()), asked + len(part)
        if not changed:
            return {}
        what = f"with large outputs for the {total - seen} unseen classes {changed} of {asked} images are predicted "
        return {UNSEEN: [what + "as another one of those seen"]}

    def look(self, alone: int | None = None) -> Findings:
        """All that can be asked at the end of a run; nothing about the method changes."""
        with torch.no_grad(), eval_mode(self.model):
            return self.company(alone) | self.withheld() | self.unseen()

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


def _turned(n: int) -> Tensor:
    """A fixed order of n in which neighbours are apart."""
    return torch.arange(n).flip(0).view(-1)[torch.randperm(n, generator=torch.Generator().manual_seed(n))]


@contextmanager
def raised_outputs(model: nn.Module, seen: int, total: int) -> Iterator[None]:
    """Inside, whatever gives an output for each of `total` classes gives `LARGE` for those from `seen` on: the network,
    and every linear layer of the method's own.
    """

    def raised(_, __, out):
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() != 2 or out.shape[1] != total:
            return None
        return torch.cat([out[:, :seen], torch.full_like(out[:, seen:], LARGE)], 1)

    inside = {id(part) for part in model.net.modules()} - {id(getattr(model.net, "classifier", None))}
    heads = [part for part in model.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    hooks = [part.register_forward_hook(raised) for part in (model.net, *heads)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
