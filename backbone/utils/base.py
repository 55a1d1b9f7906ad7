"""What every network is: logits over all classes of a stream, features, and flat views of parameters and gradients."""

import torch
from torch import Tensor, nn

RETURNS = ("out", "features", "both", "all", "full")


class Backbone(nn.Module):
    """Base of the networks in backbone/.

    A subclass defines `NAME`, `features`, `from_args`, and sets `classifier`, `feature_dim`, `num_classes`;
    `input_size` where the network is tied to one image size.
    """

    NAME: str
    input_size: tuple[int, int, int] | None = None
    feature_dim: int
    num_classes: int
    classifier: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(B, feature_dim) features of images (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, returnt: str = "out"):
        if x.dtype == torch.uint8:
            x = x.float() / 255
        if returnt == "out":
            return self.classifier(self.features(x))
        features = self.features(x)
        if returnt == "features":
            return features
        return self.classifier(features), features

    def get_params(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    def set_params(self, flat: Tensor) -> None:
        with torch.no_grad():
            for p, v in zip(self.parameters(), flat.split([p.numel() for p in self.parameters()]), strict=True):
                p.copy_(v.view_as(p))

    def get_grads(self) -> Tensor:
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters()])

    def set_grads(self, flat: Tensor) -> None:
        for p, v in zip(self.parameters(), flat.split([p.numel() for p in self.parameters()]), strict=True):
            p.grad = v.view_as(p).clone()
