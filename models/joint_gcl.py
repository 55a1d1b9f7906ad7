"""Joint training for streams without boundaries: the usual epochs over the whole stream, shuffled (upper bound).

L = CE(f(x), y),  (x, y) from all stages

The reference of the general-continual streams, under the name that the literature's tables have for it; `joint` is
the same over tasks.
"""

from palimpsest.datasets.utils.task import ClassTask
from palimpsest.models.utils.plain import PlainTraining


class JointGCL(PlainTraining):
    NAME = "joint_gcl"
    COMPATIBILITY = ["general-continual"]
    TASKS = (ClassTask,)
    JOINT = True
