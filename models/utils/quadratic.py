"""A quadratic penalty that holds parameters near where they were: what EWC, SI, MAS and RWalk share."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils import panels
from palimpsest.utils.errors import UserError


class Quadratic(nn.Module):
    """Omega(theta) = 1/2 sum_i A_i (theta_i - c_i)^2; nothing until the first `replace` or `merge`.

    Attributes:
        weight: A (P,) >= 0, or None.
        centre: c (P,), or None.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", None)
        self.register_buffer("centre", None)
        self._proximal_step: _Step | None = None  # of the last `contract`

    def __bool__(self) -> bool:
        return self.weight is not None

    def replace(self, weight: Tensor, centre: Tensor) -> None:
        """Become the penalty of `weight` around `centre`."""
        self.weight, self.centre = weight, centre

    def merge(self, weight: Tensor, centre: Tensor) -> None:
        """Add the penalty of `weight` around `centre`; exact up to a constant: A = sum_k A_k, c = sum_k A_k c_k / A."""
        if not self:
            return self.replace(weight, centre)
        total = self.weight + weight
        share = torch.where(total > 0, weight / total, 1.0)
        self.replace(total, torch.lerp(self.centre, centre, share))

    def value(self, theta: Tensor) -> Tensor:
        """Omega(theta), 0-d."""
        return self.value_and_gradient(theta)[0]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Omega(theta), 0-d, and A (theta - c) (P,)."""
        drift = theta - self.centre
        pull = self.weight * drift
        return 0.5 * pull.dot(drift), pull

    @torch.no_grad()
    def contract(self, net: Backbone, strength: float, lr: float | Tensor) -> None:
        """Proximal step after the task's own: theta <- (theta + s A c) / (1 + s A) with s = lr * strength.

        The minimiser of Omega(theta') * strength + ||theta' - theta||^2 / (2 lr): stable for every strength; `lr` may
        be one per parameter (P,).
        """
        params = [*net.parameters()]
        step = self._step_for(params, lr * strength)
        torch._foreach_lerp_(params, step.centres, step.shares)

    def _step_for(self, params: list[Tensor], size: float | Tensor) -> "_Step":
        """What `contract` needs for a step of size s, made once for a number that does not change."""
        made_of = (self.weight, self.centre), (self.weight._version, self.centre._version)
        if isinstance(size, float) and self._proximal_step and self._proximal_step.fits(*made_of, size):
            return self._proximal_step
        scaled = self.weight * size
        shares, sizes = scaled.div_(1 + scaled), [p.numel() for p in params]
        parts = ([v.view_as(p) for v, p in zip(x.split(sizes), params, strict=True)] for x in (self.centre, shares))
        self._proximal_step = _Step(*made_of, size, *parts)
        return self._proximal_step


@dataclass(eq=False)
class _Step:
    """A proximal step: each parameter moves to its part of c by its part of s A / (1 + s A)."""

    tensors: tuple[Tensor, Tensor]  # A and c
    versions: tuple[int, int]
    size: float | Tensor
    centres: list[Tensor]
    shares: list[Tensor]

    def fits(self, tensors: tuple[Tensor, Tensor], versions: tuple[int, int], size: float) -> bool:
        """Whether it is the one of these."""
        same = all(a is b for a, b in zip(self.tensors, tensors, strict=True))
        return same and self.versions == versions and isinstance(self.size, float) and self.size == size


def add_update_argument(parser):
    """`--ewc_update`: how the penalty enters a step; returns the parser."""
    parser.add_argument(
        "--ewc_update",
        choices=["prox", "explicit"],
        default="prox",
        help="prox: closed-form step on the penalty after the task's step; explicit: its gradient is added",
    )
    return parser


def regularised_step(model, loss: Tensor, penalty: Quadratic, strength: float) -> dict[str, Tensor]:
    """The optimiser's step after `loss.backward()`, joined by that on strength * Omega(theta); the terms to log.

    `model` is the method: its `net`, `opt` and `--ewc_update`.
    """
    if not penalty:
        model.opt.step()
        return {"loss": loss, "ce": loss}
    # A value to log only: the penalty enters below, without a graph over all parameters.
    with torch.no_grad():
        value, pull = penalty.value_and_gradient(model.net.get_params())
    held = strength * value
    if model.args.ewc_update == "explicit":
        # Diverges where lr * strength * max A > 2.
        model.net.set_grads(model.net.get_grads().add_(pull, alpha=strength))
        model.opt.step()
    else:
        model.opt.step()
        penalty.contract(model.net, strength, step_sizes(model.opt, model.net))
    return {"loss": loss + held, "ce": loss, "penalty": held}


@torch.no_grad()
def step_sizes(optimizer: torch.optim.Optimizer, net: Backbone) -> float | Tensor:
    """What the optimiser multiplies a lasting gradient by in one step: one number, or one per parameter (P,).

    SGD: lr (1 - dampening) / (1 - momentum), Nesterov or not. Adam, AdamW: lr / (sqrt(v) + eps), v the largest so far
    under AMSGrad. Both times the factor of the last clipping. A proximal step of this length rests where the gradients
    of loss and penalty cancel, which is the minimiser of their sum; one of lr alone would hold parameters
    1 / (1 - momentum) times too weakly, and hardly at all against Adam.

    Raises:
        UserError: another kind of optimiser, of which this is not known.
    """
    refuse_proximal(optimizer)
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        size = _adam_sizes(optimizer, net)
    elif len(groups) == 1:
        size = _sgd_size(groups[0])
    else:
        sizes = {p: _sgd_size(group) for group in groups for p in group["params"]}
        size = torch.cat([torch.full_like(p, sizes.get(p, 0.0)).flatten() for p in net.parameters()])
    for hook in optimizer._optimizer_step_pre_hooks.values():
        size = size * getattr(hook, "factor", 1.0)
    return size


def refuse_proximal(optimizer: torch.optim.Optimizer) -> None:
    """Raise UserError for an optimiser whose step sizes are not known."""
    known = isinstance(optimizer, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW)
    if not known or any(group.get("maximize") for group in optimizer.param_groups):
        what = type(optimizer).__name__ + " with maximize" * known
        raise UserError(f"no proximal step is known for {what}: give --ewc_update explicit")


def _sgd_size(group: dict) -> float:
    damped = 1 - group["dampening"] if group["momentum"] else 1  # torch damps the momentum only
    return group["lr"] * damped / (1 - group["momentum"])


def _adam_sizes(optimizer: torch.optim.Optimizer, net: Backbone) -> Tensor:
    """lr / (sqrt(v) + eps) per parameter (P,), 0 where it never moved; in place, since P is large."""
    groups, state = {p: group for group in optimizer.param_groups for p in group["params"]}, optimizer.state
    params = list(net.parameters())

    def second_moment(p: Tensor) -> Tensor:
        if not state.get(p):
            return torch.zeros_like(p)
        return state[p]["max_exp_avg_sq" if groups[p]["amsgrad"] else "exp_avg_sq"]

    sizes = torch.cat([second_moment(p).flatten() for p in params])
    pieces = zip(params, sizes.split([p.numel() for p in params]), strict=True)
    moved = [(piece, state[p]["step"], groups[p]) for p, piece in pieces if state.get(p)]
    if moved:
        parts, steps, mine = zip(*moved, strict=True)
        torch._foreach_div_(parts, [1 - group["betas"][1] ** step for step, group in zip(steps, mine, strict=True)])
        torch._foreach_sqrt_(parts)
        torch._foreach_add_(parts, [group["eps"] for group in mine])
        torch._foreach_reciprocal_(parts)
        torch._foreach_mul_(parts, [group["lr"] for group in mine])
    return sizes


class Regularised(ContinualModel):
    """A method whose loss is joined by a `penalty`; the report shows how much each parameter matters to it."""

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.penalty = Quadratic()
        if getattr(args, "ewc_update", None) == "prox" and self.opt is not None:
            refuse_proximal(self.opt)

    def report(self, dataset, tasks):
        return super().report(dataset, tasks).show(panels.importance(self.penalty.weight))
