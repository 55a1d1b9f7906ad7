"""X-DER with a regular polytope classifier: the classes' directions are fixed and equally far apart from the start.

f(x) = P^T W phi(x),  P (C - 1, C) the vertices of a regular simplex, |P_c| = 1 and <P_c, P_k> = -1 / (C - 1)
L = CE(f_present(x), y) + alpha ||f(x') - z'||^2 + beta CE(f_past(x''), y'')
    + constr_eta [max f_future + m - max f_own]+

W and phi are learned, P is not, so that the room of future classes is kept without a term for it. The symbols, and how
the stored logits z' are kept up to date, are those of `xder` (models/xder.py).

References: Boschini et al. 2022, "Class-Incremental Continual Learning into the eXtended DER-verse", section 6;
Pernici et al. 2021, "Class-incremental Learning with Pre-allocated Fixed Classifiers".
"""

from palimpsest.models.utils.extended_dark import ExtendedDark
from palimpsest.models.utils.polytope import Polytope


class XDERRPC(ExtendedDark):
    NAME = "xder_rpc"

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.net.classifier = Polytope(backbone.feature_dim, backbone.num_classes).to(self.device)
        self.opt = self.get_optimizer()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past, seen = self.n_past_classes, self.n_seen_classes
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits[:, past:seen], labels - past)}
        return self.step_on(terms | self.dark_terms(logits))
