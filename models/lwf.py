"""Learning without Forgetting, multi-head: old heads keep saying about new images what they said before the task.

    L = CE(f_t(x), y) + alpha * sum_{j<t} mean_B KD(f_j(x), f^_j(x))

f_j are the logits of task j's classes, f^ the network before task t, KD at temperature tau. In a domain-IL stream all
tasks share one head, which is distilled as a whole. `--alpha 0` is multi-head fine-tuning.

`--lwf_kl teacher` (default) is KL(f^ || f), whose gradient is that of the published cross-entropy with soft targets;
`student` is KL(f || f^), as PAH has it. `--kd_scale T2` (default) has the factor tau^2 of Hinton et al. 2015, `none`
is as published. `--warmup_epochs` trains the classifier alone at first.

Reference: Li & Hoiem 2017, "Learning without Forgetting", equations 1-3.
"""

import torch

from models.utils.continual_model import ContinualModel
from models.utils.distillation import kd
from models.utils.snapshot import Snapshot
from models.utils.vision import distilled
from utils.args import non_negative_float, non_negative_int, positive_float


class LwF(ContinualModel):
    NAME = "lwf"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    KINDS = ["classification", "language", "vision"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--alpha", type=non_negative_float, default=1.0, help="weight of the distillation")
        parser.add_argument("--softmax_temp", type=positive_float, default=2.0, help="temperature tau")
        parser.add_argument(
            "--lwf_kl",
            choices=["teacher", "student"],
            default="teacher",
            help="KL(teacher || student) or KL(student || teacher)",
        )
        parser.add_argument("--kd_scale", choices=["T2", "none"], default="T2", help="factor of the divergence")
        parser.add_argument(
            "--warmup_epochs", type=non_negative_int, default=0, help="first epochs of a later task, classifier alone"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.teacher = Snapshot()
        self.head_sizes: list[int] = []  # classes of each past task

    def begin_task(self, dataset):
        if self.current_task > 0:
            self.teacher.take(self.net)

    def end_task(self, dataset):
        if dataset.SETTING == "class-il" or not self.head_sizes:
            self.head_sizes = [*self.head_sizes, self.n_classes_current_task]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.vision:
            return self.observe_one_of_many(inputs, labels, epoch)
        self.opt.zero_grad()
        logits = self.net(inputs)
        past, seen = self.n_past_classes, self.n_seen_classes
        terms = {"ce": self.loss(logits[..., past:seen], labels - past)}
        if self.teacher and self.args.alpha > 0:
            with torch.no_grad():
                taught = self.teacher(inputs)
            tau, weight = self.args.softmax_temp, self.args.alpha
            scale = weight if self.args.kd_scale == "T2" else weight / tau**2
            old = [z[..., : sum(self.head_sizes)].split(self.head_sizes, -1) for z in (logits, taught)]
            heads = zip(*old, strict=True)
            terms["kd"] = scale * sum(kd(mine, theirs, tau, self.args.lwf_kl).mean() for mine, theirs in heads)
        return self.step(terms, epoch)

    def observe_one_of_many(self, inputs, labels, epoch):
        """`observe` where each task has a branch of its own kind."""
        self.opt.zero_grad()
        terms = {"ce": self.loss(self.net(inputs), labels)}
        if self.teacher and self.args.alpha > 0:
            tau, past = self.args.softmax_temp, [task.name for task in self.dataset.tasks[: self.current_task]]
            scale = self.args.alpha if self.args.kd_scale == "T2" else self.args.alpha / tau**2
            terms["kd"] = scale * distilled(self.net, self.teacher.copy, inputs, past, tau, self.args.lwf_kl)
        return self.step(terms, epoch)

    def step(self, terms, epoch):
        """Follow the gradient of the sum of the terms."""
        loss = sum(terms.values())
        loss.backward()
        if self.teacher and epoch is not None and epoch < self.args.warmup_epochs:
            for parameter in self.net.trunk_parameters():
                parameter.grad = None
        self.opt.step()
        return {"loss": loss, **terms}
