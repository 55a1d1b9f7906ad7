"""Files written for Mammoth: how they are known, what their imports find, and what their names do."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.datasets.utils.loaders import Split, TaskData, TrainLoader
from palimpsest.models.utils.mammoth import functions, signs
from palimpsest.models.utils.mammoth.memory import Buffer, RingBuffer
from palimpsest.models.utils.mammoth.stream import Stream, TaskLoader, TaskRows, as_stored
from palimpsest.utils import registry
from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.run.training import train
from tests.models.helpers import experiment, finished

STYLE = Path(__file__).parent / "mammoth_style"
REPLAY = ["--buffer_size", "60", "--minibatch_size", "16"]
SHORT = [*REPLAY, "--n_epochs", "1", "--label_perc", "0.1"]
FRAME = """
from utils.args import *
from utils.buffer import Buffer
from models.utils.continual_model import ContinualModel
{imports}

def get_parser():
    parser = ArgumentParser(description="given")
    add_management_args(parser)
    add_experiment_args(parser)
    add_rehearsal_args(parser)
    return parser

class Given(ContinualModel):
    NAME = "given"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    def __init__(self, backbone, loss, args, transform):
        super(Given, self).__init__(backbone, loss, args, transform)
        self.buffer = Buffer(self.args.buffer_size, self.device)
        {init}

    def end_task(self, dataset):
        {end}

    def observe(self, inputs, labels, not_aug_inputs):
        self.opt.zero_grad()
        n = len(inputs)
        if not self.buffer.is_empty():
            x, y = self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
            inputs, labels = torch.cat((inputs, x)), torch.cat((labels, y))
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels[:n])
        {observe}
        return loss.item()
"""


def given_file(folder: Path, imports: str = "import torch", init="pass", end="pass", observe="pass") -> str:
    """A replay method in the frame of 2020-2023 with lines of a test's own."""
    path = folder / "given.py"
    path.write_text(FRAME.format(imports=imports, init=init, end=end, observe=observe))
    return str(path)


# ---- how they are known


def test_no_method_of_the_house_is_taken_for_one():
    assert not [n for n in registry.names("model") if signs.written_for_mammoth(registry.find("model", n))]
    assert all(signs.written_for_mammoth(path) for path in STYLE.glob("[a-z]*.py"))


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("from utils.conf import get_device", True),
        ("from datasets import get_dataset", True),
        ("from utils.buffer import Buffer, icarl_replay", True),
        ("from models.agem import project", True),
        ("from utils.args import *", True),
        ("def get_parser(): pass", True),
        ("class A:\n  def __init__(self, backbone, loss, args, transform): pass", True),
        ("class A:\n  def observe(self, x): return self.loss(x).item()", True),
        ("class A:\n  def end_task(self, x): return self.loss(x).item()", False),
        ("class A:\n  def __init__(self, backbone, loss, args, transform, dataset=None): pass", False),
        ("class A:\n  def get_parser(parser): pass", False),
        ("from utils.buffer import Buffer, reservoir_slots", False),
        ("from utils import panels", False),
        ("import torch", False),
        ("this is no python", False),
    ],
)
def test_signs(tmp_path, line, is_one):
    (tmp_path / "a.py").write_text(line)
    assert signs.written_for_mammoth(tmp_path / "a.py") == is_one


def test_another_file_does_not_see_the_names():
    registry.load("model", str(STYLE / "changed_data.py"))
    with pytest.raises(ImportError):
        from palimpsest.utils.buffer import icarl_replay  # noqa: F401
    with pytest.raises(ImportError):
        import utils.conf  # noqa: F401


# ---- what they are run like


@pytest.mark.parametrize("stream", ["seq-digits", "perm-digits", "digits-360"])
def test_replay_in_the_old_frame_learns_the_same_weights_as_ours(tmp_path, stream):
    net = [] if stream == "seq-digits" else ["--backbone", "mnistmlp"]
    more = [*SHORT, *net, "--stop_after", "1" if "360" in stream else "2"]
    models = [finished(name, *more, dataset=stream).model for name in ("er", given_file(tmp_path))]
    assert torch.equal(*(model.net.get_params() for model in models))


def test_a_ranking_loss_takes_flat_targets_in_such_a_file_alone(tmp_path):
    observe = "loss = nn.MarginRankingLoss(margin=0.5)(torch.zeros(3, 1), torch.ones(3, 1), torch.ones(3))"
    exp = experiment(given_file(tmp_path, "import torch\nfrom torch import nn", observe=observe), *SHORT)
    batch = next(iter(exp.dataset.enter_task(0)))
    assert exp.model.meta_observe(*batch, 0) == 1.5
    with pytest.raises(RuntimeError):
        nn.MarginRankingLoss()(torch.zeros(3, 1), torch.ones(3, 1), torch.ones(3))


