"""Images of Hugging Face's hub or of its files on the disk, `--dataset hf:NAME`: every task brings new classes.

NAME is one of the hub's, or a folder that `save_to_disk` wrote or `load_dataset` reads. The optional package `datasets`
of Hugging Face reads it once, in a process of its own; the images then lie as they are in an archive below
`--base_path`, which is read like any other of `seq-folder`. Parts: `train`, and `test` or `validation`; without these
`--test_fraction` of every class. Classes have the numbers that they have there.
"""

from pathlib import Path

from palimpsest.datasets.seq_folder import SequentialFolder
from palimpsest.datasets.utils.own.hub import fetch_images
from palimpsest.datasets.utils.own.tree import Tree


class HuggingFaceImages(SequentialFolder):
    NAME = "hf"

    @classmethod
    def _add_source(cls, parser) -> None:
        add = parser.add_argument
        add("--hf_name", required=True, metavar="NAME", help="of the hub, or a folder; the NAME of --dataset hf:NAME")
        add("--hf_subset", metavar="NAME", help="configuration, where it has several")
        add("--hf_image", metavar="COL", help="column of the images (default: the one of images)")
        add("--hf_label", metavar="COL", help="column of the classes (default: the one of class labels)")

    def _tree(self, args) -> Tree:
        base = Path(args.base_path).expanduser()
        return Tree(str(fetch_images(base, args.hf_name, args.hf_subset, args.hf_image, args.hf_label)))

    def _names(self, folders: list[str]) -> list[str]:
        return [folder.split(" ", 1)[1] for folder in folders]  # after the number of the class
