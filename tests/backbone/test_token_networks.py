"""The transformer's block is that of PyTorch's own layers."""

import torch
import torch.nn.functional as F

from palimpsest.backbone.transformer import Block, Transformer


def test_a_block_is_torchs_causal_attention():
    torch.manual_seed(0)
    block, x = Block(width=12, heads=3), torch.randn(4, 7, 12)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    attention.in_proj_weight.data, attention.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    attention.out_proj.weight.data, attention.out_proj.bias.data = block.project.weight.data, block.project.bias.data
    later, h = torch.ones(7, 7, dtype=torch.bool).triu(1), block.norm1(x)
    attended = x + attention(h, h, h, attn_mask=later, need_weights=False)[0]
    expected = attended + block.mlp[2](F.gelu(block.mlp[0](block.norm2(attended))))
    torch.testing.assert_close(block(x), expected)


def test_every_position_has_a_vector_of_its_own():
    torch.manual_seed(0)
    net = Transformer((6, 5), 5, width=8, layers=1, heads=2)
    same = torch.full((1, 6), 3)
    first = net.stages(same)[0][0]
    torch.testing.assert_close(first, net.embedding.weight[3] + net.position.weight)
    assert len(first.unique(dim=0)) == 6
