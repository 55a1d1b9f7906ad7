"""Function Distance Regularisation: the network's outputs on stored examples stay where they were at a task's end.

L = CE(f(x), y) + alpha * mean_B || softmax f(x') - softmax z' ||_2

(x', z') is a draw from the memory, z' the logits at the end of the task that x' belongs to. The memory holds an equal
share of every past task.

The code behind the stored hyperparameters takes the two terms' steps one after the other and leaves alpha out: its
published scores belong to `--alpha 1`, the default, whatever alpha their grid says. The distance's gradient vanishes
where the softmax is certain, so a class that is lost altogether does not come back: small weights lose it all.

Reference: Benjamin et al. 2019, "Measuring and Regularizing Networks in Function Space", section 3; the form of the
distance as in Buzzega et al. 2020.
"""

import torch

from palimpsest.models.utils.episodic import EpisodicMemory
from palimpsest.utils.args import add_rehearsal_args, non_negative_float


class FDR(EpisodicMemory):
    NAME = "fdr"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative_float, default=1.0, help="weight of the distance")
        return parser

    @torch.no_grad()
    def end_task(self, dataset):
        self.net.eval()
        self.add_task(dataset.train_loader, logits=lambda raw: self.net(self.normalization_transform(raw)))
        self.net.train()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        terms = {"ce": self.loss(self.net(inputs), labels)}
        if not self.buffer.is_empty():
            replayed, _, stored = self.draw()
            distance = torch.softmax(self.net(replayed), -1) - torch.softmax(stored, -1)
            terms["distance"] = self.args.alpha * distance.norm(dim=-1).mean()
        return self.step_on(terms)
