"""DER++ with one draw per step and a buffer of correctly classified images: DYNAMOS without gates.

    L = CE(f(x), y) + alpha MSE(f(x'), z') + beta CE(f(x'), y')          one draw for both terms

The baseline that DYNAMOS is to be compared with: the same network without gates, the same replay, the same rule of
admission. `--second_draw` takes the labels from a draw of their own, as DER++ does.

Reference: Buzzega et al. 2020, "Dark Experience for General Continual Learning"; Varma, Arani, Zonooz 2023, in whose
code it is `multi_scale`.
"""

import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.args import add_bool, add_rehearsal_args, non_negative_float
from utils.buffer import SelectiveBuffer


class DERppSingle(ContinualModel):
    NAME = "derpp_single"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    DEFAULTS = {"backbone": "gated-resnet"}

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative_float, required=True, help="weight of the replayed logits")
        parser.add_argument("--beta", type=non_negative_float, required=True, help="weight of the replayed labels")
        add_bool(parser, "--second_draw", help="replay labels in a pass and from a draw of their own")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = SelectiveBuffer(args.buffer_size, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        args = self.args
        self.opt.zero_grad()
        logits = self.net(inputs)
        terms = {"ce": self.loss(logits, labels)}
        if self.buffer.num_seen_examples:
            some = self.buffer.num_admitted > 0  # where no answer was right so far, nothing is replayed
            replayed, y, z = self.buffer.get_data(args.minibatch_size, transform=self.transform)
            new_logits = self.net(replayed)
            terms["logits"] = some * args.alpha * F.mse_loss(new_logits, z)
            if args.second_draw:
                replayed, y, _ = self.buffer.get_data(args.minibatch_size, transform=self.transform)
                new_logits = self.net(replayed)
            terms["replay"] = some * args.beta * self.loss(new_logits, y)
        loss = sum(terms.values())
        loss.backward()
        self.opt.step()
        logits = logits.detach()
        self.buffer.add_data(not_aug_inputs, admitted=logits.argmax(1) == labels, labels=labels, logits=logits)
        return {"loss": loss, **terms}
