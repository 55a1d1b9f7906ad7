"""`torch.compile` for `--compile`, and a word where a method does not call what is compiled."""

import sys

from torch import nn

from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.log.events import Logger
from palimpsest.utils.record import Run


class CompiledForward(Logger):
    """Compiles the forward of a network and says it, once, where training steps get on without.

    Methods that take a network's features, go through its layers one by one or generate its weights never call its
    forward, so nothing is compiled for them.

    Args:
        net: the network, as its method gets it.

    Raises:
        UserError: at the first pass, what torch cannot compile.

    Attributes:
        run: gets the note.
    """

    run: Run

    def __init__(self, net: nn.Module):
        net.compile()
        compiled, self.used, self.told = net._compiled_call_impl, False, False

        def noted(*args, **kwargs):
            self.used |= net.training
            try:
                return compiled(*args, **kwargs)
            except RuntimeError as e:
                if not type(e).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
                    raise
                raise UserError(f"--compile: torch cannot compile this network here: {one_line(e)[:200]}") from None

        net._compiled_call_impl = noted

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        if not self.used and not self.told:
            self.told = True
            note = f"nothing is compiled: training steps of {self.run.model_name} do not call the network's forward"
            self.run.notes["compile"] = note
            print(f"--compile: {note}", file=sys.stderr)
