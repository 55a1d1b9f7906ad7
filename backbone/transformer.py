"""A small causal transformer over token sequences: pre-norm blocks, learned positions, logits at each position.

References: Vaswani et al. 2017; Radford et al. 2019 (the order of norm, attention and residual).
"""

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.sequences import SequenceBackbone
from palimpsest.utils.args import positive_int
from palimpsest.utils.errors import UserError


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), the MLP four times as wide, GELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        queries, keys, values = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Not torch's fused attention, which has no per-example gradients (torch.func.vmap).
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        alike = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
        attended = alike.masked_fill(later, -torch.inf).softmax(3) @ values
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(SequenceBackbone):
    """Tied to the stream's sequence length, for which it has one learned vector per position; shorter ones fit too.

    Weights as torch draws them: with the small ones that suit deep language models (standard deviation 0.02), joint
    training on the untagged languages of `seq-language` stays at 30 % for all of its 960 steps.
    """

    NAME = "transformer"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--tf_layers", type=positive_int, default=2, help="number of blocks")
        parser.add_argument("--tf_width", type=positive_int, default=64, help="length of a token's vector")
        parser.add_argument("--tf_heads", type=positive_int, default=4, help="attention heads; must divide --tf_width")
        return parser

    def __init__(self, in_size: tuple[int, int], num_classes: int, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        length, vocabulary = self.input_size = in_size
        self.feature_dim, self.num_classes = width, num_classes
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        if args.tf_width % args.tf_heads:
            raise UserError(f"--tf_width {args.tf_width}: expected a multiple of --tf_heads {args.tf_heads}")
        return cls(in_size, num_classes, args.tf_width, args.tf_layers, args.tf_heads)

    def stages(self, x: Tensor) -> list[Tensor]:
        out = [self.embedding(x) + self.position.weight[: x.shape[1]]]
        for block in self.blocks:
            out.append(block(out[-1]))
        return [*out, self.norm(out[-1])]
