"""Averaged GEM: the step may not raise, to first order, the loss on a batch drawn from the memory of all past tasks.

    g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  where <g, g_ref> < 0,  else g

g_ref is the gradient of CE on `--minibatch_size` examples of an episodic memory with an equal share for every past
task. Only the average constraint is kept, not that of each task.

Reference: Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", equation 11.
"""

from palimpsest.models.utils.averaged_gem import AveragedGEM
from palimpsest.models.utils.episodic import EpisodicMemory


class AGEM(AveragedGEM, EpisodicMemory):
    NAME = "agem"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
