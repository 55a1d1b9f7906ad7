"""Dark Experience Replay: replay of the network's own past logits.

L = CE(f(x), y) + alpha * ||f(x') - z'||^2

(x', z') is a draw from the buffer, z' the logits at the time x' was stored; the squared norm is the mean over the
batch and the classes.

Reference: Buzzega et al. 2020, "Dark Experience for General Continual Learning", equation 5.
"""

import torch.nn.functional as F

from palimpsest.datasets.utils.task import ClassTask, TokenTask
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_rehearsal_args, non_negative_float


class DER(Rehearsal):
    NAME = "der"
    SEARCH = {"alpha": {"log": [0.1, 2.0]}}  # what --tune tries besides the learning rate
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    TASKS = (ClassTask, TokenTask)

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative_float, required=True, help="weight of the replayed logits")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits, labels)}
        if not self.buffer.is_empty():
            replayed, stored = self.draw()
            terms["logits"] = self.args.alpha * F.mse_loss(self.net(replayed), stored)
        self.buffer.add_data(examples=not_aug_inputs, logits=logits.detach())
        return self.step_on(terms)
