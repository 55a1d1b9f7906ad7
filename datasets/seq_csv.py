"""A table of your own in a CSV file: `--label` is the column to be predicted, all others are what it is predicted from.

Classes are cut into tasks (class-il); with `--task COL` every value of that column is a task over all classes
(domain-il). With `--regression` the label is a number: a task per value of `--task`, or `--n_tasks` equal parts in the
order of the file. Labels of a regression are standardised like all numbers, by the training part of all tasks.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from palimpsest.datasets.utils.checks import refuse_missing
from palimpsest.datasets.utils.classes import chosen_shares
from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.own.cuts import add_class_options, cut_named
from palimpsest.datasets.utils.own.table import encode, numbers, read_table, sorted_names, standardised, training_rows
from palimpsest.datasets.utils.task import ClassTask, RegressionTask
from palimpsest.datasets.utils.vectors import VectorStream
from palimpsest.utils.args import add_bool, number, positive_int
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks.kinds import STATISTICS

PARTS = 5  # of a regression, unless --n_tasks says otherwise
CLASSES_ONLY = ("classes_per_task", "class_order", "tasks_file", "init_cls", "increment")


class SequentialCSV(VectorStream):
    NAME = "seq-csv"
    SETTING, SETTINGS = "class-il", ("class-il", "domain-il")
    TASK = ClassTask  # until it is known whether labels are numbers
    N_TASKS = N_CLASSES_PER_TASK = N_CLASSES = 1  # until the file is known
    DEFAULTS = {
        "backbone": "mnistmlp", "optimizer": "adam", "lr": 0.003, "n_epochs": 20, "batch_size": 16, "num_threads": 1,
    }  # fmt: skip

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--csv", required=True, metavar="FILE", help="table with the names of its columns in the first line")
        add("--label", required=True, metavar="COL", help="column to be predicted")
        add("--task", metavar="COL", help="column whose values are the tasks")
        add_bool(parser, "--regression", help="the label is a number")
        add("--n_tasks", type=positive_int, metavar="N", help=f"parts of a regression, {PARTS} by default")
        add("--split", metavar="COL", help="column that says train or test (default: --test_fraction)")
        told = "share of every class, or task of a regression, for testing"
        add("--test_fraction", type=number(float, 0.01, 0.99), default=0.2, help=told)
        add("--categories", metavar="COL,...", help="columns of categories although they hold numbers")
        add("--drop_columns", metavar="COL,...", help="columns to leave out, as a number of the row")
        add_class_options(parser)
        return parser

    def __init__(self, args, device="cpu"):
        table = read_table(Path(args.csv).expanduser())
        for name in names_in(args.drop_columns):
            table.take(name, "--drop_columns")
        table.refuse_missing()
        labels = table.take(args.label, "--label")
        tasks = table.take(args.task, "--task") if args.task else None
        self._refuse_idle(args)
        if args.regression and not args.task:
            n = args.n_tasks or PARTS
            tasks = [str(row * n // len(table)) for row in range(len(table))]
        of = [column for column in (tasks, None if args.regression else labels) if column]
        self._in_train = training_rows(table, args.split, [*zip(*of, strict=True)], args.test_fraction)
        self._x, self.columns = encode(table, self._in_train, names_in(args.categories))
        self.SIZE = (self._x.shape[1],)
        self.declared_leaks = {STATISTICS: "columns standardised by the training rows of all tasks"}
        if args.regression:
            self.TASK = RegressionTask
            values = numbers(table, args.label, labels)
            if values is None:
                raise UserError(f"--regression: the label {args.label} of {args.csv} is not a number in every row")
            y, about = standardised(values, self._in_train.numpy())
            self._y, self.class_names = torch.from_numpy(y).float().unsqueeze(1), [args.label]
            self.columns.append({"name": args.label, "label": True} | about)
        else:
            self.class_names, self._y = numbered(labels)
            self.N_CLASSES = self.N_CLASSES_PER_TASK = len(self.class_names)
            refuse_missing(args.csv, self._y[self._in_train], self._y[~self._in_train], self.N_CLASSES)
        self.SETTINGS = ()
        if tasks:
            self.SETTING = "domain-il"
            self.task_names, self._domain = numbered(tasks)
            self.N_TASKS = len(self.task_names)
        super().__init__(args, device)

    @staticmethod
    def _refuse_idle(args) -> None:
        """Refuse options that would have no effect."""
        given = [option for option in CLASSES_ONLY if getattr(args, option)]
        if given and (args.regression or args.task):
            raise UserError(f"--{given[0]}: every task has all labels here: drop it")
        if args.n_tasks and (args.task or not args.regression):
            raise UserError("--n_tasks cuts the table of a --regression that has no --task: drop it")

    def _cut_classes(self) -> None:
        if self.SETTING != "class-il":
            return
        sizes, order = cut_named(self.args, self.class_names)
        sizes = chosen_shares(self.args, self.N_CLASSES) or sizes
        self._blocks = torch.tensor(order or [*range(self.N_CLASSES)]).split(sizes)
        self._set_shares(sizes)

    def _prepare(self) -> None:
        if self.SETTING == "class-il":
            blocks = [self._blocks[t] for t in self._task_order()]
            self._set_shares([len(block) for block in blocks])
            self.class_order = torch.cat(blocks).tolist()
        super()._prepare()

    def _splits(self, domain):
        if self.SETTING == "class-il":
            classes = self._blocks[domain]
            among, labels = torch.isin(self._y, classes), torch.zeros(self.N_CLASSES, dtype=torch.int64)
            labels[classes] = torch.arange(len(classes))
            y = labels[self._y]
        else:
            among, y = self._domain == domain, self._y
        parts = (among & self._in_train, among & ~self._in_train)
        if self.task_names and not all(part.any() for part in parts):
            raise UserError(f"{self.args.csv}: task {self.task_names[domain]} has no row for training or for testing")
        return tuple(Split(self._x[part], y[part]) for part in parts)

    def _checked_splits(self, domain, classes):
        return [*self._splits(domain)]  # made here; a class may be missing in a task of domain-il

    def get_loss(self):
        """Cross-entropy, or the mean squared error of numbers."""
        return F.mse_loss if self.TASK is RegressionTask and not self.args.multi_head else super().get_loss()


def names_in(text: str | None) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",")] if text else []


def numbered(texts: list[str]) -> tuple[list[str], torch.Tensor]:
    """Their sorted names, and which of them each is (N,)."""
    names = sorted_names(texts)
    place = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([place[text] for text in texts])
