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

from palimpsest.datasets.utils.task import Task, sum_of_distances
from palimpsest.models.utils.snapshot import Distillation
from palimpsest.utils.args import non_negative_float, non_negative_int, positive_float


class LwF(Distillation):
    NAME = "lwf"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (Task,)
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--alpha", type=non_negative_float, default=1.0, help="weight of the distillation")
        add("--softmax_temp", type=positive_float, default=2.0, help="temperature tau")
        add("--lwf_kl", choices=["teacher", "student"], default="teacher",
            help="KL(teacher || student) or KL(student || teacher)")  # fmt: skip
        add("--kd_scale", choices=["T2", "none"], default="T2", help="factor of the divergence")
        add("--warmup_epochs", type=non_negative_int, default=0,
            help="first epochs of a later task, classifier alone")  # fmt: skip
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        tau, past, heads = self.args.softmax_temp, *map(self.dataset.heads, (self.current_task, self.current_task + 1))
        self.opt.zero_grad()
        outputs = self.net.outputs(inputs, heads)
        terms = {"ce": heads[-1].loss(outputs[-1], labels)}
        if self.teacher and self.args.alpha > 0:
            with torch.no_grad():
                taught = self.teacher.copy.outputs(inputs, past, own=heads[-1])
            scale = self.args.alpha if self.args.kd_scale == "T2" else self.args.alpha / tau**2
            terms["kd"] = scale * sum_of_distances(past, outputs[: len(past)], taught, tau, self.args.lwf_kl)
        loss = sum(terms.values())
        loss.backward()
        if self.teacher and epoch is not None and epoch < self.args.warmup_epochs:
            for parameter in self.net.trunk_parameters():
                parameter.grad = None
        self.opt.step()
        return {"loss": loss, **terms}
