"""The stored hyperparameters: rows as published, how one is found, and what is refused."""

import functools

import pytest

from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run import best_args
from palimpsest.utils.run.best_args import check_rows, find_row, list_rows, load_rows
from palimpsest.utils.run.config import resolve

ROWS = list_rows()
MULTISTEP = {"lr_scheduler": "multisteplr", "lr_milestones": [35, 45], "sched_multistep_lr_gamma": 0.2}


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Each file is read once: parsing YAML takes most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_args, "plain_yaml", functools.cache(best_args.plain_yaml))
        yield


PUBLISHED = [
    ("er", "seq-mnist", 500, {"lr": 0.1, "minibatch_size": 10, "batch_size": 10, "n_epochs": 1},
     {"class-il": {"acc": 86.12, "std": 1.89}, "task-il": {"acc": 99.04, "std": 0.18}}, False),
    ("derpp", "seq-tinyimg", 500,
     {"lr": 0.03, "minibatch_size": 32, "alpha": 0.2, "beta": 0.5, "batch_size": 32, "n_epochs": 100},
     {"class-il": {"acc": 19.38, "std": 1.41}, "task-il": {"acc": 51.91, "std": 0.68}}, True),
    ("ewc_on", "perm-mnist", None,
     {"lr": 0.1, "e_lambda": 0.7, "gamma": 1.0, "ewc_update": "explicit", "batch_size": 128, "n_epochs": 1},
     {"domain-il": {"acc": 75.79, "std": 2.25}}, False),
    ("lwf", "seq-cifar10", None,
     {"lr": 0.01, "alpha": 3.0, "softmax_temp": 2.0, "kd_scale": "none", "batch_size": 32, "n_epochs": 50,
      "optim_wd": 0.001},
     {"class-il": {"acc": 19.61, "std": 0.05}, "task-il": {"acc": 63.29, "std": 2.35}}, True),
    ("joint", "seq-cifar10", None, {"lr": 0.1, "batch_size": 32, "n_epochs": 50},
     {"class-il": {"acc": 92.20, "std": 0.15}, "task-il": {"acc": 98.31, "std": 0.12}}, True),
    ("sgd", "rot-mnist", None, {"lr": 0.2, "batch_size": 128, "n_epochs": 1},
     {"domain-il": {"acc": 67.66, "std": 8.53}}, False),
    ("er", "mnist-360", 1000, {"lr": 0.2, "batch_size": 4, "minibatch_size": 16, "n_epochs": 1},
     {"general-continual": {"acc": 75.18, "std": 1.50}}, False),
    ("joint", "mnist-360", None, {"lr": 0.1, "batch_size": 4, "n_epochs": 1},
     {"general-continual": {"acc": 82.98, "std": 3.24}}, False),
    ("derpp", "seq-cifar100", 2000,
     {"lr": 0.03, "optim_mom": 0, "optim_wd": 0, "alpha": 0.1, "beta": 0.5, "n_epochs": 50, "batch_size": 32,
      "minibatch_size": 32, **MULTISTEP}, {"class-il": {"acc": 53.63, "std": None, "forgetting": 33.66}}, True),
    ("joint", "seq-cifar100", None,
     {"lr": 0.03, "optim_mom": 0, "optim_wd": 0, "n_epochs": 50, "batch_size": 32, **MULTISTEP},
     {"class-il": {"acc": 70.44, "std": None}}, True),
    ("pah", "seq-cifar100", None,
     {"pah_preset": "reference", "backbone": "resnet18-imagenet", "pretrained": True, "batch_size": 64, "n_epochs": 15},
     {"task-il": {"acc": 74.46, "std": 0.08, "forgetting_chaudhry": 1.71, "forgetting_chaudhry_std": 0.02}}, True),
]  # fmt: skip


@pytest.mark.parametrize(("method", "dataset", "buffer_size", "args", "published", "verified"), PUBLISHED)
def test_rows_are_the_published_ones(method, dataset, buffer_size, args, published, verified):
    row = find_row(method, dataset, buffer_size)
    assert row["args"] == args | ({} if buffer_size is None else {"buffer_size": buffer_size})
    assert row["published"] == published
    assert row["verified"] is verified


