"""Replay whose buffer keeps rows by their loss, with contrastive views, cut-mix, and an option that the runner has
too.
"""

import torch
from torch.nn import functional as F
from utils.augmentations import apply_transform, cutmix_data, strong_aug
from utils.simclrloss import SupConLoss
from utils.status import progress_bar

from models.utils.continual_model import ContinualModel
from utils import binary_to_boolean_type, none_or_float
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer


class LossAware(ContinualModel):
    NAME = "loss_aware"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser() -> ArgumentParser:
        parser = ArgumentParser(description="replay that looks at losses")
        add_rehearsal_args(parser)
        parser.add_argument("--clip_grad", type=none_or_float, default=None, help="norm of the gradient")
        parser.add_argument("--views", type=binary_to_boolean_type, default=1, help="contrastive views")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size, device=self.device, sample_selection_strategy="labrs")
        denorm = self.dataset.get_denormalization_transform()
        self.views = strong_aug(self.dataset.SIZE, denorm.mean, denorm.std)
        self.contrast = SupConLoss(temperature=5, base_temperature=5)

    def begin_epoch(self, epoch, dataset):
        progress_bar(0, len(dataset.train_loader), epoch, self.current_task, 0.0)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, **kwargs):
        self.opt.zero_grad()
        n = len(inputs)
        mixed, first, second, share = cutmix_data(inputs, labels, alpha=1.0)
        loss = share * self.loss(self.net(mixed), first) + (1 - share) * self.loss(self.net(mixed), second)
        scores = self.loss(self.net(inputs), labels, reduction="none")
        if self.args.views:
            views = self.views(not_aug_inputs.repeat_interleave(2, 0)).to(self.device)
            features = F.normalize(self.net(views, returnt="features").view(n, 2, -1), dim=2)
            loss += 0.01 * self.contrast(features=features, labels=labels)
        if not self.buffer.is_empty():
            index, plain, images, old = self.buffer.get_data(
                self.args.minibatch_size, transform=self.transform, return_index=True, return_not_aug=True
            )
            old_scores = self.loss(self.net(images), old, reduction="none")
            loss += old_scores.mean()
            with torch.no_grad():
                self.net(apply_transform(plain, self.normalization_transform))
            self.buffer.sample_selection_fn.update(index, -old_scores.detach())
        (loss + scores.mean()).backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels, sample_selection_scores=-scores.detach())
        return loss.item()
