"""What the X-DER methods share: dark replay whose stored logits are kept up to date, and constraints between heads.

A head is the logits of one task's classes; seen from the task in training it is past, present or future.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.models.utils.exemplars import features_of, random_rows, refill, share
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_rehearsal_args, fraction, non_negative_float


def implant(stored: Tensor, fresh: Tensor, labels: Tensor, low: int, high: int, gamma: float) -> Tensor:
    """Stored logits (B, C) with those of the classes low..high-1 taken from `fresh` (B, C).

    The implanted part is scaled by min(1, gamma stored_y / max implanted), so that it does not pass the label's logit
    stored_y; by 0 where that would turn its signs.
    """
    if low == high:
        return stored
    part, own = fresh[:, low:high], stored.gather(1, labels.unsqueeze(1))
    top = part.max(1, keepdim=True).values
    scale = torch.where(top > own, (gamma * own / top).clamp(0, 1), 1.0)
    return torch.cat((stored[:, :low], scale * part, stored[:, high:]), dim=1)


def excess(low: Tensor, high: Tensor, margin: float) -> Tensor:
    """Mean of low + margin - high over the rows where it is above 0; 0 where there is none."""
    hinge = F.relu(low + margin - high)
    return hinge.sum() / (hinge > 0).sum().clamp(min=1)


class ExtendedDark(Rehearsal):
    """Base of the X-DER methods: everything but the loss on the stream and the preparation of future heads."""

    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("multi_head",)
    BUFFER_SHARES = "classes"

    @staticmethod
    def get_parser(parser):
        add = add_rehearsal_args(parser).add_argument
        add("--alpha", type=non_negative_float, required=True, help="weight of the replayed logits")
        add("--beta", type=non_negative_float, required=True, help="weight of the replayed labels")
        add("--gamma", type=fraction, default=0.85, help="an implanted logit's share of the label's, at most")
        add("--constr_eta", "--eta", type=non_negative_float, default=0.1, help="weight of the constraints")
        add("--constr_margin", "--m", type=non_negative_float, default=0.3, help="margin of the constraints")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sizes: list[int] = []
        self.register_buffer("draws", torch.zeros(args.buffer_size, device=self.device))  # of each row, in this task
        self.register_buffer("heads", None)  # (C,) task of each class

    def begin_task(self, dataset):
        widths = [torch.full((dataset.cpt(t),), t) for t in range(dataset.N_TASKS)]
        self.heads = torch.cat(widths).to(self.device)

    @torch.no_grad()
    def end_task(self, dataset):
        """Every class gets an equal share of the buffer, at random; past and future logits are brought up to date."""
        data, past, gamma = dataset.task_data(self.current_task), self.n_past_classes, self.args.gamma
        n, new, images, labels = share(self.buffer, self.n_seen_classes), [], data.data, data.targets
        for c in range(past, self.n_seen_classes):
            rows = random_rows(labels, c, n)
            x, y = images[rows].to(self.device), labels[rows].to(self.device)
            z = self.outputs(x) if len(x) else torch.zeros(0, self.net.num_classes, device=self.device)
            new.append({"examples": x, "labels": y, "logits": implant(z, z, y, 0, past, gamma)})
        old = sum(min(size, n) for size in self.sizes)
        self.sizes = refill(self.buffer, self.sizes, n, new)
        if old:
            x, y, z = (rows[:old] for rows in self.buffer.get_all_data())
            self.buffer.logits[:old] = implant(z, self.outputs(x), y, past, self.net.num_classes, gamma)
        self.draws.zero_()

    def outputs(self, images: Tensor) -> Tensor:
        """Logits of raw images in eval mode."""
        return self.net.classifier(features_of(self, images))

    def dark_terms(self, logits: Tensor) -> dict[str, Tensor]:
        """The replayed logits and labels and the future constraint, weighted, for the stream's logits (B, C)."""
        past, seen, args, terms = self.n_past_classes, self.n_seen_classes, self.args, {}
        future, own = [logits[:, seen:]], [logits[:, past:seen].max(1).values]
        if not self.buffer.is_empty():
            rows, x, y, stored = self.buffer.get_data(args.minibatch_size, transform=self.transform, return_index=True)
            z = self.net(x)
            rows2, x, y2, _ = self.buffer.get_data(args.minibatch_size, transform=self.transform, return_index=True)
            z2 = self.net(x)
            terms["logits"] = args.alpha * F.mse_loss(z, stored)
            terms["replay"] = args.beta * self.loss(z2[:, :past], y2)
            for drawn in ((rows, z, y), (rows2, z2, y2)):
                self.refresh(*drawn)
            replayed, heads = torch.cat((z, z2)), self.heads[torch.cat((y, y2))]
            future.append(replayed[:, seen:])
            own.append(replayed.masked_fill(self.heads != heads.unsqueeze(1), -torch.inf).max(1).values)
        if self.n_remaining_classes:
            limit = excess(torch.cat(future).max(1).values, torch.cat(own), args.constr_margin)
            terms["future"] = args.constr_eta * limit
        return terms

    def past_constraint(self, logits: Tensor) -> dict[str, Tensor]:
        """On the stream the present head's probability shall exceed that of past heads, by the margin; weighted."""
        past, seen = self.n_past_classes, self.n_seen_classes
        if not past:
            return {}
        p = torch.softmax(logits[:, :seen], dim=1)
        limit = excess(p[:, :past].max(1).values.detach(), p[:, past:].max(1).values, self.args.constr_margin)
        return {"past": self.args.constr_eta * limit}

    @torch.no_grad()
    def refresh(self, rows: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Implant present and future logits into the stored ones; a row's k-th draw of the task does so with
        probability 1 / k, so that the last implant is any of its draws alike.
        """
        self.draws[rows] += 1
        stored = self.buffer.logits.index_select(0, rows)
        fresh = implant(stored, outputs, labels, self.n_past_classes, self.net.num_classes, self.args.gamma)
        chosen = torch.rand(len(rows), device=self.device) * self.draws[rows] < 1
        self.buffer.logits.index_copy_(0, rows, torch.where(chosen.unsqueeze(1), fresh, stored))
