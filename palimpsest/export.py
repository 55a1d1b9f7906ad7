"""What was learned for other programs: weights as safetensors, what surrounds them as JSON, and the whole as ONNX."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.learned import Predictor
from palimpsest.utils.atomic import file_errors, write_bytes, write_text
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.evaluation import eval_mode

OPSET = 18


class Network(nn.Module):
    """Network inputs (N, ...) -> outputs (N, C) of the classes that compete, as `Predictor.predict` gives them."""

    def __init__(self, learned: Predictor, task: int | None):
        super().__init__()
        self.method = learned.model
        self._learned, self._task = [learned], task  # in a list: no part of this module
        self._scenario, classes = learned.compete(task)
        low = classes[0] if classes else 0
        together = classes == [*range(low, low + len(classes))]
        self._columns = slice(low, classes[-1] + 1) if classes and together else classes or slice(None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._learned[0].outputs(inputs, self._task, self._scenario)[..., self._columns]


def export(learned: Predictor, folder: str | Path, task: int | None = None) -> list[Path]:
    """Write `weights.safetensors`, `model.json` and, where the method's way to predict can be written so, `model.onnx`.

    The JSON says which classes the outputs are, how inputs are made of images, and what the files hold. The weights are
    those of the method's network (`net`). The ONNX graph takes any number of network inputs and gives the outputs of
    the classes that compete; it is kept only if it gives what the method does.

    Args:
        learned: a run, or what a `ContinualTrainer` has learned.
        folder: it is made where it does not exist.
        task: as in `Predictor.predict`.

    Raises:
        UserError: safetensors is not installed; a file cannot be written.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("export needs the package safetensors: pip install 'palimpsest[export]'") from None
    folder = Path(folder)
    network = Network(learned, task).eval()
    _, classes = learned.compete(task)
    facts: dict[str, Any] = {
        "method": learned.model.NAME,
        "tasks_trained": learned.trained + 1,
        "task": task,
        "classes": [{"label": learned.labels[c], "name": learned.names[c]} for c in classes],
        **learned.facts(),
        "weights": "weights.safetensors",
    }
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in learned.weights().items()}
    files = {"weights.safetensors": save(weights)}
    graph, why = _onnx(learned, network)
    facts["onnx"] = "model.onnx" if graph else None
    if graph:
        files["model.onnx"] = graph
    else:
        facts["onnx_missing"] = why
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_text(folder / "model.json", json.dumps(facts, indent=2) + "\n")
    return [folder / name for name in (*files, "model.json")]


def _onnx(learned: Predictor, network: Network) -> tuple[bytes | None, str]:
    """The graph, or None and why there is none."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - which torch's exporter needs
    except ImportError as e:
        return None, f"the package {e.name} is not installed: pip install 'palimpsest[export]'"
    size, device = learned.size(), learned.model.device
    if size is None:
        return None, "the inputs are whole numbers, as tokens are"
    rng = torch.Generator(device).manual_seed(0)
    dtype = next(learned.model.net.parameters()).dtype
    inputs = torch.rand(5, *size, device=device, dtype=dtype, generator=rng)
    try:
        with torch.no_grad(), eval_mode(learned.model):
            expected = network(inputs)
            apart = torch.cat([network(part) for part in inputs.split(2)])
            if not torch.allclose(expected, apart, atol=1e-4, rtol=1e-3):
                return None, "its outputs depend on what else is in the batch, or on chance"
            program = torch.onnx.export(
                network,
                (inputs[:3],),
                dynamo=True,
                opset_version=OPSET,
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
        onnx.checker.check_model(program.model_proto)
        graph = program.model_proto.SerializeToString()
        found = _run(graph, inputs.cpu())
    except Exception as e:  # torch's exporter fails in many ways; none of them may cost the other files
        return None, re.sub(r"\x1b\[\d*m", "", f"{type(e).__name__}: {one_line(e)}")[:200]
    if found is not None and not torch.allclose(found, expected.cpu(), atol=1e-4, rtol=1e-3):
        return None, "the graph gives other outputs"
    return graph, ""


def _run(graph: bytes, inputs: Tensor) -> Tensor:
    """What the graph says of inputs."""
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {"inputs": inputs.numpy()})
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        outputs = ReferenceEvaluator(graph).run(None, {"inputs": inputs.numpy()})
    return torch.from_numpy(outputs[0])
