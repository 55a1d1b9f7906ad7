"""Text files of your own: one sub-folder of `--text_path` is one task, in sorted order; the network reads bytes.

A task's text is that of all .txt files in its folder, joined in sorted order. Its last tenth is the test set. Both
parts are cut into sequences of `--sequence_length` bytes, each labelled with the byte that follows; what is left at the
end is dropped. Bytes, not characters: every encoding and alphabet has the same 256 tokens.
"""

from pathlib import Path

import torch

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.tokens import TokenStream
from palimpsest.utils.args import positive_int
from palimpsest.utils.errors import UserError


class SequentialText(TokenStream):
    NAME = "seq-text"
    N_TASKS = 1
    N_CLASSES_PER_TASK = N_CLASSES = 256
    DEFAULTS = {
        "backbone": "gru", "optimizer": "adam", "lr": 0.003, "n_epochs": 5, "batch_size": 32, "num_threads": 1,
    }  # fmt: skip

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--text_path", required=True, metavar="FOLDER", help="folder with one sub-folder per task")
        parser.add_argument("--sequence_length", type=positive_int, default=64, help="bytes of an example")
        return parser

    def __init__(self, args, device="cpu"):
        self.SIZE = (args.sequence_length, 256)
        self.folders = task_folders(Path(args.text_path))
        self.N_TASKS = len(self.folders)
        super().__init__(args, device)

    def _splits(self, domain):
        text, length = read_text(self.folders[domain]), self.args.sequence_length
        cut = len(text) - len(text) // 10
        if len(text) - cut <= length:
            raise UserError(
                f"the text in {self.folders[domain]} has {len(text)} bytes: expected at least {10 * (length + 1)}, so "
                "that its last tenth holds a test sequence; add text or lower --sequence_length"
            )
        return sequences(text[:cut], length), sequences(text[cut:], length)


def task_folders(path: Path) -> list[Path]:
    """The sub-folders of a folder, sorted by name."""
    if not path.is_dir():
        raise UserError(f"--text_path {path} is no folder: expected one with a sub-folder of .txt files per task")
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"--text_path {path} has no sub-folder: expected one per task, with .txt files in it")
    return folders


def read_text(folder: Path) -> bytes:
    """All .txt files of a folder, joined in sorted order."""
    files = sorted(p for p in folder.glob("*.txt") if p.is_file())
    if not files:
        raise UserError(f"{folder} holds no .txt file: each sub-folder of --text_path is a task and needs one")
    try:
        texts = [file.read_bytes() for file in files]
    except OSError as e:
        raise UserError(f"{e.filename} cannot be read: {e.strerror}") from None
    for file, text in zip(files, texts, strict=True):
        if not text:
            raise UserError(f"{file} is empty: put text in it, or remove it")
    return b"".join(texts)


def sequences(text: bytes, length: int) -> Split:
    """All whole sequences (N, length) of a text, one after the other, and the byte that follows each of theirs."""
    n = (len(text) - 1) // length
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return Split(tokens[: n * length].view(n, length), tokens[1 : n * length + 1].view(n, length).long())
