"""A-GEM with a reservoir: the step may not raise the loss on a batch drawn from a reservoir of all past examples.

    g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  where <g, g_ref> < 0,  else g

Unlike `agem` it knows no task boundaries, and the memory holds examples of the current task too.

References: Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", equation 11; the reservoir as in Buzzega
et al. 2020.
"""

from palimpsest.models.utils.averaged_gem import AveragedGEM


class AGEMReservoir(AveragedGEM):
    NAME = "agem_r"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        loss = super().observe(inputs, labels, not_aug_inputs)
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss
