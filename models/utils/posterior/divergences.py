"""Distances between Gaussians with diagonal covariance, entry by entry; means and variances of any shape."""

import math

import torch
from torch import Tensor


def kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """KL(a || b), one number per entry."""
    return ((var_a + (mean_a - mean_b).square()) / var_b - 1 + torch.log(var_b) - torch.log(var_a)) / 2


def kl_to_prior(mean: Tensor, var: Tensor, prior_variance: float) -> Tensor:
    """KL(N(mean, var) || N(0, prior_variance)), one number per entry."""
    half = 0.5 / prior_variance
    return (var + mean.square()) * half - 0.5 * torch.log(var) + 0.5 * (math.log(prior_variance) - 1)


def wasserstein2(mean_a: Tensor, std_a: Tensor, mean_b: Tensor, std_b: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance, one number per entry."""
    return (mean_a - mean_b).square() + (std_a - std_b).square()
