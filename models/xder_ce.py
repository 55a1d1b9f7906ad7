"""X-DER with cross-entropy on the future heads: the stream's loss pushes them down instead of preparing them.

L = CE([f_present(x), f_future(x)], y) + alpha ||f(x') - z'||^2 + beta CE(f_past(x''), y'')
    + constr_eta [max p_past(x) + m - max p_present(x)]+  + constr_eta [max f_future + m - max f_own]+

The symbols, and how the stored logits z' are kept up to date, are those of `xder` (models/xder.py), the baseline of
which this is.

Deviation: the buffer is filled when a task ends, the first task's too, where the released code replays from a
reservoir.

Reference: Boschini et al. 2022, "Class-Incremental Continual Learning into the eXtended DER-verse", section 6.
"""

from palimpsest.models.utils.extended_dark import ExtendedDark


class XDERCE(ExtendedDark):
    NAME = "xder_ce"

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past = self.n_past_classes
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits[:, past:], labels - past)}
        return self.step_on(terms | self.dark_terms(logits) | self.past_constraint(logits))
