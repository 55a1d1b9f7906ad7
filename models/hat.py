"""Hard attention to the task: learned gates give each task units of its own, and weights between used units are held.

    h_l <- a_l^t * h_l,  a_l^t = sigmoid(s e_l^t),  e^t one embedding per task, an entry per unit
    L = CE(f(x)_t, y) + lambda * sum_u a_u^t (1 - u_u) / sum_u (1 - u_u),  u = 1 for units that earlier tasks use
    s = 1/s_max + (s_max - 1/s_max) b / (B - 1) at batch b of the B of an epoch
    dL/dw_ij <- (1 - min(u_i, u_j)) dL/dw_ij;  dL/de <- s_max (cosh(s e) + 1) / (s (cosh(e) + 1)) dL/de

with |s e| <= 50 in the cosh and e clamped to [-6, 6] after each step. The regulariser presses on free units alone, and
on each the more the fewer there are: narrow networks want a smaller lambda. e begins standard normal.

Where the paper gates a finished task by sigmoid(s_max e) and takes u as the maximum of these, both are binary here:
e > 0, the limit of s_max. A closed gate is then exactly 0, so the units behind it may change, the weights between open
ones are held by value, and a finished task's output stays as it is to the last bit; soft gates leak a little.

For chains of layers: mnistmlp, convnet. Where a layer has GroupNorm, what enters it is gated as well, or the statistics
would see closed units. BatchNorm, whose running statistics no gate protects, is refused.

Reference: Serra et al. 2018, "Overcoming Catastrophic Forgetting with Hard Attention to the Task", equations 1-6.
"""

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.precision import network_pass
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.held import Held, head_rows
from palimpsest.utils import panels
from palimpsest.utils.args import non_negative_float, positive_float
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import generator, seed_of

LARGEST, LARGEST_SCALED = 6, 50  # |e|, and |s e| in the compensation


