"""The command line as a user meets it: commands of the README, results on disk, and every kind of bad input."""

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import main as entry
from palimpsest.utils.registry import ROOT
from palimpsest.utils.run.config import resolve
from tests.kills import run_folder

pytestmark = pytest.mark.usefixtures("undrawn")
DIGITS = ["--dataset", "seq-digits", "--num_threads", "1", "--n_epochs", "1"]


def call(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of one command line, in this process."""
    status = entry.main(list(argv))
    out = capsys.readouterr()
    return status, out.out, out.err


def test_help_and_list_need_no_data_and_little_time(capsys):
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "main.py", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert time.perf_counter() - begin < 3
    assert done.returncode == 0 and "--load_best_args" in done.stdout and not done.stderr
    listing = call(capsys, "--list")[1]
    for name in ("ewc_on", "seq-tinyimg", "mnist-360", "resnet32", "derpp    seq-mnist"):
        assert name in listing


def test_help_of_a_method_shows_its_options(capsys):
    status, out, _ = call(capsys, "--model", "er", "--help")
    assert status == 0 and "--buffer_size" in out
    _, out, _ = call(capsys, "--model", "pah", "--dataset", "seq-cifar100", "--help")
    assert "--pah_w_sm" in out and "--n_tasks" in out and "--num_filters" in out


def test_help_and_wrong_names_import_no_torch():
    code = (
        "import sys, main; main.main(['--help']); main.main(['--model', 'er', '--dataset', 'no']); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "torch" not in out.splitlines()[-1].split()


def test_a_run_leaves_its_files(capsys, tmp_path):
    status, out, _ = call(capsys, "--model", "er", "--buffer-size", "50", *DIGITS, "--results_path", str(tmp_path),
                          "--lr", "0.05", "--savecheck", "task", "--enable_other_metrics",
                          "--eval_epochs", "1")  # fmt: skip
    assert status == 0
    assert re.search(r"lr\s+0\.05\s+command line", out) and re.search(r"batch_size\s+32\s+dataset", out)
    folder = run_folder(tmp_path)
    assert folder.parent == tmp_path / "class-il" / "seq-digits" / "er"
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["options"]["lr"] == 0.05 and stored["origins"]["lr"] == "command line"
    assert {"torch", "commit", "threads"} <= stored["environment"].keys()
    with open(folder / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    final = [r for r in rows if r["task_trained"] == "4" and r["scenario"] == "class-il" and r["metric"] == "accuracy"]
    assert {r["task_evaluated"] for r in final} == set("01234")
    summary = {r["metric"]: float(r["value"]) for r in rows if r["scenario"] == "class-il" and not r["task_evaluated"]}
    metrics = {"acc", "aaa", "bwt", "fwt", "forgetting", "forgetting_chaudhry", "la", "min_acc", "wc_acc"}
    assert metrics <= summary.keys()
    assert "<svg" in (folder / "report.html").read_text() or "base64" in (folder / "report.html").read_text()
    assert list(folder.glob("events.out.tfevents.*")) and (folder / "accuracy_matrix.csv").is_file()
    assert sorted(p.name for p in folder.glob("*.pt")) == [f"checkpoint_task{t}.pt" for t in range(5)]
    for scenario in ("class-il", "task-il"):
        with open(tmp_path / scenario / "seq-digits" / "er" / "mean_accs.csv") as f:
            (row,) = csv.DictReader(f)
        assert {"task1", "task5", "backward_transfer", "forgetting", "buffer_size"} <= row.keys()
    assert float(row["task5"]) > 50


def test_several_seeds_end_with_mean_deviation_and_interval(capsys, tmp_path):
    seeds = ["--label_perc", "0.1", "--seeds", "0", "1", "2", "--results_path", str(tmp_path)]
    status, out, _ = call(capsys, "--model", "sgd", *DIGITS, *seeds)
    assert status == 0
    assert re.search(r"task-il\s+acc\s+\d+\.\d+ ± \d+\.\d+\s+\[\d+\.\d+, \d+\.\d+\]\s+n=3", out)
    with open(tmp_path / "class-il" / "seq-digits" / "sgd" / "mean_accs.csv") as f:
        assert [row["seed"] for row in csv.DictReader(f)] == ["0", "1", "2"]
    assert len(list(tmp_path.glob("class-il/seq-digits/sgd/seeds_*/report.html"))) == 1


def test_both_spellings_of_names_options_and_booleans():
    one = ["--model", "ewc-on", "--dataset", "seq_digits", "--e-lambda", "1", "--gamma=1", "--disable-log"]
    other = ["--model", "ewc_on", "--dataset", "seq-digits", "--e_lambda", "1", "--gamma", "1", "--disable_log", "yes"]
    assert resolve(one).args == resolve(other).args


def test_checkpoints_are_evaluated_and_continued(capsys, tmp_path):
    base = ["--model", "er", "--buffer_size", "50", *DIGITS]
    call(capsys, *base, "--results_path", str(tmp_path / "a"), "--savecheck", "task")
    file = str(run_folder(tmp_path / "a") / "checkpoint_task1.pt")
    there = ["--results_path", str(tmp_path / "b"), "--loadcheck", file]
    status, out, err = call(capsys, *base, *there, "--inference_only")
    assert status == 0 and "task 2/5" in out, err
    status, out, err = call(capsys, *base, *there, "--start_from", "2", "--stop_after", "3")
    assert status == 0 and "task 3/5" in out and "task 1/5" not in out, err
    for other, words in (
        ([*base, "--start_from", "4"], "--start_from 2"),
        ([*base, "--optimizer", "adam"], "give the same --optimizer"),
        ([*base, "--seed", "1"], "--seed 0, this run has 1"),
        ([*base, "--permute_classes"], "--permute_classes False"),
        ([*base, "--backbone", "mnistmlp"], "saved with --backbone convnet, this run has mnistmlp"),
        (["--model", "sgd", *DIGITS], "checkpoint is of er"),
    ):
        status, _, err = call(capsys, *other, "--loadcheck", file, "--disable_log")
        assert status == 2 and words in err
    Path(file).write_bytes(Path(file).read_bytes()[:1000])
    status, _, err = call(capsys, *base, "--loadcheck", file, "--disable_log")
    assert status == 2 and "truncated" in err


BAD = [
    (["--model", "erx", "--dataset", "seq-digits"], "unknown model 'erx'; did you mean er?"),
    (["--model", "er", "--dataset", "seq-digit"], "did you mean seq-digits?"),
    (["--model", "sgd", *DIGITS, "--backbone", "resnet"], "unknown backbone 'resnet'"),
    (["--dataset", "seq-digits"], "--model is missing"),
    (["--model", "er", *DIGITS], "--buffer_size is missing"),
    (["--model", "sgd", *DIGITS, "--buff", "9"], "unknown option --buff"),
    (["--model", "er", *DIGITS, "--buffer_size", "5"], "--buffer_size 5 is smaller than --minibatch_size 32"),
    (["--model", "sgd", *DIGITS, "--lr", "0"], "--lr: 0: expected a number > 0"),
    (["--model", "sgd", *DIGITS, "--lr", "nan"], "expected a number > 0"),
    (["--model", "sgd", *DIGITS, "--lr", "fast"], "'fast': expected a number"),
    (["--model", "sgd", "--dataset", "seq-digits", "--n-epochs", "-1"], "expected an integer >= 1"),
    (["--model", "sgd", *DIGITS, "--joint", "perhaps"], "not a yes/no value"),
    (["--model", "sgd", *DIGITS, "--fitting_mode", "time"], "invalid choice: 'time'"),
    (["--model", "sgd", *DIGITS, "--fitting_mode", "iters"], "needs --n_iters"),
    (["--model", "sgd", *DIGITS, "--fitting_mode", "early_stopping"], "add --holdout 10"),
    (["--model", "sgd", *DIGITS, "--lr_scheduler", "multisteplr"], "needs --lr_milestones"),
    (["--model", "sgd", *DIGITS, "--optim_nesterov"], "needs --optimizer sgd and --optim_mom"),
    (["--model", "sgd", *DIGITS, "--validation", "120"], "<= 99"),
    (["--model", "sgd", *DIGITS, "--custom_class_order", "1,2"], "each class from 0 to 9 once"),
    (["--model", "sgd", *DIGITS, "--custom_task_order", "0,0,1,2,3"], "each task from 0 to 4 once"),
    (["--model", "sgd", *DIGITS, "--start_from", "9"], "seq-digits has 5 task(s)"),
    (["--model", "sgd", *DIGITS, "--start_from", "3", "--stop_after", "2"], "leaves nothing to train"),
    (["--model", "sgd", *DIGITS, "--inference_only"], "needs --loadcheck FILE"),
    (["--model", "sgd", *DIGITS, "--loadcheck", "no/such.pt"], "no/such.pt does not exist"),
    (["--model", "sgd", *DIGITS, "--seed", "9" * 30], "expected an integer"),
    (["--model", "sgd", *DIGITS, "--seeds", "0", "0"], "names a seed twice"),
    (["--model", "sgd", *DIGITS, "--seeds", "0", "1", "--loadcheck", "x.pt"], "belongs to one seed"),
    (["--model", "sgd", *DIGITS, "--drop_last", "--batch_size", "5000"], "lower --batch_size"),
    (["--model", "sgd", *DIGITS, "--drop_last", "--batch_size", "268"], "task 5/5 has 266 examples"),
    (["--model", "pah", *DIGITS, "--pah_preset", "reference"], "use --pah_crop center"),
    (["--model", "sgd", *DIGITS, "--data_device", "cuda", "--device", "cpu"], "needs training on a GPU"),
    (["--model", "sgd", *DIGITS, "--num_workers", "4"], "drop the option"),
    (["--model", "pah", *DIGITS, "--lr", "0.1"], "--lr has no effect on pah"),
    (["--model", "sgd", *DIGITS, "--device", "tpu"], "expected auto, cpu, cuda"),
    (["--model", "sgd", *DIGITS, "--device", "cuda:99"], "cuda device(s)"),
    (["--model", "sgd", *DIGITS, "--exp_name", "../../x"], "letters, digits"),
    (["--model", "sgd", *DIGITS, "--mlflow", "http://me:secret@host"], "this URI holds a password"),
    (["--model", "pah", "--dataset", "perm-digits"], "supports task-il but dataset 'perm-digits' is domain-il"),
    (["--model", "no/such/file.py", "--dataset", "seq-digits"], "does not exist"),
    (["--check", "nosuch"], "unknown model 'nosuch'"),
    (["--model", "sgd", *DIGITS, "--savecheck", "often"], "expected task, last, no, or a number of iterations"),
    (["--model", "sgd", *DIGITS, "--savecheck", "0"], "expected task, last, no, or a number"),
    (["--model", "sgd", *DIGITS, "--savecheck_minutes", "0"], "expected a number > 0"),
    (["--model", "sgd", *DIGITS, "--resume", "--disable_log"], "--resume needs the run's folder"),
    (["--model", "sgd", *DIGITS, "--resume", "--loadcheck", "x.pt"], "exclude each other"),
    (["--rerun", "no/such/folder"], "no/such/folder/config.yaml cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(a[-2:]) for a, _ in BAD])
def test_bad_input_is_one_line_status_2_and_nothing_written(capsys, tmp_path, argv, words):
    status, _, err = call(capsys, *argv, *(["--results_path", str(tmp_path)] if "--check" not in argv else []))
    assert status == 2
    assert err.startswith("main.py: error: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


def test_missing_data_is_one_line_and_nothing_written(capsys, tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    for name in ("seq-mnist", "seq-cifar10", "seq-svhn", "seq-tinyimg"):
        status, _, err = call(capsys, "--model", "sgd", "--dataset", name, "--base_path", str(tmp_path / "data"),
                              "--results_path", str(tmp_path / "results"))  # fmt: skip
        assert status == 2 and err.count("\n") == 1
        assert str(tmp_path / "data") in err and "seq-digits" in err
    assert not (tmp_path / "results").exists()


def test_a_results_path_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "--model", "sgd", *DIGITS, "--results_path", str(tmp_path / "file" / "x"))
    assert status == 2 and "--results_path" in err and err.count("\n") == 1


def test_interrupted_runs_say_so(capsys, tmp_path, monkeypatch):
    from palimpsest.models.sgd import SGD

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(SGD, "observe", interrupt)
    status, _, err = call(capsys, "--model", "sgd", *DIGITS, "--results_path", str(tmp_path))
    assert status == 130 and "interrupted" in err


def test_check_runs_the_conformance_suite(capsys, monkeypatch):
    from palimpsest.utils.check import conformance

    monkeypatch.setattr(conformance, "CHECKS", [conformance.observe_never_waits])  # the others take their time
    path = ROOT / "tests" / "models" / "mammoth_style" / "plain_replay.py"
    status, out, _ = call(capsys, "--check", str(path))
    assert status == 1
    assert "plain_replay on seq-digits (class-il)" in out and "item at plain_replay.py" in out


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("python main.py")]


def test_the_first_readme_command_runs(capsys, tmp_path):
    argv = [*readme_commands()[0].split()[2:], "--results_path", str(tmp_path), "--n_epochs", "1"]
    status, _, err = call(capsys, *argv)
    assert status == 0, err
    assert (run_folder(tmp_path) / "report.html").is_file()
