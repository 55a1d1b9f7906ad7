"""What methods share that replay past examples: the options, a buffer, a draw from it."""

from torch import Tensor

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils.args import add_rehearsal_args
from palimpsest.utils.buffer import Buffer


class Rehearsal(ContinualModel):
    """A method with `buffer`, which holds `--buffer_size` examples; the subclass decides which, and what they are for.

    Class attributes:
        BUFFER: the kind of buffer.
    """

    BUFFER = Buffer

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = self.BUFFER(args.buffer_size, self.device)

    def draw(self) -> tuple[Tensor, ...]:
        """The fields of `--minibatch_size` stored examples, which are augmented anew."""
        return self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
