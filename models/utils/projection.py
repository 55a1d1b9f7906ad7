"""The gradient nearest to a given one that does not raise the losses of past tasks: GEM's quadratic programme."""

import numpy as np
import torch
from torch import Tensor


def project(gradient: Tensor, past: Tensor, margin: float = 0.0, eps: float = 1e-10, relative: bool = True) -> Tensor:
    """min ||g~ - g||^2 subject to <g~, g_k> >= 0 for all k, by the dual over t variables.

    With G = `past` the dual is min_v 1/2 v' (G G' + e I) v + (G g)' v over v >= margin; g~ = g + G' v. A margin > 0
    is added to every v once any constraint is violated: a push along all past gradients, as published. The dual is
    solved exactly, as the non-negative least squares min ||L' u + L^-1 c||, u = v - margin >= 0, with L L' the
    regularised Gram matrix and c = G g + margin L L' 1.

    Args:
        gradient: g (P,).
        past: G (t, P), one row per past task.
        margin: gamma >= 0.
        eps: e, in units of the Gram matrix's mean diagonal if `relative` (then scaling all gradients scales the
            result), else absolute as published.

    Returns:
        g~ (P,); `gradient` itself when no constraint is violated.

    References: Lopez-Paz & Ranzato 2017, equations 8-11.
    """
    # The programme has one variable per past task and is solved on the host; its t numbers are waited for here.
    violations = (past @ gradient).double().cpu().numpy()
    if (violations >= 0).all():
        return gradient
    v = solve_dual((past @ past.T).double().cpu().numpy(), violations, margin, eps, relative)
    return torch.addmv(gradient, past.T, torch.from_numpy(v).to(gradient))


def solve_dual(gram: np.ndarray, violations: np.ndarray, margin: float, eps: float, relative: bool) -> np.ndarray:
    """v (t,) >= margin from G G' (t, t) and G g (t,)."""
    from scipy.optimize import nnls  # half a second, which a refused command line should not take

    mean_diagonal = np.trace(gram) / len(gram)
    e = max(eps * mean_diagonal if relative else eps, np.finfo(float).tiny)
    # The symmetric root in place of Cholesky's: it exists however dependent the rows are.
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0) + e
    root = np.sqrt(values)[:, None] * vectors.T
    c = violations + margin * (root.T @ root.sum(1))
    return margin + nnls(root, -(vectors.T @ c) / np.sqrt(values))[0]


def project_one(gradient: Tensor, past: Tensor) -> Tensor:
    """The same for one past gradient and no margin, without a wait: g - min(<g, g_1>, 0) / <g_1, g_1> g_1.

    A past gradient of zero changes nothing. Chaudhry et al. 2019, equation 11.
    """
    overlap = torch.dot(gradient, past).clamp(max=0)
    return torch.addcmul(gradient, past, overlap / past.dot(past).clamp(min=torch.finfo(past.dtype).tiny), value=-1)
