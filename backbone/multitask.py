"""One trunk, a branch per vision task: masks at input resolution, classes present (or boxes), and one class per image.

The trunk is torchvision's EfficientNet-B0 (Tan & Le 2019), or a small one of four stages for small images. Each branch
reads its maps: a decoder of upsampling blocks, a head over three scales, a classifier with two hidden layers. Under
`--head unified` one head of three convolutions has the outputs of all tasks for its channels. What BatchNorm does from
task to task in what is shared is `--bn_policy`; that of the branches belongs to their tasks.
"""

import math
from itertools import accumulate, pairwise
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.backbone.utils.bn_policy import POLICIES, apply_policy, begin_task, use_task
from palimpsest.backbone.utils.torchvision_nets import three_channels
from palimpsest.utils.errors import UserError

LIMIT = 8_000_000  # parameters
# Where the logits of presence begin: log(p / (1 - p)) with p = 0.01 (Lin et al. 2017, section 4.1). The first steps of
# the focal loss are then spent on what is there, not on lowering everything.
RARE = -math.log(99)


class BalancedMultiTaskModel(Backbone):
    """Outputs by task: 'seg' (B, n, H, W), 'det' (B, n) and 'cls' (B, n) logits.

    A branch is chosen by `forward(x, task)`, or by `select(task)` for the calls that follow; with neither all branches
    answer, as a dict. Made by `from_args` it is a plain classifier, until `set_tasks` gives it other branches.

    Args:
        num_classes_det, num_classes_cls, num_classes_seg: outputs of the branches.
        pretrained: the trunk's weights: 'none'; 'cache' for torchvision's ImageNet weights, from its cache or the net;
            or a file with a state dict of torchvision's EfficientNet-B0 (or of its `features`).
        trunk: 'efficientnet_b0' or 'small'.
        bn_policy: one of `POLICIES`.
        head: 'branches', or 'unified' for one head that all tasks share.

    Raises:
        UserError: 8 million parameters or more; pretrained weights that are not there or do not fit; boxes from a
            unified head.
    """

    NAME = "multitask"

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--trunk", choices=list(TRUNKS), default="efficientnet_b0", help="the shared layers")
        told = "weights of the EfficientNet trunk: none, torchvision's for ImageNet (cache), or a file"
        add("--pretrained", default="none", metavar="none|cache|FILE", help=told)
        told = "the trunk's BatchNorm: shared, its statistics frozen after the first task, one per task, GroupNorm"
        add("--bn_policy", choices=POLICIES, default="per_task", help=told)
        told = "a branch for each task, or one head of three convolutions for all"
        add("--head", choices=["branches", "unified"], default="branches", help=told)
        return parser

    def __init__(
        self,
        num_classes_det: int = 80,
        num_classes_cls: int = 30,
        num_classes_seg: int = 1,
        pretrained: str = "none",
        trunk: str = "efficientnet_b0",
        bn_policy: str = "per_task",
        head: str = "branches",
    ):
        super().__init__()
        self.trunk, self.unified = TRUNKS[trunk](pretrained), None
        self.bn_policy, self.head = bn_policy, head
        sizes = {"seg": num_classes_seg, "det": num_classes_det, "cls": num_classes_cls}
        self.set_tasks({task: n for task, n in sizes.items() if n}, CLASSIC)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        net = cls(0, num_classes, 0, args.pretrained, args.trunk, args.bn_policy, args.head)
        net.select("cls")
        return net

    def set_tasks(self, sizes: dict[str, int], kinds: dict[str, str]) -> None:
        """Have a fresh branch for each task, in the order of the stream.

        Args:
            sizes: name of the task -> outputs.
            kinds: name of the task -> what its branch is, a key of `HEADS`.
        """
        device = next(self.trunk.parameters()).device
        if self.head == "unified":
            if "boxes" in (kinds[task] for task in sizes):
                raise UserError("--head unified has no boxes: use --detection multilabel, or --head branches")
            self.unified = UnifiedHead(self.trunk, sum(sizes.values())).to(device)
            ends = list(accumulate(sizes.values()))
            parts = zip(sizes, ends, sizes.values(), strict=True)
            stride = self.unified.stride
            self.heads = nn.ModuleDict({t: Channels(kinds[t], end - n, end, stride) for t, end, n in parts})
            for head in self.heads.values():
                if head.kind == "presence":
                    nn.init.constant_(self.unified.last.bias[head.low : head.high], RARE)
        else:
            heads = {task: HEADS[kinds[task]](self.trunk, n) for task, n in sizes.items()}
            self.heads = nn.ModuleDict(heads).to(device)
        self.tasks, self.begun, self.active = list(sizes), [], None
        for part in self.common():
            apply_policy(part, self.bn_policy, self.tasks)
        if "cls" in sizes:
            last = self.classifier
            self.feature_dim = last.in_channels if self.unified else last.in_features
        self.num_classes = sizes.get("cls", sum(sizes.values()))
        if (n := sum(self.parts().values())) >= LIMIT:
            raise UserError(
                f"the network has {n:,} parameters ({self.describe()}), the limit is {LIMIT:,}: "
                "take --trunk small or fewer classes"
            )

    # ---- which branch

    def select(self, task: str | None) -> None:
        """The branch of the calls that name none; None: all of them."""
        self.active = task

    def begin_tasks(self, tasks: list[str]) -> None:
        """Enter training on a task after those begun before, or on several at once."""
        if self.begun:
            for part in self.common():
                begin_task(part, tasks[0], self.begun[-1])
        self.begun = [*self.begun, *tasks]

    def forward(self, x: Tensor, task: str | None = None, returnt: str | None = None):
        """Outputs of the branch of `task`, of the one selected, or of all by name; with one of `Backbone.forward`'s
        `returnt` for `task`, what that says of the class branch.

        Args:
            x: images (B, 3 or 1, H, W), height and width multiples of 32 (small trunk: 16) where masks are asked for.
        """
        if returnt is not None or (task is not None and task not in self.heads):
            return super().forward(x, returnt or task)
        if x.dtype == torch.uint8:
            x = x.float() / 255
        task = task or self.active
        if task is None:
            return {name: self.heads[name](self.maps(x, name)) for name in self.tasks}
        return self.heads[task](self.maps(x, task))

    def outputs(self, x: Tensor, tasks: list, own=None) -> list[Tensor]:
        """As `Backbone.outputs`; the branches of other tasks than `own` use running statistics, since the batch is not
        what theirs were made of.
        """
        own = own or tasks[-1]
        answers = {own.branch: self(x, own.branch)} if own in tasks else {}
        with batchnorm_mode(self, False):
            answers |= {task.branch: self(x, task.branch) for task in tasks if task is not own}
        return [answers[task.branch] for task in tasks]

    def maps(self, x: Tensor, task: str) -> list[Tensor]:
        """The trunk's maps, finest first, or those of the unified head, normalised as for a task; as for the latest one
        where it was never begun.
        """
        for part in self.common():
            use_task(part, task if task in self.begun or not self.begun else self.begun[-1])
        # Convolutions are faster by a third where the channels of a pixel lie together.
        maps = self.trunk(three_channels(x).movedim(1, -1).contiguous().movedim(-1, 1))
        return self.unified(maps) if self.unified else maps

    def common(self) -> list[nn.Module]:
        """What all tasks share."""
        return [self.trunk, self.unified] if self.unified else [self.trunk]

    # ---- as a plain classifier

    @property
    def classifier(self) -> nn.Module:
        """The last layer of the class branch, or of the unified head."""
        return self.unified.last if self.unified else self.heads["cls"].last

    def features(self, x: Tensor) -> Tensor:
        return self.heads["cls"].hidden(self.maps(x, "cls"))

    def stages(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]

    # ---- whose parameters

    def trunk_parameters(self) -> list[nn.Parameter]:
        """The parameters of no branch."""
        return list(self.trunk.parameters())

    def shared(self) -> Tensor:
        """(P,) bool: which entries more than one task uses, those of the trunk (and the unified head) without
        normalisation per task.
        """
        return torch.cat(
            [
                torch.full((p.numel(),), not name.startswith("heads.") and ".norms." not in name, device=p.device)
                for name, p in self.named_parameters()
            ]
        )

    def parts(self) -> dict[str, int]:
        """Parameters of the trunk and of each branch, or of the one head."""
        counts = {"trunk": self.trunk, **({"head": self.unified} if self.unified else self.heads)}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in counts.items()}

    def describe(self) -> str:
        """The same in words, and the entries of buffers (running statistics) beside them."""
        parts = self.parts()
        listed = ", ".join(f"{name} {n:,}" for name, n in parts.items())
        return f"{sum(parts.values()):,}: {listed}; buffers {sum(b.numel() for b in self.buffers()):,}"


