"""SimpleCIL: the nearest class mean, by cosine, on features of a frozen network.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
then     mu_c = mean of phi(x) over the examples of class c
scores   cos(phi(x), mu_c)

Deviations: published for a pretrained network, whose features are taken as they are (`--no_base_training`). Sums and
counts do not depend on the order of classes and tasks by a bit.

Reference: Zhou et al. 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
Adaptivity are All You Need", section 3.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.closed_form import ClosedForm, ExactSum


class NCM(ClosedForm):
    NAME = "ncm"

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sums = ExactSum(backbone.num_classes, backbone.feature_dim, device=self.device)
        self.register_buffer("counts", torch.zeros(backbone.num_classes, dtype=torch.int64, device=self.device))

    def learn(self, data):
        for c in data.classes:
            total = torch.zeros_like(self.sums.fine, dtype=torch.float64)
            for h, y in data.of(c):
                total += y.T @ h
                self.counts[c] += len(h)
            self.sums.add(total)

    def scores(self, h):
        means = self.sums.value()[self.classes] / self.counts[self.classes].unsqueeze(1)
        return F.normalize(h) @ F.normalize(means).T
