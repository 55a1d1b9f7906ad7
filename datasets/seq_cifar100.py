"""Split CIFAR-100: 10 tasks of 10 classes, or 5 or 20 tasks with `--n_tasks`.

Augmentation: random crop with padding 4 and horizontal flip, on the stream and on replay.
"""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import ClassIncremental


class SequentialCIFAR100(ClassIncremental):
    NAME = "seq-cifar100"
    SOURCE = sources.cifar100
    N_TASKS = 10
    AUGMENT = {"crop_padding": 4, "flip": True}
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 50, "batch_size": 32}

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--n_tasks", type=int, choices=[5, 10, 20], default=10, help="number of tasks")
        return parser

    def __init__(self, args, device="cpu"):
        self.N_TASKS, self.N_CLASSES_PER_TASK = args.n_tasks, 100 // args.n_tasks
        super().__init__(args, device)
