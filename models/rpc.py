"""Regular polytope classifier: experience replay with class directions that are fixed and equally far apart.

f(x) = P^T (W phi(x) + b),  P (C - 1, C) the vertices of a regular simplex, |P_c| = 1 and <P_c, P_k> = -1 / (C - 1)
L = CE(f([x, x']), [y, y']),  (x', y') from the buffer; the softmax is over all C classes, those to come included

W, b and phi are learned, P is not: the room of every class is there from the start, and the boundaries of old classes
do not move when new ones come. When a task ends every class gets an equal share of the buffer, at random; a task's own
examples are replayed from the next task on.

Deviation: an equal share is rounded down, where the code behind the stored scores gives the rest of the buffer to
classes of the last task.

References: Pernici et al. 2021, "Class-incremental Learning with Pre-allocated Fixed Classifiers", section 3; with
this buffer in Boschini et al. 2022, "Class-Incremental Continual Learning into the eXtended DER-verse", section 5.
"""

import torch

from palimpsest.models.utils.exemplars import random_exemplars, refill, share
from palimpsest.models.utils.polytope import Polytope
from palimpsest.models.utils.rehearsal import Rehearsal


class RPC(Rehearsal):
    NAME = "rpc"
    COMPATIBILITY = ["class-il", "task-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sizes: list[int] = []  # rows of each class
        self.net.classifier = Polytope(backbone.feature_dim, backbone.num_classes).to(self.device)
        self.opt = self.get_optimizer()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if not self.buffer.is_empty():
            replayed, replayed_labels = self.draw()
            inputs, labels = torch.cat((inputs, replayed)), torch.cat((labels, replayed_labels))
        return self.step_on(self.loss(self.net(inputs), labels))

    def end_task(self, dataset):
        data, n = dataset.task_data(self.current_task), share(self.buffer, self.n_seen_classes)
        new = random_exemplars(data, range(self.n_past_classes, self.n_seen_classes), n)
        self.sizes = refill(self.buffer, self.sizes, n, new)
