"""Small networks, streams and methods for the tests."""

import argparse
import io

import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.datasets.utils.loaders import Split, TrainLoader
from palimpsest.datasets.utils.task import TaskStream
from palimpsest.models.utils import state
from palimpsest.utils.record import Experiment
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import enter_task, train

QUIET = ["--disable_log", "--non_verbose", "--num_threads", "1"]


class Flat(Backbone):
    """Linear classifier on flattened images."""

    NAME = "flat"

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.feature_dim, self.num_classes = in_features, num_classes
        self.classifier = nn.Linear(in_features, num_classes)

    def stages(self, x):
        return [x.flatten(1)]


class FakeStream(TaskStream):
    """What a method asks of a stream, and nothing more."""

    SETTING = "class-il"

    def __init__(self, n_tasks=2, cpt=2, size=(1, 1, 1)):
        self.N_TASKS, self.N_CLASSES_PER_TASK, self.N_CLASSES, self.SIZE = n_tasks, cpt, n_tasks * cpt, size
        self.NAME = "fake"
        classes = [self.get_offsets(t) for t in range(n_tasks)]
        self._set_tasks(classes, classes, multi_head=False)

    def get_loss(self):
        return F.cross_entropy

    def get_normalization_transform(self):
        return lambda x: x.float()

    def get_offsets(self, task):
        return task * self.N_CLASSES_PER_TASK, (task + 1) * self.N_CLASSES_PER_TASK

    def cpt(self, task):
        return self.N_CLASSES_PER_TASK

    def enter_task(self, task):
        """The loader of a task: two white images of each class."""
        labels = torch.arange(*self.get_offsets(task)).repeat(2)
        split = Split(torch.full((len(labels), *self.SIZE), 255, dtype=torch.uint8), labels)
        return TrainLoader(split, torch.arange(len(labels)), 4, lambda x: x, lambda n, epoch: torch.arange(n))

    def task_data(self, task):
        return self.enter_task(task).dataset


def options(model: str, *more: str, dataset: str = "seq-digits") -> argparse.Namespace:
    """Resolved options of a command line."""
    return resolve(["--model", model, "--dataset", dataset, *QUIET, *more]).args


def experiment(model: str, *more: str, dataset: str = "seq-digits") -> Experiment:
    """A built experiment."""
    return build(resolve(["--model", model, "--dataset", dataset, *QUIET, *more]))


def finished(model: str, *more: str, dataset: str = "seq-digits") -> Experiment:
    """A trained experiment."""
    exp = experiment(model, *more, dataset=dataset)
    train(exp)
    return exp


class Command:
    """What the conformance checks ask of a case: a command line to which they add options."""

    def __init__(self, model: str, *argv: str, dataset: str):
        self.argv = ["--model", model, "--dataset", dataset, *QUIET, *argv]

    def config(self, *more: str):
        return resolve([*self.argv, *more])


def enter(model, dataset, task: int):
    """Place a method at the beginning of a task, as the loop does and whatever it has learned until then: the loaders
    of the stream, the method's counts of tasks and classes, its `begin_task`. Returns the method.
    """
    enter_task(model, dataset, task)
    model.meta_begin_task(dataset)
    return model


def learn_task(exp: Experiment, task: int) -> None:
    """One epoch of a task, its beginning and its end included."""
    enter(exp.model, exp.dataset, task)
    for batch in exp.dataset.train_loader:
        exp.model.meta_observe(*batch, 0)
    exp.model.meta_end_task(exp.dataset)


def first_batch(exp: Experiment, task: int = 0):
    """(method, first batch) at the beginning of a task, those before it learned for an epoch each."""
    while exp.model.current_task < task:
        learn_task(exp, exp.model.current_task)
    return enter(exp.model, exp.dataset, task), next(iter(exp.dataset.train_loader))


def clones(parameters) -> list[torch.Tensor]:
    """Detached copies."""
    return [p.detach().clone() for p in parameters]


def small(cls, *more, n_tasks=2, task=0, zero=True):
    """A method at the beginning of a task, around a linear classifier of two inputs and zero or random weights,
    learning rate 0.1, two classes a task.
    """
    torch.manual_seed(0)
    args, net, stream = options(cls.NAME, "--lr", "0.1", *more), Flat(2, 2 * n_tasks), FakeStream(n_tasks, 2, (1, 1, 2))
    if zero:
        net.set_params(torch.zeros_like(net.get_params()))
    return enter(cls(net, F.cross_entropy, args, lambda x: x.float(), stream), stream, task)


def image(*values):
    """Images (B, 1, 1, 2) from a flat list of pixels."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 2)


def reload(module: nn.Module, fresh: nn.Module) -> None:
    """Put a module, a buffer say, into the state of another one, through a file."""
    pair = []
    for part in (module, fresh):
        method = nn.Module()
        method.device, method.part = torch.device("cpu"), part
        pair.append(method)
    file = io.BytesIO()
    state.origin_of(pair[1])
    state.check(pair[0])
    state.write({"model": pair[0]}, file, pair[0])
    file.seek(0)
    state.read_into(pair[1], file, 10**6)
