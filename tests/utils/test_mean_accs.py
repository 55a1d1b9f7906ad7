import csv
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.utils.atomic import write_bytes, write_text
from palimpsest.utils.errors import UserError
from palimpsest.utils.log import mean_accs
from palimpsest.utils.log.mean_accs import append_row, summary_row, write_summary
from palimpsest.utils.record import Run


def read(path):
    with open(path, newline="", encoding="utf-8") as f:
        header, *rows = list(csv.reader(f, strict=True))
    assert all(len(row) == len(header) for row in rows)
    assert len(set(header)) == len(header)
    return [dict(zip(header, row, strict=True)) for row in rows]


def a_run(tmp_path, matrices, setting="class-il", **config):
    folder = tmp_path / "run7"
    n_tasks = len(next(iter(matrices.values())))
    config = {"seed": 3, "lr": 0.1, "joint": False, "notes": None, **config}
    return Run("er", "seq-mnist", setting, n_tasks, 3, config, {}, tmp_path, folder, matrices=matrices)


R = np.array([[90.0, np.nan, np.nan], [60.0, 80.0, np.nan], [30.0, 60.0, 90.0]])
SUMMARY = {"class-il": {"acc": 60.0, "bwt": -40.0, "forgetting": 40.0, "forgetting_chaudhry": 40.0}}


def test_a_new_table_has_the_row_with_empty_cells_for_none_and_nan(tmp_path):
    row = {"a": None, "b": math.nan, "c": np.float32("nan"), "d": np.float64(1.5), "e": [], "f": 1}
    append_row(tmp_path / "a" / "t.csv", row)
    assert read(tmp_path / "a" / "t.csv") == [{"a": "", "b": "", "c": "", "d": "1.5", "e": "[]", "f": "1"}]


def test_unknown_columns_are_added_and_nothing_moves(tmp_path):
    path = tmp_path / "t.csv"
    append_row(path, {"x": 1, "y": 2})
    append_row(path, {"y": 3, "buffer_size": 200, "x": 4})
    append_row(path, {"alpha": 0.5})
    assert read(path) == [
        {"x": "1", "y": "2", "buffer_size": "", "alpha": ""},
        {"x": "4", "y": "3", "buffer_size": "200", "alpha": ""},
        {"x": "", "y": "", "buffer_size": "", "alpha": "0.5"},
    ]
    assert path.read_text().startswith("x,y,buffer_size,alpha\n")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.dictionaries(text.filter(lambda s: "\r" not in s), text, min_size=1, max_size=4), max_size=5))
