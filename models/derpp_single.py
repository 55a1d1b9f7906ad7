"""DER++ with one draw per step and a buffer of correctly classified images: DYNAMOS without gates.

    L = CE(f(x), y) + alpha MSE(f(x'), z') + beta CE(f(x'), y')          one draw for both terms

The baseline that DYNAMOS is to be compared with: the same network without gates, the same replay, the same rule of
admission. `--second_draw` takes the labels from a draw of their own, as DER++ does.

Reference: Buzzega et al. 2020, "Dark Experience for General Continual Learning"; Varma, Arani, Zonooz 2023, in whose
code it is `multi_scale`.
"""

import torch.nn.functional as F

from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_bool, add_rehearsal_args, non_negative_float
from palimpsest.utils.buffer import SelectiveBuffer


class DERppSingle(Rehearsal):
    NAME = "derpp_single"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    DEFAULTS = {"backbone": "gated-resnet"}
    BUFFER = SelectiveBuffer

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative_float, required=True, help="weight of the replayed logits")
        parser.add_argument("--beta", type=non_negative_float, required=True, help="weight of the replayed labels")
        add_bool(parser, "--second_draw", help="replay labels in a pass and from a draw of their own")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        args = self.args
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits, labels)}
        if self.buffer.num_seen_examples:
            some = self.buffer.num_admitted > 0  # where no answer was right so far, nothing is replayed
            replayed, y, z = self.draw()
            new_logits = self.net(replayed)
            terms["logits"] = some * args.alpha * F.mse_loss(new_logits, z)
            if args.second_draw:
                replayed, y, _ = self.draw()
                new_logits = self.net(replayed)
            terms["replay"] = some * args.beta * self.loss(new_logits, y)
        logits = logits.detach()
        self.buffer.add_data(not_aug_inputs, admitted=logits.argmax(1) == labels, labels=labels, logits=logits)
        return self.step_on(terms)
