"""What a run has learned, to be used: predictions with the stream's own preprocessing and the classes' own names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.checks import tensor_of
from palimpsest.datasets.utils.own.images import decode, pixels_of
from palimpsest.utils import identity
from palimpsest.utils.config_file import read_config
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.evaluation import eval_mode, scenarios
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.config import from_stored
from palimpsest.utils.run.experiment import build

BATCH = 256


@dataclass(frozen=True)
class Predictions:
    """What a method says of N inputs.

    Attributes:
        outputs: of the C classes that compete, (N, C), of sequences (N, L, C); elsewhere what the network says,
            (N, ...).
        classes: of the columns of `outputs`, their original labels; empty where the tasks have no classes.
        names: of these classes.
    """

    outputs: np.ndarray
    classes: list[int]
    names: list[str]

    @property
    def labels(self) -> np.ndarray:
        """(N,) or (N, L) original labels; elsewhere than in classification the outputs themselves."""
        return np.asarray(self.classes)[self.outputs.argmax(-1)] if self.classes else self.outputs

    @property
    def labels_by_name(self) -> list[str]:
        """N names of classes, of sequences N lists of them."""
        return np.asarray(self.names)[self.outputs.argmax(-1)].tolist()

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the outputs, of their shape, in float64. A method whose outputs are no logits (distances to class
        means) gives numbers that only keep their order.
        """
        shifted = np.exp(self.outputs.astype(np.float64) - self.outputs.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)


class Predictor:
    """A method that has learned, and what surrounds it when it predicts.

    Args:
        model: the method.
        dataset: its stream.
        trained: last task trained.
        labels: original label of each class of the stream.
        names: of these classes.
    """

    def __init__(self, model, dataset, trained: int, labels: list[int], names: list[str]):
        self.model, self.dataset, self.trained, self.labels, self.names = model, dataset, trained, labels, names

    def inputs(self, given: Any) -> Tensor:
        """Network inputs (N, ...) of what `predict` takes."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What an export says besides the classes: 'stream', 'network', 'input'."""
        raise NotImplementedError

    def size(self) -> tuple[int, ...] | None:
        """Shape of a network input of numbers with a fraction; None for others."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """Of the network, by the names that an export gives them."""
        return self.model.net.state_dict()

    def compete(self, task: int | None) -> tuple[str, list[int]]:
        """The scenario in which something is predicted, and the classes (labels in the stream) that compete there.

        Args:
            task: the inputs are known to be of this task; None for any of the tasks trained.

        Raises:
            UserError: the method has to be told the task, or there is no such task.
        """
        known, tasks = scenarios(self.model, self.dataset), self.dataset.tasks
        if task is not None and not 0 <= task < len(tasks):
            raise UserError(f"task {task}: {self.dataset.NAME} has tasks 0 to {len(tasks) - 1}")
        told = "task-il" in known and task is not None
        scenario = "task-il" if told else next((name for name in known if name != "task-il"), None)
        if scenario is None or (task is None and tasks[self.trained].branch):
            raise UserError(f"{self.model.NAME} is told the task of what it predicts on this stream: give the task")
        spec, last = tasks[self.trained if task is None else task], tasks[self.trained]
        score = spec.score(last if scenario == "class-il" else None)
        if not hasattr(score, "competing"):
            return scenario, []
        return scenario, score.competing(self.dataset.N_CLASSES)

    @torch.no_grad()
    def predict(self, images: Any, task: int | None = None, batch_size: int = BATCH) -> Predictions:
        """What the method says of inputs, in eval mode.

        Args:
            images: see `inputs`.
            task: of the inputs where it is known (task-IL), None where any task trained may be meant (class-IL).
            batch_size: inputs at once. PAH's predictions depend on what else is in the batch.

        Raises:
            UserError: inputs that the stream cannot have; a method that has to be told the task.
        """
        scenario, classes = self.compete(task)
        inputs = self.inputs(images)
        with eval_mode(self.model):
            parts = [self.outputs(part, task, scenario) for part in inputs.split(batch_size)]
        outputs = torch.cat(parts).float().cpu().numpy()
        if not classes:
            return Predictions(outputs, [], [])
        return Predictions(outputs[..., classes], [self.labels[c] for c in classes], [self.names[c] for c in classes])

    def outputs(self, inputs: Tensor, task: int | None, scenario: str) -> Tensor:
        """What the method says of network inputs (N, ...), all outputs of the network."""
        at = self.trained if task is None else task
        low = getattr(self.dataset.tasks[at], "low", None)
        if low is None:  # of a regression stream; what is measured against these labels is not looked at
            unknown = inputs.new_zeros(inputs.shape[0], self.dataset.N_CLASSES)
        else:
            unknown = torch.full((inputs.shape[0],), low, dtype=torch.int64, device=inputs.device)
        return self.model.evaluate_batch(inputs, unknown, at, [scenario])[0][scenario]


class Learned(Predictor):
    """A run's method and stream as they were at its end, or where its newest checkpoint was saved.

    Args:
        folder: of the run, or one of its checkpoint files.
        device: as `--device`.
        base_path: where the stream's data are; where they were by default.

    Attributes:
        model: the method, in eval mode.
        dataset: the stream.
        trained: last task trained.
        names: of the classes, by their label in the stream; '' where there are none.

    Raises:
        UserError: no run's folder, no whole checkpoint, data or method files that are not there.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", base_path: str | Path | None = None):
        if not Path(folder).exists():
            raise UserError(f"{folder} does not exist: give a run's folder")
        path = checkpoint.find(folder)
        self.folder = path.parent
        facts = read_config(self.folder / "config.yaml")
        options = facts["options"] | {"device": device, "resume": False, "loadcheck": None, "inference_only": False}
        # The weights it began with are not those it has now.
        start = {"pretrained": "none" if isinstance(options.get("pretrained"), str) else False, "pretrained_path": None}
        options |= {name: value for name, value in start.items() if name in options}
        argv = ["--disable_log", "--non_verbose"]
        argv += ["--base_path", str(base_path or options.get("base_path", "data"))]
        for kind, fact in zip(("model", "dataset", "backbone"), identity.FILES, strict=True):
            file = identity.place(str(facts["environment"].get(fact, "")))
            if Path(file).is_absolute():  # a file of somebody's own
                argv += [f"--{kind}", file]
        self.exp = build(from_stored(options, argv, self.folder / "config.yaml"))
        self.model, self.dataset = self.exp.model, self.exp.dataset
        position = checkpoint.restore(checkpoint.load(path), self.exp, exact=False)
        stage = max(position.task - (not position.inside), 0)
        self.dataset.enter_task(stage)
        self.model.eval()
        order = getattr(self.dataset, "class_order", None) or range(getattr(self.dataset, "N_CLASSES", 0))
        names, labels = getattr(self.dataset, "class_names", None), [int(label) for label in order]
        named = [str(names[label] if names else label) for label in labels]
        super().__init__(self.model, self.dataset, self.dataset.stages[stage][-1], labels, named)

    def facts(self) -> dict[str, Any]:
        dataset = self.dataset
        what = {
            "kind": dataset.INPUT,
            "size": list(dataset.SIZE),
            "range": "pixels in [0, 1], then (x - mean) / std per channel",
            "mean": dataset.mean and list(dataset.mean),
            "std": dataset.std and list(dataset.std),
        }
        return {"stream": dataset.NAME, "network": self.exp.args.backbone, "input": what}

    def size(self) -> tuple[int, ...] | None:
        return None if self.dataset.INPUT == "tokens" else tuple(self.dataset.SIZE)

    def inputs(self, images: Any) -> Tensor:
        """Network inputs (N, ...) of what `predict` takes.

        Args:
            images: paths, PIL images, or one array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W), uint8 or float in
                [0, 1]; brought to the stream's size, files and PIL images by their shorter side and a cut of the
                centre. Of a stream of vectors or tokens (N, D), as its source gives them.
        """
        size, normalize = self.dataset.SIZE, self.dataset.get_normalization_transform()
        if self.dataset.INPUT != "images":
            values = torch.as_tensor(np.asarray(images))
            if values.ndim != 2 or values.shape[1] != size[0]:
                raise UserError(f"inputs of shape {tuple(values.shape)}: {self.dataset.NAME} takes (N, {size[0]})")
            return normalize(values.float()).to(self.model.device)
        if isinstance(images, str | Path) or not hasattr(images, "__len__"):
            images = [images]  # one file or picture
        if isinstance(images, Sequence):
            images = torch.stack([_read(image, size) for image in images])
        raw = _as_batch(tensor_of("predict", "images", images), size, self.dataset.NAME)
        return normalize(raw.to(self.model.device))


