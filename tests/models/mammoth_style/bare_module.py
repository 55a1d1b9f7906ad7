"""Stands on nn.Module alone and brings an optimiser of its own, as a file until 2023 could."""

import torch.nn as nn
from torch.optim import SGD
from utils.conf import get_device

from datasets import get_dataset
from utils.args import ArgumentParser, add_experiment_args, add_management_args


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description="a network for each task")
    add_management_args(parser)
    add_experiment_args(parser)
    return parser


class BareModule(nn.Module):
    NAME = "bare_module"
    COMPATIBILITY = ["task-il"]

    def __init__(self, backbone, loss, args, transform):
        super().__init__()
        self.loss = loss
        self.args = args
        self.transform = transform
        self.device = get_device()
        self.nets = [backbone.to(self.device)]
        self.net = self.nets[-1]
        self.opt = SGD(self.net.parameters(), lr=self.args.lr)
        self.dataset = get_dataset(args)

    def forward(self, x, task_label):
        return self.nets[min(task_label, len(self.nets) - 1)](x)

    def end_task(self, dataset):
        if len(self.nets) == dataset.N_TASKS:
            return
        self.nets.append(dataset.get_backbone().to(self.device))
        self.net = self.nets[-1]
        self.opt = SGD(self.net.parameters(), lr=self.args.lr)

    def observe(self, inputs, labels, not_aug_inputs):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.item()
