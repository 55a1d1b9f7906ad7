"""iCaRL: sigmoid outputs that are distilled, herded exemplars, classification by the nearest mean of exemplars.

L = -1/(B C) sum_x sum_c [ q_c log g_c + (1 - q_c) log(1 - g_c) ],  g = sigmoid(f(x)), C the classes seen
q_c = g^_c(x) for old classes (g^ the network before the task), 1[y = c] for those of the task
prediction: argmin_c || phi(x) - mu_c ||,  mu_c the mean of the class's exemplars, phi and mu_c of length 1

An epoch is one pass over the union of the new data and the exemplars. When a task ends every class gets an equal share
of the buffer, chosen by herding.

Deviations: the loss is the mean over examples and classes, as in the released code, not their sum, and learning rates
are to be read so. Before a task has ended its classes have no exemplars, so an evaluation meanwhile uses the outputs f.
`--opt_wd` is the optimiser's weight decay and takes the place of `--optim_wd`.

Reference: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", algorithms 1-5.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.exemplars import Exemplars, class_means, features_of, nearest_mean_scores
from palimpsest.utils.args import non_negative_float
from palimpsest.utils.errors import UserError


class ICaRL(Exemplars):
    NAME = "icarl"
    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("optim_wd", "multi_head")

    @staticmethod
    def get_parser(parser):
        Exemplars.get_parser(parser)
        parser.add_argument("--opt_wd", type=non_negative_float, default=1e-5, help="weight decay of the optimiser")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("means", None)

    def get_optimizer(self, params=None, lr=None):
        optimizer = super().get_optimizer(params, lr)
        for group in optimizer.param_groups:
            if self.args.opt_wd and "weight_decay" not in group:
                raise UserError(f"--optimizer {self.args.optimizer} has no weight decay: give --opt_wd 0 with it")
            group["weight_decay"] = self.args.opt_wd
        return optimizer

    def begin_task(self, dataset):
        super().begin_task(dataset)
        self.means = None

    def end_task(self, dataset):
        super().end_task(dataset)
        examples, labels = self.buffer.get_all_data()
        self.means = class_means(features_of(self, examples), labels, self.net.num_classes)

    def forward(self, x):
        if self.means is None:
            return self.net(x)
        return nearest_mean_scores(self.net.features(x), self.means)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past, seen = self.n_past_classes, self.n_seen_classes
        targets = F.one_hot(labels, seen).to(inputs.dtype)
        if self.teacher:
            with torch.no_grad():
                targets[:, :past] = torch.sigmoid(self.teacher(inputs)[:, :past])
        return self.step_on(F.binary_cross_entropy_with_logits(self.net(inputs)[:, :seen], targets))
