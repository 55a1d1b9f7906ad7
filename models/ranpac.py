"""RanPAC: random projections and ridge regression, its strength chosen anew on each task's own training data.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
then     h = relu(phi(x) B),  B (d, D) from N(0, 1 / d) and fixed,  D = `--n_features`
         lambda = argmin over 10^-8, 10^-7, ..., 10^8 of the squared error on a fifth of the task's training examples,
         of the head that the other four fifths give; fixed with `--ridge`
         W = (G + lambda I)^-1 Q,  G = sum h h^T, Q = sum h y^T over all examples so far, that fifth included
scores   h W

Deviations: published with D = 10,000 on a pretrained network, which may be adapted on the first task. The fifth is
every fifth example of a class, not the last fifth of a shuffled task. A strength for which G + lambda I cannot be
inverted in float64 is passed over. lambda is the last task's, so W depends on which task that was, G and Q do not.

Reference: McDonnell et al. 2023, "RanPAC: Random Projections and Pre-trained Models for Continual Learning",
algorithm 1.
"""

import torch

from palimpsest.models.utils.closed_form import RandomExpansion

STRENGTHS = [10.0**k for k in range(-8, 9)]
PARTS = 5  # one of so many examples is held out


class RanPAC(RandomExpansion):
    NAME = "ranpac"
    RIDGE = None

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.ridge = args.ridge

    def learn(self, data):
        if self.args.ridge:
            return super().learn(data)
        fit, held = self.empty_sums(data), self.empty_sums(data)
        for c in data.classes:
            fit.add(self.part(data, c, held_out=False))
            held.add(self.part(data, c, held_out=True))
        self.sums = self.sums or self.empty_sums(data)
        self.sums.merge(fit)
        self.sums.merge(held)
        self.choose(fit, held)

    def part(self, data, c, held_out):
        """(expanded features, targets) of a class's every fifth example, or of its others."""
        start = 0
        for h, y in data.of(c):
            place = torch.arange(start, start + len(h), device=h.device)
            rows = ((place % PARTS == PARTS - 1) == held_out).nonzero().squeeze(1)
            start += len(h)
            yield self.expand(h[rows]), y[rows]

    def choose(self, fit, held):
        """Solve with the strength that gives the smallest squared error on what is held out."""
        gram, cross, errors = held.gram.value(), held.cross.value(), {}
        for ridge in STRENGTHS:
            if (w := fit.solve(ridge)) is not None:
                # sum ||h W - y||^2 up to the sum of ||y||^2
                errors[ridge] = float((w * (gram @ w - 2 * cross)).sum())
        for self.ridge in sorted(errors, key=errors.get):
            self.weights = self.sums.solve(self.ridge)
            if self.weights is not None:
                break

    def report(self, dataset, tasks):
        report = super().report(dataset, tasks)
        if self.ridge:
            report.numbers["ridge"] = self.ridge
        return report
