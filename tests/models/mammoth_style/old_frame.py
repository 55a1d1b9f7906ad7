"""The frame of 2020-2023: a parser at module level, a constructor of four arguments, a task counter of the file's own,
examples without augmentation, and a penalty on the flat parameters.
"""

import numpy as np
import torch

from datasets import get_dataset
from models.utils.continual_model import ContinualModel
from utils.args import *  # noqa: F403
from utils.buffer import Buffer


def get_parser() -> ArgumentParser:  # noqa: F405
    parser = ArgumentParser(description="a pull towards the last task and a little replay")  # noqa: F405
    add_management_args(parser)  # noqa: F405
    add_experiment_args(parser)  # noqa: F405
    add_rehearsal_args(parser)  # noqa: F405
    for i in range(len(parser._actions)):
        if parser._actions[i].dest == "minibatch_size":
            del parser._actions[i]
            break
    parser.add_argument("--pull", type=float, default=0.01)
    return parser


class OldFrame(ContinualModel):
    NAME = "old_frame"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    def __init__(self, backbone, loss, args, transform):
        super(OldFrame, self).__init__(backbone, loss, args, transform)  # noqa: UP008
        self.current_task = 0
        self.cpt = get_dataset(args).N_CLASSES_PER_TASK
        self.buffer = Buffer(self.args.buffer_size, self.device)
        self.sizes = []
        self.checkpoint = None

    def end_task(self, dataset):
        self.current_task += 1
        assert len(np.unique(dataset.train_loader.dataset.targets)) >= self.cpt
        share = self.args.buffer_size // dataset.N_TASKS
        labels, images = next(iter(dataset.not_aug_dataloader(share)))[1:]
        tasks = torch.ones(self.args.buffer_size) * (self.current_task - 1)
        self.buffer.add_data(examples=images.to(self.device), labels=labels.to(self.device), task_labels=tasks)
        self.checkpoint = self.net.get_params().data.clone()

    def observe(self, inputs, labels, not_aug_inputs):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        if self.current_task > 0:
            loss += self.args.pull * ((self.net.get_params() - self.checkpoint) ** 2).sum()
            for task in self.buffer.task_labels[: len(self.buffer)].unique():
                images, old, tasks = self.buffer.get_data(self.args.buffer_size, transform=self.transform)
                loss += self.loss(self.net(images[tasks == task]), old[tasks == task], reduction="none").mean()
        loss.backward()
        self.opt.step()
        return loss.item()
