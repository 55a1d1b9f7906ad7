"""Works on flat parameters and gradients, plain tensors as attributes: projects with the helpers of GEM's file and a
quadratic programme, past gradients from a ring of slots for each task, and pulls towards the last task's weights.
"""

import numpy as np
import torch

try:
    import quadprog as solver
except ImportError:
    solver = None

from utils.conf import warn_once
from utils.ring_buffer import RingBuffer as Buffer

from models.gem import overwrite_grad, store_grad
from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args


class GradientCone(ContinualModel):
    NAME = "gradient_cone"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument("--margin", type=float, default=0.1, help="margin of the projection")
        parser.add_argument("--pull", type=float, default=0.01, help="pull towards the last task's weights")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        assert solver is not None, "a solver is needed"
        super(GradientCone, self).__init__(backbone, loss, args, transform, dataset=dataset)  # noqa: UP008
        self.buffer = Buffer(self.args.buffer_size, n_tasks=self.N_TASKS)
        self.grad_dims = [p.data.numel() for p in self.parameters()]
        self.grad_new = torch.zeros(np.sum(self.grad_dims)).to(self.device)
        self.grad_old = torch.zeros(np.sum(self.grad_dims)).to(self.device)
        self.checkpoint = None
        self.average_gradient = None

    def end_task(self, dataset):
        self.buffer.num_seen_examples = 0
        self.buffer.task_number = self.current_task + 1
        warn_once("projected until here")
        total = torch.zeros_like(self.net.get_params())
        for _, data in enumerate(dataset.train_loader):
            inputs, labels = data[0].to(self.device), data[1].to(self.device)
            self.opt.zero_grad()
            self.loss(self.net(inputs), labels).backward()
            total += self.net.get_grads()
        self.average_gradient = total / len(dataset.train_loader)
        self.checkpoint = self.net.get_params().data.clone()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if not self.buffer.is_empty():
            self.opt.zero_grad()
            old_inputs, old_labels = self.buffer.get_data(
                self.args.minibatch_size, transform=self.transform, device=self.device
            )
            self.loss(self.net(old_inputs), old_labels).backward()
            store_grad(self.parameters, self.grad_old, self.grad_dims)
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        if not self.buffer.is_empty():
            store_grad(self.parameters, self.grad_new, self.grad_dims)
            dot = torch.dot(self.grad_new, self.grad_old)
            if dot.item() < 0:
                gram = np.array([[torch.dot(self.grad_old, self.grad_old).item() + 1e-3]])
                v = solver.solve_qp(gram, np.array([-dot.item()]), np.eye(1), np.array([self.args.margin]))[0]
                overwrite_grad(self.parameters, self.grad_new + float(v[0]) * self.grad_old, self.grad_dims)
        if self.checkpoint is not None:
            self.net.set_grads(self.net.get_grads() + self.args.pull * (self.net.get_params() - self.checkpoint))
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.item()
