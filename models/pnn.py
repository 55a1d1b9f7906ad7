"""Progressive networks: a new column per task, fed by the frozen columns of the earlier tasks.

    h_i^(k) = f(W_i^(k) h_{i-1}^(k) + sum_{j<k} U_i^(k:j) h_{i-1}^(j)),  i >= 2

or with adapters (default) the sum is U_i^(k) f(V_i^(k) [a_1 h_{i-1}^(1), ..., a_{k-1} h_{i-1}^(k-1)]), V_i a projection
to the width of layer i-1 with a bias, a_j learned scalars that begin at `--alpha_init`. On maps, U and V are 1x1
convolutions, and the older map is first averaged to the size of the new one. Layers of residual networks are their
stages. Column k has a head of the task's classes; the optimiser has the new column alone.

Every column begins with the weights that the network was given with. Parameters grow with the square of the number of
tasks, time of prediction with the number of the task.

Reference: Rusu et al. 2016, "Progressive Neural Networks", equations 1 and 2.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.backbone.utils.precision import network_pass
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils import panels
from palimpsest.utils.args import add_bool, positive_float
from palimpsest.utils.randomness import preserve_rng


class Lateral(nn.Module):
    """What earlier columns add to one layer of a new one.

    Args:
        hidden: the earlier columns' h_{i-1}, (B, n) or maps (B, n, H, W).
        z: what it is added to, (B, m) or (B, m, H', W').
        alpha: first value of the scalars; None for linear laterals, without an adapter.
    """

    def __init__(self, hidden: list[Tensor], z: Tensor, alpha: float | None):
        super().__init__()
        n, m, columns = hidden[0].shape[units(hidden[0])], z.shape[units(z)], len(hidden)
        layer = (lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias)) if z.dim() == 4 else nn.Linear
        self.scales = self.squeeze = None
        if alpha is not None:
            self.scales = nn.Parameter(torch.full((columns,), alpha))
            self.squeeze = layer(columns * n, n, True)
        self.out = layer(columns * n if alpha is None else n, m, False)

    def forward(self, hidden: list[Tensor], z: Tensor) -> Tensor:
        hidden = [averaged(h, z) for h in hidden]
        if self.squeeze is None:
            return self.out(torch.cat(hidden, units(z)))
        scaled = [a * h for a, h in zip(self.scales.unbind(), hidden, strict=True)]
        return self.out(F.relu(self.squeeze(torch.cat(scaled, units(z)))))


def units(z: Tensor) -> int:
    """The dimension that counts units: channels of maps, else the last."""
    return 1 if z.dim() == 4 else -1


def averaged(h: Tensor, z: Tensor) -> Tensor:
    """An earlier layer's map as large as z: smaller, or a vector."""
    if h.dim() != 4 or h.shape[2:] == z.shape[2:]:
        return h
    return h.mean((2, 3)) if z.dim() == 2 else F.adaptive_avg_pool2d(h, z.shape[2:])


class Column(nn.Module):
    """A network with a head of its task's classes, and the laterals that reach it.

    Args:
        net: what it begins as.
        classes: the index of the task's classes among the outputs.
    """

    def __init__(self, net: nn.Module, classes: slice | Tensor):
        super().__init__()
        self.net = deepcopy(net).requires_grad_(True)
        head = self.net.classifier
        head.weight = nn.Parameter(head.weight.detach()[classes].clone())
        head.out_features = len(head.weight)
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias.detach()[classes].clone())
        self.laterals = nn.ModuleList()

    @network_pass
    def forward(
        self, x: Tensor, earlier: list[list[Tensor]], new: Callable | None = None, head: bool = True
    ) -> list[Tensor]:
        """h_1, ..., h_n and, with the head, the logits, given the h of the earlier columns.

        Args:
            new: (h_{i-1} of the earlier columns, z) -> a lateral: makes them, since the sizes of the layers show on a
                batch, and leaves out what they add.
        """
        out, last = [], [(self.net.classifier, nn.Identity())] if head else []
        for i, (body, activation) in enumerate([*self.net.chain(), *last]):
            z = body(x)
            hidden = [layers[i - 1] for layers in earlier]
            if i and new:
                self.laterals.append(new(hidden, z))
            elif i and self.laterals:
                z = z + self.laterals[i - 1](hidden, z)
            x = activation(z)
            out.append(x)
        return out


class PNN(ContinualModel):
    NAME = "pnn"
    COMPATIBILITY = ["task-il"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        add_bool(parser, "--lateral_connections", default=True, help="feed a column by the earlier ones")
        add_bool(parser, "--pnn_adapter", default=True, help="laterals with an adapter; off: linear ones")
        parser.add_argument("--alpha_init", type=positive_float, default=0.01, help="first value of adapters' scalars")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        backbone.chain()  # refuses a network that has none
        backbone.requires_grad_(False)  # it is the pattern of the columns, and is not trained itself
        super().__init__(backbone, loss, args, transform, dataset)
        self.columns = nn.ModuleList()

    def get_parameters(self):
        return [p for p in self.parameters() if p.requires_grad]

    def train(self, mode: bool = True):
        """The columns of earlier tasks stay in eval mode."""
        super().train(mode)
        self.columns[:-1].eval()
        return self

    def begin_task(self, dataset):
        for task in range(len(self.columns), self.current_task + 1):  # several where a run starts at a later task
            self.columns.requires_grad_(False)
            column = Column(self.net, dataset.class_index(task)).to(self.device)
            if task and self.args.lateral_connections:
                self.eval(), column.eval()
                with torch.no_grad(), preserve_rng():
                    x = next(iter(dataset.train_loader))[0][:2]
                    earlier = self.outputs(x, task - 1)
                alpha = self.args.alpha_init if self.args.pnn_adapter else None
                with torch.no_grad():
                    column(x, earlier, new=partial(Lateral, alpha=alpha))
            self.columns.append(column.to(self.device))
        self.train()
        self.reset_optimizers()

    def outputs(self, x: Tensor, task: int) -> list[list[Tensor]]:
        """What the layers of the columns say, up to the one of `task`, whose logits alone are worked out."""
        out: list[list[Tensor]] = []
        for t in range(0 if self.args.lateral_connections else task, task + 1):
            out.append(self.columns[t](x, out, head=t == task))
        return out

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        logits = self.outputs(inputs, self.current_task)[-1][-1]
        return self.step_on(self.loss(logits, self.dataset.positions(labels, self.current_task)))

    def forward(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, num_classes), -inf for the classes of other tasks, and for all of a task without a column."""
        logits = x.new_full((len(x), self.num_classes), -torch.inf)
        if task_label < len(self.columns):
            logits[:, self.dataset.class_index(task_label)] = self.outputs(x, task_label)[-1][-1]
        return logits

    def report(self, dataset, tasks):
        owned = [sum(p.numel() for p in column.parameters()) for column in list(self.columns)[: self.current_task]]
        return super().report(dataset, tasks).show(panels.capacity(owned, sum(owned)))
