"""DYNAMOS without replay: the same gates and losses on the current batch alone.

    L = CE(f(x), y) + w_r PG + w_p P                    as in `models/dynamos.py`

A control: gates of their own do not keep class-IL from forgetting.

Reference: Varma, Arani, Zonooz 2023, "Dynamically Modular and Sparse General Continual Learning".
"""

from palimpsest.models.utils.gates.gated import GatedModel, add_gate_args


class DynamosSGD(GatedModel):
    NAME = "dynamos_sgd"
    COMPATIBILITY = ["class-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        return add_gate_args(parser)
