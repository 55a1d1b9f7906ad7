"""One reservoir for each task with outputs of its own: whose examples go where, and come back."""

import torch

from palimpsest.utils.buffer import Reservoirs


class Stream:
    """Three tasks that cannot stand in one batch."""

    N_TASKS, MIXED = 3, False

    def pools(self, n):
        return ["seg", "det", "cls"][:n]


def rows(value: float, n: int) -> torch.Tensor:
    return torch.full((n, 2), value)


def test_every_task_has_an_equal_share_and_keeps_its_own_examples():
    stream = Stream()
    store = Reservoirs(7, stream)
    for task in range(3):
        store.add(stream.pools(task + 1), rows(task, 5), torch.full((5,), task))
    assert [len(part) for part in store] == [2, 2, 2]
    for task, part in enumerate(store):
        examples, labels = part.get_all_data()
        assert (examples == task).all() and (labels == task).all()
    assert [part.buffer_size for part in Reservoirs(2, stream)] == [1, 1, 1]


def test_only_tasks_before_are_replayed():
    stream = Stream()
    store = Reservoirs(6, stream)
    for task in range(2):
        store.add(stream.pools(task + 1), rows(task, 2), torch.full((2,), task))
    batches = store.join(stream.pools(2), rows(9, 3), torch.full((3,), 9), 2, lambda x: -x)
    assert [(task, len(x)) for task, x, _ in batches] == [("det", 3), ("seg", 2)]
    (_, x, y), (_, old, old_labels) = batches
    assert (x == 9).all() and (y == 9).all() and (old == 0).all() and (old_labels == 0).all()
