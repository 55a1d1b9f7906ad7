"""Bias correction: distillation over old data and new, then one affine map of the new classes' logits, fitted on
held-out examples of which every class has equally many.

stage 1  L = (1 - lambda) CE(f(x), y) + lambda CE(softmax(f^(x) / T), softmax(f(x) / T)),  lambda = n_old / n_seen
         over the union of new data and exemplars; the second term is over old classes, f^ the network before the task
stage 2  f, then alpha and beta alone:  CE([f_old(x), alpha f_new(x) + beta], y)  on the validation examples
         prediction: the logits so corrected; so are those of f^
stage 1 has `+ wd_reg ||theta||^2`.

A tenth of every class's exemplars are for validation: held out when the class was new, the network never
learns from them. As many examples of each new class are held out, drawn by the seed. Exemplars are drawn at random.

Deviations: stage 2 sees images without augmentation, its logits are computed once; Adam with learning rate 0.001 fits
alpha and beta. An evaluation within a task is not corrected.

Reference: Wu et al. 2019, "Large Scale Incremental Learning", sections 3 and 4, equations 1-6.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.exemplars import Exemplars, features_of, refill, share
from palimpsest.utils.args import non_negative_float, non_negative_int
from palimpsest.utils.randomness import permutation, seed_of

VALIDATION, TEMPERATURE = 0.1, 2.0  # share of the exemplars, T: those of the paper


class BiC(Exemplars):
    NAME = "bic"
    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("multi_head",)
    LEAST_PER_CLASS = 2  # one is for validation

    @staticmethod
    def get_parser(parser):
        add = Exemplars.get_parser(parser).add_argument
        add("--bic_epochs", type=non_negative_int, default=250, help="epochs of stage 2")
        add("--wd_reg", type=non_negative_float, default=0.0, help="weight of the parameters' squared norm")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        # Factor and summand of every logit: now, and of the teacher's.
        identity = torch.stack((torch.ones(backbone.num_classes), torch.zeros(backbone.num_classes)))
        self.register_buffer("correction", identity.to(self.device))
        self.register_buffer("old_correction", identity.to(self.device))

    def held_out(self, n):
        """Which of n exemplars of a class are for validation (n,) bool; those of fewer exemplars are among them."""
        i = torch.arange(n, dtype=torch.float64)
        return (i * VALIDATION).floor() > ((i - 1) * VALIDATION).floor()

    def split(self, labels):
        """(training, held-out) positions of each class of a task, shuffled by the seed."""
        parts, classes = [], labels.unique().tolist()
        for c in classes:
            rows = (labels == c).nonzero().squeeze(1)
            rows = rows[permutation(len(rows), seed_of(self.args, "data"), "exemplars", c).to(rows.device)]
            held_out = self.n_held_out(len(rows), self.sizes, len(classes))
            parts.append((rows[held_out:], rows[:held_out]))
        return parts

    def n_held_out(self, n, sizes, n_classes):
        """How many of n examples of a new class are for validation, given the exemplars of the classes before."""
        quota = max(sizes) if sizes else share(self.buffer, n_classes)
        return int(self.held_out(min(quota, n)).sum())

    def union_size(self, counts, sizes):
        own = sum(n - self.n_held_out(n, sizes, len(counts)) for n in counts)
        return own + sum(int((~self.held_out(n)).sum()) for n in sizes)

    def training_rows(self, data):
        return torch.cat([training for training, _ in self.split(data.targets)])

    def begin_task(self, dataset):
        super().begin_task(dataset)
        if self.teacher:
            self.old_correction = self.correction.clone()
            self.correction[0], self.correction[1] = 1, 0

    def extra_examples(self):
        return self.buffer.get_data_by_index(self.slots(validation=False))[:2] if self.sizes else None

    def slots(self, validation):
        """The buffer's rows that are for validation, or those that are not."""
        held_out = torch.cat([torch.zeros(0, dtype=torch.bool), *map(self.held_out, self.sizes)])
        return (held_out == validation).nonzero().squeeze(1)

    def end_task(self, dataset):
        data = dataset.task_data(self.current_task)
        images, labels = data.data, data.targets
        parts = self.split(labels)
        if self.sizes:
            old, old_labels = self.buffer.get_data_by_index(self.slots(validation=True))
            new = torch.cat([held_out for _, held_out in parts])
            x = torch.cat((old, images[new].to(old.device)))
            self.fit(x, torch.cat((old_labels, labels[new].to(old.device))))
        n, chosen = share(self.buffer, self.n_seen_classes), []
        for training, held_out in parts:
            rows = training.new_empty(min(n, len(training) + len(held_out)))
            mask = self.held_out(len(rows)).to(rows.device)
            rows[mask], rows[~mask] = held_out[: mask.sum()], training[: (~mask).sum()]
            chosen.append({"examples": images[rows], "labels": labels[rows]})
        self.sizes = refill(self.buffer, self.sizes, n, chosen)

    def fit(self, images, labels):
        """Stage 2: fit the new classes' factor and summand."""
        past, seen = self.n_past_classes, self.n_seen_classes
        with torch.no_grad():
            logits = self.net.classifier(features_of(self, images))[:, :seen]
        affine = torch.tensor([1.0, 0.0], device=self.device, requires_grad=True)
        optimizer = torch.optim.Adam([affine], lr=0.001)
        for _ in range(self.args.bic_epochs):
            for rows in torch.randperm(len(logits)).to(self.device).split(self.args.batch_size):
                z = logits[rows]
                corrected = torch.cat((z[:, :past], affine[0] * z[:, past:] + affine[1]), dim=1)
                optimizer.zero_grad()
                self.loss(corrected, labels[rows]).backward()
                optimizer.step()
        self.correction[:, past:seen] = affine.detach().unsqueeze(1)

    def forward(self, x):
        return self.net(x) * self.correction[0] + self.correction[1]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past, seen = self.n_past_classes, self.n_seen_classes
        logits = self.net(inputs)
        terms = {"ce": (1 - past / seen) * self.loss(logits[:, :seen], labels)}
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher(inputs) * self.old_correction[0] + self.old_correction[1]
            soft = torch.softmax(taught[:, :past] / TEMPERATURE, dim=1)
            terms["kd"] = past / seen * F.cross_entropy(logits[:, :past] / TEMPERATURE, soft)
        if self.args.wd_reg:
            terms["wd"] = self.args.wd_reg * sum(p.square().sum() for p in self.net.parameters())
        return self.step_on(terms)
