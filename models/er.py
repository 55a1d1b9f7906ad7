"""Experience replay: each batch is joined by one drawn from a reservoir of past examples.

L = CE(f([x, x']), [y, y']),  (x', y') from the buffer

Where tasks have losses of their own (vision) each has a share of the buffer: L = L_t(x, y) + sum_{k<t} L_k(x'_k, y'_k).

References: Ratcliff 1990; Robins 1995; Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning".
"""

import torch

from models.utils.continual_model import ContinualModel
from models.utils.vision import TaskReservoirs
from utils.args import add_rehearsal_args
from utils.buffer import Buffer


class ER(ContinualModel):
    NAME = "er"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    KINDS = ["classification", "language", "regression", "vision"]

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if self.vision:
            self.buffer = TaskReservoirs(args.buffer_size, [task.name for task in dataset.tasks], self.device)
        else:
            self.buffer = Buffer(args.buffer_size, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.vision:
            return self.observe_one_of_many(inputs, labels, not_aug_inputs)
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

    def observe_one_of_many(self, inputs, labels, raw):
        """`observe` where the batch is of one of several unlike tasks; `raw` is what the labels belong to."""
        *past, current = self.dataset.tasks[: self.current_task + 1]
        self.opt.zero_grad()
        losses = [current.loss(self.net(inputs), labels)]
        for task, x, y in self.buffer.draw(past, self.args.minibatch_size, self.normalization_transform):
            losses.append(task.loss(self.net(x, task.name), y))
        loss = sum(losses)
        loss.backward()
        self.opt.step()
        self.buffer.add(current, raw, labels)
        return loss
