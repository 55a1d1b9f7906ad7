"""LUCIR: a cosine classifier, features that keep their direction, and a margin between old classes and new.

f_c(x) = eta cos(theta_c, phi(x)), eta learned
L = CE(f(x), y) + lamda_base sqrt(n_old / n_new) mean_B (1 - cos(phi^(x), phi(x)))
    + lamda_mr mean max(0, mr_margin - cos(theta_y, phi(x)) + cos(theta_k, phi(x)))

phi^ is the network before the task. The last mean is over the exemplars of the batch and, for each, the `k_mr` new
classes that score highest. An epoch is one pass over the union of the new data and the herded exemplars. Old theta are
held fixed; new ones start as the mean of their class's normalised features. When a task ends, all theta and eta are
tuned for `--fitting_epochs` on the exemplars alone, of which every class has equally many, at `--lr_finetune`, a tenth
of it in the second half.

Deviations: the features are the backbone's own, so they are non-negative where it ends in a ReLU, which the paper
removes; the last tuning sees images without augmentation.

Reference: Hou et al. 2019, "Learning a Unified Classifier Incrementally via Rebalancing", equations 4-8.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.models.utils.exemplars import Exemplars, features_of
from palimpsest.utils.args import non_negative_float, non_negative_int, positive_float, positive_int


class CosineClassifier(nn.Module):
    """eta * cos(theta_c, phi) of features (B, d): (B, C)."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).uniform_(-1, 1) / math.sqrt(in_features))
        self.eta = nn.Parameter(torch.ones(1))

    def cosine(self, features):
        return F.linear(F.normalize(features), F.normalize(self.weight))

    def forward(self, features):
        return self.eta * self.cosine(features)


class LUCIR(Exemplars):
    NAME = "lucir"
    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        Exemplars.get_parser(parser)
        parser.add_argument("--lamda_base", type=non_negative_float, default=5.0, help="weight of the kept directions")
        parser.add_argument("--lamda_mr", type=non_negative_float, default=1.0, help="weight of the margin")
        parser.add_argument("--k_mr", type=positive_int, default=2, help="new classes kept apart from an exemplar")
        parser.add_argument("--mr_margin", type=non_negative_float, default=0.5, help="margin between the cosines")
        parser.add_argument("--fitting_epochs", type=non_negative_int, default=20, help="epochs on the exemplars alone")
        parser.add_argument("--lr_finetune", type=positive_float, default=0.01, help="learning rate there")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        device = next(backbone.parameters()).device
        backbone.classifier = CosineClassifier(backbone.feature_dim, backbone.num_classes).to(device)
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("old_weight", None)

    @torch.no_grad()
    def begin_task(self, dataset):
        super().begin_task(dataset)
        if not self.teacher:
            return
        data, weight = dataset.task_data(self.current_task), self.net.classifier.weight
        self.old_weight = weight[: self.n_past_classes].clone()
        for c in data.targets.unique().tolist():
            features = features_of(self, data.data[data.targets == c])
            weight[c] = F.normalize(F.normalize(features).mean(0), dim=0) * self.old_weight.norm(dim=1).mean()

    def end_task(self, dataset):
        super().end_task(dataset)
        if self.current_task == 0:
            return
        examples, labels = self.buffer.get_all_data()
        features = features_of(self, examples)
        classifier, epochs, args = self.net.classifier, self.args.fitting_epochs, self.args
        optimizer = torch.optim.SGD(
            classifier.parameters(), args.lr_finetune, args.optim_mom, weight_decay=args.optim_wd
        )
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = args.lr_finetune * (1 if 2 * epoch < epochs else 0.1)
            for rows in torch.randperm(len(labels)).to(self.device).split(args.batch_size):
                optimizer.zero_grad()
                self.loss(classifier(features[rows])[:, : self.n_seen_classes], labels[rows]).backward()
                optimizer.step()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past, seen, args = self.n_past_classes, self.n_seen_classes, self.args
        features = self.net.features(inputs)
        cosines = self.net.classifier.cosine(features)[:, :seen]
        terms = {"ce": self.loss(self.net.classifier.eta * cosines, labels)}
        if self.teacher:
            with torch.no_grad():
                old = self.teacher.copy.features(inputs)
            weight = args.lamda_base * math.sqrt(past / (seen - past))
            terms["direction"] = weight * (1 - F.cosine_similarity(features, old)).mean()
            terms["margin"] = args.lamda_mr * self.margin(cosines, labels)
        terms = self.step_on(terms)
        if self.teacher:
            # By value: momentum and weight decay move rows without a gradient too.
            with torch.no_grad():
                self.net.classifier.weight[:past].copy_(self.old_weight)
        return terms

    def margin(self, cosines, labels):
        """Mean hinge between an exemplar's own class and its nearest new classes; 0 without exemplars."""
        past = self.n_past_classes
        nearest = cosines[:, past:].topk(min(self.args.k_mr, cosines.shape[1] - past)).values
        hinge = F.relu(self.args.mr_margin - cosines.gather(1, labels.unsqueeze(1)) + nearest).mean(1)
        is_old = (labels < past).to(hinge.dtype)
        return (hinge * is_old).sum() / is_old.sum().clamp(min=1)
