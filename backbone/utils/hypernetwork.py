"""A hypernetwork that turns one embedding per task into the weights of that task's linear head."""

from torch import Tensor, nn


class HeadHypernetwork(nn.Module):
    """MLP P -> hidden -> ... -> classes * features, bias-free, LeakyReLU(0.01) between the layers.

    Without biases the map is positively homogeneous, H(a e) = a H(e) for a > 0: the scale of an embedding is the
    scale of its logits. Weights are Kaiming-normal (fan-in, gain sqrt 2), those of the last layer divided by 10.

    Args:
        embedding: P, entries of an embedding.
        hidden: width of the hidden layers, at least 1.
        layers: hidden-to-hidden layers after the first, at least 0.
        classes, features: C and F of the head.
    """

    def __init__(self, embedding: int, hidden: int, layers: int, classes: int, features: int):
        super().__init__()
        self.classes, self.features = classes, features
        widths = [embedding] + [hidden] * (layers + 1)
        parts: list[nn.Module] = []
        for i, o in zip(widths, widths[1:], strict=False):
            parts += [nn.Linear(i, o, bias=False), nn.LeakyReLU(0.01)]
        self.body = nn.Sequential(*parts, nn.Linear(hidden, classes * features, bias=False))
        for m in self.body:
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
        self.body[-1].weight.data.div_(10)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Heads (T, C, F) of T embeddings (T, P), in one pass."""
        return self.body(embeddings).view(-1, self.classes, self.features)
