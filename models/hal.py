"""Hindsight Anchor Learning: replay, and a step may not change what the network says of one anchor per past class.

    L = CE(f([x, x']), [y, y']),  (x', y') from the buffer
    theta~ = theta - lr dL/dtheta
    theta <- theta - lr d/dtheta (L + hal_lambda mean (f(e) - f~(e))^2),  e the anchors of past tasks

After a task each of its classes y gets an anchor, found by 100 steps of gradient ascent at `--lr` from uniform noise:

    e = argmax CE(f_M(e), y) - CE(f(e), y) - gamma ||phi(e) - phi_t||^2

f_M is f fine-tuned by one pass over the buffer, phi the features, and phi_t their running mean in the task,
phi_t <- beta phi_t + (1 - beta) mean_B phi(x).

The memory is the shared reservoir where the paper has a ring per class. Anchors are sought in eval mode; in training
BatchNorm sees them with their own statistics, and its running ones leave them out.

Reference: Chaudhry et al. 2021, "Using Hindsight to Anchor Past Knowledge in Continual Learning", section 3.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch.func import functional_call

from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_rehearsal_args, fraction, non_negative_float

ASCENT_STEPS = 100


class HAL(Rehearsal):
    NAME = "hal"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    UNUSED = ("multi_head",)
    ALONE = "first batch"

    @staticmethod
    def get_parser(parser):
        add = add_rehearsal_args(parser).add_argument
        add("--hal_lambda", type=non_negative_float, default=0.1, help="weight of the anchors")
        add("--beta", type=fraction, default=0.5, help="decay of the running mean of features")
        add("--gamma", type=non_negative_float, default=0.1, help="weight of an anchor's distance from that mean")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("anchors", None)  # (past classes, C, H, W), as the network sees images
        self.register_buffer("phi", None)  # (feature_dim,)

    def other_batches(self, dataset, n_tasks):
        seen, args = 0, self.args
        if n_tasks > 1:
            yield "the anchors of task 1", dataset.cpt(0)
        for t, n in enumerate(dataset.train_sizes[:n_tasks]):
            seen += n * args.n_epochs
            rows = min(args.buffer_size, seen)
            yield f"the {rows} in the buffer after task {t + 1}", rows % args.batch_size or args.batch_size

    def begin_task(self, dataset):
        self.phi = None

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        x, y = inputs, labels
        if not self.buffer.is_empty():
            replayed, replayed_labels = self.draw()
            x, y = torch.cat((x, replayed)), torch.cat((y, replayed_labels))
        self.opt.zero_grad()
        logits, features = self.net(x, "both")
        terms = {"ce": self.loss(logits, y)}
        terms["ce"].backward()
        if self.anchors is not None:
            terms["anchors"] = self.args.hal_lambda * self.drift()
            terms["anchors"].backward()
        self.opt.step()
        mean = features[: len(inputs)].detach().flatten(1).mean(0)
        self.phi = mean if self.phi is None else torch.lerp(mean, self.phi, self.args.beta)
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return {"loss": sum(terms.values()), **terms}

    def running_statistics(self):
        return [self.phi, *super().running_statistics()]

    def drift(self):
        """mean (f(e) - f~(e))^2 for a step along the gradients that the network holds now."""
        lr = self.opt.param_groups[0]["lr"]
        stepped = {
            name: p.detach() if p.grad is None else p.detach() - lr * p.grad for name, p in self.net.named_parameters()
        }
        with batchnorm_mode(self.net, batch_statistics=True):
            with torch.no_grad():
                after = functional_call(self.net, stepped, (self.anchors,))
            return F.mse_loss(self.net(self.anchors), after)

    def end_task(self, dataset):
        labels = torch.arange(self.n_past_classes, self.n_seen_classes, device=self.device)
        found = find_anchors(self.net, self.tuned(), labels, self.phi, dataset.SIZE, self.args)
        self.anchors = found if self.anchors is None else torch.cat((self.anchors, found))

    def tuned(self):
        """A copy of the network after one pass over the buffer."""
        net, (raw, labels) = deepcopy(self.net), self.buffer.get_all_data()
        optimizer = torch.optim.SGD(net.parameters(), self.args.lr)
        for rows in torch.randperm(len(raw)).to(raw.device).split(self.args.batch_size):
            optimizer.zero_grad()
            self.loss(net(self.transform(raw[rows])), labels[rows]).backward()
            optimizer.step()
        return net


def find_anchors(net, tuned, labels, phi, size, args):
    """One anchor (C, H, W) for each of the labels (n,), all at once."""
    e = torch.rand(len(labels), *size, device=labels.device, requires_grad=True)
    ce = torch.nn.CrossEntropyLoss(reduction="sum")
    net.eval(), tuned.eval()
    for _ in range(ASCENT_STEPS):
        logits, features = net(e, "both")
        distance = (features.flatten(1) - phi).square().sum()
        height = ce(tuned(e), labels) - ce(logits, labels) - args.gamma * distance
        (slope,) = torch.autograd.grad(height, e)
        e = (e + args.lr * slope).detach().requires_grad_()
    net.train()
    return e.detach()
