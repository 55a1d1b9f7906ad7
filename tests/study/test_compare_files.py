"""`--compare`: the command, its files, its pictures."""

import csv
import io
import shutil
import subprocess

import numpy as np
import pytest

import main as entry
from palimpsest.utils.study.comparison import figures, files, tables
from palimpsest.utils.study.comparison.blocks import compare
from palimpsest.utils.study.comparison.formats import as_latex, as_markdown, tex
from palimpsest.utils.study.comparison.statistics import rank_entries
from palimpsest.utils.study.records import read_runs
from tests.study.comparisons import a_run, a_study, several, texts_of


@pytest.fixture
def study(tmp_path):
    a_study(tmp_path)
    return tmp_path


@pytest.mark.parametrize("argv, said", [
    ([], "needs a folder"),
    (["absent"], "no such folder"),
    (["{}", "--models", "derp"], "did you mean derpp?"),
    (["{}", "--models", "zzz"], "they have derpp, er, randumb, sgd"),
    (["{}", "--datasets", "seq-digit"], "did you mean seq-digits?"),
    (["{}", "--metric", "accuracy"], "--metric"),
    (["{}", "--within", "0"], "--within"),
    (["{}", "--format", "png"], "needs --out DIR"),
    (["{}", "--format", "csv", "latex"], "needs --out DIR"),
    (["{}", "--seed", "3"], "--seed"),
    (["{}", "--out", "{}/class-il/seq-digits/er/file"], "give another --out"),
])  # fmt: skip
def test_bad_input_is_one_line(study, argv, said, capsys):
    (study / "class-il/seq-digits/er/file").write_text("")
    assert entry.main(["--compare", *(word.format(study) for word in argv)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_run_json_of_another_hand_does_no_harm(tmp_path):
    several(tmp_path, "er", [70.0, 71.0, 72.0])
    odd = [
        {"environment": {"data": 3, "dataset_file": None, "model_file": 7}},
        {"config": {"validation": "a", "lr": {"x": 1}}},
        {"matrices": {"class-il": "text"}},
        {"matrices": {"class-il": [[None]]}},
        {"metrics": {"class-il": "text"}},
        {"costs": {"seconds": "long"}},
        {"marks": 3, "leaks": {"a": 1}, "chosen_on": 4},
        {"n_tasks": None, "score": None},
        {"origins": None},
        {"notes": None, "costs": {"seconds": None}},
        {"costs": {"from_iteration": "x", "ended": 3}},
    ]
    for k, facts in enumerate(odd):
        a_run(tmp_path, seed=k + 3, digest=str(k), **facts)
    found = compare(read_runs(tmp_path))
    assert sum(len(e.runs) for b in found.blocks for e in b.group.entries) + len(found.left) == 3 + len(odd)
    assert all(texts_of(found).values()) and len(files.pictures_of(found)) == len(found.blocks)


def test_an_empty_folder_is_said(tmp_path, capsys):
    assert entry.main(["--compare", str(tmp_path)]) == 2
    assert "no run.json in or below" in capsys.readouterr().err


def test_a_damaged_run_json_is_told(tmp_path, capsys):
    several(tmp_path, "er", [70.0, 71.0, 72.0])
    damaged = next(tmp_path.rglob("*seed1*/run.json"))
    damaged.write_text(damaged.read_text()[:50])
    assert entry.main(["--compare", str(tmp_path), "--format", "markdown"]) == 0
    assert f"Left out, for it is damaged or no run's: {damaged}." in capsys.readouterr().out
    assert entry.main(["--compare", str(damaged.parent)]) == 2
    err = capsys.readouterr().err
    assert "no whole run.json in or below" in err and str(damaged) in err and err.count("\n") == 1


def test_files(study, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--compare", str(study), str(study / "class-il"), "--out", str(out)]  # no run twice
    assert entry.main([*argv, "--format", "csv", "markdown", "latex"]) == 0
    assert {path.name for path in out.iterdir()} == {*files.PRINTED.values(), "pairs.csv"}
    scores = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert len(scores) == 8 and float(scores[1]["mean"]) == pytest.approx(72.2) and scores[1]["flops"] == "3000000000.0"
    pairs = list(csv.DictReader(io.StringIO((out / "pairs.csv").read_text())))
    assert len(pairs) == 12 and float(pairs[0]["p_t_holm"]) >= float(pairs[0]["p_t"]) and pairs[0]["p_same"] == ""
    capsys.readouterr()
    assert entry.main(["--compare", str(study), "--format", "latex"]) == 0
    assert capsys.readouterr().out == (out / "comparison.tex").read_text()
    shutil.rmtree(out)
    assert entry.main([*argv, "--datasets", "seq-digits", "--models", "sgd", "randumb"]) == 0  # everything
    wanted = {f"{name}_seq-digits_class-il.{kind}" for name in ("curves", "bars") for kind in ("png", "pdf")}
    wanted |= {*files.PRINTED.values(), "pairs.csv", "comparison.html"}
    assert {path.name for path in out.iterdir()} == wanted
    page = (out / "comparison.html").read_text()
    assert page.count("<svg") == 2 and page.count("<table") == 2 and "http" not in page.replace("http://www.w3.org", "")
    assert (out / "curves_seq-digits_class-il.pdf").read_bytes().startswith(b"%PDF")


def test_curves_and_their_bands():
    curves = {"er": np.array([[90.0, 70.0], [92.0, 74.0], [94.0, 72.0]]), "few": np.array([[90.0, 99.0]])}
    joint = {"joint": np.array([[np.nan, 95.0]] * 3)}
    (axes,) = figures.task_curves(curves | joint, "t").axes
    assert [line.get_label() for line in axes.lines[:3]] == ["er", "few", "joint"]
    assert axes.lines[0].get_ydata().tolist() == [92.0, 72.0] and axes.lines[2].get_xdata().tolist() == [2]
    band = axes.collections[0].get_paths()[0].vertices
    half = 4.302653 * 2 / 3**0.5  # t of 2 degrees of freedom
    assert band[band[:, 0] == 2][:, 1].min() == pytest.approx(72 - half)
    assert band[band[:, 0] == 1][:, 1].max() == pytest.approx(92 + half)
    high = figures.task_curves({"er": np.array([[99.0], [100.0], [95.0]])}, "t").axes[0].get_ylim()[1]
    assert high < 101  # no band beyond 100


def test_the_critical_difference_names_every_entry():
    ranks = rank_entries({name: np.arange(9.0) * (1 + k) for k, name in enumerate("abcd")})
    labels = {name: f"method_{name} [1]" for name in "abcd"}
    (axes,) = figures.critical_difference(ranks, "Ranks over 9 streams", labels).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[:4] == ["method_d [1] (1.17)", "method_c [1] (2.06)", "(3.83) method_a [1]", "(2.94) method_b [1]"]
    assert texts[4] == "critical difference 1.56"


def test_text_that_latex_and_markdown_would_take_for_commands():
    table = tables.Table("50 % & more", ["a_b", "c"], [["x|y", "#1 {~^}$\\"]], ["it's --this"])
    text = as_latex([table], "100 %", "t")
    assert r"50 \% \& more" in text and r"\#1 \{\textasciitilde{}\textasciicircum{}\}\$\textbackslash{} \\" in text
    assert "-{}-this" in text and "| x\\|y |" in as_markdown(table)
    assert tex("/\u6570/\u00e9 \u00b2") == "/\\texttt{U+6570}/\u00e9 \\textsuperscript{2}"
    long = tables.Table("t", ["a", "b"], [["x", "y"]] * 90)
    assert as_latex([long, table], "c", "l").count(r"\begin{table}") == 4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_the_tables_compile(study, tmp_path):
    several(study, "my_odd%name", [1.0, 2.0, 3.0], marks=["50 % & more_"])
    every = " ".join(map(chr, range(0x20, 0x180))) + "\u2019\u2192\u6570"
    several(study, "other", [1.0, 2.0, 3.0], marks=[every])
    a_run(study, seed=9, finished=False, reason="loss is #nan_ {at} 3^2 ~ 50 %", digest="9")
    found = compare(read_runs(study), margin=1.0)
    (tmp_path / "comparison.tex").write_text(texts_of(found)["comparison.tex"])
    start = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text(start + r"\input{comparison}\end{document}")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and (tmp_path / "paper.pdf").is_file()