def test_every_row_of_the_literature_is_there():
    names = ("sgd", "joint", "er", "derpp", "ewc_on", "lwf", "pah")
    rows = {m: [row for each in load_rows(m).values() for row in each] for m in names}
    ours = ("ours", "chosen here on digits")
    count = {m: sum(not row["source"].startswith(ours) for row in each) for m, each in rows.items()}
    assert count == {"sgd": 7, "joint": 7, "er": 20, "derpp": 20, "ewc_on": 5, "lwf": 4, "pah": 5}


@pytest.mark.parametrize("method", sorted({method for method, _, _ in ROWS}))
def test_the_runner_takes_the_rows_as_they_are(method):
    for _, dataset, buffer_size in (row for row in ROWS if row[0] == method):
        size = [] if buffer_size is None else ["--buffer_size", str(buffer_size)]
        config = resolve(["--model", method, "--dataset", dataset, "--load_best_args", *size])
        stored = config.row["args"]
        assert {name: getattr(config.args, name) for name in stored} == stored
        assert {config.origins[name] for name in stored if name != "buffer_size"} == {"best_args"}


@pytest.mark.parametrize("method", ["sgd", "joint", "er", "derpp", "ewc_on", "lwf"])
def test_published_scores_belong_to_the_setting_of_the_dataset(method):
    for dataset, rows in load_rows(method).items():
        for row in rows:
            if "published" in row:
                assert registry.load("dataset", dataset).SETTING in row["published"], dataset
                assert all(0 < scores["acc"] < 100 for scores in row["published"].values())
            else:
                assert row["source"].startswith("chosen here")


def test_joint_has_the_hyperparameters_of_sgd():
    sgd, joint = load_rows("sgd"), load_rows("joint")
    assert {d: r[0]["args"] for d, r in sgd.items()} == {d: r[0]["args"] for d, r in joint.items()}


def test_lwf_is_marked_as_not_comparable():
    rows = [
        row
        for rows in load_rows("lwf").values()
        for row in rows
        if row.get("published") and not row["source"].startswith("ours")
    ]
    assert all(row["comparable"] is False and row["note"] for row in rows)


