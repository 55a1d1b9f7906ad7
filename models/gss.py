"""Gradient-based Sample Selection, greedy: the buffer prefers examples whose gradients point away from the others'.

    each of `--batch_num` steps:  L = CE(f([x, x']), [y, y']),  (x', y') from the buffer
    then, for the new examples:   c(x) = 1 + max_i cos(g_x, g_i),  i over `--gss_minibatch_size` stored examples

g are gradients of CE in all parameters, in eval mode and without augmentation. While there is room every example is
stored with its score C = c(x). Once the buffer is full nothing changes unless the batch as a whole differs,
c(mean_B g_x) < 1; then each x picks a stored example i with probability C_i / sum C, and takes its place with
probability C_i / (C_i + c(x)).

All examples of a batch decide on the scores before it, and where two take one place the later stays; published is one
after the other.

Reference: Aljundi et al. 2019, "Gradient based sample selection for online continual learning", algorithm 2; the test
of the batch as a whole is from its code.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.fisher import example_gradients, rank_one_layers
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_rehearsal_args, positive_int

FIRST_SCORE = 0.1  # of the batch that finds nothing to be compared with, as in the published code


class GSS(Rehearsal):
    NAME = "gss"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    ALONE = "first batch"
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--gss_minibatch_size", type=positive_int, default=10, help="stored gradients per score")
        parser.add_argument("--batch_num", type=positive_int, default=1, help="steps, each with its own draw")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        losses = []
        for _ in range(self.args.batch_num):
            x, y = inputs, labels
            if not self.buffer.is_empty():
                replayed, replayed_labels, _ = self.draw()
                x, y = torch.cat((x, replayed)), torch.cat((y, replayed_labels))
            losses.append(self.step_on(self.loss(self.net(x), y)).detach())
        self.select(not_aug_inputs, labels)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def select(self, raw, labels):
        """Offer a batch to the buffer."""
        scores, batch_score = self.scores(raw, labels)
        room = self.buffer.buffer_size - len(self.buffer)
        if room:
            self.buffer.add_data(examples=raw[:room], labels=labels[:room], score=scores[:room])
        new = {"examples": raw[room:], "labels": labels[room:], "score": scores[room:]}
        n = len(new["labels"])
        if not n:
            return
        # argmax_i C_i / e_i with e_i ~ Exp(1) is i with probability C_i / sum C.
        stored = self.buffer.score.clamp(min=1e-6)
        picked = (stored / torch.empty(n, len(stored), device=self.device).exponential_()).argmax(1)
        own = stored[picked]
        accepted = (torch.rand(n, device=self.device) * (own + new["score"]) < own) & (batch_score < 1)
        # For each example, the last of the batch that takes the place it picked; -1 if none does.
        rivals = (picked.unsqueeze(1) == picked) & accepted
        last = torch.where(rivals, torch.arange(n, device=self.device), -1).max(1).values
        rows = {name: values[last.clamp(min=0)] for name, values in new.items()}
        self.buffer.replace(picked, last >= 0, **rows)

    def scores(self, raw, labels):
        """c of each example (B,), and of the batch's mean gradient."""
        if self.buffer.is_empty():
            return torch.full((len(raw),), FIRST_SCORE, device=self.device), torch.zeros((), device=self.device)
        stored, stored_labels, _ = self.buffer.get_data(self.args.gss_minibatch_size)
        self.net.eval()
        x = self.normalization_transform(torch.cat((raw, stored)))
        layers, y = rank_one_layers(self.net, x), torch.cat((labels, stored_labels))
        gram = example_gradients(self.net, F.cross_entropy, x, y, layers).gram()
        self.net.train()
        # From the inner products of the gradients, those of the new ones' mean with the others and itself.
        n = len(raw)
        products = torch.cat((gram[:n, n:], gram[:n, n:].mean(0, keepdim=True)))
        squares = torch.cat((gram.diagonal()[:n], gram[:n, :n].mean().unsqueeze(0)))
        lengths, stored_lengths = (s.clamp(min=0).sqrt().clamp(min=1e-12) for s in (squares, gram.diagonal()[n:]))
        c = 1 + (products / (lengths.unsqueeze(1) * stored_lengths)).max(1).values
        return c[:-1], c[-1]
