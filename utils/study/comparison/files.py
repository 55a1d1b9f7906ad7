"""A comparison on the terminal, as files of tables, as a page and as pictures."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from palimpsest.utils.atomic import file_errors, write_text
from palimpsest.utils.log.page import Picture, count, drawn, render
from palimpsest.utils.log.plots import comparison_bars
from palimpsest.utils.metrics import METRICS, seen_means
from palimpsest.utils.study.comparison import figures, tables
from palimpsest.utils.study.comparison.blocks import Block, Comparison, RankBlock
from palimpsest.utils.study.comparison.formats import as_latex, as_markdown, as_note, as_text
from palimpsest.utils.study.comparison.groups import Entry, Group
from palimpsest.utils.study.comparison.tables import Table

FORMATS = ("csv", "markdown", "latex", "html", "png", "pdf")
PRINTED = {"csv": "comparison.csv", "markdown": "comparison.md", "latex": "comparison.tex"}  # may go to the terminal
MOST_ROWS = 30  # of pairs on the terminal; files have all of them


def _rank_tables(found: Comparison) -> list[Table]:
    return [tables.rank_table(title, ranks, means) for title, (ranks, means) in found.ranks.items()]


def terminal(found: Comparison) -> str:
    """All tables and notes, of long ones the beginning."""
    parts = []
    for block in found.blocks:
        for table in block.tables:
            shown = table
            if len(table.rows) > MOST_ROWS and table is not block.tables[0]:
                more = f"{len(table.rows) - MOST_ROWS} more rows: --out DIR writes all of them."
                shown = replace(table, rows=table.rows[:MOST_ROWS], notes=[*table.notes, more])
            parts.append(as_text(shown))
        parts.append("".join(f"{as_note(note)}\n" for note in block.notes))
    parts += [as_text(block.table) for block in found.ranks]
    if found.left:
        parts.append(as_text(tables.left_table(found.left)))
    parts.append("".join(f"{as_note(note).lstrip()}\n" for note in found.notes))
    return "\n".join(part for part in parts if part)


def text_of(found: Comparison, name: str) -> str:
    """What a file of `PRINTED` holds."""
    left = [tables.left_table(found.left)] if found.left else []
    if name == "comparison.csv":
        rows = [(block.group, found.metric, row) for block in found.blocks for row in block.rows]
        return tables.scores_csv(rows, found.left)
    if name == "pairs.csv":
        return tables.pairs_csv([(block.group, pair) for block in found.blocks for pair in block.pairs])
    if name == "comparison.tex":
        return _latex(found, left)
    every = [
        *(table for block in found.blocks for table in block.tables),
        *(block.table for block in found.ranks),
        *left,
    ]
    notes = dict.fromkeys([*found.notes, *(note for block in found.blocks for note in block.notes)])
    return "\n".join([*map(as_markdown, every), *(f"{note}\n" for note in notes)])


def _latex(found: Comparison, left: list[Table]) -> str:
    """Tables to be taken into a paper by \\input."""
    about = f"{METRICS[found.metric].title}: mean, standard deviation, Student's t 95 % interval and cost over runs."
    first = [replace(b.tables[0], notes=[*b.tables[0].notes, *b.notes]) for b in found.blocks]
    more = [table for block in found.blocks for table in block.tables[1:]]
    parts = [
        as_latex(first, about, "scores"),
        as_latex([table for table in more if table.head[0] == tables.PAIR],
                 "Differences between methods over runs that share class order and seed.", "pairs"),
        as_latex([table for table in more if table.head[0] != tables.PAIR],
                 "Class orders and seeds as two factors.", "factors"),
        as_latex([block.table for block in found.ranks], "Mean ranks over streams.", "ranks"),
        as_latex(left, "Runs that are in no table.", "left-out"),
    ]  # fmt: skip
    head = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}"
    return "\n".join([head, *(f"% {note}" for note in found.notes), *filter(None, parts)])


def page_of(found: Comparison, pictures: Sequence[list[Picture]]) -> str:
    """The HTML page; pictures of every block, then of the ranks."""
    sections = [{"title": block.group.title, "tables": block.tables, "notes": block.notes} for block in found.blocks]
    sections += [{"title": block.title, "tables": [block.table], "notes": []} for block in found.ranks]
    for section, mine in zip(sections, pictures, strict=True):
        section["pictures"] = mine
    if found.left:
        sections.append({"title": "Left out", "pictures": [], "tables": [tables.left_table(found.left)], "notes": []})
    runs = sum(len(block.group.runs) for block in found.blocks)
    head = f"{METRICS[found.metric].title}: {count(runs, 'run')} in {count(len(found.blocks), 'ranking')}"
    head += f", {len(found.left)} left out" if found.left else ""
    facts = {"title": "Comparison of methods", "headline": head, "refresh": 0}
    return render("comparison.html", notes=found.notes, sections=sections, **facts)


def pictures_of(found: Comparison) -> list[list[Picture]]:
    """Of every block the curves over tasks and the bars, then of the ranks their critical difference."""
    return [_block_pictures(block, found.metric) for block in found.blocks] + [
        _rank_pictures(block) for block in found.ranks
    ]


def _block_pictures(block: Block, metric: str) -> list[Picture]:
    score, title = block.group.conditions["score"], block.group.title
    curves = {block.labels[entry.name]: _curves(block.group, entry) for entry in block.group.entries}
    curves = {name: values for name, values in curves.items() if values.size}
    out = []
    if curves and max(values.shape[1] for values in curves.values()) > 1:
        caption = "Mean over the tasks seen after each task. Bands: 95 % interval of the mean over runs, from 3 runs."
        out.append(Picture("curves", figures.task_curves(curves, title, score), caption, wide=True))
    bars = {block.labels[row.entry.name]: (row.spread.mean, row.spread.sd) for row in block.rows}
    share = METRICS[metric].ends == (0.0, 100.0) and score != "r2"
    better = "Longer is better." if METRICS[metric].better == "higher" else "Shorter is better."
    figure = comparison_bars(bars, METRICS[metric].title, title, share=share)
    return [*out, Picture("bars", figure, f"{better} A whisker is one standard deviation over runs.", wide=True)]


def _curves(group: Group, entry: Entry) -> np.ndarray:
    """(runs, tasks) means over the tasks seen; empty where the runs do not have as many tasks each."""
    matrices = [run.matrices[group.conditions["scenario"]] for run in entry.runs.values()]
    curves = [seen_means(np.array(matrix, dtype=np.float64)) for matrix in matrices]
    return np.array(curves) if len({len(curve) for curve in curves}) == 1 else np.zeros((0, 0))


def _rank_pictures(block: RankBlock) -> list[Picture]:
    if len(block.ranks.ranks) < 3:
        return []
    caption = "Mean ranks, the best at the left. A bar joins methods that Nemenyi's test does not tell apart."
    figure = figures.critical_difference(block.ranks, block.title, block.labels)
    return [Picture("ranks", figure, caption, wide=True)]


def write_files(found: Comparison, folder: Path, formats: Sequence[str]) -> None:
    """Write tables, page and pictures into a folder, which is made.

    Raises:
        UserError: something cannot be written.
    """
    with file_errors(folder, "another --out"):
        folder.mkdir(parents=True, exist_ok=True)
    names = [name for kind, name in PRINTED.items() if kind in formats] + ["pairs.csv"] * ("csv" in formats)
    for name in names:
        write_text(folder / name, text_of(found, name))
    if not {"html", "png", "pdf"} & {*formats}:
        return
    pictures = pictures_of(found)
    if "html" in formats:
        write_text(folder / "comparison.html", page_of(found, pictures))
    groups = [block.group.conditions for block in found.blocks]
    slugs = [f"{c['stream']}_{c['scenario']}" for c in groups] + [block.scenario for block in found.ranks]
    for k, (slug, mine) in enumerate(zip(slugs, pictures, strict=True)):
        before = slugs[:k].count(slug)
        ending = re.sub(r"[^\w.-]", "-", f"{slug}_{before + 1}" if before else slug)
        for picture in mine:
            for kind in [kind for kind in ("png", "pdf") if kind in formats]:
                with file_errors(folder, "another --out"):
                    (folder / f"{picture.name}_{ending}.{kind}").write_bytes(drawn(picture.figure, kind))