def write(folder, text, name="toy_method"):
    (folder / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


ANY = "seq_toy:\n  - args: {lr: 0.1}\n"
SIZED = "seq-toy:\n  - buffer_size: 20\n    args: {lr: 0.2}\n"
BOTH = "seq-toy:\n  - args: {lr: 0.1}\n  - buffer_size: 20\n    args: {lr: 0.2}\n"


@pytest.mark.parametrize("text, size, expected", [
    (ANY, None, {"lr": 0.1}),
    (ANY, 500, {"lr": 0.1}),  # a method without a buffer
    (SIZED, None, {"lr": 0.2, "buffer_size": 20}),
    (BOTH, 20, {"lr": 0.2, "buffer_size": 20}),
    (BOTH, 30, {"lr": 0.1}),
    (BOTH, None, {"lr": 0.1}),
])  # fmt: skip
def test_the_row_that_is_found(tmp_path, text, size, expected):
    assert find_row("Toy-Method", "SEQ-toy", size, write(tmp_path, text))["args"] == expected


@pytest.mark.parametrize("text, method, dataset, size, words", [
    (None, "er", "seq-mnist", None, "several buffer sizes: add --buffer_size, one of 200, 500, 5120"),
    (None, "er", "seq-mnist", 300, r"er on seq-mnist with --buffer_size 300 \(stored for: 200, 500, 5120\)"),
    (None, "er", "seq-cifar11", 200, r"'seq-cifar11'; did you mean seq-cifar10.*stored for: seq-mnist, perm-"),
    (None, "nothing", "seq-mnist", None, r"for method 'nothing' \(stored for: .*er, .*sgd"),
    ("# nothing yet\n", "toy_method", "seq-toy", None, "stored for: none"),
])  # fmt: skip
def test_what_is_not_stored_is_answered_with_what_is(tmp_path, text, method, dataset, size, words):
    with pytest.raises(UserError, match=words):
        find_row(method, dataset, size, text and write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seq-toy:\n  - args: {lr: 0.1\n", r"toy_method.yaml, line \d: .*mend the YAML"),
        ("a: 1\nb: [\n  x: y: z\n", "toy_method.yaml, line 3"),
        ("seq-toy:\n  - args: {}\nseq-toy:\n  - args: {}\n", "line 3: 'seq-toy' appears twice"),
        ("seq-toy:\n  - args: {lr: 1, lr: 2}\n", "line 2: 'lr' appears twice"),
        ("ok: 1\nbad: \x07\n", "toy_method.yaml, line 2"),
        (b"a: 1\nb: \xff\xfe\n", "toy_method.yaml, line 2"),
        ("seq-toy:\n  - args: {}\n    note: 2026-13-45\n", "line 3: '2026-13-45': month must be"),
        ("- args: {}\n", "line 1: expected 'dataset:'"),
        ("360:\n  - args: {}\n", "'360' is no dataset's name"),
        ("seq-toy: {args: {}}\n", "'seq-toy' holds no list of rows"),
        ("seq-toy:\n  - args: {}\n  - source: here\n", "row 2 of 'seq-toy' has no 'args"),
        ("{[1, 2]: 3, {a: b}: 4, {a: b}: 5}\n", "line 1"),
    ],
)
def test_malformed_files_name_the_file_and_the_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_rows("toy_method", write(tmp_path, text))


def test_list_rows(tmp_path):
    write(tmp_path, "b-set:\n  - buffer_size: 20\n    args: {}\n  - args: {}\n", "zed")
    write(tmp_path, "a-set:\n  - args: {}\n", "alpha_one")
    assert list_rows(tmp_path) == [("alpha_one", "a-set", None), ("zed", "b-set", 20), ("zed", "b-set", None)]
    assert ("er", "seq-tinyimg", 5120) in list_rows()


SOUND = {"args": {"lr": 0.1}, "source": "here"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"args": {"lt": 0.1}}, "'lt' is no option; did you mean lr?"),
        ({"args": {"lr": "1e-05"}}, "lr is the text '1e-05', not a number"),
        ({"args": {"lr": [1, "1e-05"]}}, "lr is the text '1e-05', not a number"),
        ({"source": None}, "'source' is missing"),
        ({"source": " "}, "'source' is missing"),
        ({"buffer_size": "20"}, "buffer_size is no positive whole number"),
        ({"buffer_size": True}, "buffer_size is no positive whole number"),
        ({"published": None}, "published is no {scenario"),
        ({"published": {"class-il": 80}}, "published class-il is no {acc"),
        ({"published": {"class_il": {"acc": 80, "std": 1}}}, "published names 'class_il'"),
        ({"published": {"class-il": {"acc": 80}}}, "published class-il lacks std"),
        ({"published": {"class-il": {"std": None}}}, "published class-il lacks acc"),
        ({"published": {"class-il": {"acc": None, "std": 1}}}, "acc is None: expected a number"),
        ({"published": {"class-il": {"acc": True, "std": 1}}}, "acc is True: expected a number"),
        ({"published": {"class-il": {"acc": 80, "std": "1"}}}, "std is '1': expected a number or null"),
        ({"published": {"class-il": {"acc": 80, "std": 1, "forgetting": "x"}}}, "forgetting is 'x'"),
        ({"published": {"class-il": {"acc": 80, "std": 1, "bwt": 3}}}, "has 'bwt'"),
    ],
)
def test_check_rows_finds_planted_problems(row, problem):
    (found,) = check_rows({"seq-toy": [SOUND | row]}, {"lr", "buffer_size"})
    assert found.startswith("seq-toy") and problem in found


@pytest.mark.parametrize("rows, problem", [
    ({"seq-toy": [SOUND], "seq_toy": [SOUND]}, "two rows"),
    ({"seq-toy": [SOUND | {"buffer_size": 20}]}, "'buffer_size' is no option"),
])  # fmt: skip
def test_check_rows_looks_at_all_rows_and_options(rows, problem):
    (found,) = check_rows(rows, {"lr"})
    assert problem in found


def test_check_rows_accepts_sound_rows():
    scores = {"acc": 80, "std": None, "forgetting": 1.5, "forgetting_std": 0.1}
    rows = [SOUND | {"buffer_size": size, "published": {"class-il": scores}} for size in (20, 30)]
    assert check_rows({"seq-toy": rows}, {"lr", "buffer_size"}) == []
