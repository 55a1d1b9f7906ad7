"""Dark Experience Replay: replay of the network's own past logits.

L = CE(f(x), y) + alpha * ||f(x') - z'||^2

(x', z') is a draw from the buffer, z' the logits at the time x' was stored; the squared norm is the mean over the
batch and the classes.

Reference: Buzzega et al. 2020, "Dark Experience for General Continual Learning", equation 5.
"""

import torch.nn.functional as F

from datasets.utils.task import ClassTask, TokenTask
from models.utils.continual_model import ContinualModel
from utils.args import add_rehearsal_args, non_negative_float
from utils.buffer import Buffer


class DER(ContinualModel):
    NAME = "der"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    TASKS = (ClassTask, TokenTask)

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative_float, required=True, help="weight of the replayed logits")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits, labels)}
        if not self.buffer.is_empty():
            replayed, stored = self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
            terms["logits"] = self.args.alpha * F.mse_loss(self.net(replayed), stored)
        loss = sum(terms.values())
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, logits=logits.detach())
        return {"loss": loss, **terms}
