"""Fine-tuning: each task is learned by plain gradient descent, nothing is done against forgetting (lower bound).

L = CE(f(x), y)
"""

from palimpsest.models.utils.plain import PlainTraining


class SGD(PlainTraining):
    NAME = "sgd"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
