"""A classifier whose class directions are fixed before training: the vertices of a regular simplex."""

import math

import torch
from torch import nn


def simplex(n):
    """(n - 1, n): the vertices of a regular simplex around the origin, as columns of length 1; n >= 2.

    The rows are those of Helmert's matrix but the first: (1, ..., 1, -k, 0, ...) / sqrt(k (k + 1)), k = 1..n-1.
    """
    k = torch.arange(1.0, n).unsqueeze(1)
    column = torch.arange(float(n))
    rows = torch.where(column < k, 1.0, torch.where(column == k, -k, 0.0)) / (k * (k + 1)).sqrt()
    return rows * math.sqrt(n / (n - 1))


class Polytope(nn.Module):
    """P^T (W phi + b) of features (B, d): (B, C)."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.inner = nn.Linear(in_features, num_classes - 1)
        self.register_buffer("vertices", simplex(num_classes))

    def forward(self, features):
        return self.inner(features) @ self.vertices
