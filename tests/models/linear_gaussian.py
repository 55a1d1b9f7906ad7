"""The smallest Bayesian stream: y = w x + noise, whose posteriors are known in closed form."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from backbone.utils.base import Backbone
from datasets.utils.task import RegressionTask, TaskStream
from tests.models.helpers import enter, options
from utils import registry

NOISE, EXAMPLES = 0.5, 8  # standard deviation; x = 1 so many times: precision 32 per task


class OneWeight(Backbone):
    """f(x) = w x."""

    NAME = "one_weight"

    def __init__(self):
        super().__init__()
        self.feature_dim, self.num_classes = 1, 1
        self.classifier = nn.Linear(1, 1, bias=False)

    def stages(self, x):
        return [x]


class LinearStream(TaskStream):
    """Task t: y = targets[t] for x = 1, eight times."""

    NAME, SETTING, TASK, SIGMA = "linear", "domain-il", RegressionTask, NOISE
    N_CLASSES = N_CLASSES_PER_TASK = 1

    def __init__(self, targets):
        self.targets, self.N_TASKS = targets, len(targets)
        self.train_loader = self
        self._set_tasks([(0, 1)] * self.N_TASKS, [(0, 1)] * self.N_TASKS, multi_head=False)

    @property
    def dataset(self):
        return range(EXAMPLES)

    def __iter__(self):
        yield self.batch

    def enter_task(self, task):
        x = torch.ones(EXAMPLES, 1)
        self.batch = x, torch.full((EXAMPLES, 1), float(self.targets[task])), x
        return self

    def get_loss(self):
        return F.mse_loss

    def get_normalization_transform(self):
        return lambda x: x


def posterior(targets) -> tuple[float, float]:
    """Exact mean and standard deviation of w given tasks with these targets, prior N(0, 1)."""
    precision = EXAMPLES / NOISE**2
    return precision * sum(targets) / (1 + precision * len(targets)), (1 + precision * len(targets)) ** -0.5


def learn(method: str, targets, *more: str, steps: int = 700, lr: float = 0.03):
    """A method after all tasks, the learning rate falling as a cosine within each; (model, w of each task after it)."""
    args = options(method, *more, dataset="seq-poly1d")
    stream = LinearStream(targets)
    torch.manual_seed(args.seed)
    args.lr = lr
    model = registry.load("model", method)(OneWeight(), F.mse_loss, args, lambda x: x, stream)
    model.train()
    after = []
    for task in range(len(targets)):
        enter(model, stream, task)
        for step in range(steps):
            for group in model.opt.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            model.meta_observe(*stream.batch, 0)
        model.meta_end_task(stream)
        after.append(weights(model, task))
    return model, after


@torch.no_grad()
def weights(model, task: int, samples: int = 20000) -> tuple[float, float]:
    """Mean and standard deviation of w under the posterior of a task."""
    w = model.weights([task], samples, torch.Generator().manual_seed(0))[0, :, 0]
    return w.mean().item(), w.std().item()
