"""The buffers of Mammoth: argument orders, fields and selections of both layouts, on the shared reservoir."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.datasets.utils.transforms import to_float
from palimpsest.models.utils.exemplars import herding
from palimpsest.models.utils.mammoth.model import given
from palimpsest.models.utils.mammoth.stream import Stream, TaskLoader, as_stored
from palimpsest.utils.buffer import FIELDS, draw_distinct
from palimpsest.utils.buffer import Buffer as Reservoir
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import eval_mode

STRATEGIES = ("reservoir", "lars", "labrs", "abs")


class Buffer(Reservoir):
    """A reservoir whose fields exist once they were given: images float in [0, 1], labels int64.

    Args:
        buffer_size: number of slots.
        device: where the rows live.
        third: the selection, as a text, or a number of tasks, which changes nothing (until 2023).
        mode: 'reservoir'; 'ring' keeps the same rows, as it did in Mammoth.
        sample_selection_strategy: which row gives way, where reservoir sampling would replace one: 'reservoir' any;
            'lars' by its score; 'labrs' by its score and by how often its class is stored (Buzzega et al. 2021); 'abs'
            the old ones by a low score, those of the task by a high one (Millunzi et al. 2024).
        dataset: the stream, for 'abs'.

    Raises:
        UserError: another selection.
    """

    def __init__(
        self,
        buffer_size: int,
        device: torch.device | str = "cpu",
        third: str | int | None = None,
        mode: str = "reservoir",
        *,
        sample_selection_strategy: str = "reservoir",
        n_tasks: int | None = None,
        dataset: Stream | None = None,
        **_,
    ):
        super().__init__(buffer_size, device)
        self._forget_fields()
        self.attributes = [*FIELDS, "true_labels"]
        self.task_number = third if isinstance(third, int) else n_tasks
        strategy = (third if isinstance(third, str) else sample_selection_strategy).lower()
        if strategy not in STRATEGIES:
            raise UserError(f"Buffer(sample_selection_strategy='{strategy}'): expected one of {', '.join(STRATEGIES)}")
        self.sample_selection_strategy = strategy
        self.sample_selection_fn = Selection(strategy, buffer_size, device, dataset)

    @property
    def used_attributes(self) -> list[str]:
        return list(self.fields)

    def add_data(self, examples: Tensor, labels=None, logits=None, task_labels=None, *_, **more) -> None:
        """Offer as many rows as the shortest field has."""
        scores = more.pop("sample_selection_scores", None)
        if more.pop("attention_maps", None) is not None:
            raise UserError("Buffer.add_data(attention_maps=...) is not supported: maps of a network are not stored")
        fields = _as_fields(examples=examples, labels=labels, logits=logits, task_labels=task_labels, **more)
        if self.fields and set(fields) != set(self.fields):
            raise UserError(f"the buffer stores {', '.join(self.fields)}, add_data was given {', '.join(fields)}")
        if self.sample_selection_strategy == "reservoir":
            return super().add_data(**fields)
        self._given(**fields)
        for i in range(len(fields["examples"])):
            slot = self._slot()
            self.num_seen_examples += 1
            if slot is None:
                continue
            self._put(slot, fields, i)
            if scores is not None:
                self.sample_selection_fn.update(torch.tensor([slot]), scores[i : i + 1].detach())

    def _put(self, slot: int, fields: dict[str, Tensor], i: int) -> None:
        """Row i of every field goes to a slot."""
        for name, rows in fields.items():
            getattr(self, name)[slot] = rows[i].to(self.device)

    def _slot(self) -> int | None:
        """Where the next example goes, None for nowhere."""
        if self.num_seen_examples < self.buffer_size:
            return self.num_seen_examples
        if self.rng.integers(self.num_seen_examples + 1) >= self.buffer_size:
            return None
        return self.sample_selection_fn.choose(self.labels, self.rng)

    def get_data(
        self,
        size: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        return_index: bool = False,
        to_device: torch.device | str | None = None,
        mask_task_out: int | None = None,
        cpt: int | None = None,
        return_not_aug: bool = False,
        not_aug_transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, ...]:
        """min(size, len) distinct rows: (indices, images without augmentation, images, labels, logits, ...), the first
        two where they are asked for.
        """
        index = self._draw(len(self))
        if mask_task_out is not None:
            task = self.task_labels if "task_labels" in self.fields else self.labels // cpt
            index = index[task[index] != mask_task_out]
        device = to_device if device is None else device
        index, *rows = self.get_data_by_index(index[:size], None, device, return_index=True)
        plain = rows[0]
        if transform is not None:
            rows[0] = transform(plain)
        if return_not_aug:
            rows.insert(0, plain if not_aug_transform is None else not_aug_transform(plain))
        return (index, *rows) if return_index else tuple(rows)

    def get_data_by_index(self, indexes, transform=None, device=None, return_index=False) -> tuple[Tensor, ...]:
        return super().get_data_by_index(torch.as_tensor(indexes), transform, return_index, device)

    def _finish(self, *rows, **how) -> tuple[Tensor, ...]:
        if self.is_empty():
            raise UserError("the method reads an empty buffer: it cannot predict before its first task has ended")
        return super()._finish(*rows, **how)

    def empty(self) -> None:
        """Forget every row and every field."""
        super().empty()
        self._forget_fields()

    def init_tensors(self, examples, labels=None, logits=None, task_labels=None, true_labels=None) -> None:
        """Make the fields that are given."""
        values = dict(zip(self.attributes, (examples, labels, logits, task_labels, true_labels), strict=True))
        self._allocate(_as_fields(**values))

    def _forget_fields(self) -> None:
        for name in {*self.fields, *FIELDS} & self._buffers.keys():
            del self._buffers[name]
        self.fields = []


def _as_fields(examples: Tensor, **more: Tensor | None) -> dict[str, Tensor]:
    """Those that are given, as many rows as the shortest has, in the types that such fields have in Mammoth."""
    more = {name: torch.atleast_1d(rows.detach()) for name, rows in more.items() if rows is not None}
    more = {name: rows.long() if name.endswith("els") else rows.float() for name, rows in more.items()}
    fields = {"examples": to_float(torch.atleast_1d(examples.detach())), **more}
    n = min(map(len, fields.values()))
    return {name: rows[:n] for name, rows in fields.items()}


class Selection(nn.Module):
    """Which stored row gives way to a new one, see `Buffer`.

    Attributes:
        importance_scores: (buffer_size,) the score of each row; -inf where none was given.
    """

    def __init__(self, strategy: str, size: int, device: torch.device | str, stream: Stream | None):
        super().__init__()
        self.strategy, self.stream = strategy, stream
        self.register_buffer("importance_scores", torch.full((size,), -torch.inf, device=device))

    def update(self, indexes: Tensor, values: Tensor) -> None:
        """Set the scores of rows."""
        self.importance_scores[indexes.to(self.importance_scores.device)] = values.to(self.importance_scores).view(-1)

    def choose(self, labels: Tensor, rng: np.random.Generator) -> int:
        """The row of `labels` (n,) that is replaced."""
        score = self.importance_scores.nan_to_num(neginf=0.0)
        rows = torch.arange(len(score), device=score.device)
        if self.strategy == "labrs":
            counts = torch.bincount(labels)[labels].float()
            score = score / (score.abs().mean() * counts.abs().mean()).clamp(min=1e-9) + counts
        elif self.strategy == "abs":
            old = labels < (self.stream or given.stream).get_offsets()[0]
            if rng.random() < float(old.double().mean()):
                rows, score = rows[old], -score[old]
            else:
                rows, score = rows[~old], score[~old]
        share = (score - score.min()).double().cpu().numpy()
        return int(rows[rng.choice(len(rows), p=share / share.sum() if share.sum() else None)])


class RingBuffer(Buffer):
    """Each task has an equal part of the slots, in which the latest examples stay. `task_number` is the task's index.

    Args:
        buffer_size: number of slots.
        device: where the rows live; an int is the number of tasks.
        n_tasks: number of tasks.
    """

    def __init__(self, buffer_size: int, device: torch.device | str = "cpu", n_tasks: int | None = None, **_):
        super().__init__(buffer_size, device)
        self.buffer_portion_size, self.task_number = max(buffer_size // (n_tasks or 1), 1), 0
        self.register_buffer("filled", torch.zeros(buffer_size, dtype=torch.bool, device=device))

    def __len__(self) -> int:
        return int(self.filled.sum())

    def is_empty(self) -> bool:
        return not self.filled.any()

    def add_data(self, examples: Tensor, labels=None, logits=None, task_labels=None, **more) -> None:
        fields = _as_fields(examples=examples, labels=labels, logits=logits, task_labels=task_labels, **more)
        self._given(**fields)
        for i in range(len(examples)):
            slot = self.num_seen_examples % self.buffer_portion_size + self.task_number * self.buffer_portion_size
            self.num_seen_examples += 1
            self.filled[slot % self.buffer_size] = True
            self._put(slot % self.buffer_size, fields, i)

    def _draw(self, size: int) -> Tensor:
        index = self.filled.nonzero().squeeze(1)
        return index[self._to_device(draw_distinct(len(index), size, self.rng))]

    def get_all_data(self, transform=None, device=None) -> tuple[Tensor, ...]:
        return self.get_data_by_index(self.filled.nonzero().squeeze(1), transform, device)

    def empty(self) -> None:
        super().empty()
        self.filled.zero_()


class GradientBuffer(Buffer):
    """Examples whose gradients differ from those stored (Aljundi et al. 2019, GSS-Greedy).

    Args:
        buffer_size: number of slots.
        device: where the rows live.
        minibatch_size: stored examples whose gradients a new one is compared with.
        model: its `get_grads(inputs, labels)` gives the gradient as (1, P).
    """

    def __init__(self, buffer_size: int, device: torch.device | str, minibatch_size: int, model: nn.Module):
        super().__init__(buffer_size, device)
        self.minibatch_size = minibatch_size
        vars(self)["model"] = model  # no part of the buffer, which is a part of it
        self.register_buffer("scores", torch.zeros(buffer_size, device=device))
        self.order, self.place = torch.zeros(0, dtype=torch.long), 0

    def drop_cache(self) -> None:
        """Gradients are taken anew for each batch."""

    def reset_fathom(self) -> None:
        """Draw a new order in which `get_data` goes through the rows."""
        self.order, self.place = torch.from_numpy(self.rng.permutation(len(self))), 0

    def get_data(self, size: int, transform=None, give_index=False, random=False, device=None) -> tuple[Tensor, ...]:
        """The next rows of the present order, or random ones; the indices come last."""
        if random:
            index = self._draw(size)
        else:
            index = self.order[self.place : self.place + size]
            self.place = self.place + len(index) if self.place + len(index) < len(self) else 0
        out = self.get_data_by_index(index, transform, device)
        return (*out, index) if give_index else out

    def add_data(self, examples: Tensor, labels: Tensor | None = None, **_) -> None:
        fields = self._given(**_as_fields(examples=examples, labels=labels))
        similarity, gradients = 0.1, None
        if not self.is_empty():
            x, y = self.get_data(min(self.minibatch_size, len(self)), random=True)
            gradients = torch.cat([self.model.get_grads(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
            similarity = self._similarity(examples, labels, gradients)
        for i in range(len(examples)):
            slot, score = len(self), similarity
            if self.num_seen_examples >= self.buffer_size:
                slot = None
                if similarity < 1:
                    score = self._similarity(examples[i : i + 1], labels[i : i + 1], gradients)
                    share = self.scores.double().cpu().numpy()
                    drawn = int(self.rng.choice(len(share), p=share / share.sum()))
                    old = float(self.scores[drawn])
                    slot = drawn if self.rng.random() < old / (old + score) else None
            self.num_seen_examples += 1
            if slot is not None:
                self.scores[slot] = score
                self._put(slot, fields, i)

    def _similarity(self, examples: Tensor, labels: Tensor, gradients: Tensor) -> float:
        """1 + the largest cosine between the examples' gradient and the stored ones."""
        own = self.model.get_grads(examples, labels)
        return float(F.cosine_similarity(own, gradients).max()) + 1