def test_any_text_comes_back_under_its_own_header(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "t.csv"
    for row in rows:
        append_row(path, row)
    for row, back in zip(rows, read(path) if rows else [], strict=True):
        expected = {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in row.items()}
        assert {name: back[name] for name in row} == expected
        assert not any(back[name] for name in back if name not in row)


@pytest.mark.parametrize("damage", ["a,b\n1,2\n3", 'a,b\n1,"2', "a,a\n1,2\n", b"\xff\xfe,\n"])
def test_a_damaged_table_is_set_aside(tmp_path, damage):
    path = tmp_path / "t.csv"
    data = damage if isinstance(damage, bytes) else damage.encode()
    path.write_bytes(data)
    append_row(path, {"x": 1})
    assert read(path) == [{"x": "1"}]
    (kept,) = tmp_path.glob("t.csv.damaged-*")
    assert kept.read_bytes() == data


def test_an_empty_file_is_a_table_without_rows_and_leftovers_of_killed_writers_go(tmp_path):
    (tmp_path / "t.csv").touch()
    (tmp_path / ".t.csv.0123abcd.tmp").write_text("half a ta")
    append_row(tmp_path / "t.csv", {"x": 1})
    assert read(tmp_path / "t.csv") == [{"x": "1"}]
    assert {p.name for p in tmp_path.iterdir()} - {"t.csv.lock"} == {"t.csv"}


def test_a_lock_that_stays_taken_and_an_impossible_folder_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(mean_accs, "LOCK_TIMEOUT", 0.05)
    with FileLock(tmp_path / "t.csv.lock"), pytest.raises(UserError, match="stays locked"):
        append_row(tmp_path / "t.csv", {"x": 1})
    append_row(tmp_path / "t.csv", {"x": 1})
    with pytest.raises(UserError, match="cannot write"):
        append_row(tmp_path / "t.csv" / "t.csv", {"x": 1})


def test_summary_row_worked_example(tmp_path):
    row = summary_row(a_run(tmp_path, {"class-il": R}, forgetting=9, task1="x"), "class-il", SUMMARY)
    assert list(row) == [
        *("task1", "task2", "task3", "learning_accuracy", "backward_transfer", "forgetting", "forgetting_chaudhry"),
        *("forward_transfer", "run_id", "seed", "leaks", "marks", "lr", "joint", "notes"),
        *("option_forgetting", "option_task1"),
    ]
    assert list(row.values()) == [90, 70, 60, None, -40, 40, 40, None, "run7", 3, "", "", 0.1, False, None, 9, "x"]


def test_rows_of_stopped_and_joint_runs(tmp_path):
    for rows, expected in ((slice(2, 3), ["90.0", "70.0", ""]), (slice(0, 2), ["", "", "60.0"])):
        matrix = R.copy()
        matrix[rows] = np.nan
        append_row(tmp_path / "t.csv", summary_row(a_run(tmp_path, {"class-il": matrix}), "class-il", {}))
        (row,) = read(tmp_path / "t.csv")
        assert [row[f"task{t}"] for t in (1, 2, 3)] == expected


def test_a_run_that_ends_a_second_time_replaces_its_row(tmp_path):
    for run_id, x in (("a", 1), ("b", 2), ("a", 3)):
        append_row(tmp_path / "t.csv", {"x": x, "run_id": run_id, "seed": 0})
    assert [(row["run_id"], row["x"]) for row in read(tmp_path / "t.csv")] == [("b", "2"), ("a", "3")]


@pytest.mark.parametrize("settings", [("class-il", "task-il"), ("domain-il",), ("general-continual",), ("task-il",)])
def test_one_table_per_scenario(tmp_path, settings):
    run = a_run(tmp_path, {name: R + 5 * k for k, name in enumerate(settings)}, settings[0])
    paths = write_summary(run, SUMMARY)
    assert paths == [tmp_path / s / "seq-mnist" / "er" / "mean_accs.csv" for s in settings]
    assert [read(path)[0]["task3"] for path in paths] == ["60.0", "65.0"][: len(settings)]
    assert [read(path)[0]["forgetting"] for path in paths] == ["40.0" if s == "class-il" else "" for s in settings]


def _columns(worker, i):
    return {"id": f"{worker}.{i}", f"option{worker % 5}": f"a{worker}.{i}", f"late{i // 4}": f"b{worker}.{i}"}


def _write_until(path, worker, deadline, acknowledged):
    fd = os.open(acknowledged / str(worker), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    i = 0
    while time.monotonic() < deadline:
        append_row(path, _columns(worker, i))
        os.write(fd, f"{i}\n".encode())
        i += 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_many_writers_some_killed(tmp_path):
    """No row that was acknowledged is lost, no value is under a wrong header, and no reader ever sees a torn table."""
    path, acknowledged = tmp_path / "t.csv", tmp_path / "ack"
    acknowledged.mkdir()
    deadline = time.monotonic() + 0.8
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_until, args=(path, w, deadline, acknowledged)) for w in range(8)]
    for worker in workers:
        worker.start()
    rng = random.Random(0)
    victims = rng.sample(range(8), 4)
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if victims and rng.random() < 0.25:
            os.kill(workers[victims.pop()].pid, signal.SIGKILL)
        if path.exists():
            read(path)
    for worker in workers:
        worker.join(20)
        assert worker.exitcode in (0, -signal.SIGKILL)
    rows = {row["id"]: row for row in read(path)}
    total = 0
    for file in acknowledged.iterdir():
        for i in map(int, Path(file).read_text().split()):
            expected = _columns(int(file.name), i)
            assert {name: value for name, value in rows[expected["id"]].items() if value} == expected
            total += 1
    assert total >= 8
    assert len(read(path)) == len(rows) <= total + 4  # a killed writer may have written a row it could not acknowledge


def test_atomic_writes_replace_and_leave_nothing_beside(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "one\n")
    write_bytes(tmp_path / "a", b"two\r\n")
    assert (tmp_path / "a").read_bytes() == b"two\r\n"
    write_text(tmp_path / "a", "é \udcff")  # as in undecodable arguments
    assert (tmp_path / "a").read_text(encoding="utf-8") == "é \\udcff"

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*a: No space left on device"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "é \\udcff"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