def test_missing_names_and_packages_in_one_line(tmp_path):
    for imports, words in [
        ("from utils.prompt_templates import templates", "given.py cannot run: it imports utils.prompt_templates"),
        ("from utils.conf import get_cluster", "imports get_cluster of utils.conf"),
        ("from models.l2p_utils.l2p_model import L2PModel", "imports models.l2p_utils.l2p_model"),
        ("import a_package_of_nobody", "the package 'a_package_of_nobody' is not installed"),
    ]:
        with pytest.raises(UserError, match=words):
            registry.load("model", given_file(tmp_path, imports))


@pytest.mark.parametrize(
    ("where", "line", "error", "words"),
    [
        ("init", "self.args.clip_model", UserError, "given.py cannot run: there is no option --clip_model"),
        ("init", "assert args.batch_size == 1, 'one at a time'", UserError, "given.py, line 21: one at a time"),
        ("end", "dataset.templates", UserError, "the stream seq-digits has no 'templates'"),
        ("end", "from utils.checkpoints import save", UserError, "it imports utils.checkpoints"),
        ("end", "dataset.train_loader = None", UserError, "sets dataset.train_loader"),
        ("observe", "assert loss < 0", TrainingFailed, "given.py, line 36: assert loss < 0"),
        ("observe", "loss + None", TrainingFailed, "given.py, line 36: TypeError"),
    ],
)
def test_what_fails_ends_in_one_line(tmp_path, where, line, error, words):
    path = given_file(tmp_path, **{where: line})
    with pytest.raises(error, match=words):
        train(experiment(path, *SHORT))


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A run whose file sets a counter, asks for its scores, and makes two columns of a progressive network."""
    imports = "import torch\nfrom backbone.MNISTMLP_PNN import MNISTMLP_PNN as C\nfrom utils.training import evaluate"
    end = "self.current_task += 1; self.scores = evaluate(self, dataset); "
    end += "first = C(dataset._stream.SIZE, 10); self.two = [first, C(dataset._stream.SIZE, 10, [first])]"
    path = given_file(tmp_path_factory.mktemp("used"), imports, "self.current_task = 7", end)
    return finished(path, *SHORT, "--stop_after", "2")


def test_a_counter_that_the_file_sets_is_its_own(used):
    assert used.model.current_task == 9 and used.model._current_task == 2 and used.model.n_seen_classes == 4


def test_evaluate_gives_the_runners_scores(used):
    last = used.run.history[-1].scores
    assert used.model.scores == (last["class-il"], last["task-il"])


def test_columns_read_the_earlier_ones_and_do_not_train_them(used):
    first, second = used.model.two
    x = torch.rand(3, 1, 8, 8)
    before = second(x)
    before.sum().backward()
    assert all(p.grad is None for p in first.parameters()) and all(p.grad is not None for p in second.parameters())
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.5)
    assert not torch.equal(second(x), before)


def test_options_that_the_runner_has_too_are_the_runners():
    exp = experiment(str(STYLE / "loss_aware.py"), *REPLAY, "--clip_grad", "0.5")
    assert exp.args.clip_grad == 0.5 and exp.model.args.clip_grad == 0.5 and exp.model.args.nowand


# ---- the data set of a loader


def stream_of(images, labels):
    """A stream of one task; the order of an epoch is reversed."""
    every = torch.arange(len(labels))
    loader = TrainLoader(Split(images, labels), every, 2, torch.Tensor.float, lambda n, epoch: torch.arange(n).flip(0))
    return Stream(SimpleNamespace(c_task=0, train_loader=loader, get_transform=lambda: torch.Tensor.float), None)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_can_be_read_and_set_in_the_familiar_forms(channels):
    images = torch.randint(0, 256, (5, channels, 4, 3), dtype=torch.uint8)
    rows = TaskRows(stream_of(images, torch.arange(5)), 0)
    assert rows.data.shape == ((5, 4, 3) if channels == 1 else (5, 4, 3, 3)) and rows.targets.tolist() == [*range(5)]
    rows.data = rows.data[3:]
    rows.targets = rows.targets[3:]
    rows.logits = torch.tensor([[0.3], [0.4]])
    loader = TaskLoader(rows)
    (inputs, labels, raw), *rest = loader
    assert not rest and len(loader) == 1 and len(rows) == 2 and labels.tolist() == [4, 3]
    assert torch.equal(inputs, images[[4, 3]].float()) and torch.equal(raw, images[[4, 3]].float() / 255)
    assert loader.extras["logits"].flatten().tolist() == pytest.approx([0.4, 0.3])
    image, label, plain, logit = rows[1]
    assert torch.equal(image, images[4].float()) and label == 4 and logit == pytest.approx(0.4)


def test_images_are_stored_as_the_stream_has_them():
    like = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    for given in (images, images.float() / 255, images.permute(0, 2, 3, 1).numpy()):
        assert torch.equal(as_stored(given, like), images)
    with pytest.raises(UserError, match="those of the stream are"):
        as_stored(torch.zeros(2, 7, 7), like)


def test_changed_data_are_what_the_task_is_trained_on(tmp_path):
    grow = "d = dataset.train_loader.dataset; "
    grow += "d.targets = np.concatenate([d.targets] * 3); d.data = torch.cat([d.data] * 3)"
    count = "self.seen = getattr(self, 'seen', 0) + n"
    path = given_file(tmp_path, "import numpy as np\nimport torch", end=grow, observe=count)
    Path(path).write_text(Path(path).read_text().replace("def end_task", "def begin_task"))
    exp = finished(path, *REPLAY, "--n_epochs", "2", "--label_perc", "0.1", "--stop_after", "1")
    assert exp.model.seen == 2 * 3 * len(exp.dataset.task_data(0))
    assert len(TaskData(*exp.dataset._stage_part(0), None)) * 3 == len(exp.model._rows)


# ---- buffers


def test_fields_have_mammoths_types_and_the_length_of_the_shortest():
    buffer = Buffer(4, "cpu", 5, mode="ring")
    assert not hasattr(buffer, "examples") and buffer.task_number == 5
    buffer.add_data(torch.full((3, 1), 255, dtype=torch.uint8), torch.tensor([1, 2, 3]), task_labels=torch.ones(2))
    assert len(buffer) == 2 and buffer.used_attributes == ["examples", "labels", "task_labels"]
    assert buffer.examples.dtype == torch.float32 and buffer.examples[0] == 1
    assert buffer.task_labels.dtype == torch.int64
    with pytest.raises(UserError, match="the buffer stores examples, labels, task_labels"):
        buffer.add_data(torch.zeros(1, 1), torch.tensor([1]))
    buffer.empty()
    assert buffer.is_empty() and not hasattr(buffer, "labels")
    with pytest.raises(UserError, match="empty buffer"):
        buffer.get_data(1)


def test_draws_in_mammoths_orders():
    buffer = Buffer(10)
    buffer.add_data(torch.arange(8.0).view(-1, 1), labels=torch.arange(8), logits=torch.arange(8.0))
    draw = {"transform": lambda x: -x, "return_not_aug": True, "not_aug_transform": lambda x: 2 * x}
    index, plain, images, labels, logits = buffer.get_data(8, return_index=True, to_device="cpu", **draw)
    assert torch.equal(plain.flatten(), 2.0 * index) and torch.equal(images.flatten(), -1.0 * index)
    assert torch.equal(labels, index) and torch.equal(logits, index.float()) and len(index.unique()) == 8
    assert {int(y) // 2 for y in buffer.get_data(8, mask_task_out=1, cpt=2)[1]} == {0, 2, 3}
    assert buffer.get_data_by_index(torch.tensor([3, 1]))[1].tolist() == [3, 1]


def test_loss_aware_rows_give_way_by_score():
    for strategy, gone in (("lars", {2}), ("labrs", {0, 1, 2})):
        counts = set()
        for seed in range(20):
            torch.manual_seed(seed)
            buffer = Buffer(4, sample_selection_strategy=strategy)
            scores = torch.tensor([0.0, 0.0, 1.0, 0.0])
            buffer.add_data(torch.arange(4.0), torch.tensor([0, 0, 0, 1]), sample_selection_scores=scores)
            for _ in range(9):
                slot = buffer._slot()
                counts |= set() if slot is None else {slot}
                buffer.num_seen_examples += 1
        assert counts == gone  # the high score; with classes also those of the larger class
    with pytest.raises(UserError, match="expected one of reservoir"):
        Buffer(4, "cpu", "best")


def test_a_ring_keeps_the_latest_of_each_task():
    ring = RingBuffer(6, n_tasks=3)
    ring.add_data(torch.arange(5.0), torch.arange(5))
    ring.task_number, ring.num_seen_examples = 1, 0
    ring.add_data(torch.tensor([9.0]), torch.tensor([9]))
    assert sorted(ring.get_all_data()[1].tolist()) == [3, 4, 9] and len(ring) == 3
    assert sorted(ring.get_data(10)[1].tolist()) == [3, 4, 9]


# ---- functions


def test_gradients_as_one_vector():
    net = nn.Linear(2, 2)
    sizes, flat = [p.numel() for p in net.parameters()], torch.ones(6)
    functions.store_grad(net.parameters, flat, sizes)
    assert not flat.any()
    net(torch.ones(1, 2)).sum().backward()
    functions.store_grad(net.parameters, flat, sizes)
    assert torch.equal(flat, torch.ones(6))
    functions.overwrite_grad(net.parameters, torch.arange(6.0), sizes)
    assert net.weight.grad.flatten().tolist() == [0, 1, 2, 3] and net.bias.grad.tolist() == [4, 5]


def test_projection_agrees_with_the_programme_it_solves():
    torch.manual_seed(0)
    past, g = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    g -= past.sum(1, keepdim=True)
    gram, overlap = (past.T @ past).numpy() + 1e-3 * np.eye(3), (past.T @ g).flatten().numpy()
    v = functions.solve_qp(gram, -overlap, np.eye(3), np.full(3, 0.2))[0]
    slack, multipliers = v - 0.2, gram @ v + overlap
    assert slack.min() > -1e-9 and multipliers.min() > -1e-9 and abs(slack * multipliers).max() < 1e-9
    projected = g.clone()
    functions.project2cone2(projected, past, margin=0.2)
    torch.testing.assert_close(projected, g + past @ torch.from_numpy(v).view(-1, 1))


def test_solve_qp_with_general_constraints():
    # min (x - 1)^2 / 2 + (y + 1)^2 / 2 with x + y >= 1: the point (1, -1) moved by 1/2 along (1, 1)
    x = functions.solve_qp(np.eye(2), np.array([1.0, -1.0]), np.array([[1.0], [1.0]]), np.array([1.0]))[0]
    assert x.tolist() == pytest.approx([1.5, -0.5])


def test_statistics_stay_inside_bn_track_stats():
    norm = nn.BatchNorm1d(2)
    with functions.bn_track_stats(norm, False):
        norm(torch.randn(8, 2) + 5)
    assert not norm.running_mean.any() and norm.track_running_stats
    with functions.bn_track_stats(norm, True):
        norm(torch.randn(8, 2) + 5)
    assert norm.running_mean.min() > 0


def test_contrastive_loss_against_a_loop():
    torch.manual_seed(0)
    z, labels = F.normalize(torch.randn(3, 2, 4), dim=2), torch.tensor([0, 1, 0])
    views = [(i, z[i, v]) for v in range(2) for i in range(3)]
    total = 0.0
    for a, (i, x) in enumerate(views):
        others = [(j, torch.dot(x, y) / 0.5) for b, (j, y) in enumerate(views) if b != a]
        norm = torch.stack([s for _, s in others]).logsumexp(0)
        positives = [s - norm for j, s in others if labels[j] == labels[i]]
        total -= torch.stack(positives).mean() / len(views)
    loss = functions.SupConLoss(temperature=0.5, base_temperature=0.5)(z, labels)
    torch.testing.assert_close(loss, total)


def test_augmentations_keep_shape_and_range():
    torch.manual_seed(0)
    for channels in (1, 3):
        x = torch.rand(6, channels, 8, 8)
        strong = functions.strong_aug((8, 8), None, None)
        for change in (strong, lambda x: functions.random_crop(x, 2), functions.random_flip):
            y = change(x)
            assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1 and not torch.equal(x, y)
    np.random.seed(0)  # noqa: NPY002
    x, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8), torch.arange(4)
    y, first, second, share = functions.cutmix_data(x, labels, cutmix_prob=1.0)
    assert torch.equal(first, labels)
    own = (y == x).flatten(1).float().mean(1)
    assert all(abs(own[i] - share) < 1e-6 or second[i] == i for i in range(4))


def test_a_default_of_the_file_goes_before_the_streams(tmp_path):
    path = Path(given_file(tmp_path))
    path.write_text(path.read_text().replace("return parser", "parser.set_defaults(batch_size=1)\n    return parser"))
    assert experiment(str(path), *REPLAY).args.batch_size == 1
    assert experiment(str(path), *REPLAY, "--batch_size", "4").args.batch_size == 4