class HAT(ContinualModel):
    NAME = "hat"
    COMPATIBILITY = ["task-il"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--hat_lambda", type=non_negative_float, default=0.75, help="weight of the regulariser")
        parser.add_argument("--hat_smax", type=positive_float, default=400.0, help="greatest scale s_max of the gates")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        layers = chain_layers(backbone)  # refuses other networks
        super().__init__(backbone, loss, args, transform, dataset)
        self.widths = [layer.weight.shape[0] for layer, *_ in layers]
        self.normed = [len(parts) > 1 for parts in layers]
        self.embeddings = nn.ParameterList()
        self.register_buffer("used", torch.zeros(sum(self.widths), dtype=torch.bool, device=self.device))
        self.held = Held()

    def get_parameters(self):
        current = list(getattr(self, "embeddings", ()))[-1:]
        return [*self.net.parameters(), *current]

    def begin_task(self, dataset):
        try:
            len(dataset.train_loader)
        except TypeError:
            raise UserError("hat's gates close over an epoch: give a loader of known length, or a list") from None
        for task in range(len(self.embeddings), self.current_task + 1):
            start = torch.randn(sum(self.widths), generator=generator(seed_of(self.args, "init"), "embedding", task))
            self.embeddings.requires_grad_(False)
            self.embeddings.append(nn.Parameter(start.to(self.device)))
        classes = dataset.class_index(self.current_task)
        rows = {id(p): head_rows(p, classes) for p in self.net.classifier.parameters()}
        movable = rows | self.free(self.used)
        self.held.hold(self.net, {name: movable[id(p)] for name, p in self.net.named_parameters()})
        self.reset_optimizers()

    def free(self, used: Tensor) -> dict[int, Tensor]:
        """Which parameters of the layers (by id) are not between used units, 1 - min(u_i, u_j); inputs are used."""
        out, before = {}, None
        for (layer, *norm), mine in zip(chain_layers(self.net), used.split(self.widths), strict=True):
            weight = layer.weight
            both = mine.unsqueeze(1).expand(weight.shape[:2])
            if before is not None:  # a flattened map has several inputs per unit
                both = both & before.repeat_interleave(weight.shape[1] // len(before))
            out[id(weight)] = ~both.reshape(*both.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
            rest = [layer.bias, *(p for part in norm for p in part.parameters())]
            out |= {id(parameter): ~mine for parameter in rest if parameter is not None}
            before = mine
        return out

    @network_pass
    def logits(self, x: Tensor, gates: Tensor) -> Tensor:
        """The network with gates (units,) on its layers."""
        parts = zip(self.net.chain(), gates.split(self.widths), self.normed, strict=True)
        for (body, activation), gate, normed in parts:
            z = gated(body(x), gate) if normed else body(x)
            x = gated(activation(z), gate)
        return self.net.classifier(x)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        smax, last = self.args.hat_smax, max(len(self.dataset.train_loader) - 1, 1)
        s = 1 / smax + (smax - 1 / smax) * min(self.epoch_iteration / last, 1)
        embedding, free = self.embeddings[self.current_task], (~self.used).float()
        stream, task = self.dataset, self.current_task
        self.opt.zero_grad()
        gates = torch.sigmoid(s * embedding)
        ce = self.loss(self.logits(inputs, gates)[:, stream.class_index(task)], stream.positions(labels, task))
        reg = self.args.hat_lambda * (gates * free).sum() / free.sum().clamp(min=1)
        loss = ce + reg
        loss.backward()
        with torch.no_grad():
            scaled = (s * embedding).clamp(-LARGEST_SCALED, LARGEST_SCALED)
            embedding.grad *= smax * (torch.cosh(scaled) + 1) / (s * (torch.cosh(embedding) + 1))
        self.held.step(self.net, self.opt)
        with torch.no_grad():
            embedding.clamp_(-LARGEST, LARGEST)
        return {"loss": loss, "ce": ce, "reg": reg}

    def end_task(self, dataset):
        self.used = self.used | self.open_gates(self.current_task)

    def open_gates(self, task: int) -> Tensor:
        """Units (bool) that a task uses."""
        return self.embeddings[task].detach() > 0

    def forward(self, x: Tensor, task_label: int) -> Tensor:
        if task_label >= len(self.embeddings):  # never trained
            return self.net(x)
        return self.logits(x, self.open_gates(task_label).to(x.dtype))

    def report(self, dataset, tasks):
        """Capacity: weights and biases that each task was the first to hold, of those in the layers."""
        used, held = torch.zeros_like(self.used), [0]
        for task in range(self.current_task):
            used = used | self.open_gates(task)
            held.append(sum(int((~free).sum()) for free in self.free(used).values()))
        total = sum(p.numel() for layer in chain_layers(self.net) for part in layer for p in part.parameters())
        owned = [b - a for a, b in zip(held, held[1:], strict=False)]
        return super().report(dataset, tasks).show(panels.capacity(owned, total))


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """Units (B, n), maps (B, n, H, W) or flattened maps (B, n H W) times the gates (n,) of their units."""
    return x * (gate.view(-1, 1, 1) if x.dim() == 4 else gate.repeat_interleave(x.shape[1] // len(gate)))


def chain_layers(net) -> list[list[nn.Module]]:
    """The layers with weights of a network that is a chain of them, each with its GroupNorm if it has one, without the
    classifier.

    Raises:
        UserError: it is none, or has parameters elsewhere.
    """
    layers: list[list[nn.Module]] = []
    chain = len(net.chain())
    for part in net.modules():
        if part is net.classifier or not any(True for _ in part.parameters(recurse=False)):
            continue
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and getattr(part, "groups", 1) == 1:
            layers.append([part])
        elif isinstance(part, nn.GroupNorm) and layers and len(layers[-1]) == 1:
            layers[-1].append(part)
        else:
            chain = -1
    if len(layers) != chain:
        raise UserError(
            f"hat needs a chain of layers, with GroupNorm or no normalisation: the network {net.NAME} is none; use "
            "--backbone mnistmlp, or convnet with --norm group or none"
        )
    return layers
