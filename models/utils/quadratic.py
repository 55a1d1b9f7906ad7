"""A quadratic penalty that holds parameters near where they were: what EWC, SI, MAS and RWalk share."""

import torch
from torch import Tensor, nn

from backbone.utils.base import Backbone


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
        drift = theta - self.centre
        return 0.5 * (self.weight * drift).dot(drift)

    def add_gradient(self, net: Backbone, strength: float) -> None:
        """Explicit form: add strength * A (theta - c) to the gradients; diverges when lr * strength * max A > 2."""
        pull = self.weight * (net.get_params().detach() - self.centre)
        net.set_grads(net.get_grads().add_(pull, alpha=strength))

    def contract(self, net: Backbone, strength: float, lr: float | Tensor) -> None:
        """Proximal step after the task's own: theta <- (theta + s A c) / (1 + s A) with s = lr * strength.

        The minimiser of Omega(theta') * strength + ||theta' - theta||^2 / (2 lr): stable for every strength; `lr` may
        be one per parameter (P,).
        """
        scaled = self.weight * (lr * strength)
        net.set_params(torch.lerp(net.get_params().detach(), self.centre, scaled / (1 + scaled)))


def add_update_argument(parser) -> None:
    """`--ewc_update`: how the penalty enters a step."""
    parser.add_argument(
        "--ewc_update",
        choices=["prox", "explicit"],
        default="prox",
        help="prox: closed-form step on the penalty after the task's step; explicit: its gradient is added",
    )


def regularised_step(
    model, loss: Tensor, penalty: Quadratic, strength: float, own_steps: bool = False
) -> dict[str, Tensor]:
    """The optimiser's step after `loss.backward()`, joined by that on strength * Omega(theta); the terms to log.

    `model` is the method: its `net`, `opt` and `--ewc_update`. With `own_steps` the proximal step of each parameter is
    as long as the optimiser's own, see `step_sizes`.
    """
    if not penalty:
        model.opt.step()
        return {"loss": loss, "ce": loss}
    # A value to log only: the penalty enters below, without a graph over all parameters.
    held = strength * penalty.value(model.net.get_params().detach())
    if model.args.ewc_update == "explicit":
        penalty.add_gradient(model.net, strength)
        model.opt.step()
    else:
        model.opt.step()
        lr = step_sizes(model.opt, model.net) if own_steps else model.opt.param_groups[0]["lr"]
        penalty.contract(model.net, strength, lr)
    return {"loss": loss + held, "ce": loss, "penalty": held}


@torch.no_grad()
def step_sizes(optimizer: torch.optim.Optimizer, net: Backbone) -> float | Tensor:
    """What the optimiser's last step multiplied a gradient by: lr; with Adam lr / (sqrt(v) + eps), per parameter (P,).

    Adam moves a parameter of small gradients as far as any other; a penalty that took steps of lr alone would hardly
    hold it, whatever its gradient said.
    """
    group = optimizer.param_groups[0]
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return group["lr"]
    sizes = []
    for p in net.parameters():
        state = optimizer.state.get(p)
        if not state:  # never moved
            sizes.append(torch.zeros_like(p).flatten())
            continue
        mean = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
        sizes.append((group["lr"] / (mean.sqrt() + group["eps"])).flatten())
    return torch.cat(sizes)
