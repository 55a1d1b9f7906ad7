"""Continual learning of one's own network on one's own loaders: `from palimpsest.trainer import ContinualTrainer`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from palimpsest.backbone.utils.wrapped import output_shape
from palimpsest.datasets.utils.given_batches import as_tensor, read_inputs
from palimpsest.export import export
from palimpsest.learned import BATCH, Predictions, Predictor
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.trainer import Trainer

__all__ = ["ContinualTrainer", "Predictions"]


class ContinualTrainer(Trainer):
    __doc__ = Trainer.__doc__

    def predict(self, inputs: Any, task: int | None = None, batch_size: int = BATCH) -> Predictions:
        """What the network says of inputs after the tasks learned so far, as it is scored by.

        Args:
            inputs: (N, ...), a tensor, an array or a list of numbers, in the form in which the loaders give them.
            task: of the inputs, where it is known: its classes alone compete. None: those of all tasks learned.
            batch_size: inputs at once.

        Returns:
            Outputs, the labels with which the network was trained, and the names in `class_names`.

        Raises:
            UserError: nothing was learned yet, no such task, inputs that the network does not take, a strategy that
                has to be told the task.
        """
        return _Taught(self, "predict").predict(inputs, task, batch_size)

    def export(self, folder: str | Path, task: int | None = None) -> list[Path]:
        """Write what was learned for other programs: `weights.safetensors`, the state dict of the network that was
        given; `model.json`; and where it can be written `model.onnx`, whose outputs are those of `predict`.

        Args:
            folder: it is made where it does not exist.
            task: as in `predict`; the graph is for inputs of this task.

        Returns:
            The files.

        Raises:
            UserError: as `predict`; safetensors is not installed; a file cannot be written.
        """
        return export(_Taught(self, "export"), folder, task)


class _Taught(Predictor):
    """What a trainer has learned so far."""

    def __init__(self, trainer: ContinualTrainer, call: str):
        learned = trainer.learned_tasks(call)
        labels = [*range(trainer.tasks.N_CLASSES)]
        names = [trainer.class_names.get(label, str(label)) for label in labels]
        super().__init__(trainer.method, trainer.tasks, learned - 1, labels, names)
        self.net = trainer.net

    def compete(self, task: int | None) -> tuple[str, list[int]]:
        if task is not None and not 0 <= task <= self.trained:
            raise UserError(f"task {task} was not learned yet: {self.trained + 1} task(s) were")
        return super().compete(task)

    def inputs(self, given: Any) -> Tensor:
        values, size = as_tensor(given, "inputs"), self.dataset.SIZE
        if values.dim() != 1 + len(size):
            raise UserError(f"inputs of shape {tuple(values.shape)}: expected (N, {', '.join(map(str, size))})")
        values = read_inputs(values, self.dataset.device, self.dataset.dtype)
        output_shape(self.net, values[:1])  # which says in one line what does not fit
        return values

    def facts(self) -> dict[str, Any]:
        what = {"kind": "given", "size": list(self.dataset.SIZE), "range": "as the loaders gave them"}
        return {"stream": self.dataset.NAME, "network": type(self.net).__name__, "input": what}

    def size(self) -> tuple[int, ...] | None:
        return self.dataset.SIZE if self.dataset.floats else None

    def weights(self) -> dict[str, Tensor]:
        return self.net.state_dict()
