"""Gaussian posteriors with diagonal covariance: phi = (mu, rho), sigma = softplus(rho - 2.5), W = mu + sigma eps.

Reference: Blundell et al. 2015, "Weight uncertainty in neural networks".
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSET = 2.5  # sigma = 0.0789 for rho = 0


def gaussian(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (..., P) of phi (..., 2P)."""
    mean, rho = phi.chunk(2, -1)
    return mean, F.softplus(rho - OFFSET)


def draw(mean: Tensor, std: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """W (..., S, P) from means and deviations (..., P), the same noise for all leading dimensions."""
    noise = torch.randn(samples, mean.shape[-1], device=mean.device, generator=generator)
    return torch.addcmul(mean.unsqueeze(-2), std.unsqueeze(-2), noise)


def initial(net, keep_orig_init: bool) -> Tensor:
    """phi (2P,) of a posterior without a hypernetwork: means uniform in [-0.1, 0.1], or as the network itself is
    initialised; rho uniform in [-0.5, 0.5].
    """
    mean = net.usual_weights() if keep_orig_init else torch.empty(net.size).uniform_(-0.1, 0.1)
    return torch.cat([mean, torch.empty(net.size).uniform_(-0.5, 0.5)])


def kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """KL(a || b) of means and variances of any shape, one number per entry."""
    return ((var_a + (mean_a - mean_b).square()) / var_b - 1 + torch.log(var_b) - torch.log(var_a)) / 2


def kl_to_prior(mean: Tensor, var: Tensor, prior_variance: float) -> Tensor:
    """KL(N(mean, var) || N(0, prior_variance)), one number per entry."""
    half = 0.5 / prior_variance
    return (var + mean.square()) * half - 0.5 * torch.log(var) + 0.5 * (math.log(prior_variance) - 1)


def distance(kind: str, target: Tensor, phi: Tensor) -> Tensor:
    """How far posteriors phi are from targets, both (K, 2P), one number per weight (K, P).

    mse: squared differences of (mu, rho). fkl: KL(target || phi). rkl: KL(phi || target). w2: squared 2-Wasserstein.
    """
    if kind == "mse":
        mean, rho = (target - phi).square().chunk(2, -1)
        return mean + rho
    (m_old, s_old), (m_new, s_new) = gaussian(target), gaussian(phi)
    if kind == "w2":
        return (m_old - m_new).square() + (s_old - s_new).square()
    old, new = (m_old, s_old.square()), (m_new, s_new.square())
    return kl(*old, *new) if kind == "fkl" else kl(*new, *old)
