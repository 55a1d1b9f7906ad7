"""Segmentation, detection, classification of garments or digits on canvases, in the formats of VOC, COCO, Imagenette.

The files are made once per seed, size and source of items, in `<base_path>/vision-mini-*`, without a network: 240
training and 60 test images of each task, see `datasets.utils.vision.mini`. The items are Fashion-MNIST's where its
files are, else scikit-learn's digits; `--vision_items` asks for one of the two, since their scores differ. The trunk
of the network is the small one by default: two cores of a CPU train it in minutes.
"""

from palimpsest.datasets.utils.vision.formats import coco, folders, voc, write_manifest
from palimpsest.datasets.utils.vision.mini import NAMES, item_source, mini_folder
from palimpsest.datasets.utils.vision.stream import VisionStream


class SequentialVisionMini(VisionStream):
    NAME = "seq-vision-mini"
    N_CLASSES_PER_TASK = [11, 10, 10]
    N_CLASSES = 31
    DEFAULTS = {**VisionStream.DEFAULTS, "trunk": "small"}

    @classmethod
    def get_parser(cls, parser):
        parser = super().get_parser(parser)
        told = "what is on the images: Fashion-MNIST's garments, digits, or garments where their files are found"
        parser.add_argument("--vision_items", choices=["auto", "fashion", "digits"], default="auto", help=told)
        return parser

    def _parts(self):
        args = self.args
        source = item_source(args.base_path, args.vision_items)
        self.mirror = source != "digits"
        folder, names = mini_folder(args.base_path, self.seed, args.vision_size, source), NAMES[source]
        base, subset, seed = str(folder), args.vision_subset, self.seed
        parts = {
            "seg": voc(base, subset, seed, ("background", *names)),
            "det": coco(base, subset, seed),
            "cls": folders(base, subset, seed, names),
        }
        self.checksum = write_manifest(folder / "subsets" / f"{subset or 'all'}.json", parts)
        return parts
