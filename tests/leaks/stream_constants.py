"""A stream that normalises by statistics measured over the images of all its tasks."""

from datasets.utils import sources
from datasets.utils.streams import ClassIncremental
from datasets.utils.transforms import Normalize, TrainTransform


class StreamConstants(ClassIncremental):
    NAME = "stream-constants"
    SOURCE = sources.digits
    N_TASKS = 5
    DEFAULTS = {"backbone": "convnet", "lr": 0.03, "n_epochs": 1, "batch_size": 32, "num_threads": 1}

    def _prepare(self):
        super()._prepare()
        images = self._train.images.float() / 255
        self.mean, self.std = (float(images.mean()),), (float(images.std()),)
        self._normalize = Normalize(self.mean, self.std)
        self._transform = TrainTransform(None, self._normalize)
