"""Works on flat parameters and gradients, as projection and consolidation methods do: plain tensors as attributes,
positional observe.
"""

import torch

from models.utils.continual_model import ContinualModel


class FlatGradients(ContinualModel):
    NAME = "flat_gradients"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--pull", type=float, default=0.01, help="pull towards the last task's weights")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super(FlatGradients, self).__init__(backbone, loss, args, transform, dataset=dataset)  # noqa: UP008
        self.checkpoint = None
        self.average_gradient = None

    def end_task(self, dataset):
        total = torch.zeros_like(self.net.get_params())
        for _, data in enumerate(dataset.train_loader):
            inputs, labels = data[0].to(self.device), data[1].to(self.device)
            self.opt.zero_grad()
            self.loss(self.net(inputs), labels).backward()
            total += self.net.get_grads()
        self.average_gradient = total / len(dataset.train_loader)
        self.checkpoint = self.net.get_params().data.clone()

    def observe(self, inputs, labels, not_aug_inputs):
        self.opt.zero_grad()
        outputs = self.net(inputs)
        loss = self.loss(outputs, labels)
        loss.backward()
        if self.checkpoint is not None:
            self.net.set_grads(self.net.get_grads() + self.args.pull * (self.net.get_params() - self.checkpoint))
        self.opt.step()
        return loss.item()
