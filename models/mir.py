"""Maximally Interfered Retrieval: replay of those stored examples that the coming step would hurt most.

    theta_v = theta - lr dCE(f(x), y)/dtheta
    x' = the `--minibatch_size` of `--subsample` drawn examples with the largest CE(f_v(x'), y') - CE(f(x'), y')
    L  = CE(f([x, x']), [y, y'])

Losses are compared without augmentation, with the batch's own BatchNorm statistics.

Reference: Aljundi et al. 2019, "Online Continual Learning with Maximally Interfered Retrieval", section 3.1 (ER-MIR).
"""

import torch
import torch.nn.functional as F
from torch.func import functional_call

from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_rehearsal_args, positive_int


class MIR(Rehearsal):
    NAME = "mir"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--subsample", type=positive_int, default=50, help="examples among which is chosen")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        new_labels = labels
        if not self.buffer.is_empty():
            raw, stored_labels = self.most_interfered(inputs, labels)
            inputs, labels = torch.cat((inputs, self.transform(raw))), torch.cat((labels, stored_labels))
        loss = self.step_on(self.loss(self.net(inputs), labels))
        self.buffer.add_data(examples=not_aug_inputs, labels=new_labels)
        return loss

    def most_interfered(self, inputs, labels):
        """Raw images and labels of the stored examples whose loss a step on the batch would raise most."""
        raw, stored_labels = self.buffer.get_data(self.args.subsample)
        stored = self.normalization_transform(raw)
        parameters = dict(self.net.named_parameters())
        with batchnorm_mode(self.net, batch_statistics=True):
            loss = self.loss(self.net(inputs), labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            lr = self.opt.param_groups[0]["lr"]
            stepped = {
                name: p.detach() if g is None else p.detach() - lr * g
                for (name, p), g in zip(parameters.items(), gradients, strict=True)
            }
            with torch.no_grad():
                before = F.cross_entropy(self.net(stored), stored_labels, reduction="none")
                after = F.cross_entropy(functional_call(self.net, stepped, (stored,)), stored_labels, reduction="none")
        chosen = (after - before).topk(min(self.args.minibatch_size, len(raw))).indices
        return raw[chosen], stored_labels[chosen]
