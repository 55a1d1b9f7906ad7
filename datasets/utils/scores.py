"""How well a network does on a task, summed over batches on the device:

    score = task.score();  score.add(outputs, labels) per batch;  score.result() -> {name: number}

Outputs are what `ContinualModel.predict` returns. The first number of a result, in percent and higher is better, fills
the score matrix R. Sums are integers or float64; `result` is the only place that waits for the device. Without any
example, or scored token, every number is nan.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.utils.errors import UserError

MANY = 20  # classes, above which the five best answers are looked at, too
IGNORED = -100  # the label of a position that is not scored, as in torch's cross-entropy


class ClassScore:
    """One label per example: the share of examples whose class has the largest logit; where more than `MANY` classes
    compete also of those whose class is among the five largest.

    Args:
        low, high: classes low..high-1 compete; all by default.

    Attributes:
        counts: (C, C) int64, examples by true class (row) and answer (column) over all C outputs; None before any.
    """

    def __init__(self, low: int = 0, high: int | None = None):
        self.low, self.high, self.correct, self.n = low, high, 0, 0
        self.top5: Tensor | None = None
        self.counts: Tensor | None = None

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (B, C), labels (B,).

        Raises:
            UserError: the logits are none, or have no column for one of the classes that compete.
        """
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
            raise UserError(f"the method predicts {shape} for {len(labels)} examples: expected logits (B, classes)")
        if self.high is not None and logits.shape[1] < self.high:
            raise UserError(f"the method predicts {shape}: expected a column for each of {self.high} classes")
        answers, among, size = self.answers(logits), self.among(logits), logits.shape[1]
        self.correct = self.correct + (answers == labels).sum()
        self.n += len(labels)
        if among.shape[1] > MANY:
            hits = (self.named(among.topk(5, 1).indices) == labels.unsqueeze(1)).sum()
            self.top5 = hits if self.top5 is None else self.top5 + hits
        if self.counts is None:
            self.counts = torch.zeros(size, size, dtype=torch.int64, device=logits.device)
        known = (labels >= 0) & (labels < size)
        # bincount would wait for the device
        self.counts.view(-1).index_add_(0, torch.where(known, labels * size + answers, 0), known.long())

    def competing(self, n: int) -> list[int]:
        """Those of n classes that compete."""
        return [*range(n)][self.low : self.high]

    def answers(self, logits: Tensor) -> Tensor:
        """The class (B,) of the largest logit among those that compete."""
        return self.named(self.among(logits).argmax(1))

    def among(self, logits: Tensor) -> Tensor:
        """The logits of the classes that compete."""
        return logits[:, self.low : self.high]

    def named(self, places: Tensor) -> Tensor:
        """The classes at these places of `among`."""
        return places + self.low

    def result(self) -> dict[str, float]:
        """'accuracy' in percent, and 'top-5' of many classes."""
        hits = {"accuracy": self.correct} if self.top5 is None else {"accuracy": self.correct, "top-5": self.top5}
        return {name: 100 * int(n) / self.n if self.n else math.nan for name, n in hits.items()}


class TokenScore:
    """A label per position: token accuracy, and perplexity = exp(mean negative log-likelihood per scored token).

    Args:
        low, high: classes low..high-1 compete; all by default.
    """

    def __init__(self, low: int = 0, high: int | None = None):
        self.low, self.high, self.sums = low, high, torch.zeros(3, dtype=torch.float64)

    competing = ClassScore.competing

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (B, L, C), labels (B, L), < 0: not scored."""
        logits, scored = logits[..., self.low : self.high].double(), labels >= 0
        correct = (logits.argmax(-1) + self.low == labels).sum()
        targets = torch.where(scored, labels - self.low, IGNORED)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        self.sums = self.sums.to(nll.device) + torch.stack((correct.double(), nll, scored.sum().double()))

    def result(self) -> dict[str, float]:
        """'accuracy' in percent of the scored tokens, and 'perplexity', at least 1, lower is better."""
        correct, nll, tokens = self.sums.tolist()
        if not tokens:
            return {"accuracy": math.nan, "perplexity": math.nan}
        mean = nll / tokens
        return {"accuracy": 100 * correct / tokens, "perplexity": math.inf if mean > 700 else math.exp(mean)}


class RegressionScore:
    """Numbers to be predicted, (B, ...): R^2 = 1 - SSE / SST in percent, and the mean squared error.

    SSE is the sum of squared errors, SST that of the targets' distances from their mean, output by output, over all
    examples of the task: 100 is perfect, 0 what the mean of the task's targets would get, and there is no lower end.
    """

    def __init__(self):
        self.errors, self.squares, self.targets, self.n = 0.0, 0.0, torch.zeros(1), 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Predictions and labels of one shape (B, ...); all outputs count."""
        outputs, labels = outputs.double(), labels.double()
        self.errors = self.errors + (outputs - labels).square().sum()
        self.squares = self.squares + labels.square().sum()
        targets = labels.flatten(1).sum(0)
        self.targets = self.targets.to(targets) + targets
        self.n += len(labels)

    def result(self) -> dict[str, float]:
        """'r2' in percent, at most 100, nan where the targets do not differ; 'mse', at least 0, lower is better."""
        error, square, n = float(self.errors), float(self.squares), self.n
        if not n:
            return {"r2": math.nan, "mse": math.nan}
        spread = square - float(self.targets.square().sum()) / n
        r2 = 100 * (1 - error / spread) if spread > 0 else math.nan
        return {"r2": r2, "mse": error / (n * self.targets.numel())}


class TokenLoss:
    """A loss for single labels as one for sequences: its mean over all labelled positions.

    Logits (..., C), labels (...). Labels below `IGNORED` are not scored either: a task that counts its labels from 0
    subtracts its first class everywhere.
    """

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits.flatten(0, -2), labels.flatten().clamp(min=IGNORED))
