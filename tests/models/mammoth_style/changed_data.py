"""Changes the data it is trained on: replayed rows join the task's, and each example brings the logits of an older
network. A validation part is split off, statistics of normalisation are kept.
"""

from copy import deepcopy

import torch
from torch.nn import functional as F
from utils.batch_norm import bn_track_stats

from backbone import get_backbone
from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer, fill_buffer, icarl_replay


class ChangedData(ContinualModel):
    NAME = "changed_data"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument("--strength", type=float, default=0.5, help="weight of the older network")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size)
        self.old_net = get_backbone(self.args).to(self.device)

    def begin_task(self, dataset):
        if self.current_task == 0:
            return
        icarl_replay(self, dataset, val_set_split=0.1)
        rows = dataset.train_loader.dataset
        with torch.no_grad():
            raw = torch.stack([rows[i][2] for i in range(len(rows))])
            rows.logits = self.old_net(dataset.get_normalization_transform()(raw.to(self.device))).cpu()
        rows.extra_return_fields += ("logits",)

    def end_task(self, dataset):
        if self.current_task > 0:
            with torch.no_grad(), bn_track_stats(self, False):
                self.held_loss = sum(float(self.loss(self.net(x), y)) for x, y, _ in self.val_loader)
        self.old_net = deepcopy(self.net.eval())
        self.net.train()
        fill_buffer(self.buffer, dataset, self.current_task, net=self.net, use_herding=True)

    def observe(self, inputs, labels, not_aug_inputs, logits=None, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)
        loss = self.loss(outputs[:, : self.n_seen_classes], labels)
        if logits is not None:
            old = slice(0, self.n_past_classes)
            loss += self.args.strength * F.mse_loss(outputs[:, old], logits[:, old])
        loss.backward()
        self.opt.step()
        return loss.item()
