"""A table in a CSV file as vectors: columns of numbers standardised, columns of categories one-hot."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.own.layout import SPLIT_SEED, shortened
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.randomness import permutation

SEPARATORS = ",;\t|"
MISSING = {"", "na", "n/a", "nan", "null", "?"}  # in any case of letters


@dataclass
class Table:
    """What a file says.

    Attributes:
        path: of the file.
        columns: name -> the texts of that column, one per row.
        lines: where each row stands in the file, counted from 1.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def take(self, name: str, option: str) -> list[str]:
        """Remove a column and return it."""
        if name not in self.columns:
            raise UserError(f"{option} {name}: {self.path} has no such column, it has {shortened([*self.columns])}")
        return self.columns.pop(name)

    def refuse_missing(self) -> None:
        """Refuse a value that is not there, naming its place."""
        for name, texts in self.columns.items():
            for line, text in zip(self.lines, texts, strict=True):
                if text.lower() in MISSING:
                    raise UserError(
                        f"{self.path}, line {line}, column {name}: a missing value ('{text}'): fill it, leave the row "
                        "out, or the column with --drop_columns"
                    )


def read_table(path: Path) -> Table:
    """A CSV file with a header; the separator is the one of `, ; tab |` that the header has most often.

    Raises:
        UserError: it cannot be read, has no rows, a name twice, or a row of another length.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            separator = max(SEPARATORS, key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            rows = [(reader.line_num, [text.strip() for text in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({one_line(e)})") from None
    if len(rows) < 2:
        raise UserError(f"{path}: no rows: expected a line with the names of the columns, then one for each example")
    names = rows.pop(0)[1]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: the first line names the column '{twice[0]}' twice: rename one of them")
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(f"{path}, line {line}: {len(row)} values, expected {len(names)} as in the first line")
    return Table(path, dict(zip(names, map(list, zip(*(row for _, row in rows), strict=True)), strict=True)),
                 [line for line, _ in rows])  # fmt: skip


def numbers(table: Table, name: str, texts: Sequence[str]) -> np.ndarray | None:
    """A column as float64 (N,), None where not all are numbers.

    Raises:
        UserError: one of them is not finite.
    """
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    if not np.isfinite(values).all():
        line = table.lines[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise UserError(f"{table.path}, line {line}, column {name}: no finite number: replace or drop it")
    return values


def sorted_names(texts: Sequence[str]) -> list[str]:
    """The different texts: by number where all are numbers, else by letters."""
    names = sorted({*texts})
    try:
        return sorted(names, key=float)
    except ValueError:
        return names


def standardised(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """(x - mean) / std with those of the rows `train`, 0 where these have one value only; the two numbers."""
    mean, std = float(values[train].mean()), float(values[train].std())
    return (values - mean) / (std if std > 0 else math.inf), {"mean": mean, "std": std}


def encode(table: Table, train: Tensor, categories: Sequence[str]) -> tuple[Tensor, list[dict[str, Any]]]:
    """All columns as float32 (N, D), and how each of them was made.

    A number becomes (x - mean) / deviation of the training part, 0 where it has one value only; a category becomes
    one-hot over those of the training part, all 0 where it is none of them.

    Args:
        train: (N,) bool.
        categories: columns of categories although they have numbers.

    Raises:
        UserError: no column, or one with almost as many different texts as rows.
    """
    if unknown := [name for name in categories if name not in table.columns]:
        raise UserError(f"--categories: {table.path} has no column '{unknown[0]}' besides the label and the task")
    parts, facts, rows = [], [], train.numpy()
    for name, texts in table.columns.items():
        values = None if name in categories else numbers(table, name, texts)
        if values is not None:
            values, about = standardised(values, rows)
            parts.append(values[:, None])
            facts.append({"name": name} | about)
            continue
        known = sorted_names([text for text, in_train in zip(texts, rows, strict=True) if in_train])
        if len(known) > max(20, len(table) // 2):
            raise UserError(
                f"{table.path}: column {name} has {len(known)} different texts in {len(table)} rows, as a name has: "
                "drop it with --drop_columns"
            )
        place = {text: i for i, text in enumerate(known)}
        part = np.zeros((len(texts), len(known) + 1))
        part[range(len(texts)), [place.get(text, len(known)) for text in texts]] = 1
        parts.append(part[:, :-1])
        facts.append({"name": name, "categories": known})
    if not parts:
        raise UserError(f"{table.path}: no column is left to predict from")
    return torch.from_numpy(np.concatenate(parts, 1)).float(), facts


def training_rows(table: Table, split: str | None, groups: Sequence, fraction: float) -> Tensor:
    """Which rows (N,) are for training.

    Args:
        split: column that says `train` or `test`; it is removed. Else a share of every group is drawn, the same on
            every machine and for every seed.
        groups: (N,) what a row is one of.
        fraction: of every group that is for testing; at least one row, and never all of them.
    """
    if split:
        texts = [text.lower() for text in table.take(split, "--split")]
        if unknown := [i for i, text in enumerate(texts) if text not in ("train", "test")]:
            line, text = table.lines[unknown[0]], texts[unknown[0]]
            raise UserError(f"{table.path}, line {line}, column {split}: '{text}', expected train or test")
        return torch.tensor([text == "train" for text in texts])
    members: dict = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    train = torch.ones(len(table), dtype=torch.bool)
    for group, rows in members.items():
        name = " ".join(map(str, group))
        if len(rows) < 2:
            line = table.lines[rows[0]]
            raise UserError(f"{table.path}, line {line}: the only row of {name}: expected two or more, one for testing")
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        train[torch.tensor(rows)[permutation(len(rows), SPLIT_SEED, "test part", name)[:count]]] = False
    return train
