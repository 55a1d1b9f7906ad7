"""Lists on the command line: commas, spaces or both, in one argument or several."""

import pytest

from palimpsest.utils.args import ArgumentParser, base_parser
from palimpsest.utils.errors import UserError
from palimpsest.utils.option_types import name_list, width_list
from palimpsest.utils.run.config import resolve

DIGITS = ["--model", "sgd", "--dataset", "seq-digits"]
VISION = ["--model", "sgd", "--dataset", "seq-vision-mini"]


@pytest.mark.parametrize(
    "given", [["4,0,3,1,2"], ["4,", "0,", "3,", "1,", "2"], ["4, 0, 3, 1, 2"], ["4 0 3 1 2"], ["4", "0", "3", "1", "2"],
              ["[4,", "0,", "3,", "1,", "2]"], ["(4, 0, 3, 1, 2)"], ["4", ",0", ",3", ",", "1", ",2"]]
)  # fmt: skip
@pytest.mark.parametrize("equals", [False, True])
def test_a_list_of_integers_in_any_of_its_forms(given, equals):
    words = [f"--custom-task-order={given[0]}", *given[1:]] if equals else ["--custom_task_order", *given]
    for argv in ([*words, *DIGITS], [*DIGITS, *words]):
        args = resolve(argv).args
        assert args.custom_task_order == [4, 0, 3, 1, 2] and args.model == "sgd"


@pytest.mark.parametrize("given", [["det,seg,cls"], ["det,", "seg,", "cls"], ["det, seg, cls"], ["det", "seg", "cls"]])
def test_a_list_of_names_in_any_of_its_forms(given):
    assert resolve([*VISION, "--vision_order", *given, "--seed", "3"]).args.vision_order == "det,seg,cls"


@pytest.mark.parametrize("given", [["0", "1", "2"], ["0,1,2"], ["0,", "1,", "2"], ["0, 1, 2"]])
def test_an_option_of_several_values_in_any_of_its_forms(given):
    assert resolve([*DIGITS, "--seeds", *given]).args.seeds == [0, 1, 2]
    more = ["--lr_scheduler", "multisteplr", "--lr_milestones", *given]
    assert resolve([*DIGITS, *more]).args.lr_milestones == [0, 1, 2]


def test_widths_may_be_none_and_a_negative_number_is_a_part():
    parser = ArgumentParser()
    parser.add_argument("--arch", type=width_list)
    parser.add_argument("--names", type=name_list)
    assert parser.parse_args(["--arch", ""]).arch == [] and parser.parse_args(["--arch="]).arch == []
    assert parser.parse_args(["--arch", "10,", "20", "--names", "a"]).arch == [10, 20]
    assert base_parser().parse_args(
        ["--lr", "1", "--n_epochs", "1", "--batch_size", "1", "--custom_class_order", "-1,", "-2"]
    ).custom_class_order == [-1, -2]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--custom_task_order", "4,", "x"], "'4, x': expected integers separated by commas"),
        (["--custom_task_order", "4,,2"], "expected integers separated by commas"),
        (["--custom_task_order"], "expected one argument"),
        (["--seeds", "0,", "x"], "'x': expected an integer"),
        (["--lr", "0.1,", "0.2"], "expected a number"),
        (["--lr", "0.1", "0.2"], "stray argument '0.2'"),
        (["--seed", "1", "--seed", "2"], "is given twice"),
    ],
)
def test_what_is_no_list_is_one_line(words, said):
    with pytest.raises(UserError) as told:
        resolve([*DIGITS, *words])
    assert said in str(told.value)


def test_a_wrong_order_of_tasks_names_the_right_ones():
    with pytest.raises(UserError, match="seg,det,cls"):
        resolve([*VISION, "--vision_order", "det,", "seg"])
