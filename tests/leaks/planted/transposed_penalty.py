"""A penalty on what new tasks move outside of a subspace: I - U^T U, which is 0, in place of I - U U^T."""

import torch

from models.utils.continual_model import ContinualModel


class TransposedPenalty(ContinualModel):
    NAME = "transposed-penalty"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.basis, self.before = None, None

    @torch.no_grad()
    def end_task(self, dataset):
        weight = self.net.classifier.weight
        self.basis, self.before = torch.linalg.svd(weight.T, full_matrices=False)[0].clone(), weight.clone()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        loss = self.loss(self.net(inputs), labels)
        if self.basis is not None:
            outside = torch.eye(self.basis.shape[1]) - self.basis.T @ self.basis
            moved = (self.net.classifier.weight - self.before) @ self.basis
            loss = loss + 100 * (moved @ outside).square().sum()
        return self.step_on(loss)
