"""Joint training: one pass of the usual epochs over the data of all tasks together (upper bound).

L = CE(f(x), y),  (x, y) from all tasks
"""

from palimpsest.models.utils.plain import PlainTraining


class Joint(PlainTraining):
    NAME = "joint"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    JOINT = True
