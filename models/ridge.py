"""Ridge regression on features of a frozen network: the linear head that joint training on them would give.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
then     G = sum h h^T,  Q = sum h y^T  over all examples so far,  h = [phi(x), 1], y one-hot
         W = (G + g diag(1, ..., 1, 0))^-1 Q,  g = `--ridge`
scores   h W

The bias, the last row of W, is not regularised. G and Q do not depend on the order of classes and tasks by a bit.

Reference: Hoerl & Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems"; as the linear case of
ACIL (Zhuang et al. 2022).
"""

import torch.nn.functional as F

from palimpsest.models.utils.closed_form import RidgeHead


class Ridge(RidgeHead):
    NAME = "ridge"
    FREE = 1

    def expand(self, h):
        return F.pad(h, (0, 1), value=1.0)
