"""`python -m benchmarks.growth`: what is measured of a task, and how rows become cells."""

from benchmarks import growth


def test_a_row_of_each_task_and_the_end_of_one_that_costs():
    name, rows, why = growth.grow("ewc", 0.3)
    assert (name, why) == ("ewc", "time") and [row[0] for row in rows] == [*range(1, len(rows) + 1)]
    assert all(10 < rate < 1e5 and 1e-4 < end < 10 for _, rate, end in rows)
    assert growth.grow("joint", 1)[1:] == ([], "no stream of many tasks")


def test_cells_are_medians_near_a_task_and_none_beyond_the_last():
    rows = [[task, 10.0 * task, 0.001 * task] for task in range(1, 13)]
    assert growth.cells(rows) == ["20", "90", "-", "-", "2.0", "9.0", "-", "-"]
