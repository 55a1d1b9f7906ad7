"""Segmentation of PASCAL VOC 2012, then what is on COCO's images, then Imagenette's (or ImageNet's) classes.

The files are read in the layouts they are published in, see `datasets.utils.vision.formats`. By default 300 images of
each are used, 240 for training and 60 of the official validation part for the scores (`--vision_subset`); which ones
depends on the seed and is written to `<base_path>/seq-vision-subsets`.

References: Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective"; Lin et al. 2014,
"Microsoft COCO"; Howard, "Imagenette"; Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge".
"""

from pathlib import Path

from palimpsest.datasets.utils.vision.formats import coco, folders, voc, write_manifest
from palimpsest.datasets.utils.vision.stream import VisionStream


class SequentialVision(VisionStream):
    NAME = "seq-vision"
    DEFAULTS = {**VisionStream.DEFAULTS, "vision_size": 224, "num_workers": 2}

    def _parts(self):
        base, subset = self.args.base_path, self.args.vision_subset
        readers = {"seg": voc, "det": coco, "cls": folders}
        parts = {name: read(base, subset, self.seed) for name, read in readers.items()}
        file = Path(base).expanduser() / "seq-vision-subsets" / f"{subset or 'all'}-seed{self.seed}.json"
        self.checksum = write_manifest(file, parts)
        return parts
