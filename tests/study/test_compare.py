"""`--compare`: what is compared with what, what is left out and why, and the numbers."""

import csv
import io
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import main as entry
from palimpsest.utils.errors import UserError
from palimpsest.utils.study.comparison import files, groups, tables
from palimpsest.utils.study.comparison.blocks import compare
from palimpsest.utils.study.comparison.formats import tex
from palimpsest.utils.study.comparison.groups import cost, divide
from palimpsest.utils.study.records import read_runs
from tests.study.comparisons import a_run, a_study, several, texts_of


@pytest.fixture
def study(tmp_path):
    a_study(tmp_path)
    return tmp_path


def groups_of(place):
    return divide(read_runs(place), "acc")


# ---- entries


def test_runs_that_differ_in_their_seeds_are_one_entry(tmp_path):
    several(tmp_path, "er", [70.0, 72.0, 74.0], config={"buffer_size": 200, "results_path": "a", "n_epochs": 1})
    a_run(tmp_path, seed=0, acc=60.0, digest="1", config={"buffer_size": 50, "lr": 0.5, "n_epochs": 1})
    a_run(tmp_path, seed=1, acc=61.0, digest="1", config={"buffer_size": 50, "lr": 0.5, "seed_init": 4, "n_epochs": 1})
    a_run(tmp_path, seed=1, acc=62.0, digest="2", config={"buffer_size": 50, "lr": 0.5, "n_epochs": 1})
    a_run(tmp_path, "sgd", 0, config={"n_epochs": 7})
    (group,), left = groups_of(tmp_path)
    values = {entry.name: list(entry.values.values()) for entry in group.entries}
    big, small = "er, buffer_size 200, lr 0.1", "er, buffer_size 50, lr 0.5"
    assert values == {big: [70.0, 72.0, 74.0], small: [60.0, 62.0, 61.0], "sgd": [70.0]} and not left
    assert [list(e.values) for e in group.entries if "50" in e.name][0] == [("", "0"), ("", "1"), ("", "1 (4, 1)")]


def test_an_entry_has_one_name_on_all_streams(tmp_path):
    other = {"dataset_name": "seq-fmnist"}
    for size in (50, 200):
        a_run(tmp_path, config={"buffer_size": size}, digest=str(size))
    a_run(tmp_path, config={"buffer_size": 200, "lr": 0.7, "dataset": "seq-fmnist"}, **other)
    groups, _ = groups_of(tmp_path)
    assert [entry.name for group in groups for entry in group.entries] == [
        "er, buffer_size 200", "er, buffer_size 50", "er, buffer_size 200"]  # fmt: skip


def test_names_are_never_the_same_for_what_is_not(tmp_path):
    for model in ("er", "my/er.py"):
        for k, lr in enumerate((0.1, 0.1000001)):
            a_run(tmp_path, model, config={"lr": lr}, digest=str(k))
    (group,), _ = groups_of(tmp_path)
    wanted = ["er, lr 0.1", "er, lr 0.1000001", "my/er.py, lr 0.1", "my/er.py, lr 0.1000001"]
    assert sorted(entry.name for entry in group.entries) == wanted


def test_options_in_which_the_methods_differ_are_told(tmp_path):
    several(tmp_path, "er", [70.0, 71.0, 72.0], config={"n_epochs": 1, "buffer_size": 5})
    several(tmp_path, "derpp", [70.0, 71.0, 72.0], config={"n_epochs": 15, "buffer_size": 7})
    several(tmp_path, "sgd", [20.0, 21.0, 22.0], config={"n_epochs": 15})
    (block,) = compare(read_runs(tmp_path)).blocks
    assert block.notes[0] == "The methods ran with different options: n_epochs 15 (derpp; sgd), 1 (er)."
    for path in tmp_path.rglob("run.json"):
        path.write_text(path.read_text().replace('"n_epochs": 15', '"n_epochs": 1'))
    (block,) = compare(read_runs(tmp_path)).blocks
    assert not any("different options" in note for note in block.notes)


def test_what_the_options_were_chosen_on_is_told(tmp_path):
    several(tmp_path, "er", [70.0, 71.0, 72.0], chosen_on="the first task, held out 10 %, 8 trials")
    several(tmp_path, "sgd", [20.0, 21.0, 22.0], chosen_on="other stream my_test_stream")
    (block,) = compare(read_runs(tmp_path)).blocks
    assert block.notes[0] == ("What the options were chosen on: the first task, held out 10 %, 8 trials (er), other "
                              "stream my_test_stream (sgd).")  # fmt: skip


