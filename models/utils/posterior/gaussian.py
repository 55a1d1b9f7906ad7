"""Gaussian posteriors with diagonal covariance: phi = (mu, rho), sigma = softplus(rho - 2.5), W = mu + sigma eps.

Reference: Blundell et al. 2015, "Weight uncertainty in neural networks".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.utils.posterior import divergences

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


def distance(kind: str, target: Tensor, phi: Tensor) -> Tensor:
    """How far posteriors phi are from targets, both (K, 2P), one number per weight (K, P).

    mse: squared differences of (mu, rho). fkl: KL(target || phi). rkl: KL(phi || target). w2: squared 2-Wasserstein.
    """
    if kind == "mse":
        mean, rho = (target - phi).square().chunk(2, -1)
        return mean + rho
    (m_old, s_old), (m_new, s_new) = gaussian(target), gaussian(phi)
    if kind == "w2":
        return divergences.wasserstein2(m_old, s_old, m_new, s_new)
    pair = (m_old, s_old.square(), m_new, s_new.square())
    return divergences.kl(*pair) if kind == "fkl" else divergences.kl(*pair[2:], *pair[:2])