def icarl_replay(model: nn.Module, dataset: Stream, val_set_split: float = 0) -> None:
    """From the second task on, add the buffer's rows to the task's training data; with a split, that share of the
    buffer and as many new examples become `model.val_loader` instead.
    """
    if model._current_task == 0:
        return
    rows, n = dataset.train_loader.dataset, len(model.buffer)
    split, index = rows.stored()
    new_x, new_y = split.images_of(index).cpu(), split.targets_of(index).cpu()
    old_x, old_y = as_stored(model.buffer.examples[:n].cpu(), new_x), model.buffer.labels[:n].cpu()
    held_old = torch.rand(n) < val_set_split
    held_new = torch.zeros(len(new_y), dtype=torch.bool)
    held_new[torch.randperm(len(new_y))[: int(held_old.sum())]] = True
    if val_set_split > 0:
        held = deepcopy(rows)
        held.data = torch.cat((new_x[held_new], old_x[held_old]))
        held.targets = torch.cat((new_y[held_new], old_y[held_old]))
        model.val_dataset, model.val_loader = held, TaskLoader(held, model.args.batch_size)
    rows.data = torch.cat((new_x[~held_new], old_x[~held_old]))
    rows.targets = torch.cat((new_y[~held_new], old_y[~held_old]))


@torch.no_grad()
def fill_buffer(
    buffer: Buffer,
    dataset: Stream,
    t_idx: int,
    net: nn.Module | None = None,
    use_herding: bool = False,
    required_attributes: list[str] | None = None,
    normalize_features: bool = False,
    extend_equalize_buffer: bool = False,
) -> None:
    """Give every class an equal share: cut the stored classes, add those of task `t_idx`, herded or at random.

    Args:
        required_attributes: fields to store, of 'examples', 'labels', 'logits' (sigmoids of the network's outputs) and
            'task_labels'; by default those stored, or images and labels.
        normalize_features: herd on features of length 1.
        extend_equalize_buffer: enlarge the buffer until all shares are equal.
    """
    past, seen = dataset.get_offsets(t_idx)
    if extend_equalize_buffer:
        buffer.buffer_size = -(-dataset.args.buffer_size // seen) * seen
    share = buffer.buffer_size // seen
    if not share:
        raise UserError(f"--buffer_size {buffer.buffer_size} leaves no example for each of {seen} classes: raise it")
    wanted = required_attributes or buffer.used_attributes or ["examples", "labels"]
    kept = dict(zip(buffer.fields, buffer.get_all_data(), strict=True)) if len(buffer) else {}
    classes = [{name: rows[kept["labels"] == c][:share] for name, rows in kept.items()}
               for c in (kept["labels"].unique() if kept else ())]  # fmt: skip
    found: dict[str, list[Tensor]] = {"examples": [], "labels": [], "features": [], "logits": []}
    transform = dataset.get_normalization_transform()
    with nullcontext() if net is None else eval_mode(net):
        for _, labels, images, *_ in dataset.train_loader:
            own = (labels >= past) & (labels < seen)
            found["examples"].append(images[own])
            found["labels"].append(labels[own])
            if net is not None and own.any():
                features = net(transform(images[own]), returnt="features")
                found["logits"].append(torch.sigmoid(net.classifier(features)))
                features = features.flatten(1)
                found["features"].append(F.normalize(features) if normalize_features else features)
    every = {name: torch.cat(parts) for name, parts in found.items() if parts}
    every["task_labels"] = torch.full_like(every["labels"], t_idx)
    for c in every["labels"].unique():
        own = (every["labels"] == c).nonzero().squeeze(1)
        order = herding(every["features"][own], share) if use_herding else torch.randperm(len(own))[:share]
        chosen = own[order.to(own.device)]
        classes.append({name: every[name][chosen].to(buffer.device) for name in wanted})
    buffer.empty()
    buffer.add_data(**{name: torch.cat([fields[name] for fields in classes]) for name in wanted})


def fill_herded(model: nn.Module, mem_buffer: Buffer, dataset: Stream, t_idx: int) -> None:
    """`fill_buffer` as iCaRL's file had it until 2023: herded, with the sigmoids of the outputs."""
    fill_buffer(mem_buffer, dataset, t_idx, model.net, True, ["examples", "labels", "logits"])


def reservoir(num_seen_examples: int, buffer_size: int) -> int:
    """The slot that the next example of a stream takes, -1 for none; drawn from numpy's global generator."""
    if num_seen_examples < buffer_size:
        return num_seen_examples
    slot = np.random.randint(num_seen_examples + 1)  # noqa: NPY002 - the generator that files of Mammoth draw from
    return slot if slot < buffer_size else -1