def test_of_a_run_that_ran_twice_the_later_one_counts(tmp_path):
    a_run(tmp_path, acc=60.0, digest="0", costs={"ended": "2026-01-02"})
    a_run(tmp_path, acc=50.0, digest="1", costs={"ended": "2026-01-01"})
    (group,), (left,) = groups_of(tmp_path)
    assert list(group.entries[0].values.values()) == [60.0] and "ran once more" in left.reason


# ---- never in one ranking


@pytest.mark.parametrize("facts, said", [
    ({"config": {"validation": 10.0}}, "scores on 10 % validation data"),
    ({"config": {"holdout": 10.0}}, "holdout 10.0"),
    ({"config": {"label_perc": 0.5}}, "label_perc 0.5"),
    ({"config": {"increment": 5}}, "increment 5"),
    ({"config": {"stop_after": 2}}, "stop_after 2"),
    ({"config": {"permute_classes": True}}, "class orders of the seeds"),
    ({"config": {"custom_class_order": [1, 0]}}, "given class orders"),
    ({"environment": {"code": "beef"}}, "code beef"),
    ({"environment": {"data": "0ther"}}, "data 0ther"),
    ({"environment": {"dataset_file": "datasets/seq_digits.py 2"}}, "datasets/seq_digits.py 2"),
    ({"chosen_on": "tuned on test data"}, "options chosen on test data"),
    ({"leaks": ["predictions depend on the batch"]}, "runs with a leak"),
    ({"score": "r2"}, "r2"),
    ({"n_tasks": 5}, "5 tasks"),
])  # fmt: skip
def test_what_is_not_comparable_is_split_and_said(tmp_path, facts, said):
    several(tmp_path, "er", [70.0, 71.0, 72.0])
    several(tmp_path, "sgd", [20.0, 21.0, 22.0], **facts)
    found = compare(read_runs(tmp_path))
    assert [len(block.rows) for block in found.blocks] == [1, 1] and not any(block.pairs for block in found.blocks)
    (note,) = found.notes
    assert "2 rankings that are not compared" in note and said in note
    assert said in files.terminal(found) and said in found.blocks[1].group.title


def test_validation_and_leaks_are_said_where_all_have_them(tmp_path):
    several(tmp_path, "er", [70.0] * 3, config={"validation": 10.0}, leaks=["test data were read"])
    (block,) = compare(read_runs(tmp_path)).blocks
    assert block.group.title == "seq-digits, class-il, scores on 10 % validation data, runs with a leak"
    assert block.tables[0].rows[0][0] == "er [1]" and "[1] leak: test data were read." in block.tables[0].notes


@pytest.mark.parametrize("facts, said", [
    ({"finished": False}, "unfinished: stopped, or still running"),
    ({"finished": False, "reason": "loss is nan at step 3"}, "failed: loss is nan at step 3"),
    ({"trial": True}, "a trial of a search, not a result"),
    ({"config": {"debug_mode": True}}, "a run of --debug_mode"),
    ({"metrics": {"class-il": {"acc": None}}}, "acc is not defined"),
    ({"metrics": {"task-il": {"acc": 1.0}}}, "no class-il score"),
    ({"matrices": {"class-il": [[1.0], [2.0, 3.0]]}}, "its score matrix cannot be read"),
    ({"costs": {"seconds": None}}, "no row without its cost; not recorded: seconds"),
    ({"costs": {"method_bytes": None}}, "not recorded: bytes"),
    ({"environment": {"commit": ""}}, "not recorded: commit"),
    ({"environment": {"model_file": "models/x.py 0"}, "costs": {"ended": "2000"}},
     "other code: models/x.py 0, the latest run has models/x.py 1"),
])  # fmt: skip
def test_what_is_left_out_has_its_reason(tmp_path, facts, said):
    several(tmp_path, "er", [70.0, 71.0, 72.0], costs={"ended": "2026"})
    a_run(tmp_path, seed=7, digest="7", **facts)
    found = compare(read_runs(tmp_path))
    (left,) = found.left
    assert said in left.reason and found.blocks[0].rows[0].spread.n == 3
    texts = texts_of(found)
    for name in ("terminal", "comparison.csv", "comparison.md", "comparison.html"):
        assert said in texts[name], texts[name]
    assert tex(said) in texts["comparison.tex"]


