"""Experience replay: each batch is joined by one drawn from a reservoir of past examples.

L = CE(f([x, x']), [y, y']),  (x', y') from the buffer

References: Ratcliff 1990; Robins 1995; Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning".
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.args import add_rehearsal_args
from utils.buffer import Buffer


class ER(ContinualModel):
    NAME = "er"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    KINDS = ["classification", "language", "regression"]

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        new_labels = labels
        if not self.buffer.is_empty():
            replayed, replayed_labels = self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
            inputs, labels = torch.cat((inputs, replayed)), torch.cat((labels, replayed_labels))
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=new_labels)
        return loss
