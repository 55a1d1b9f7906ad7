"""What networks of token sequences share: tokens in, one vector of logits per position out."""

from torch import Tensor

from palimpsest.backbone.utils.base import Backbone


class SequenceBackbone(Backbone):
    """Base of the networks for token streams: token ids (B, L) -> logits (B, L, num_classes), features (B, L, D).

    Position i sees tokens 0..i alone. `in_size` of `from_args` is (length, number of different tokens).
    """

    INPUT = "tokens"

    def forward(self, x: Tensor, returnt: str = "out"):
        """As `Backbone.forward`; x (B, L) holds token ids of any integer dtype."""
        return super().forward(x.long(), returnt)
