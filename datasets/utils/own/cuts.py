"""Which classes of one's own data each task has, by their names."""

from collections.abc import Sequence

from palimpsest.datasets.utils.classes import class_shares
from palimpsest.datasets.utils.own.layout import numbers_of, read_names
from palimpsest.utils.args import positive_int
from palimpsest.utils.errors import UserError

ORDERS = ("class_order", "tasks_file", "permute_classes", "custom_class_order")
CUTS = ("classes_per_task", "increment", "tasks_file")


def add_class_options(parser) -> None:
    """`--classes_per_task`, `--class_order` and `--tasks_file`."""
    told = "the last task may have fewer (default: 2, of more than 20 classes a tenth); or --init_cls, --increment"
    parser.add_argument("--classes_per_task", type=positive_int, metavar="N", help=told)
    told = "names of the classes in the order of the tasks: a,b,c or a file with a name per line"
    parser.add_argument("--class_order", metavar="NAMES", help=told)
    parser.add_argument("--tasks_file", metavar="FILE", help="file with a class per line, a blank line between tasks")


def cut_named(args, names: Sequence[str]) -> tuple[list[int], list[int] | None]:
    """Number of classes of each task, and the classes in their order, as positions among `names`; None for the order
    where no names are given. `--init_cls` and `--increment` are left to the stream.

    Raises:
        UserError: options that exclude each other, a name that is no class, a class that is missing or there twice.
    """
    for options in (ORDERS, CUTS):
        if len(given := [option for option in options if getattr(args, option)]) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} exclude each other: drop one of them")
    groups, order = [], None
    for option in ORDERS[:2]:
        if text := getattr(args, option):
            groups = read_names(text, f"--{option}")
            order = numbers_of([name for group in groups for name in group], names, f"--{option}", "class")
    if args.tasks_file:
        return [len(group) for group in groups], order
    n = args.classes_per_task or max(2, -(-len(names) // 10))
    return class_shares(len(names), min(n, len(names)), n), order