@pytest.mark.parametrize("name", groups.COSTS)
def test_no_row_without_a_cost_that_is_needed(tmp_path, name, monkeypatch):
    monkeypatch.setattr(groups, "NEEDED", tuple(groups.COSTS))
    several(tmp_path, "er", [70.0, 71.0, 72.0])
    a_run(tmp_path, "sgd", costs=dict.fromkeys(sum(groups.COSTS[name], ())), notes={name: "compiled"})
    found = compare(read_runs(tmp_path))
    assert [item.reason for item in found.left] == [f"no row without its cost; not recorded: {name} (compiled)"]


def test_nothing_to_compare_says_why(tmp_path):
    a_run(tmp_path, finished=False)
    with pytest.raises(UserError, match="nothing to compare: 1 run: unfinished"):
        compare(read_runs(tmp_path))


# ---- numbers


def test_the_numbers_of_a_table(study):
    found = compare(read_runs(study), margin=6.0)
    block = found.blocks[0]
    assert [row.entry.name for row in block.rows] == ["derpp", "er", "randumb", "sgd"]  # best first
    table = dict(zip(block.tables[0].head, block.tables[0].rows[1], strict=True))
    assert table == {"method": "er", "n": "5", "acc: mean ± sd": "72.20 ± 1.92", "95 % interval": "69.81 to 74.59",
                     "seconds": "2.00", "FLOPs": "3 G", "bytes": "1.2 kB", "peak memory": "5 MB",
                     "commit": "abcdef0"}  # fmt: skip
    pair = block.pairs[0]
    assert (pair.a, pair.b, pair.spread.n) == ("derpp", "er", 5)
    assert pair.spread.mean == pytest.approx(np.mean([4, 1, 5, 2, 1])) and pair.same < 0.05
    assert [p.spread.n for p in block.pairs] == [5, 3, 5, 3, 5, 3]
    assert block.tables[1].head[-1] == "same within 6" and block.tables[1].rows[0][-1].startswith("yes, p 0.0")
    (block,) = found.ranks
    assert block.ranks.ranks == {"derpp": 1.0, "er": 2.0, "randumb": 3.0, "sgd": 4.0} and block.ranks.streams == 2
    assert block.table.head[2:] == ["seq-digits", "seq-fmnist"]
    assert block.table.rows[1] == ["er", "2.00", "72.20", "72.20"] and "no two" not in str(found.notes)


def test_fewer_is_better_where_it_is(study):
    for folder in study.rglob("run.json"):
        text = folder.read_text().replace('"forgetting": 10.0', '"forgetting": 1.0') if "derpp" in str(folder) else ""
        if text:
            folder.write_text(text)
    found = compare(read_runs(study), "forgetting")
    assert found.blocks[0].rows[0].entry.name == "derpp" and list(found.ranks[0].ranks.ranks)[0] == "derpp"


def test_intervals_end_where_percentages_do(tmp_path):
    several(tmp_path, "er", [99.0, 95.0, 100.0, 99.0])
    (block,) = compare(read_runs(tmp_path)).blocks
    assert block.rows[0].high == 100.0 < block.rows[0].spread.high and block.rows[0].cut
    assert any("cut to what acc can be, 0 to 100: er" in note for note in block.tables[0].notes)


def test_few_runs_have_values_only(tmp_path):
    several(tmp_path, "er", [70.0, 72.0])
    several(tmp_path, "sgd", [20.0])
    found = compare(read_runs(tmp_path))
    rows = found.blocks[0].tables[0].rows
    assert [row[1:4] for row in rows] == [["2", "70.00, 72.00", "n < 3"], ["1", "20.00", "n < 3"]]
    texts = texts_of(found)
    first = next(csv.DictReader(io.StringIO(texts["comparison.csv"])))
    assert (first["n"], first["mean"], first["low"], first["values"]) == ("2", "", "", "70.0 72.0")
    assert "over the 0 tests" not in texts["terminal"] and "Differences over the runs that share" in texts["terminal"]
    assert math.isnan(found.blocks[0].pairs[0].t) and found.blocks[0].tables[1].rows[0][3] == "n < 3"


