"""Outputs are normalised over the test batch, so that classes are predicted equally often in it."""

from models.utils.continual_model import ContinualModel


class BatchCalibration(ContinualModel):
    NAME = "batch-calibration"
    COMPATIBILITY = ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    def forward(self, x):
        logits = self.net(x)
        return logits if self.training else (logits - logits.mean(0)) / (logits.std(0, correction=0) + 1e-6)
