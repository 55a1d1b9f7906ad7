"""A kind of task that the product does not know, as somebody adds one: a depth map for each image."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.per_task import PerTaskStream
from palimpsest.datasets.utils.task import Task

SIDE, N_TRAIN, N_TEST = 8, 500, 200


class DepthScore:
    """delta_1, the share of pixels whose depth is right within a factor of 1.25, and the root mean squared error."""

    def __init__(self):
        self.right, self.squares, self.n = 0, 0.0, 0

    def add(self, outputs, labels):
        outputs = outputs.view_as(labels)
        depth = outputs.clamp(min=1e-3)
        self.right = self.right + (torch.maximum(depth / labels, labels / depth) < 1.25).sum()
        self.squares = self.squares + (outputs - labels).double().square().sum()
        self.n += labels.numel()

    def result(self):
        return {"delta1": 100 * int(self.right) / self.n, "rmse": (float(self.squares) / self.n) ** 0.5}


class DepthTask(Task):
    """Depth in metres: outputs (B, 64), labels (B, 8, 8), the likelihood of a pixel Gaussian with deviation 1."""

    NAME, METRIC, NOTE = "depth", "delta1", "delta1: percent of pixels whose depth is right within a factor of 1.25"

    def loss(self, outputs, labels):
        return F.l1_loss(outputs.view_as(labels), labels)

    def score(self, last=None):
        return DepthScore()

    def distance(self, outputs, taught, tau, direction="teacher"):
        return F.l1_loss(outputs, taught)

    def sample(self, outputs, labels):
        return outputs.view_as(labels) + torch.randn_like(labels)

    def log_likelihood(self, output, label):
        return -(output.view_as(label) - label).square().sum() / 2


class DepthStream(PerTaskStream):
    """Digits as reliefs of depth 1 to 3 m; near is bright; in haze in the second task."""

    NAME, SETTING, TASK, INPUT = "depth_stream", "domain-il", DepthTask, "images"
    N_TASKS, N_CLASSES_PER_TASK, N_CLASSES, SIZE = 2, SIDE**2, SIDE**2, (1, SIDE, SIDE)
    DEFAULTS = {"backbone": "mnistmlp", "optimizer": "adam", "lr": 0.003, "n_epochs": 30, "batch_size": 50}

    def make_task(self, classes, criterion=None):
        return DepthTask()

    def get_loss(self):
        return DepthTask().loss

    def _splits(self, task):
        ink = torch.from_numpy(load_digits().images[task::2]).float() / 16
        light, depth = (0.5 + ink / 2 if task else ink).unsqueeze(1), 3 - 2 * ink
        return tuple(Split(light[rows], depth[rows]) for rows in (slice(N_TRAIN), slice(N_TRAIN, N_TRAIN + N_TEST)))
