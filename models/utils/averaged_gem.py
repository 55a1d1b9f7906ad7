"""The step of averaged GEM, for both of its memories."""

from models.utils.continual_model import ContinualModel
from models.utils.episodic import gradient_at
from models.utils.projection import project_one
from utils.args import add_rehearsal_args
from utils.buffer import Buffer


class AveragedGEM(ContinualModel):
    """g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  where <g, g_ref> < 0, else g.

    g_ref is the gradient of the loss on `--minibatch_size` examples of the buffer, which a subclass fills. Chaudhry et
    al. 2019, "Efficient Lifelong Learning with A-GEM", equation 11.
    """

    KINDS = ["classification", "language", "regression"]

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        reference = None
        if not self.buffer.is_empty():
            reference = gradient_at(self, *self.buffer.get_data(self.args.minibatch_size))
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        if reference is not None:
            self.net.set_grads(project_one(self.net.get_grads(), reference))
        self.opt.step()
        return loss
