"""Streams of token sequences: the network predicts the next token at every position."""

import torch.nn.functional as F
from torch import Tensor

from palimpsest.datasets.utils.continual_dataset import MultiHeadLoss
from palimpsest.datasets.utils.per_task import PerTaskStream
from palimpsest.datasets.utils.scores import TokenLoss
from palimpsest.datasets.utils.task import TokenTask


class TokenStream(PerTaskStream):
    """Every task is a set of sequences; inputs (B, L) are token ids, labels (B, L) the next tokens, -100 where none is
    scored.

    A subclass sets `SIZE` = (L, V) and defines `_splits`: uint8 tokens (N, L), int64 labels (N, L). Loss: mean
    cross-entropy per scored token. Score: token accuracy, and perplexity beside it.
    """

    SETTING = "domain-il"
    TASK = TokenTask
    INPUT = "tokens"
    _to_input = staticmethod(Tensor.long)

    def get_loss(self):
        """Cross-entropy, mean over the scored tokens; with `--multi_head` among the outputs of the task's own head."""
        loss = super().get_loss()
        return TokenLoss(loss if isinstance(loss, MultiHeadLoss) else F.cross_entropy)