def _read(image: Any, size: tuple[int, int, int]) -> Tensor:
    """One image as (C, H, W) uint8 of the stream's size, files as the streams of one's own images read them."""
    from PIL import Image

    if isinstance(image, np.ndarray | Tensor):
        return _as_batch(torch.as_tensor(image)[None], size, "the stream")[0]
    channels, height, width = size
    try:
        if isinstance(image, Image.Image):
            pixels = pixels_of(image, min(height, width), channels)
        else:
            pixels = decode(Path(image).read_bytes(), min(height, width), channels)
    except Exception as e:  # whatever Pillow raises of what is no image
        raise UserError(f"{image} cannot be read as an image: {one_line(e)}") from None
    return _as_batch(torch.from_numpy(pixels.copy())[None], size, "the stream")[0]


def _as_batch(values: Tensor, size: tuple[int, int, int], name: str) -> Tensor:
    """(N, C, H, W), uint8 or float in [0, 1], of the stream's size."""
    if values.ndim == 3 and size[0] == 1:
        values = values[:, None]
    if values.ndim == 4 and values.shape[1] != size[0] and values.shape[3] == size[0]:
        values = values.permute(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] != size[0]:
        raise UserError(f"images of shape {tuple(values.shape)}: {name} takes (N, {', '.join(map(str, size))})")
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise UserError(f"images of {values.dtype}: expected uint8 in 0..255 or floats in 0..1")
    if values.is_floating_point() and values.numel() and not (values.min() >= 0 and values.max() <= 1):
        raise UserError(f"float images from {values.min():g} to {values.max():g}: expected 0..1")
    values = values.float() if values.is_floating_point() else values
    if values.shape[2:] != torch.Size(size[1:]):
        scaled = values if values.is_floating_point() else values.float() / 255
        values = torch.nn.functional.interpolate(scaled, size[1:], mode="bilinear", antialias=True).clamp(0, 1)
    return values
