"""`torch.compile` for `--code_optimization 3`, and a word where a method does not call what is compiled."""

import sys

from torch import nn

from palimpsest.utils.log.events import Logger
from palimpsest.utils.record import Run


class CompiledForward(Logger):
    """Compiles the forward of a network and says it, once, where training steps get on without.

    Methods that take a network's features, go through its layers one by one or generate its weights never call its
    forward, so nothing is compiled for them.

    Args:
        net: the network, as its method gets it.

    Attributes:
        run: gets the note.
    """

    run: Run

    def __init__(self, net: nn.Module):
        net.compile()
        compiled, self.used, self.told = net._compiled_call_impl, False, False

        def noted(*args, **kwargs):
            self.used |= net.training
            return compiled(*args, **kwargs)

        net._compiled_call_impl = noted

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        if not self.used and not self.told:
            self.told = True
            note = f"nothing is compiled: training steps of {self.run.model_name} do not call the network's forward"
            self.run.notes["code_optimization"] = note
            print(f"--code_optimization 3: {note}", file=sys.stderr)
