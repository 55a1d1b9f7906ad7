"""A deep-copied teacher, the whole buffer at task end, `normalization_transform`, the train loader's data set, a
parser of its own.
"""

from copy import deepcopy

import torch
from torch.nn import functional as F

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer


class OldTeacher(ContinualModel):
    NAME = "old_teacher"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser():
        parser = ArgumentParser(description="a teacher and a buffer")
        add_rehearsal_args(parser)
        parser.add_argument("--strength", type=float, default=0.5, help="weight of the teacher")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size)
        self.old_net = None
        self.sizes = []

    def begin_task(self, dataset):
        self.sizes.append(len(dataset.train_loader.dataset.targets))
        if self.current_task > 0:
            self.old_net = deepcopy(self.net)
            self.old_net.eval()
            for x, y, not_aug in dataset.train_loader:
                assert not_aug.shape == x.shape and len(y) == len(x)
                break

    def end_task(self, dataset):
        norm_trans = dataset.get_normalization_transform()
        if norm_trans is None:

            def norm_trans(x):
                return x

        examples, labels = self.buffer.get_all_data(norm_trans)
        self.net.eval()
        with torch.no_grad():
            logits = self.net(examples.to(self.device))
        assert logits.shape == (len(labels), self.num_classes)
        self.net.train()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)
        loss = self.loss(outputs[:, : self.n_seen_classes], labels)
        if self.old_net is not None:
            with torch.no_grad():
                old = self.old_net(inputs)
            loss += self.args.strength * F.mse_loss(outputs[:, : self.n_past_classes], old[:, : self.n_past_classes])
        if not self.buffer.is_empty():
            buf_inputs, buf_labels = self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
            loss += self.loss(self.net(buf_inputs), buf_labels)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.item()
