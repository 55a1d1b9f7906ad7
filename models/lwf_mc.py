"""LwF.MC: Learning without Forgetting on a single head of sigmoid outputs, iCaRL without exemplars.

L = -1/(B C) sum_x sum_c [ q_c log g_c + (1 - q_c) log(1 - g_c) ] + wd_reg ||theta||^2,  g = sigmoid(f(x))
q_c = g^_c(x) for old classes (g^ the network before the task), 1[y = c] for those of the task; C the classes seen

Deviation: the loss is the mean over examples and classes, as in iCaRL's released code, not their sum.

Reference: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", section 4.1.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.snapshot import Distillation
from palimpsest.utils.args import non_negative_float


class LwFMC(Distillation):
    NAME = "lwf_mc"
    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--wd_reg", type=non_negative_float, default=0.0, help="weight of the parameters' squared norm")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past, seen = self.n_past_classes, self.n_seen_classes
        targets = F.one_hot(labels, seen).to(inputs.dtype)
        if self.teacher:
            with torch.no_grad():
                targets[:, :past] = torch.sigmoid(self.teacher(inputs)[:, :past])
        loss = F.binary_cross_entropy_with_logits(self.net(inputs)[:, :seen], targets)
        if self.args.wd_reg:
            loss = loss + self.args.wd_reg * sum(p.square().sum() for p in self.net.parameters())
        return self.step_on(loss)
