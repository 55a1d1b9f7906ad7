"""`--backbone timm:NAME`: any network of timm (Wightman 2019, PyTorch Image Models), with weights on request."""

import functools
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.utils.args import add_bool
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.evaluation import eval_mode
from palimpsest.utils.randomness import preserve_rng
from palimpsest.utils.registry import TIMM, nearest

INSTALL = "pip install 'palimpsest[networks]'"


class TimmNet(Backbone):
    """A network of timm without its classifier, and one linear layer over its features.

    The stream decides the channels, and the height and width where the network is tied to them (`img_size`). The
    features are what enters timm's own classifier: `forward_head(forward_features(x), pre_logits=True)`. There are no
    intermediate maps.

    Class attributes:
        ARCHITECTURE: timm's name.

    Args:
        in_size: (C, H, W).
        num_classes: logits.
        pretrained: start from timm's weights for that name, which it fetches.
        path: of a file with weights of that network, in place of fetching them.

    Raises:
        UserError: the network cannot have such inputs; the weights cannot be fetched, or are another network's.
    """

    ARCHITECTURE: str

    @staticmethod
    def get_parser(parser):
        add_bool(parser, "--pretrained", help="start from timm's weights, which are fetched once")
        parser.add_argument("--pretrained_path", metavar="FILE", help="start from the weights in a file")
        return parser

    def __init__(
        self, in_size: tuple[int, int, int], num_classes: int, pretrained: bool = False, path: str | None = None
    ):
        super().__init__()
        trunk, sized = self._make(in_size, pretrained, path)
        self.trunk, self.num_classes = trunk, num_classes
        self.input_size = in_size if sized else None
        self.feature_dim = self._tried(in_size)
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes, args.pretrained, args.pretrained_path)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk.forward_head(self.trunk.forward_features(x), pre_logits=True)

    def stages(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]

    def _make(self, in_size: tuple[int, int, int], pretrained: bool, path: str | None) -> tuple[nn.Module, bool]:
        """The trunk, and whether it is tied to the images' height and width."""
        import timm

        options = {"num_classes": 0, "in_chans": in_size[0]}
        if path is not None:
            held = self._read(path)
            options["pretrained_cfg_overlay"] = {"file": path}
        given = pretrained or path is not None
        for sized in (True, False):
            more = {"img_size": in_size[1:]} if sized else {}
            try:
                trunk = timm.create_model(self.ARCHITECTURE, pretrained=given, **options, **more)
                break
            except TypeError as e:
                if sized and "img_size" in str(e):
                    continue
                raise self._no_network(e, in_size) from None
            except Exception as e:  # timm fetches by several libraries, each with errors of its own
                raise self._no_weights(e, path) if given else self._no_network(e, in_size) from None
        if path is not None:
            # timm takes what a file has and says nothing of the rest.
            missing = [name for name, _ in trunk.named_parameters() if name not in held]
            if missing:
                what = f"{len(missing)} weights of {self.NAME}, {missing[0]} among them"
                raise UserError(f"--pretrained_path {path} lacks {what}: give weights of this network")
        for module in trunk.modules():  # a checkpoint keeps texts, which these equal
            vars(module).update({k: v.value for k, v in vars(module).items() if isinstance(v, Enum)})
        return trunk, sized

    def _no_network(self, error: Exception, in_size: tuple[int, int, int]) -> UserError:
        why = f"{type(error).__name__}: {one_line(error)}"
        return UserError(f"--backbone {self.NAME} cannot be made for images {in_size}: {why}")

    def _no_weights(self, error: Exception, path: str | None) -> UserError:
        why = f"{type(error).__name__}: {one_line(error)[:200]}"
        if path is not None:
            return UserError(f"--pretrained_path {path} holds no weights of {self.NAME}: {why}")
        advice = "give --pretrained_path FILE, or drop --pretrained"
        return UserError(f"the weights of {self.NAME} could not be fetched ({why}): {advice}")

    def _read(self, path: str) -> dict[str, Tensor]:
        """What a file holds, which runs no code."""
        from timm.models import load_state_dict

        if not Path(path).is_file():
            raise UserError(f"--pretrained_path {path} does not exist")
        try:
            return load_state_dict(path, weights_only=True)
        except Exception as e:  # whatever a file makes the readers of weights say
            raise self._no_weights(e, path) from None

    def _tried(self, in_size: tuple[int, int, int]) -> int:
        """Length of the features, from two images of zeros."""
        try:
            with eval_mode(self), torch.no_grad(), preserve_rng():
                features = self.features(torch.zeros(2, *in_size))
        except Exception as e:  # whatever a network says to images that it cannot read
            raise self._no_network(e, in_size) from None
        if not isinstance(features, Tensor) or features.dim() != 2:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"--backbone {self.NAME} has no features (B, F) before its classifier, but {found}")
        return features.shape[1]


@functools.cache
def timm_class(name: str) -> type[TimmNet]:
    """The class of one network.

    Args:
        name: `timm:NAME`, `-` and `_` alike.

    Raises:
        UserError: timm is not installed, or has no such network; the nearest name is given.
    """
    architecture = name.strip().lower().removeprefix(TIMM).replace("-", "_")
    try:
        import timm
    except ImportError as e:
        raise UserError(f"--backbone {TIMM}{architecture} needs the package timm ({one_line(e)}): {INSTALL}") from None
    if not timm.is_model(architecture.partition(".")[0]):
        hint = nearest(architecture, timm.list_models()) or ": timm.list_models() shows all"
        raise UserError(f"unknown network '{architecture}' of timm{hint}")
    own = {"NAME": f"{TIMM}{architecture}", "ARCHITECTURE": architecture, "__module__": __name__}
    return type("TimmNet", (TimmNet,), own)
