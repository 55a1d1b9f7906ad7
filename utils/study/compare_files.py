"""A comparison on the terminal, as files of tables, as a page and as pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from palimpsest.utils.atomic import file_errors, write_text
from palimpsest.utils.log.page import Picture, count, drawn, render
from palimpsest.utils.log.plots import comparison_bars
from palimpsest.utils.metrics import METRICS, seen_means
from palimpsest.utils.study import figures, tables
from palimpsest.utils.study.comparison import Block, Comparison
from palimpsest.utils.study.groups import Entry, Group
from palimpsest.utils.study.statistics import Ranks
from palimpsest.utils.study.table_formats import as_latex, as_markdown, as_note, as_text
from palimpsest.utils.study.tables import Table

FORMATS = ("csv", "markdown", "latex", "html", "png", "pdf")
PRINTED = {"csv": "comparison.csv", "markdown": "comparison.md", "latex": "comparison.tex"}  # may go to the terminal
MOST_ROWS = 30  # of pairs on the terminal; files have all of them


def _rank_tables(found: Comparison) -> list[Table]:
    return [tables.rank_table(title, ranks, means) for title, (ranks, means) in found.ranks.items()]


def terminal(found: Comparison) -> str:
    parts = []
    for block in found.blocks:
        for table in block.tables:
            shown = table
            if len(table.rows) > MOST_ROWS and table is not block.tables[0]:
                more = f"{len(table.rows) - MOST_ROWS} more rows: --out DIR writes all of them."
                shown = replace(table, rows=table.rows[:MOST_ROWS], notes=[*table.notes, more])
            parts.append(as_text(shown))
        parts.append("".join(f"{as_note(note)}\n" for note in block.notes))
    parts += [as_text(table) for table in _rank_tables(found)]
    if found.left:
        parts.append(as_text(tables.left_table(found.left)))
    parts.append("".join(f"{note}\n" for note in found.notes))
    return "\n".join(part for part in parts if part)


def texts(found: Comparison, formats: Sequence[str]) -> dict[str, str]:
    """Name of a file -> its text, of the formats that are text."""
    out = {}
    every = [table for block in found.blocks for table in block.tables] + _rank_tables(found)
    left = [tables.left_table(found.left)] if found.left else []
    if "csv" in formats:
        rows = [(block.group, found.metric, row) for block in found.blocks for row in block.rows]
        out["comparison.csv"] = tables.scores_csv(rows, found.left)
        out["pairs.csv"] = tables.pairs_csv([(block.group, pair) for block in found.blocks for pair in block.pairs])
    if "markdown" in formats:
        notes = [note for block in found.blocks for note in block.notes]
        lines = "".join(f"{note}\n\n" for note in [*found.notes, *dict.fromkeys(notes)])
        out["comparison.md"] = "\n".join([*map(as_markdown, [*every, *left])]) + f"\n{lines}"
    if "latex" in formats:
        out["comparison.tex"] = _latex(found, left)
    if "html" in formats:
        out["comparison.html"] = _page(found, left)
    return out


def _latex(found: Comparison, left: list[Table]) -> str:
    """Tables to be taken into a paper by \\input."""
    about = f"{METRICS[found.metric].title}: mean, standard deviation, Student's t 95 % interval and cost over runs."
    groups: dict[str, list[Table]] = {
        about: [replace(b.tables[0], notes=[*b.tables[0].notes, *b.notes]) for b in found.blocks],
        "Differences between methods over runs that share class order and seed.": [],
        "Class orders and seeds as two factors.": [],
        "Mean ranks over streams.": _rank_tables(found),
        "Runs that are in no table.": left,
    }  # fmt: skip
    captions = list(groups)
    for block in found.blocks:
        for table in block.tables[1:]:
            groups[captions[1 if table.head[0] == "a - b" else 2]].append(table)
    labels = ("scores", "pairs", "factors", "ranks", "left-out")
    parts = [as_latex(mine, caption, label) for (caption, mine), label in zip(groups.items(), labels, strict=True)]
    return "\n".join(["% needs \\usepackage{booktabs} and \\usepackage{graphicx}", *parts])


def _page(found: Comparison, left: list[Table]) -> str:
    sections = [
        {"title": b.group.title, "pictures": _pictures(b, found.metric), "tables": b.tables, "notes": b.notes}
        for b in found.blocks
    ]
    for title, (ranks, means) in found.ranks.items():
        table = tables.rank_table(title, ranks, means)
        sections.append({"title": title, "pictures": _rank_pictures(title, ranks), "tables": [table], "notes": []})
    if left:
        sections.append({"title": "Left out", "pictures": [], "tables": left, "notes": []})
    runs = sum(len(block.group.runs) for block in found.blocks)
    head = f"{METRICS[found.metric].title}: {count(runs, 'run')} in {count(len(found.blocks), 'ranking')}"
    head += f", {len(found.left)} left out" if found.left else ""
    return render(
        "comparison.html", title="Comparison of methods", headline=head, refresh=0, notes=found.notes, sections=sections
    )


def _pictures(block: Block, metric: str) -> list[Picture]:
    """Curves over tasks, and bars of what is compared."""
    score, title = block.group.conditions["score"], block.group.title
    curves = {entry.name: _curves(block.group, entry) for entry in block.group.entries}
    curves = {name: values for name, values in curves.items() if values.size}
    out = []
    if curves and max(values.shape[1] for values in curves.values()) > 1:
        caption = "Mean over the tasks seen after each task. Bands: 95 % interval of the mean over runs, from 3 runs."
        out.append(Picture("curves", figures.task_curves(curves, title, score), caption, wide=True))
    bars = {row.entry.name: (row.spread.mean, row.spread.sd) for row in block.rows}
    share = METRICS[metric].ends == (0.0, 100.0) and score != "r2"
    better = "Longer is better." if METRICS[metric].better == "higher" else "Shorter is better."
    figure = comparison_bars(bars, METRICS[metric].title, title, share=share)
    return [*out, Picture("bars", figure, f"{better} A whisker is one standard deviation over runs.", wide=True)]


def _curves(group: Group, entry: Entry) -> np.ndarray:
    """(runs, tasks) means over the tasks seen."""
    rows = []
    for run in entry.runs.values():
        matrix = np.array(run.matrices[group.conditions["scenario"]], dtype=np.float64)
        rows.append(seen_means(matrix))
    return np.array(rows) if len({len(row) for row in rows}) == 1 else np.zeros((0, 0))


def _rank_pictures(title: str, ranks: Ranks) -> list[Picture]:
    if len(ranks.ranks) < 3:
        return []
    caption = "Mean ranks, the best at the left. A bar joins methods that Nemenyi's test does not tell apart."
    return [Picture("ranks", figures.critical_difference(ranks, title), caption, wide=True)]


def write_files(found: Comparison, folder: Path, formats: Sequence[str]) -> None:
    """Write tables, page and pictures into a folder, which is made.

    Raises:
        UserError: something cannot be written.
    """
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts(found, formats).items():
        write_text(folder / name, text)
    kinds = [kind for kind in ("png", "pdf") if kind in formats]
    if not kinds:
        return
    taken: dict[str, int] = {}
    sets = [(block.slug, _pictures(block, found.metric)) for block in found.blocks]
    sets += [(title.rpartition(", ")[2], _rank_pictures(title, ranks)) for title, (ranks, _) in found.ranks.items()]
    for slug, pictures in sets:
        taken[slug] = taken.get(slug, 0) + 1
        ending = f"_{taken[slug]}" if taken[slug] > 1 else ""
        for picture in pictures:
            for kind in kinds:
                with file_errors(folder):
                    (folder / f"{picture.name}_{slug}{ending}.{kind}").write_bytes(drawn(picture.figure, kind))
