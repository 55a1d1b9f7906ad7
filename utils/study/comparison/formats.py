"""How the terminal, Markdown and LaTeX have a table."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace

from palimpsest.utils.study.comparison.tables import Table

LATIN = {*map(chr, [*range(0x20, 0x7F), *range(0xC0, 0x100)])} - {"Ð", "ð", "Þ", "þ"}
WIDTH = 118  # letters of a line of notes on the terminal
LONGEST = 40  # rows of one table of LaTeX: a float does not break over pages
TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", ">": "$>$",
       "²": r"\textsuperscript{2}", "|": r"\textbar{}"}  # fmt: skip


def as_text(table: Table) -> str:
    """For the terminal."""
    widths = [max(map(len, cells)) for cells in zip(table.head, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(w) if table.numbers else cell.ljust(w) for cell, w in zip(cells, widths, strict=True)]
        padded[0] = cells[0].ljust(widths[0])
        return f"  {'  '.join(padded)}".rstrip()

    return "\n".join([table.title, *map(line, [table.head, *table.rows]), *map(as_note, table.notes)]) + "\n"


def as_note(text: str) -> str:
    """A sentence below a table of the terminal; a command in it stays in one line."""
    text, begin, command = text.partition("python main.py")
    lines = textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    return "\n".join([*lines, *([f"    {begin}{command}"] if begin else [])])


def as_markdown(table: Table) -> str:
    """A heading, a table, its notes."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---:" if table.numbers and k else "---" for k in range(len(table.head))]
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return "\n".join([f"### {table.title}", "", line(table.head), line(rule), *map(line, table.rows)]) + f"\n{notes}"


def as_latex(tables: Sequence[Table], caption: str, label: str) -> str:
    """Tables with one head as blocks of floats in booktabs' style, none longer than `LONGEST` rows."""
    floats: list[list[Table]] = [[]]
    for table in tables:
        for begin in range(0, len(table.rows), LONGEST):
            part = replace(table, rows=table.rows[begin : begin + LONGEST])
            used = sum(len(other.rows) for other in floats[-1])
            if floats[-1] and (floats[-1][0].head != part.head or used + len(part.rows) > LONGEST):
                floats.append([])
            floats[-1].append(part)
    return "\n".join(_float(part, caption, f"{label}-{k + 1}" if k else label) for k, part in enumerate(floats) if part)


def _float(tables: Sequence[Table], caption: str, label: str) -> str:
    head = tables[0].head
    columns = "l" + ("r" if tables[0].numbers else "l") * (len(head) - 1)
    lines = [r"\begin{table}[tbp]", r"\centering", rf"\caption{{{tex(caption)}}}", rf"\label{{tab:{label}}}"]
    lines += [r"\medskip", r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(tex, head)) + r" \\"]
    for table in tables:
        lines += [r"\midrule", rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{tex(table.title)}}}}} \\"]
        lines += [" & ".join(map(tex, row)) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    lines += [r"\par\medskip\parbox{\linewidth}{\footnotesize " + " ".join(map(tex, notes)) + "}"] if notes else []
    return "\n".join([*lines, r"\end{table}", ""])


def tex(text: str) -> str:
    """A text without anything that LaTeX would take for a command."""
    return "".join(TEX.get(letter) or _letter(letter) for letter in text).replace("--", "-{}-")


def _letter(letter: str) -> str:
    """A letter that pdflatex has without further packages, or the number of another one in Unicode."""
    return letter if letter in LATIN else rf"\texttt{{U+{ord(letter):04X}}}"
