"""What every network is: logits over all classes of a stream, features, and flat views of parameters and gradients."""

from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.precision import network_pass
from palimpsest.utils.errors import UserError

PASSES = ("forward", "features", "stages", "outputs")
RETURNS = ("out", "features", "both", "all", "full")


class Backbone(nn.Module):
    """Base of the networks in backbone/.

    A subclass defines `NAME`, `from_args`, and `stages` or `chain`, sets the attributes below, and has its last layer
    in `classifier`.

    Attributes:
        INPUT: what the network reads, 'images', 'tokens' (`SequenceBackbone`) or 'vectors', or a tuple of these; a
            stream that holds anything else is refused.
        classifier: feature_dim -> num_classes, linear.
        feature_dim: length of a feature vector.
        num_classes: logits.
        plain_layers: names of the linear layers, the classifier last, where the network is nothing but these with ReLU
            between them on the flattened input; else None.
        input_size: (C, H, W) that the network is tied to, or None when it takes any height and width.
        head_name: of the classifier among the network's parts.
    """

    NAME: str
    INPUT: str | tuple[str, ...] = "images"
    plain_layers: list[str] | None = None
    input_size: tuple[int, int, int] | None = None
    feature_dim: int
    num_classes: int
    classifier: nn.Module
    head_name = "classifier"

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name in PASSES:
            if name in vars(cls):
                setattr(cls, name, network_pass(vars(cls)[name]))

    @classmethod
    def from_args(cls, args, in_size: tuple[int, int, int], num_classes: int) -> "Backbone":
        """The network for images of `in_size` (C, H, W), its options read from `args`; weights from torch's global
        generator.
        """
        raise NotImplementedError

    @network_pass
    def stages(self, x: Tensor) -> list[Tensor]:
        """Intermediate maps, the features (B, feature_dim) last; by default what leaves each layer of `chain`."""
        out = [x]
        for body, activation in self.chain():
            out.append(activation(body(out[-1])))
        return out[1:]

    def chain(self) -> list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
        """The trunk as layers (body, activation): features(x) = a_n(b_n(... a_1(b_1(x)))).

        What enters an activation may be added to or gated by a method, and so may what leaves it. Normalisation is part
        of an activation, and so is the pooling of the last maps.

        Raises:
            UserError: the network has no such form.
        """
        raise UserError(
            f"the network {self.NAME} cannot be taken apart into layers, which this method needs: use mnistmlp, "
            "convnet or a resnet for small images"
        )

    @network_pass
    def features(self, x: Tensor) -> Tensor:
        """(B, feature_dim) features of images (B, C, H, W)."""
        return self.stages(x)[-1]

    @network_pass
    def forward(self, x: Tensor, returnt: str = "out"):
        """Logits, features, or both.

        Args:
            x: images (B, C, H, W), normalised floats; uint8 is scaled to [0, 1], as ToTensor does.
            returnt: 'out' logits (B, num_classes); 'features'; 'both' or 'all' (logits, features); 'full' (logits,
                features, intermediate maps).

        Raises:
            ValueError: another `returnt`.
        """
        if x.dtype == torch.uint8:
            x = x.float() / 255
        if returnt == "out":
            return self.classifier(self.features(x))
        if returnt not in RETURNS:
            raise ValueError(f"returnt is '{returnt}': expected one of {', '.join(RETURNS)}")
        *maps, features = self.stages(x)
        if returnt == "features":
            return features
        logits = self.classifier(features)
        return (logits, features, maps) if returnt == "full" else (logits, features)

    def trunk_parameters(self) -> list[nn.Parameter]:
        """All parameters but the classifier's."""
        head = {id(p) for p in self.classifier.parameters()}
        return [p for p in self.parameters() if id(p) not in head]

    @network_pass
    def outputs(self, x: Tensor, tasks: list, own=None) -> list[Tensor]:
        """The answers to several tasks from one pass.

        Args:
            x: the batch.
            tasks: see `datasets.utils.task.Task`.
            own: the task that the batch is of, the last of them by default; matters where tasks have branches.
        """
        whole = self(x)
        if len(tasks) == 1:
            return [tasks[0].part(whole)]
        columns = [task.columns for task in tasks]
        if None in columns or any(a[1] != b[0] for a, b in pairwise(columns)):
            return [task.part(whole) for task in tasks]
        # Cut at once: of so many slices each would have a gradient of the whole's size.
        widths, first = [high - low for low, high in columns], columns[0][0]
        return [*whole[..., first:].split([*widths, whole.shape[-1] - first - sum(widths)], dim=-1)[:-1]]

    def get_params(self) -> Tensor:
        """All parameters as one vector (P,), in the order of `parameters()`; gradients flow through it."""
        return torch.cat([p.reshape(-1) for p in self.parameters()])

    def set_params(self, flat: Tensor) -> None:
        """Write all parameters from one vector (P,)."""
        with torch.no_grad():
            for p, values in zip(self.parameters(), self._pieces(flat), strict=True):
                p.copy_(values.view_as(p))

    def get_grads(self) -> Tensor:
        """All gradients as one vector (P,); zeros where a parameter has none."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.parameters()])

    def set_grads(self, flat: Tensor) -> None:
        """Set all gradients from one vector (P,)."""
        for p, values in zip(self.parameters(), self._pieces(flat), strict=True):
            p.grad = values.detach().clone().view_as(p)

    def _pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        sizes = [p.numel() for p in self.parameters()]
        if flat.shape != (sum(sizes),):
            raise ValueError(f"the vector has shape {tuple(flat.shape)}: this network has {sum(sizes)} parameters")
        return flat.split(sizes)


def after_each(x: Tensor, layers: Iterable[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """x, then what leaves each of the layers that it passes one after the other."""
    return list(accumulate(layers, lambda x, layer: layer(x), initial=x))


def pooled_relu(maps: Tensor) -> Tensor:
    """ReLU, then the mean over the map: (B, C, H, W) -> (B, C)."""
    return torch.relu(maps).mean((2, 3))
