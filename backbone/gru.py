"""A gated recurrent unit over token sequences: an embedding, one GRU layer, logits at each position.

Reference: Cho et al. 2014, in the form of torch.nn.GRU (the reset gate acts on the recurrent product).
"""

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.sequences import SequenceBackbone
from palimpsest.utils.args import positive_int


class GRU(SequenceBackbone):
    """Any sequence length; the state before the first token is zero.

    Written out rather than `nn.GRU`: that one has no per-example gradients (`torch.func.vmap`), which Fisher
    information needs, and on a network this small it is no faster on the CPU.
    """

    NAME = "gru"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--gru_hidden", type=positive_int, default=64, help="units of the recurrent state")
        return parser

    def __init__(self, vocabulary: int, num_classes: int, embedding: int = 32, hidden: int = 64):
        super().__init__()
        self.feature_dim, self.num_classes = hidden, num_classes
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.input, self.recurrent = nn.Linear(embedding, 3 * hidden), nn.Linear(hidden, 3 * hidden)
        self.classifier = nn.Linear(hidden, num_classes)
        for parameter in (*self.input.parameters(), *self.recurrent.parameters()):
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size[1], num_classes, hidden=args.gru_hidden)

    def stages(self, x: Tensor) -> list[Tensor]:
        vectors = self.embedding(x)
        state, states = vectors.new_zeros(len(x), self.feature_dim), []
        for step in self.input(vectors).unbind(1):
            reset_x, update_x, new_x = step.chunk(3, 1)
            reset_h, update_h, new_h = self.recurrent(state).chunk(3, 1)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            state = torch.lerp(new, state, torch.sigmoid(update_x + update_h))
            states.append(state)
        return [vectors, torch.stack(states, 1)]
