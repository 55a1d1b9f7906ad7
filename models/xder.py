"""X-DER: dark replay in which stored logits learn of later classes, and heads of later tasks are prepared.

L = CE(f_present(x), y) + alpha ||f(x') - z'||^2 + beta CE(f_past(x''), y'')
    + lambd / H sum_{h future} mean_i SupCon_i(f_h)
    + constr_eta [max p_past(x) + m - max p_present(x)]+  + constr_eta [max f_future + m - max f_own]+

f_present, f_past and f_future are the logits of the task in training, of those before and after it; p is the softmax
over the classes seen, [.]+ the mean over the rows where it is positive, m `--constr_margin`. The last constraint is
over the batch and both replays, f_own the head of an example's own task. The squared norm is the mean over the batch
and the classes, z' the stored logits.

SupCon_i = -1/|P_i| sum_{p in P_i} log softmax_{a != i}(<v_i, v_a> / T)_p over the views of the batch and of a replay,
`--simclr_num_aug` of each, v a future head's normalised logits, P_i the other views with i's label, T `--simclr_temp`.

z' is kept up to date. A stored logit vector has its past part from the end of its own task, and whenever a later task
draws it, with probability 1/k at the k-th draw, and at that task's end, the part from that task on is implanted: taken
from the network's present output, scaled to at most gamma times the label's logit. When a task ends every class gets
an equal share of the buffer, at random.

Deviations: views are made by the stream's transform, not by a stronger one: without augmentation they are identical and
only labels pull. Logits are stored in eval mode from images without augmentation. The scale of an implant is between 0
and 1: a negative label logit would otherwise turn its signs. Rows drawn by both replays count twice.

Reference: Boschini et al. 2022, "Class-Incremental Continual Learning into the eXtended DER-verse", sections 4 and 5.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F

from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.models.utils.extended_dark import ExtendedDark
from palimpsest.utils.args import non_negative_float, positive_float, positive_int


class XDER(ExtendedDark):
    NAME = "xder"

    @staticmethod
    def get_parser(parser):
        add = ExtendedDark.get_parser(parser).add_argument
        add("--lambd", type=non_negative_float, default=0.05, help="weight of future heads' preparation")
        add("--simclr_temp", type=positive_float, default=5.0, help="temperature T there")
        add("--simclr_batch_size", type=positive_int, default=64, help="stream and replayed images, each")
        add("--simclr_num_aug", type=positive_int, default=2, help="views of an image")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past, seen = self.n_past_classes, self.n_seen_classes
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits[:, past:seen], labels - past)}
        terms |= self.dark_terms(logits) | self.past_constraint(logits)
        if self.n_remaining_classes and self.args.lambd:
            terms["consistency"] = self.args.lambd * self.consistency(not_aug_inputs, labels)
        return self.step_on(terms)

    def consistency(self, images, labels):
        """SupCon, mean over views and future heads."""
        size, n_views = self.args.simclr_batch_size, self.args.simclr_num_aug
        images, labels = images[:size], labels[:size]
        if not self.buffer.is_empty():
            replayed, replayed_labels, _ = self.buffer.get_data(size)
            images, labels = torch.cat((replayed, images)), torch.cat((replayed_labels, labels))
        labels = labels.repeat_interleave(n_views)
        with batchnorm_mode(self.net, batch_statistics=True):
            logits = self.net(self.transform(images.repeat_interleave(n_views, 0)))
        widths = [self.dataset.cpt(t) for t in range(self.current_task + 1, self.n_tasks)]
        heads = defaultdict(list)  # those of one width in one call
        for width, head in zip(widths, logits[:, self.n_seen_classes :].split(widths, dim=1), strict=True):
            heads[width].append(head)
        return torch.cat([supcon(torch.stack(part), labels, self.args.simclr_temp) for part in heads.values()]).mean()


def supcon(outputs, labels, temperature):
    """Supervised contrastive loss of outputs (H, B, d) of H heads, (H,), mean over the rows; a row without a partner
    counts 0.

    Reference: Khosla et al. 2020, "Supervised Contrastive Learning", equation 2.
    """
    v = F.normalize(outputs, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=v.device)
    log_p = torch.log_softmax((v @ v.mT / temperature).masked_fill(itself, -torch.inf), dim=-1)
    partners = (labels == labels.unsqueeze(1)) & ~itself
    return -(log_p.masked_fill(~partners, 0).sum(-1) / partners.sum(-1).clamp(min=1)).mean(-1)
