"""GDumb: keep a class-balanced memory, and train a network from scratch on it whenever scores are asked for.

    at a task's end:  theta <- theta_0;  L = CE(f(x'), y') over `--fitting_epochs` passes through the memory

The memory is what the greedy balanced sampler holds when a task ends: an equal share for every class seen, drawn at
random within a class. The learning rate falls as a cosine from `--maxlr` to `--minlr`, restarted after 1, 2, 4, ...
epochs, after a first epoch at a tenth of `--maxlr`; published with `--optim_mom 0.9 --optim_wd 1e-6`. `--cutmix_alpha`
mixes half of the batches by CutMix. theta_0 are the network's first weights. Nothing is learned between the ends of
tasks: `--lr` and `--n_epochs` have no effect.

Reference: Prabhu et al. 2020, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", section 4.
"""

import math

import torch

from palimpsest.models.utils.exemplars import RandomExemplars
from palimpsest.models.utils.snapshot import Snapshot
from palimpsest.utils.args import add_rehearsal_args, non_negative_float, positive_float, positive_int


class GDumb(RandomExemplars):
    NAME = "gdumb"
    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("multi_head",)
    ALONE = "never"

    @staticmethod
    def get_parser(parser):
        add = add_rehearsal_args(parser, minibatch=False).add_argument
        add("--maxlr", type=positive_float, default=0.05, help="learning rate after a restart")
        add("--minlr", type=positive_float, default=5e-4, help="learning rate before a restart")
        add("--fitting_epochs", type=positive_int, default=256, help="passes through the memory")
        add("--cutmix_alpha", type=non_negative_float, default=0.0, help="CutMix's Beta(a, a); 0 is off")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.first = Snapshot()
        self.first.take(backbone)

    def other_batches(self, dataset, n_tasks):
        counts, size = torch.zeros(dataset.N_CLASSES, dtype=torch.int64), self.args.batch_size
        for t in range(n_tasks):
            counts += torch.bincount(dataset.task_data(t).targets.cpu(), minlength=dataset.N_CLASSES)
            rows = int(counts.clamp(max=self.args.buffer_size // dataset.get_offsets(t)[1]).sum())
            yield f"the {rows} in the memory after task {t + 1}", rows % size or min(rows, size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return torch.zeros((), device=self.device)

    def end_task(self, dataset):
        super().end_task(dataset)
        with self.training_precision():
            self.fit()

    def fit(self):
        """Train from the first weights on the memory alone."""
        self.net.load_state_dict(self.first.copy.state_dict())
        opt = self.get_optimizer(lr=self.args.maxlr)
        raw, labels = self.buffer.get_all_data()
        for epoch in range(self.args.fitting_epochs):
            for group in opt.param_groups:
                group["lr"] = learning_rate(epoch, self.args.maxlr, self.args.minlr)
            for rows in torch.randperm(len(raw)).to(raw.device).split(self.args.batch_size):
                opt.zero_grad()
                x, y = self.transform(raw[rows]), labels[rows]
                if self.args.cutmix_alpha and torch.rand(()) < 0.5:
                    x, other, share_of_y = cutmix(x, y, self.args.cutmix_alpha)
                    out = self.net(x)
                    loss = share_of_y * self.loss(out, y) + (1 - share_of_y) * self.loss(out, other)
                else:
                    loss = self.loss(self.net(x), y)
                loss.backward()
                opt.step()


def learning_rate(epoch: int, high: float, low: float) -> float:
    """A tenth of `high` in epoch 0, then cosines from `high` towards `low` of 1, 2, 4, ... epochs."""
    if epoch == 0:
        return 0.1 * high
    length = 1 << (epoch.bit_length() - 1)
    return low + (high - low) * (1 + math.cos(math.pi * (epoch - length) / length)) / 2


def cutmix(x, y, alpha: float):
    """Paste a box of another image of the batch into each; (images, the other labels, share of the first label).

    Yun et al. 2019, "CutMix": the box covers 1 - Beta(alpha, alpha) of the image before it is cut at the border.
    """
    keep = torch.distributions.Beta(alpha, alpha).sample().item()
    order = torch.randperm(len(x)).to(x.device)
    height, width = x.shape[-2:]
    half = [int(side * math.sqrt(1 - keep)) // 2 for side in (height, width)]
    centre = [int(torch.randint(side, ())) for side in (height, width)]
    top, left = (max(c - h, 0) for c, h in zip(centre, half, strict=True))
    bottom, right = (min(c + h, s) for c, h, s in zip(centre, half, (height, width), strict=True))
    x = x.clone()
    x[..., top:bottom, left:right] = x[order][..., top:bottom, left:right]
    return x, y[order], 1 - (bottom - top) * (right - left) / (height * width)
