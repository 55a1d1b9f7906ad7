"""Learning without Forgetting, multi-head: old heads keep saying about new images what they said before the task.

    L = CE(f_t(x), y) + alpha * sum_{j<t} mean_B KD(f_j(x), f^_j(x))

f_j are the logits of task j's classes, f^ the network before task t, KD at temperature tau with the factor tau^2.
`--alpha 0` is multi-head fine-tuning. `--lwf_kl teacher` (default) is KL(f^ || f), whose gradient is that of the
published cross-entropy with soft targets; `student` is KL(f || f^), as PAH has it. The published warm-up of a new
head (old layers frozen) is left out.

Reference: Li & Hoiem 2017, "Learning without Forgetting", equations 1-3.
"""

import torch

from models.utils.continual_model import ContinualModel
from models.utils.distillation import kd
from models.utils.snapshot import Snapshot
from utils.args import non_negative_float, positive_float


class LwF(ContinualModel):
    NAME = "lwf"
    COMPATIBILITY = ["class-il", "task-il"]

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
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.teacher = Snapshot(backbone)

    def begin_task(self, dataset):
        if self.current_task > 0:
            self.teacher.take(self.net)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        logits = self.net(inputs)
        past, seen = self.n_past_classes, self.n_seen_classes
        terms = {"ce": self.loss(logits[:, past:seen], labels - past)}
        if self.teacher and self.args.alpha > 0:
            with torch.no_grad():
                taught = self.teacher(inputs)
            sizes = [self.dataset.cpt(j) for j in range(self.current_task)]
            divergences = [
                kd(mine, theirs, self.args.softmax_temp, self.args.lwf_kl).mean()
                for mine, theirs in zip(logits[:, :past].split(sizes, 1), taught[:, :past].split(sizes, 1), strict=True)
            ]
            terms["kd"] = self.args.alpha * sum(divergences)
        loss = sum(terms.values())
        loss.backward()
        self.opt.step()
        return {"loss": loss, **terms}
