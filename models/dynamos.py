"""DYNAMOS: agents keep or drop channels for each image, learned by REINFORCE; logits, labels and vectors are replayed.

    L = CE(f(x), y) + w_r PG + w_p P                                                    on the batch
      + alpha MSE(f(x'), z') + alpha_p MSE(v(x'), v')                                   on one draw from the buffer
      + beta (CE(f(x'), y') + w_r PG') + w_p P'

    PG = mean of -log p(a) R over images and agents,  R = -(kappa - kept)^2, times lambda where the answer was wrong
    P  = (1 + S_same / A) / (1 + S_diff / A),  S the sum of ||v_i - v_j||^2 over pairs of correctly answered images

Per image and agent, a are the actions on the channels, kept their mean and v the agent's vector
(`backbone/gated_resnet.py`); z' and v' were stored with x'. Only images that were classified correctly enter the
buffer. Batch and draw are two passes, each with its own BatchNorm statistics and actions. Neither tasks nor their
boundaries are used. With `--warmup` the first iterations are CE alone, without gates, replay or storing.

The label enters R as a factor alone; what is best for an agent is to keep the share kappa, whatever the answer. PG is
never above 0 and dominates the loss, which is therefore no measure of progress: look at the terms.

Reference: Varma, Arani, Zonooz 2023, "Dynamically Modular and Sparse General Continual Learning", VISAPP,
arXiv 2301.00620.
"""

import torch.nn.functional as F

from palimpsest.models.utils.gates.gated import GatedModel, add_gate_args
from palimpsest.utils.args import add_rehearsal_args, non_negative_float
from palimpsest.utils.buffer import SelectiveBuffer


class Dynamos(GatedModel):
    NAME = "dynamos"
    COMPATIBILITY = ["class-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        add = parser.add_argument
        add("--alpha", type=non_negative_float, required=True, help="weight of the replayed logits")
        add("--beta", type=non_negative_float, required=True, help="weight of replayed labels and of their policy loss")
        add("--policy_alpha", type=non_negative_float, default=0.2, help="weight of the replayed policy vectors")
        return add_gate_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = SelectiveBuffer(args.buffer_size, self.device)

    def replayed_terms(self):
        if not self.buffer.num_seen_examples:
            return {}
        args = self.args
        replayed, y, z, v = self.buffer.get_data(args.minibatch_size, transform=self.transform)
        logits, trace = self.net.traced(replayed)
        some = self.buffer.num_admitted > 0  # where no answer was right so far, nothing is replayed
        old = self.pass_terms(logits, trace, y)
        return {
            "logits": some * args.alpha * F.mse_loss(logits, z),
            "vectors": some * args.policy_alpha * F.mse_loss(trace.v, v),
            "replay": some * args.beta * old["ce"],
            "replay_policy": some * args.beta * old["policy"],
            "replay_prototype": some * old["prototype"],
        }

    def store(self, raw, labels, logits, vectors):
        self.buffer.add_data(raw, admitted=logits.argmax(1) == labels, labels=labels, logits=logits, vectors=vectors)
