"""Anybody's network as a backbone."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.evaluation import eval_mode
from palimpsest.utils.randomness import preserve_rng

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# What the constructor of a plain network may call what the runner knows.
KNOWN = {
    "num_classes": ("num_classes", "n_classes", "nclasses", "out_features", "output_size", "out_dim"),
    "in_size": ("in_size", "input_size", "input_shape", "in_shape", "size"),
    "in_channels": ("in_channels", "channels", "n_channels", "num_channels", "in_ch"),
    "in_features": ("in_features", "input_dim", "in_dim", "n_features"),
}


class Wrapped(Backbone):
    """A module that maps inputs to logits, seen as a `Backbone`; its own forward decides what inputs are.

    Its output may also hold the logits, see `logits_of`; its features are what enters its classifier, where the logits
    are all that follows. Methods that work layer by layer need an `nn.Sequential`, see `chain`.

    Args:
        net: the module; its last linear layer counts as the classifier.
        num_classes: logits, the last dimension of its output.

    Attributes:
        ends_in_classifier: the logits are what the classifier gives, so that there are features.
    """

    NAME = "wrapped"

    def __init__(self, net: nn.Module, num_classes: int):
        super().__init__()
        self.net, self.num_classes = net, num_classes
        linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        self._head = linear[-1] if linear else None
        self.feature_dim = self.classifier.in_features if linear else num_classes
        self.ends_in_classifier = bool(linear)

    @property
    def classifier(self) -> nn.Module:
        return nn.Identity() if self._head is None else self.net.get_submodule(self._head)

    @property
    def head_name(self) -> str:
        return f"net.{self._head}"

    def __setattr__(self, name: str, value) -> None:
        """A new `classifier` takes the old one's place in the network."""
        if name != "classifier":
            super().__setattr__(name, value)
        elif not self._head:
            raise UserError(
                f"the network {type(self.net).__name__} has no linear classifier, which this method replaces"
            )
        else:
            parent, _, child = self._head.rpartition(".")
            setattr(self.net.get_submodule(parent), child, value)

    def chain(self):
        """For an `nn.Sequential` that ends in its classifier: a layer begins where weights are that are no
        normalisation, and its activation is what follows them.
        """
        parts = list(self.net) if isinstance(self.net, nn.Sequential) else []
        weighted = [any(True for _ in part.parameters()) and not isinstance(part, NORMS) for part in parts]
        starts = [i for i, is_start in enumerate(weighted[:-1]) if is_start]
        if not starts or parts[-1] is not self.classifier:
            raise UserError(
                f"the network {type(self.net).__name__} cannot be taken apart into layers, which this method needs: "
                "give an nn.Sequential that ends in an nn.Linear"
            )
        ends = zip([0, *starts[1:]], starts, [*starts[1:], len(parts) - 1], strict=True)
        return [(nn.Sequential(*parts[a : b + 1]), nn.Sequential(*parts[b + 1 : c])) for a, b, c in ends]

    def forward(self, x: Tensor, returnt: str = "out"):
        if returnt == "out":
            return logits_of(self.net(x))
        if returnt not in ("features", "both", "all"):
            return super().forward(x, returnt)
        logits, calls = self.watched(x)
        if len(calls) != 1 or not self.ends_in_classifier:
            raise UserError(
                f"the network {type(self.net).__name__} has no features that one linear classifier reads, which this "
                "method needs: use a network of backbone/"
            )
        (features, _), *_ = calls
        return features if returnt == "features" else (logits, features)

    def watched(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The logits, and what entered and what left the classifier at each of its calls."""
        calls: list[tuple[Tensor, Tensor]] = []
        with self.classifier.register_forward_hook(lambda _, inputs, answer: calls.append((inputs[0], answer))):
            return logits_of(self.net(x)), calls

    def features(self, x: Tensor) -> Tensor:
        return self(x, "features")


def make_network(cls: type, args, in_size: tuple[int, ...], num_classes: int, kind: str = "images") -> Backbone:
    """The network that a class of backbone/, or a plain `nn.Module`, is for a stream.

    A plain one is constructed with what its parameters name: `num_classes`, `in_size`, `in_channels`, `in_features`
    (other usual spellings of these too), or an option of the command line.

    Args:
        cls: the class.
        args: resolved options.
        in_size: of an input.
        num_classes: logits.
        kind: of input, 'images', 'vectors' or 'tokens'.

    Raises:
        UserError: it cannot be constructed, cannot read the stream's inputs, or has other outputs than its classes.
    """
    if hasattr(cls, "from_args"):
        return cls.from_args(args, in_size, num_classes)
    name = cls.__name__
    if not issubclass(cls, nn.Module):
        raise UserError(f"backbone '{cls.NAME}': {name} is no torch.nn.Module: expected one that maps inputs to logits")
    features = math.prod(in_size)
    values = {"num_classes": num_classes, "in_size": in_size, "in_channels": in_size[0], "in_features": features}
    known = {spelling: values[meaning] for meaning, spellings in KNOWN.items() for spelling in spellings}
    given, unknown = {}, []
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in known:
            given[parameter.name] = known[parameter.name]
        elif hasattr(args, parameter.name) and hasattr(cls, "get_parser"):
            given[parameter.name] = getattr(args, parameter.name)
        elif parameter.default is parameter.empty:
            unknown.append(parameter.name)
    if unknown:
        raise UserError(
            f"backbone '{cls.NAME}': {name}({', '.join(unknown)}) is not known here: name them num_classes, in_size, "
            "in_channels or in_features, give them defaults, or define from_args(args, in_size, num_classes)"
        )
    net = cls(**given)
    if not any(True for _ in net.parameters()):
        raise UserError(f"backbone '{cls.NAME}' has no parameters: make its layers in __init__")
    return _tried(Wrapped(net, num_classes), cls.NAME, in_size, kind)


def _tried(net: Wrapped, name: str, in_size: tuple[int, ...], kind: str) -> Wrapped:
    """The network, if it answers two inputs of zeros with two vectors of logits."""
    tokens = kind == "tokens"
    x = torch.zeros(2, *(in_size[:1] if tokens else in_size), dtype=torch.int64 if tokens else torch.float32)
    try:
        with eval_mode(net), torch.no_grad(), preserve_rng():
            out, calls = net.watched(x)
            net.ends_in_classifier = len(calls) == 1 and torch.equal(calls[0][1], out)
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        said = f"{type(e).__name__}: {one_line(e)}"
        raise UserError(f"backbone '{name}' cannot read inputs {tuple(x.shape)}: {said}") from None
    try:
        with eval_mode(net), torch.no_grad(), preserve_rng():
            net(torch.zeros(2, *(side + 4 * (i > 0) for i, side in enumerate(in_size))))
    except Exception:  # whatever a network says that is tied to its size, or to tokens
        net.input_size = in_size
    expected = (2, *((in_size[0],) if tokens else ()), net.num_classes)
    if tuple(out.shape) != expected:
        raise UserError(
            f"backbone '{name}': the output for 2 inputs is {tuple(out.shape)}, expected {expected}: give the last "
            "layer num_classes outputs"
        )
    return net


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor; a dict or an object that has 'logits', as Hugging Face's
    `ModelOutput`; a dict of one tensor; the first entry of a tuple or list. (B,) is read as (B, 1).

    Raises:
        UserError: there are none.
    """
    if isinstance(output, dict):
        found = output.get("logits", next(iter(output.values())) if len(output) == 1 else None)
    elif isinstance(output, Tensor):
        found = output
    else:
        first = output[0] if isinstance(output, list | tuple) and output else None
        found = getattr(output, "logits", first)
    if not isinstance(found, Tensor) or found.dim() not in (1, 2, 3) or not found.is_floating_point():
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, dict) else ""
        shape = f" of shape {tuple(found.shape)} and {found.dtype}" if isinstance(found, Tensor) else ""
        raise UserError(
            f"the network returns {type(output).__name__}{keys or shape}: expected logits (B, C) or (B, L, C), by "
            "themselves, under the name 'logits', or first in a tuple"
        )
    return found.unsqueeze(1) if found.dim() == 1 else found


def output_shape(net: nn.Module, inputs: Tensor) -> torch.Size:
    """Shape of the network's logits for a batch; leaves modes and random generators alone.

    Raises:
        UserError: the network cannot read the batch, or gives no logits for it.
    """
    try:
        with eval_mode(net), torch.no_grad():
            shape = logits_of(net(inputs)).shape
    except (RuntimeError, TypeError, ValueError, LookupError) as e:
        given = f"inputs {tuple(inputs.shape)} of {inputs.dtype}"
        raise UserError(f"the network fails on the loader's {given}: {type(e).__name__}: {one_line(e)}") from e
    if shape[0] != len(inputs):
        raise UserError(f"the network returns {tuple(shape)} for {len(inputs)} inputs: expected a row for each")
    return shape
