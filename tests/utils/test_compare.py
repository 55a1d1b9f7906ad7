"""Methods side by side, from tables written by hand."""

import pytest

from palimpsest.utils.log import compare
from palimpsest.utils.log.mean_accs import append_row


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "class-il" / "seq-digits"
    scores = {"task1": 90.0, "backward_transfer": -10.0, "forgetting": 10.0, "learning_accuracy": 85.0}
    for seed, final, size in [(0, 70.0, 200), (1, 74.0, 200), (0, 60.0, 50), (1, 99.0, 50), (1, 62.0, 50)]:
        row = {**scores, "task2": final, "seed": seed, "run_id": f"{seed}{final}", "lr": 0.1, "buffer_size": size}
        append_row(folder / "er" / "mean_accs.csv", row | {"results_path": f"somewhere {final}"})
    append_row(folder / "joint" / "mean_accs.csv", {"task1": None, "task2": 95.0, "seed": 0, "forgetting": None})
    append_row(folder / "sgd" / "mean_accs.csv", {"task1": 90.0, "task2": None, "seed": 0})  # stopped early
    return tmp_path


def test_one_entry_per_configuration(results):
    ((stream, rows),) = compare.read_tables([str(results), str(results / "class-il")]).items()
    assert stream == ("class-il", "seq-digits") and len(rows) == 7  # no table twice
    found = {name: compare.measured(mine) for name, mine in compare.entries(rows).items()}
    assert found["er, buffer_size 200"]["final accuracy"] == (72, pytest.approx(8**0.5), 2)
    assert found["er, buffer_size 50"]["final accuracy"] == (61, pytest.approx(2**0.5), 2)  # seed 1 ran twice
    assert found["joint"]["final accuracy"] == pytest.approx((95, float("nan"), 1), nan_ok=True)
    assert "final accuracy" not in found["sgd"]


def test_the_last_of_many_tasks_is_the_last_by_number():
    row = {f"task{t}": str(float(t)) for t in range(1, 13)}
    assert compare.measured([row])["final accuracy"][0] == 12


def test_the_page(results, capsys):
    assert compare.main([str(results), "--out", str(results / "page.html")]) == 0
    text = (results / "page.html").read_text()
    assert text.index("er, buffer_size 200") < text.index("er, buffer_size 50") and text.count("<img") == 2
    assert "72.00 ± 2.83" in text and "<td>sgd" not in text
    assert "<td class=n>95.00</td>" in text and "95.00 ±" not in text  # a single run


def test_nothing_to_compare_is_one_line(tmp_path, capsys):
    assert compare.main([str(tmp_path)]) == 2
    assert "no mean_accs.csv" in capsys.readouterr().err
