"""How well a network does on a task: sums over batches, made on the device, and the metrics they give.

A score names its `SUMS`; `sums` returns them for one batch, `metrics` turns the totals into named numbers, the first
of which, in percent and higher is better, fills the score matrix R: it is the score's `NAME`, and `NOTE` says what a
reader must know of it. `loss` is what early stopping may watch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label of a position that is not scored, as in torch's cross-entropy


class ClassScore:
    """One label per example: the share of examples whose class has the largest logit."""

    NAME, NOTE = "accuracy", ""
    SUMS = ("correct",)

    def sums(self, logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
        """(1,) float; logits (B, C) of which classes low..high-1 compete, labels (B,)."""
        return (logits[:, low:high].argmax(1) + low == labels).sum().float().unsqueeze(0)

    def loss(self, logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
        """Cross-entropy among classes low..high-1, summed over the examples."""
        return F.cross_entropy(logits[:, low:high], labels - low, reduction="sum")

    def metrics(self, sums: Tensor, n_examples: int) -> dict[str, float]:
        """'accuracy' in percent."""
        return {"accuracy": 100 * (sums[0] / max(n_examples, 1)).double().item()}


class TokenScore:
    """A label per position: token accuracy, and perplexity = exp(mean negative log-likelihood per scored token)."""

    NAME, NOTE = "accuracy", ""
    SUMS = ("correct", "negative log-likelihood", "tokens")

    def sums(self, logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
        """(3,) float; logits (B, L, C) of which classes low..high-1 compete, labels (B, L), < 0: not scored."""
        logits, scored = logits[..., low:high].float(), labels >= 0
        correct = (logits.argmax(-1) + low == labels).sum()
        targets = torch.where(scored, labels - low, IGNORED)
        # Summed apart: the reduction of cross_entropy loses digits over many tokens.
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").sum()
        return torch.stack((correct.float(), nll, scored.sum().float()))

    def loss(self, logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
        """Mean negative log-likelihood per scored token, times the examples."""
        _, nll, tokens = self.sums(logits, labels, low, high)
        return nll / tokens * len(labels)

    def metrics(self, sums: Tensor, n_examples: int) -> dict[str, float]:
        """'accuracy' in percent of the scored tokens, and 'perplexity', at least 1, lower is better."""
        correct, nll, tokens = sums.double().tolist()
        tokens = max(tokens, 1.0)
        mean = nll / tokens
        return {"accuracy": 100 * correct / tokens, "perplexity": math.inf if mean > 700 else math.exp(mean)}


class RegressionScore:
    """Numbers to be predicted, (B, K): R^2 = 1 - SSE / SST in percent, and the mean squared error.

    SSE is the sum of squared errors, SST that of the targets' distances from their mean, output by output, over all
    examples of the task: 100 is perfect, 0 what the mean of the task's targets would get, and there is no lower end.
    The sums are float32: targets should be of order 1, or at least not far from 0 beside their spread.

    Args:
        outputs: K.
    """

    NAME = "r2"
    NOTE = (
        "R^2 in percent wherever scores are called accuracy: 100 is perfect, below 0 is worse than the mean of the "
        "task's targets"
    )

    def __init__(self, outputs: int = 1):
        self.outputs = outputs
        self.SUMS = ("squared error", "squared target", *["target"] * outputs)

    def sums(self, logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
        """(2 + K,) float; predictions (B, K), labels (B, K); all outputs count."""
        squares = torch.stack(((logits - labels).square().sum(), labels.square().sum()))
        return torch.cat((squares, labels.sum(0))).float()

    def loss(self, logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
        """Mean squared error, times the examples."""
        return F.mse_loss(logits, labels) * len(labels)

    def metrics(self, sums: Tensor, n_examples: int) -> dict[str, float]:
        """'r2' in percent, at most 100, nan where the targets do not differ; 'mse', at least 0, lower is better."""
        error, square, *target = sums.double().tolist()
        n = max(n_examples, 1)
        spread = square - sum(t * t for t in target) / n
        return {"r2": 100 * (1 - error / spread) if spread > 0 else math.nan, "mse": error / (n * self.outputs)}


class TokenLoss:
    """A loss for single labels as one for sequences: its mean over all labelled positions.

    Logits (..., C), labels (...). Labels below `IGNORED` are not scored either: a method that counts the labels of a
    head from 0 subtracts its first class everywhere.
    """

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits.flatten(0, -2), labels.flatten().clamp(min=IGNORED))