def block(n_in: int, n_out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class Trunk(nn.Module):
    """Layers one after another, the only child; some of their maps are read.

    Class attributes:
        TAPS: the layers whose maps `forward` returns, finest first.
        channels, strides: of these maps.
        scales: which of them the detection branch reads.
        skips: whether the decoder reads the finer maps too.
        mask_widths, det_widths, cls_widths: widths of the branches.
        pyramid, box_width: maps that boxes are read from, width of that branch.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, (layers,) = [], self.children()
        for layer in layers:
            x = layer(x)
            maps.append(x)
        return [maps[i] for i in self.TAPS]


class SmallTrunk(Trunk):
    """Four stages of a block of stride 2 and one of stride 1."""

    TAPS, channels, strides = (0, 1, 2, 3), (24, 48, 96, 128), (2, 4, 8, 16)
    scales, skips, pyramid, box_width = (1, 2, 3), True, (1, 2, 3), 64
    mask_widths, det_widths, cls_widths = (96, 64, 48, 32), (64, 256), (256, 256)

    def __init__(self, pretrained: str = "none"):
        super().__init__()
        if pretrained != "none":
            raise UserError(f"--pretrained {pretrained}: there are no weights for --trunk small: drop one of them")
        pairs = pairwise((3, *self.channels))
        self.stages = nn.ModuleList(nn.Sequential(block(a, b, stride=2), block(b, b)) for a, b in pairs)


class EfficientNetTrunk(Trunk):
    """torchvision's EfficientNet-B0 without its classifier."""

    TAPS, channels, strides = (2, 3, 5, 7, 8), (24, 40, 112, 320, 1280), (4, 8, 16, 32, 32)
    scales, skips, pyramid, box_width = (1, 2, 4), False, (1, 2, 3), 96
    mask_widths, det_widths, cls_widths = (192, 128, 96, 64, 32), (128, 256), (512, 256)

    def __init__(self, pretrained: str = "none"):
        super().__init__()
        if pretrained == "cache":
            from palimpsest.backbone.efficientnet_b0 import EfficientNetB0

            self.layers = EfficientNetB0(1, pretrained=True).trunk.features
            return
        from torchvision.models import efficientnet_b0

        self.layers = efficientnet_b0().features
        if pretrained == "none":
            return
        file = Path(pretrained)
        if not file.is_file():
            raise UserError(f"--pretrained {file}: no such file: give none, cache, or a file with the trunk's weights")
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            own = {k.removeprefix("features."): v for k, v in state.items() if not k.startswith("classifier.")}
            self.layers.load_state_dict(own)
        except (OSError, EOFError, RuntimeError, UnpicklingError, AttributeError) as e:
            raise UserError(
                f"--pretrained {file}: not the weights of torchvision's efficientnet_b0 ({type(e).__name__}): give "
                "another file, or none"
            ) from None


TRUNKS = {"efficientnet_b0": EfficientNetTrunk, "small": SmallTrunk}


class MaskHead(nn.Module):
    """Logits (B, n, H, W) at input resolution: the coarsest map, made narrower, then twice as large with each block."""

    def __init__(self, trunk: nn.Module, n: int):
        super().__init__()
        first, *widths = trunk.mask_widths
        self.narrow = block(trunk.channels[-1], first, 1)
        self.blocks = nn.ModuleList(block(a, b) for a, b in pairwise((first, *widths)))
        # A finer map joins the decoder where it has become as large.
        finer = trunk.channels[-2::-1] if trunk.skips else ()
        self.lateral = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(finer, (first, *widths), strict=False))
        self.last = nn.Conv2d(widths[-1], n, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.narrow(maps[-1])
        for i, layer in enumerate(self.blocks):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            if i < len(self.lateral):
                x = x + self.lateral[i](maps[-2 - i])
            x = layer(x)
        return F.interpolate(self.last(x), scale_factor=2, mode="bilinear", align_corners=False)


class PresenceHead(nn.Module):
    """Logits (B, n), one per class that may be in the image: mean and maximum over three maps of different scale."""

    def __init__(self, trunk: nn.Module, n: int):
        super().__init__()
        width, hidden = trunk.det_widths
        self.scales = trunk.scales
        self.lateral = nn.ModuleList(block(trunk.channels[i], width, 1) for i in self.scales)
        self.hidden = nn.Linear(2 * width * len(self.scales), hidden)
        self.last = nn.Linear(hidden, n)
        nn.init.constant_(self.last.bias, RARE)

    def forward(self, maps: list[Tensor]) -> Tensor:
        scales = [lateral(maps[i]) for i, lateral in zip(self.scales, self.lateral, strict=True)]
        pooled = [x for m in scales for x in (m.mean((2, 3)), m.amax((2, 3)))]
        return self.last(torch.relu(self.hidden(torch.cat(pooled, 1))))


class ClassHead(nn.Module):
    """Logits (B, n) of one class per image, two hidden layers above the mean of the coarsest map."""

    def __init__(self, trunk: nn.Module, n: int):
        super().__init__()
        first, second = trunk.cls_widths
        self.layers = nn.Sequential(nn.Linear(trunk.channels[-1], first), nn.ReLU(), nn.Linear(first, second))
        self.last = nn.Linear(second, n)

    def hidden(self, maps: list[Tensor]) -> Tensor:
        """(B, 256) features."""
        return torch.relu(self.layers(maps[-1].mean((2, 3))))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.last(self.hidden(maps))


class UnifiedHead(nn.Module):
    """Three maps of the trunk, made equally wide and large and added; then two blocks, and a convolution whose channels
    are the outputs of all tasks.
    """

    def __init__(self, trunk: nn.Module, n: int):
        super().__init__()
        self.taps, width, self.stride = trunk.pyramid, trunk.box_width, trunk.strides[trunk.pyramid[0]]
        self.lateral = nn.ModuleList(block(trunk.channels[i], width, 1) for i in self.taps)
        self.blocks = nn.Sequential(block(width, width), block(width, width))
        self.last = nn.Conv2d(width, n, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """What the last convolution reads (B, W, h, w), and what it says (B, n, h, w)."""
        levels = [lateral(maps[i]) for i, lateral in zip(self.taps, self.lateral, strict=True)]
        size = levels[0].shape[2:]
        x = self.blocks(sum(F.interpolate(level, size, mode="nearest") for level in levels))
        return [x, self.last(x)]


class Channels(nn.Module):
    """What the channels `low` to `high` of a unified head say: masks enlarged, the maximum over places for what is
    present, their mean for the class of the image.
    """

    def __init__(self, kind: str, low: int, high: int, stride: int):
        super().__init__()
        self.kind, self.low, self.high, self.stride = kind, low, high, stride

    def hidden(self, maps: list[Tensor]) -> Tensor:
        """(B, W) features."""
        return maps[0].mean((2, 3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        z = maps[1][:, self.low : self.high]
        if self.kind == "mask":
            return F.interpolate(z, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return z.amax((2, 3)) if self.kind == "presence" else z.mean((2, 3))


class BoxHead(nn.Module):
    """Outputs (B, L, n + 8) of a dense detector, as `datasets.utils.vision.boxes` reads them: torchvision's FCOS head
    of two convolutions on a feature pyramid over three maps (Tian et al. 2019; Lin et al. 2017).
    """

    def __init__(self, trunk: nn.Module, n: int):
        super().__init__()
        from torchvision.models.detection.fcos import FCOSHead
        from torchvision.ops import FeaturePyramidNetwork

        self.pyramid = FeaturePyramidNetwork([trunk.channels[i] for i in trunk.pyramid], trunk.box_width)
        self.head, self.taps, self.strides = FCOSHead(trunk.box_width, 1, n, 2), trunk.pyramid, trunk.strides
        for part in self.head.modules():
            vars(part).pop("box_coder", None)  # of torchvision's own loss; no checkpoint would take it

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = list(self.pyramid({str(i): maps[i] for i in self.taps}).values())
        said = self.head(levels)
        outputs = [said["cls_logits"], said["bbox_regression"], said["bbox_ctrness"]]
        return torch.cat((*outputs, self.places(levels).expand(len(maps[0]), -1, -1)), -1)

    def places(self, levels: list[Tensor]) -> Tensor:
        """(L, 3): x, y and stride in pixels of every location, level by level and row by row."""
        out = []
        for level, i in zip(levels, self.taps, strict=True):
            (height, width), step = level.shape[2:], self.strides[i]
            y, x = (step * (torch.arange(n, device=level.device) + 0.5) for n in (height, width))
            y, x = torch.meshgrid(y, x, indexing="ij")
            out.append(torch.stack((x, y, torch.full_like(x, step)), -1).flatten(0, 1))
        return torch.cat(out).to(levels[0].dtype)


HEADS = {"mask": MaskHead, "presence": PresenceHead, "boxes": BoxHead, "class": ClassHead}
CLASSIC = {"seg": "mask", "det": "presence", "cls": "class"}
