"""The leak detector of `--check`: runs on streams in which what a method may not know is other than it was.

Where the data of later tasks are other images with other class counts, a method ends its first task with the same bits;
where the test images are others, and those of a task are lost when it ends, it ends its last one so. Whatever way the
data come in by, the bits show it. Predictions are asked for in other company, as in every scored run but on more
images; the state is searched for images.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.source_files import RawData
from palimpsest.utils.check.case_runs import Ended, differing_entries, observed, state_of
from palimpsest.utils.check.cases import Case, Failure
from palimpsest.utils.evaluation import eval_mode
from palimpsest.utils.leaks.kinds import (
    EARLIER,
    IDENTITY,
    LATER,
    MEANING,
    STATISTICS,
    TEST,
    UNBOUND,
)
from palimpsest.utils.leaks.memory import kept_images
from palimpsest.utils.leaks.probe import Findings, Probe, take_images
from palimpsest.utils.log.leaks import declared_leaks, known_images
from palimpsest.utils.randomness import generator, preserve_rng
from palimpsest.utils.record import Experiment, Position
from palimpsest.utils.run.config import Config
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train

IMAGES, ALONE = 40, 20  # of each task, and of these in a batch of one
FEWEST = 2  # rows of a class that stay where class counts are changed


# ---- streams with other data


def other_images(images: Tensor, *names: Any) -> Tensor:
    """Images of the same shape, kind and range with nothing of the given ones."""
    rng = generator(0, "other images", *names)
    if images.dtype == torch.uint8:
        return torch.randint(0, 256, images.shape, generator=rng, dtype=torch.uint8).to(images.device)
    order = torch.randperm(images.numel(), generator=rng).to(images.device)
    return images.flatten()[order].view(images.shape) + 1


def altered(cls: type, part: str) -> type:
    """A stream class whose data differ in one part: LATER (all tasks but the first), TEST, or EARLIER (the training
    data of tasks that have ended).
    """

    class Altered(cls):
        def _later(self, task: int) -> bool:
            return part == LATER and task > 0

        def _labelled(self, raw: RawData) -> RawData:
            if part == EARLIER:  # its images are overwritten, and a source may hand them out again
                raw = RawData(raw.train_x.clone(), raw.train_y, raw.test_x, raw.test_y)
            elif part == TEST:
                raw = RawData(raw.train_x, raw.train_y, other_images(raw.test_x), raw.test_y)
            elif part == LATER and self.SETTING == "class-il" and not self.args.joint:
                raw = self._with_other_classes(raw)
            return super()._labelled(raw)

        def _with_other_classes(self, raw: RawData) -> RawData:
            """Other images of the classes of later tasks, and fewer of every second of them."""
            parts: list[Tensor] = []
            # Before a class order is known: the first classes of the order are those of the first task.
            first = torch.tensor(self._class_order()[: self.cpt(0)].tolist())
            for name, x, y in (("train", raw.train_x, raw.train_y), ("test", raw.test_x, raw.test_y)):
                later = ~torch.isin(y, first)
                x = x.clone()
                x[later] = other_images(x[later], name)
                order = (y.long().unsqueeze(1) == torch.arange(int(y.max()) + 1)).cumsum(0).gather(1, y.view(-1, 1))
                few = later & (y % 2 == 1) & (order.squeeze(1) > max(FEWEST, len(y) // (4 * self.N_CLASSES)))
                parts += [x[~few], y[~few]]
            return RawData(*parts)

        def transformed(self, images: Tensor, domain: int) -> Tensor:
            shown = super().transformed(images, domain)
            return other_images(shown, domain) if self._later(self._order.index(domain)) else shown

        def _train_part(self, task: int) -> tuple[Any, Tensor]:
            source, rows = super()._train_part(task)
            if part == EARLIER and task < self.c_task and isinstance(source, Split) and not self.args.joint:
                images = other_images(source.images_of(rows), task)
                return Split(images, source.targets_of(rows)), torch.arange(len(rows), device=rows.device)
            return source, rows

        def _prepare(self) -> None:
            super()._prepare()
            for task, (train_data, test_data) in enumerate(getattr(self, "_data", ())):  # read while one trains
                for data, tested in ((train_data, False), (test_data, True)):
                    data.example = self._other_examples(data.example, task, tested)

        def _other_examples(self, example: Callable, task: int, tested: bool) -> Callable:
            def other(row: int, epoch: int | str | None = None) -> tuple[Tensor, Any]:
                image, label = example(row, epoch)
                lost = part == EARLIER and not tested and task < self.c_task and not self.args.joint
                if lost or self._later(task) or (part == TEST and tested):
                    image = other_images(image, task, row)
                return image, label

            return other

    if not hasattr(cls, "transformed"):
        del Altered.transformed
    if not hasattr(cls, "_class_order"):
        del Altered._with_other_classes
    Altered.__name__, Altered.__qualname__, Altered.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Altered


def forget_storage(exp: Experiment) -> None:
    """From now on the training images of a task are overwritten in memory when it ends, where they are its alone."""
    stream = exp.dataset
    if stream.SETTING != "class-il" or stream.args.joint or not isinstance(getattr(stream, "_train", None), Split):
        return

    def forget(at: Position) -> None:
        low, high = stream.get_offsets(at.task - 1)
        split = stream._train
        with stream.reads.unwatched():
            rows = ((split.targets >= low) & (split.targets < high)).nonzero().squeeze(1)
            split.images[rows] = other_images(split.images_of(rows))

    exp.log.after_task = forget


def one_task(case: Case) -> Config:
    """A run of the first task alone."""
    config = case.config("--n_epochs", "1")
    config.args.stop_after = 1
    return config


def altered_run(config: Config, *parts: str) -> Ended:
    """A run on a stream that differs in some parts."""
    cls = config.dataset_class
    for part in parts:
        cls = altered(cls, part)
    exp = build(replace(config, dataset_class=cls))
    if EARLIER in parts:
        forget_storage(exp)
    train(exp)
    return Ended(exp, state_of(exp), [])


# ---- the checks


def later_tasks_are_unknown(case: Case) -> None:
    """The first task ends the same whatever the later ones hold, and nobody reads ahead."""
    found = observed(case)
    tell(found.exp, LATER)
    tell(found.exp, STATISTICS)
    if (
        found.exp.model.JOINT
        or found.exp.dataset.N_TASKS < 2
        or LATER in declared_leaks(found.exp.model, found.exp.dataset)
    ):
        return
    config = one_task(case)
    differing = differing_entries(altered_run(config).state, altered_run(config, LATER).state)
    if differing:
        raise Failure(
            f"{MEANING[LATER]}: with other images and class counts in the later tasks the first one ends with another "
            f"{', '.join(differing[:3])}"
        )


def test_and_past_data_are_unknown(case: Case) -> None:
    """Training is the same whatever the test images are, and without the data of tasks that have ended."""
    found = observed(case)
    tell(found.exp, TEST)
    tell(found.exp, EARLIER)
    config = case.config("--n_epochs", "2")
    declared, first = declared_leaks(found.exp.model, found.exp.dataset), found.state
    parts = [part for part in (TEST, EARLIER) if part not in declared]
    if not parts or not differing_entries(first, altered_run(config, *parts).state):
        return
    for part in parts:
        differing = differing_entries(first, altered_run(config, part).state)
        if differing:
            changed = {TEST: "with other test images", EARLIER: "without the training data of past tasks"}[part]
            raise Failure(f"{MEANING[part]}: {changed} the run ends with another {', '.join(differing[:3])}")


def predictions_stand_alone(case: Case) -> None:
    """A prediction depends on its image alone: not on the batch, the task in class-IL, or unseen classes."""
    for exp in (observed(case).exp, _after_first_task(case)):
        if exp is None:
            continue
        trained = exp.run.history[-1].task
        tasks = range(min(trained + 1, len(exp.dataset.test_loaders)))
        probe = Probe(exp.model, exp.dataset, trained, take_images(exp.dataset, tasks, IMAGES))
        refuse(exp, probe.look(ALONE))
        refuse(exp, probe.look_closely(take_images(exp.dataset, tasks[:1], exp.args.eval_batch_size)))
    refuse(observed(case).exp, other_scores(observed(case).exp))


def no_images_are_kept(case: Case) -> None:
    """A method without a replay buffer holds no images, and no method holds test images."""
    exp = observed(case).exp
    if (known := known_images(exp.model, exp.dataset)) is not None:
        refuse(exp, kept_images(exp.model, known))


def every_term_moves_a_weight(case: Case) -> None:
    """A term of the loss that is not 0 has a gradient, and is not 0 all the time."""
    exp = observed(case).exp
    if places := observed(case).unbound_terms:
        refuse(exp, {UNBOUND: [f"its gradient with respect to every weight is 0, added in {places[0]}"]})


LEAKS: list[Callable[[Case], None]] = [
    later_tasks_are_unknown,
    test_and_past_data_are_unknown,
    predictions_stand_alone,
    no_images_are_kept,
    every_term_moves_a_weight,
]


def marks_of(case: Case) -> dict[str, str]:
    """What the method declares of its leaks."""
    try:
        exp = observed(case).exp
    except Exception:  # noqa: BLE001 - the checks have said why
        return {}
    return declared_leaks(exp.model, exp.dataset)


def refuse(exp: Experiment, found: Findings) -> None:
    """Raise Failure for what is found and not declared."""
    declared = declared_leaks(exp.model, exp.dataset)
    for kind, sentences in found.items():
        if kind not in declared and sentences:
            raise Failure(f"{MEANING[kind]}: {sentences[0]}")


def tell(exp: Experiment, kind: str) -> None:
    """The same of what the stream has counted."""
    refuse(exp, {kind: exp.dataset.reads.found.get(kind, [])})


def _after_first_task(case: Case) -> Experiment | None:
    """A run that has classes before it; None where there is no class-IL, or no more than a task."""
    exp = observed(case).exp
    if "class-il" not in exp.run.matrices or exp.model.JOINT:
        return None
    exp = build(one_task(case))
    train(exp)
    return exp


def other_scores(exp: Experiment) -> Findings:
    """class-IL scored once more without anything that a method could take the task or the labels from: neither the
    evaluation's own variables nor the order of its batches.
    """
    matrix, stream, trained = exp.run.matrices.get("class-il"), exp.dataset, exp.run.history[-1].task
    if matrix is None or not hasattr(stream.tasks[0].score(stream.tasks[trained]), "answers"):
        return {}
    scored, n = matrix[trained], min(trained + 1, len(stream.test_loaders))
    images = take_images(stream, range(n), 1 << 30)
    inputs, labels = torch.cat([p.inputs for p in images]), torch.cat([p.labels for p in images])
    owner = torch.cat([torch.full((len(p),), p.task) for p in images]).to(labels.device)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(labels.device)
    answers = torch.empty_like(labels)
    with torch.no_grad(), eval_mode(exp.model), preserve_rng():
        for rows in order.split(stream.args.eval_batch_size):
            logits = ask(exp.model, inputs[rows], labels[:1].expand(len(rows)))
            answers[rows] = stream.tasks[0].score(stream.tasks[trained]).answers(logits)
    for task in range(n):
        mine = owner == task
        again = 100 * float((answers[mine] == labels[mine]).double().mean())
        if abs(again - scored[task]) > 2 * 100 / max(int(mine.sum()), 1) + 0.5 and not _draws(exp.model, inputs):
            what = (
                f"task {task + 1} scores {scored[task]:.1f} % in the evaluation, {again:.1f} % where all are withheld"
            )
            return {IDENTITY: [what]}
    return {}


def ask(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """class-IL outputs for a batch of all tasks, told the first one."""
    outputs, _ = model.evaluate_batch(inputs, labels, 0, ["class-il"])
    return outputs["class-il"]


def _draws(model: Any, inputs: Tensor) -> bool:
    """Whether predictions are random."""
    some = inputs[:8]
    with torch.no_grad(), eval_mode(model):
        a, b = (ask(model, some, torch.zeros(len(some), dtype=torch.int64, device=some.device)) for _ in range(2))
    return not torch.equal(a, b)
