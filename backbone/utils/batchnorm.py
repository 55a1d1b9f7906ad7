"""Forward passes that leave BatchNorm's running statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def batchnorm_mode(net: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Within the block BatchNorm layers of `net` normalise with the batch's statistics, or with the running ones;
    neither are updated.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.training, m.track_running_stats) for m in layers]
    for m in layers:
        m.training, m.track_running_stats = batch_statistics, not batch_statistics
    try:
        yield
    finally:
        for m, (training, track) in zip(layers, before, strict=True):
            m.training, m.track_running_stats = training, track
