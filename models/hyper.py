"""Hypernetwork heads from free task embeddings: the control for PAH that has no prototypes.

    f(x|t) = phi(x) H(e_t)^T,  e_t a free vector
    L = CE(f(x|t), y) + w * sum_{j<t} mean_B KD(f(x|j), f^(x|j))

f^ is the network before task t; KD as in PAH, KL(student || teacher) with temperature and its square. `--hyper_w 0`
is fine-tuning of a hypernetwork. Scored with the task given (task-IL).

References: von Oswald et al. 2020, "Continual learning with hypernetworks" (task embeddings); the `Hyper` baseline
of the PAH authors (4096 entries).
"""

import torch
from torch import nn

from palimpsest.models.utils.generated_heads import GeneratedHeads, task_logits
from palimpsest.utils.args import non_negative_float, positive_float, positive_int
from palimpsest.utils.distillation import kd
from palimpsest.utils.randomness import generator, seed_of

# Width and hidden-to-hidden layers of the hypernetwork, tau: those of PAH, whose control this is.
HIDDEN, LAYERS, TEMPERATURE = 16, 1, 2.0


class Hyper(GeneratedHeads):
    NAME = "hyper"
    UNUSED = ("lr", "optimizer", "optim_args", "optim_mom", "optim_nesterov", "clip_grad", "multi_head")

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--hyper_embedding", type=positive_int, default=4096, help="entries of a task embedding")
        add("--hyper_w", type=non_negative_float, default=3.0, help="weight of old heads' distillation")
        add("--lr_embedding", type=positive_float, default=1e-3, help="learning rate of the embeddings")
        add("--lr_backbone", type=positive_float, default=1e-3, help="learning rate of the backbone")
        add("--lr_hyper", type=positive_float, default=1e-4, help="learning rate of the hypernetwork")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.make_hypernetwork(args.hyper_embedding, HIDDEN, LAYERS)
        self.reset_optimizers()

    def reset_optimizers(self):
        groups = self.parameter_groups(self.args.lr_embedding)
        self.opt = torch.optim.AdamW(groups, weight_decay=self.args.optim_wd)

    def begin_task(self, dataset):
        for task in range(len(self.embeddings), self.current_task + 1):
            rng = generator(seed_of(self.args, "init"), "embedding", task)
            noise = torch.randn(self.args.hyper_embedding, generator=rng)
            self.embeddings.append(nn.Parameter((0.1 * noise).to(self.device)))
            self.opt.param_groups[0]["params"].append(self.embeddings[-1])
        if self.current_task > 0:
            self.remember()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        t, args = self.current_task, self.args
        logits = task_logits(self.net.features(inputs), self.heads(t + 1))
        terms = {"ce": self.loss(logits[t], labels - self.n_past_classes)}
        if t > 0 and args.hyper_w > 0:
            with torch.no_grad():
                taught = task_logits(self.teacher.copy.features(inputs), self.teacher_heads)
            terms["kd"] = args.hyper_w * kd(logits[:t], taught, TEMPERATURE).mean(1).sum()
        return self.step_on(terms)
