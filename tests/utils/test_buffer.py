"""The buffer: reservoir sampling in distribution, draws and fields."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.utils.buffer import Buffer, SelectiveBuffer, draw_distinct, reservoir_slots


class Scripted:
    """Stands in for a generator: hands out prepared numbers."""

    def __init__(self, values):
        self.values = list(values)

    def random(self, n):
        taken, self.values = self.values[:n], self.values[n:]
        return np.array(taken)

    def integers(self, _, size):
        return self.random(size)


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_batch_does_exactly_what_one_by_one_insertion_does_with_the_same_draws(capacity, n, batch, rng):
    u = [rng.random() for _ in range(n)]
    expected = [-1] * capacity
    for k in range(n):
        slot = k if k < capacity else int(u[k] * (k + 1))
        if slot < capacity:
            expected[slot] = k
    got = [-1] * capacity
    for start in range(0, n, batch):
        size = min(batch, n - start)
        items, slots = reservoir_slots(start, size, capacity, Scripted(u[start : start + size]))
        assert len({*slots.tolist()}) == len(slots)
        for item, slot in zip(items, slots, strict=True):
            got[slot] = start + int(item)
    assert got == expected


def filled(n=30, capacity=10):
    torch.manual_seed(0)
    buffer = Buffer(capacity)
    for start in range(0, n, 5):
        value = torch.arange(start, start + 5)
        images = value.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8)
        buffer.add_data(examples=images, labels=value, logits=value.float().view(-1, 1).repeat(1, 3))
    return buffer


def test_rows_stay_together_and_keep_their_dtype():
    buffer = filled()
    examples, labels, logits = buffer.get_all_data()
    assert examples.dtype == torch.uint8 and labels.dtype == torch.int64 and logits.dtype == torch.float32
    assert torch.equal(examples[:, 0, 0, 0].long(), labels) and torch.equal(logits[:, 2].long(), labels)
    assert len(buffer) == 10 and buffer.num_seen_examples == 30 and buffer.task_labels is None


def test_get_data_draws_distinct_rows_uniformly_and_at_most_all():
    buffer, counts = filled(), torch.zeros(10)
    index, examples, labels, _ = buffer.get_data(6, return_index=True)
    assert len(index.unique()) == 6 and torch.equal(buffer.labels[index], labels) and len(examples) == 6
    assert len(buffer.get_data(99)[0]) == 10
    assert len(filled(5).get_data(99)[0]) == 5
    for _ in range(3000):
        counts[buffer.get_data(3, return_index=True)[0]] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_transform_sees_the_whole_batch_once():
    calls = []
    out, *_ = filled().get_data(4, transform=lambda x: calls.append(x.shape) or x.float() / 255)
    assert calls == [(4, 1, 2, 2)] and out.dtype == torch.float32


def test_mask_task_out():
    buffer = Buffer(20)
    buffer.add_data(examples=torch.arange(20.0).view(-1, 1), task_labels=torch.arange(20) % 4)
    for _ in range(20):
        _, tasks = buffer.get_data(5, mask_task_out=2)
        assert (tasks != 2).all() and len(tasks) == 5


def test_empty_and_wrong_fields():
    buffer = Buffer(3)
    assert buffer.is_empty() and len(buffer) == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.get_data(1)
    buffer.add_data(examples=torch.zeros(2, 1), labels=torch.zeros(2))
    with pytest.raises(ValueError, match="stores examples, labels"):
        buffer.add_data(examples=torch.zeros(2, 1))
    buffer.empty()
    assert buffer.is_empty()
    with pytest.raises(ValueError, match="at least 1"):
        Buffer(0)


def test_replace_writes_the_rows_that_were_taken():
    buffer = filled(10)
    images = torch.full((3, 1, 2, 2), 99, dtype=torch.uint8)
    buffer.replace(
        torch.tensor([7, 2, 7]),
        torch.tensor([True, False, True]),
        examples=images,
        labels=torch.tensor([50, 51, 50]),
        logits=torch.full((3, 3), 50.0),
    )
    examples, labels, logits = buffer.get_all_data()
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 50, 8, 9] and buffer.num_seen_examples == 10
    assert examples[7].unique().tolist() == [99] and examples[2].unique().tolist() == [2]
    assert torch.equal(logits[:, 0].long(), labels)


def test_balanced_draws_give_every_task_its_share():
    buffer = Buffer(60)
    tasks = torch.tensor([0] * 40 + [3] * 15 + [7] * 5)  # the tasks between have lost their rows
    buffer.add_data(torch.arange(60), task_labels=tasks)
    remainders, drawn = torch.zeros(8), torch.zeros(60)
    for _ in range(300):
        rows, labels = buffer.get_data(10, balanced=True)
        counts = labels.bincount(minlength=8)
        assert len(rows.unique()) == 10 and torch.equal(tasks[rows], labels)
        assert sorted(counts[[0, 3, 7]].tolist()) == [3, 3, 4]
        remainders += counts == 4
        drawn[rows] += 1
    assert (remainders[[0, 3, 7]] > 60).all()  # 100 each on average, standard deviation 8
    for task in (0, 3, 7):
        assert stats.chisquare(drawn[tasks == task].numpy()).pvalue > 1e-3
    assert buffer.get_data(30, balanced=True)[1].bincount(minlength=8)[[0, 3, 7]].tolist() in ([13, 12, 5], [12, 13, 5])
    assert len(buffer.get_data(100, balanced=True)[0]) == 60


def test_buffers_leave_the_global_generators_alone():
    torch.manual_seed(0)
    buffer = Buffer(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(5):
        buffer.add_data(torch.arange(3), task_labels=torch.zeros(3))
        buffer.get_data(2)
        buffer.get_data(2, balanced=True)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_selective_buffer_is_a_reservoir_over_the_admitted(capacity, n, batch, rng):
    draws, admitted = [rng.randrange(2**62) for _ in range(n)], [rng.random() < 0.6 for _ in range(n)]
    expected, count = {}, 0
    for k in range(n):
        if admitted[k]:
            slot = count if count < capacity else draws[k] % (count + 1)
            count += 1
            if slot < capacity:
                expected[slot] = k
    buffer = SelectiveBuffer(capacity)
    buffer.rng = Scripted(draws)
    for rows in torch.arange(n).split(batch):
        buffer.add_data(rows.view(-1, 1), admitted=torch.tensor(admitted)[rows], labels=rows + 100)
    stored, labels = buffer.get_all_data()
    assert {slot: k for slot, (k,) in enumerate(stored.tolist())} == expected
    assert torch.equal(labels, stored[:, 0] + 100)
    assert int(buffer.num_admitted) == count and buffer.num_seen_examples == n and len(buffer) == min(count, capacity)
    assert buffer.is_empty() == (count == 0)


def test_a_selective_buffer_draws_filled_slots():
    buffer = SelectiveBuffer(50)
    buffer.add_data(torch.arange(100, 110), admitted=torch.zeros(10, dtype=torch.bool))
    assert buffer.is_empty() and set(buffer.get_data(8)[0].tolist()) <= set(range(100, 110))  # images all the same
    buffer.add_data(torch.arange(4), admitted=torch.tensor([True, True, False, True]))
    for _ in range(20):
        assert sorted(buffer.get_data(3)[0].tolist()) == [0, 1, 3]
        counts = buffer.get_data(8)[0].bincount(minlength=4).tolist()
        assert counts[2] == 0 and sorted(counts) == [0, 2, 3, 3]
    buffer.add_data(torch.arange(4, 60), admitted=torch.ones(56, dtype=torch.bool))
    counts = torch.zeros(60)
    for _ in range(1500):
        drawn = buffer.get_data(10)[0]
        assert len(drawn.unique()) == 10
        counts += drawn.bincount(minlength=60)
    counts = counts[buffer.get_all_data()[0]]
    # Rows of one draw are distinct, hence the factor (n - 1) / (n - k).
    assert stats.chi2.sf(((counts - 300) ** 2 / 300).sum().item() * 49 / 40, 49) > 1e-3
    assert len(buffer.get_data(99)[0]) == 50
    buffer.empty()
    assert buffer.is_empty() and int(buffer.num_admitted) == 0


@pytest.mark.parametrize("n, size", [(8, 3), (600, 3), (20_000, 3), (20_000, 600), (8, 8), (600, 599)])
def test_distinct_draws_are_uniform_over_rows_places_and_pairs(n, size):
    rng, groups = np.random.default_rng(0), 8
    draws = np.stack([draw_distinct(n, size, rng) for _ in range(4000)])
    assert draws.dtype == np.int64 and draws.min() >= 0 and draws.max() < n
    assert all(len(np.unique(row)) == size for row in draws[:200])
    group = draws * groups // n  # 8 equal parts of the rows
    share = np.array([np.sum(np.arange(n) * groups // n == g) for g in range(groups)]) / n
    for place in (0, 1, size - 1):  # a row is as likely first as last
        assert stats.chisquare(np.bincount(group[:, place], minlength=groups), 4000 * share).pvalue > 1e-3
    # The joint distribution of two places: without replacement, and independent of their order.
    pairs = np.bincount(group[:, 0] * groups + group[:, -1], minlength=groups**2).reshape(groups, groups)
    count = share * n
    expected = 4000 * (np.outer(count, count) - np.diag(count)) / (n * (n - 1))
    possible = expected > 0
    assert pairs[~possible].sum() == 0
    assert stats.chisquare(pairs[possible], expected[possible]).pvalue > 1e-3
    ascending = (draws[:, 0] < draws[:, -1]).sum()
    assert stats.binomtest(int(ascending), 4000).pvalue > 1e-3


def test_a_draw_does_not_touch_all_rows_of_a_large_buffer():
    class NoPermutation:
        def __init__(self, rng):
            self.choice = rng.choice

    assert len(draw_distinct(50_000, 128, NoPermutation(np.random.default_rng(0)))) == 128


def test_draws_of_a_large_buffer_are_distinct_and_leave_a_task_out():
    torch.manual_seed(0)
    buffer = Buffer(2000)
    buffer.add_data(examples=torch.arange(2000.0).view(-1, 1), task_labels=torch.arange(2000) % 4)
    counts = torch.zeros(2000)
    for _ in range(1000):
        index, _, tasks = buffer.get_data(40, return_index=True, mask_task_out=2)
        assert (tasks != 2).all() and len(index.unique()) == 40
        counts[buffer.get_data(40, return_index=True)[0]] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