def test_ten_runs_have_a_bootstrap_interval_beside(tmp_path):
    several(tmp_path, "er", np.linspace(60, 75, 10).tolist())
    several(tmp_path, "sgd", [20.0, 21.0, 22.0])
    (block,) = compare(read_runs(tmp_path)).blocks
    assert block.tables[0].head[4] == "BCa interval"
    assert (
        block.tables[0].rows[0][4] == tables.ends(*block.rows[0].spread.bootstrap) and block.tables[0].rows[1][4] == "-"
    )


def test_costs_of_either_kind():
    new = {"seconds_training": 5.0, "seconds_evaluating": 1.0, "seconds": 9.0, "flops_training": 7}
    new |= {"bytes_parameters": 1, "bytes_buffer": 2, "bytes_teachers": 4, "bytes_statistics": 8}
    run = SimpleNamespace(costs=new | {"network_bytes": 100, "method_bytes": 100})
    assert [cost(run, name) for name in ("seconds", "FLOPs", "bytes", "peak memory")] == [6.0, 7.0, 15.0, None]
    del run.costs["bytes_buffer"], run.costs["seconds_evaluating"]
    assert [cost(run, name) for name in ("seconds", "bytes")] == [9.0, 200.0]


def test_seeds_and_class_orders_as_two_factors(tmp_path):
    effect = {0: -3.0, 1: 0.0, 2: 3.0}
    for model, base in (("er", 70.0), ("sgd", 20.0)):
        for order, shift in effect.items():
            for seed in range(4):
                config = {"permute_classes": True, "seed_order": order}
                a_run(tmp_path, model, seed, base + shift + 0.1 * seed, digest=str(order), config=config)
    (block,) = compare(read_runs(tmp_path)).blocks
    assert block.pairs[0].spread.n == 12 and block.rows[0].spread.n == 12
    table = block.tables[2]
    assert table.rows[0][:4] == ["er", "3", "4", "9"] and any(
        "fewer than 5 class orders" in note for note in table.notes
    )
    assert not any("class order" in note.lower() for note in block.notes)


@pytest.mark.parametrize("config, said", [
    ({}, "One class order"),
    ({"permute_classes": True}, "Class order and seed are not crossed: the spread is that of both; fewer than 5"),
])  # fmt: skip
def test_what_the_spread_does_not_cover(tmp_path, config, said):
    several(tmp_path, "er", [70.0, 71.0, 72.0], config=config)
    (block,) = compare(read_runs(tmp_path)).blocks
    assert any(note.startswith(said) for note in block.notes) and len(block.tables) == 1


def test_controls_stand_in_class_il_tables(study, capsys):
    assert entry.main(["--compare", str(study), "--models", "er", "--datasets", "seq-digits"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  sgd +5 ", out, re.M) and re.search(r"^  randumb +3 ", out, re.M) and "derpp" not in out
    assert "Controls: sgd (fine-tuning), randumb (a closed-form classifier)." in out
    shutil.rmtree(study / "class-il/seq-digits/randumb")
    assert entry.main(["--compare", str(study), "--datasets", "seq-digits"]) == 0
    out = capsys.readouterr().out
    assert "The control randumb (a closed-form classifier) is missing:\n" in out
    assert "python main.py --model randumb --dataset seq-digits --lr 0.1 --seeds 0 1 2 3 4\n" in out
    assert entry.main(["--compare", str(study), "--scenario", "task-il"]) == 0
    assert "control" not in capsys.readouterr().out.lower()


def test_marks_are_footnotes_of_every_table(tmp_path):
    several(tmp_path, "pah", [70.0, 71.0, 72.0], marks=["batch statistics at test"])
    several(tmp_path, "sgd", [20.0, 21.0, 22.0])
    found = compare(read_runs(tmp_path))
    texts = texts_of(found)
    for name in ("terminal", "comparison.md", "comparison.html", "comparison.tex"):
        text = texts[name]
        assert "pah [1]" in text and "[1] batch statistics at test" in text
    assert next(csv.DictReader(io.StringIO(texts["comparison.csv"])))["marks"] == "batch statistics at test"
    assert found.blocks[0].tables[1].rows[0][0] == "pah [1] - sgd"


def test_ranks_do_not_cross_programs(study):
    for path in (study / "class-il/seq-fmnist").rglob("run.json"):
        path.write_text(path.read_text().replace("c0de", "beef"))
    found = compare(read_runs(study))
    assert not found.ranks and len(found.blocks) == 2
    wanted = [f"No ranks over streams, class-il, code {code}: the streams differ in code." for code in ("c0de", "beef")]
    assert found.notes == wanted
