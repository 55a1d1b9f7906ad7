"""Deep streaming linear discriminant analysis: one Gaussian per class with a shared covariance, on frozen features.

task 0   CE(f(x), y): base training of the network, whose features phi are frozen afterwards
then     for each x once, in the order of the stream:
         S <- S + n_y / (n_y + 1) (phi - mu_y)(phi - mu_y)^T,  mu_y <- mu_y + (phi - mu_y) / (n_y + 1),  n_y <- n_y + 1
scores   mu_c^T A phi - mu_c^T A mu_c / 2,  A = [(1 - e) S / n + e m I]^-1,  e = `--shrinkage`

By default (`oas`) e is estimated from S and n (Chen et al. 2010) and m is the mean variance, tr S / (n d): an e that
fits one number of features and examples does not fit another. With a number for e, as the published 1e-4, m is 1.

A batch is one update with the same result. Statistics see images without augmentation, in a task's first epoch alone.
`loss` in later tasks is the mean of ||phi - mu_y||^2 before the update; nothing is minimised.

Deviations: the weight n_y / (n_y + 1) makes S the exact within-class scatter; the published t / (t + 1) with the count
of all examples adds a class's first example at nearly full weight. There is no pretrained network: the base training
is the first task, after which its examples enter the statistics like those of any other.

Reference: Hayes & Kanan 2020, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", section 3.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.closed_form import oas
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.exemplars import CHUNK, features_of
from palimpsest.utils.args import fraction


def share_or_oas(text: str) -> float | str:
    """A number within [0, 1], or `oas`."""
    return "oas" if text == "oas" else fraction(text)


class SLDA(ContinualModel):
    NAME = "slda"
    COMPATIBILITY = ["class-il", "task-il"]
    ALONE = "first task"

    @staticmethod
    def get_parser(parser):
        what = "share e of identity in the covariance, or oas: estimated from the data"
        parser.add_argument("--shrinkage", type=share_or_oas, default="oas", help=what)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.frozen = False  # after the base training
        classes, d = backbone.num_classes, backbone.feature_dim
        self.register_buffer("counts", torch.zeros(classes, device=self.device))
        self.register_buffer("means", torch.zeros(classes, d, device=self.device))
        self.register_buffer("scatter", torch.zeros(d, d, device=self.device))

    def update(self, features, labels):
        """Add a batch; returns the mean squared distance to the means before it."""
        own = F.one_hot(labels, len(self.counts)).to(features.dtype)
        counts = own.sum(0)
        distance = (features - self.means[labels]).square().sum(1).mean()
        means = own.T @ features / counts.clamp(min=1).unsqueeze(1)
        # The scatter of two groups together is the sum of theirs and that of their means (Chan et al. 1979).
        within, between = features - means[labels], means - self.means
        both = self.counts + counts
        weight = self.counts * counts / both.clamp(min=1)
        self.scatter += within.T @ within + between.T @ (weight.unsqueeze(1) * between)
        self.means += (counts / both.clamp(min=1)).unsqueeze(1) * between
        self.counts += counts
        return distance

    def end_task(self, dataset):
        if self.frozen:
            return
        self.frozen = True
        data = dataset.task_data(self.current_task)
        for images, labels in zip(data.data.split(CHUNK), data.targets.split(CHUNK), strict=True):
            self.update(features_of(self, images), labels.to(self.device))

    def covariance(self):
        """The shrunk covariance (d, d)."""
        e, identity = self.args.shrinkage, torch.eye(len(self.scatter), device=self.device)
        if e == "oas":
            covariance = self.scatter / self.counts.sum()
            e = oas(covariance, self.counts.sum())
            return (1 - e) * covariance + e * covariance.diagonal().mean() * identity
        return (1 - e) * self.scatter / self.counts.sum() + e * identity

    def forward(self, x):
        if not self.frozen:
            return self.net(x)
        weights = torch.linalg.solve(self.covariance(), self.means.T)  # (d, C)
        scores = self.net.features(x) @ weights - (self.means * weights.T).sum(1) / 2
        return scores.masked_fill(self.counts == 0, -torch.inf)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.frozen:
            if epoch:
                return torch.zeros((), device=self.device)
            return self.update(features_of(self, not_aug_inputs), labels)
        return self.step_on(self.loss(self.net(inputs), labels))
