"""Rows as text and as tables: what a verb answers shows itself in a terminal, a file or a notebook."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    import pandas as pd

# What one row of a table holds, by column.
Row = dict[str, Any]
_FORMULA = "=+-@"  # a cell that begins so is a formula to spreadsheets


def render(rows: Sequence[Row], form: str, title: str = "") -> str:
    """Write rows in a format: `table`, `json`, `csv`, `md` or `html`."""
    if form == "json":
        return json.dumps(list(rows), indent=2, default=str)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(csv_cell, columns))
        writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
        return text.getvalue().rstrip("\n")
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    heads = [printable(column) for column in columns]
    if form == "html":
        lines = [_tags("th", heads), *(_tags("td", line) for line in cells)]
        return "<table>\n" + "\n".join(lines) + "\n</table>"
    if form == "md":
        lines = [_piped(line) for line in (heads, ["---"] * len(columns), *cells)]
        return "\n".join(lines)
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [all(_numeric(row.get(column)) for row in rows) for column in columns]
    rule = "  ".join("-" * width for width in widths)
    body = [_line(line, widths, numeric) for line in (heads, *cells)]
    return "\n".join([*([printable(title)] if title else []), body[0], rule, *body[1:]])


def _tags(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells) + "</tr>"


def _escaped(text: str) -> str:
    from html import escape  # a table of all entities, which few need

    return escape(text)


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(marked_down, cells)) + " |"


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = zip(cells, widths, numeric, strict=True)
    return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in padded).rstrip()


def _numeric(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or str(value)[:1].isdigit()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """A text on one line, with what a terminal would obey or not show written out, as Python does."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def printable_lines(text: str) -> str:
    """The same for a text of several lines."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def marked_down(text: str) -> str:
    """A text as Markdown shows it on one line, in a table too: no column, tag or heading of its own."""
    return printable(text).replace("|", r"\|").replace("<", "&lt;")


def csv_cell(value: Any) -> Any:
    """A cell of a CSV: a text that spreadsheets take for a formula has an apostrophe before it."""
    if not isinstance(value, str) or not value:
        return value
    text = printable(value)
    return f"'{text}" if text[0] in _FORMULA and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def spreadsheet(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are cells of a CSV: see `csv_cell`. Looks at each text once."""
    changed: dict[str, pd.Series[Any]] = {}
    for name in map(str, frame.select_dtypes(exclude=["number", "bool"])):
        values = frame[name].dropna().unique()
        cells = {value: cell for value in values if (cell := csv_cell(value)) is not value}
        if cells:
            changed[name] = frame[name].map(lambda value, cells=cells: cells.get(value, value))
    return frame.assign(**changed).rename(columns=csv_cell)


class Shown:
    """An answer that people look at: tables under titles, and sentences below them."""

    def rows(self) -> list[Row]:
        """What people compare first: one row per kernel, rule or whatever the answer is about."""
        raise NotImplementedError

    def sections(self) -> Mapping[str, Sequence[Row]]:
        """Tables by title; an empty title is none."""
        return {"": self.rows()}

    def notes(self) -> list[str]:
        """What the tables do not say, a sentence each."""
        return []

    def shown(self, form: str = "table") -> str:
        """Every table, then the notes, in a format of `render` that people read: table, md or html."""
        parts = []
        for title, rows in self.sections().items():
            if rows:
                parts += [*([_head(title, form)] if title else []), render(rows, form)]
        if notes := self.notes():
            parts.append("\n".join(_note(note, form) for note in notes))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        return self.shown("html")

    def _repr_markdown_(self) -> str:
        return self.shown("md")


def _head(title: str, form: str) -> str:
    title = printable(title)
    return f"<p><b>{_escaped(title)}</b></p>" if form == "html" else title


def _note(note: str, form: str) -> str:
    note = printable_lines(note)
    return f"<p>{_escaped(note.strip())}</p>" if form == "html" else note


class Tabled(Shown):
    """An answer that other programs read as well."""

    def records(self) -> list[Row]:
        """Flat records: names, and numbers in SI units unless their name says another."""
        raise NotImplementedError

    @property
    def table(self) -> pd.DataFrame:
        """The records as a table."""
        import pandas as pd

        return pd.DataFrame.from_records(self.records())

    def written(self, form: str) -> str:
        """The answer in a format: records as `json` or `csv`, for people as `shown`."""
        return render(self.records(), form) if form in ("json", "csv") else self.shown(form)


_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer", bound=Tabled)


@dataclass(frozen=True, eq=False)
class Listed(Tabled, Sequence[_Item]):
    """A sequence of what came of each point, in order."""

    answers: tuple[_Item, ...]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[_Item]:
        return iter(self.answers)

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[_Item, ...]: ...
    def __getitem__(self, index: int | slice) -> _Item | tuple[_Item, ...]:
        return self.answers[index]


@dataclass(frozen=True, eq=False)
class Answers(Listed[_Answer]):
    """One answer per point, and one table of all."""

    def rows(self) -> list[Row]:
        """Rows of all answers under each other."""
        return [row for answer in self.answers for row in answer.rows()]

    def records(self) -> list[Row]:
        """Records of all answers under each other."""
        return [record for answer in self.answers for record in answer.records()]

    def sections(self) -> dict[str, list[Row]]:
        """Tables of all answers; those of one title are one table."""
        joined: dict[str, list[Row]] = {}
        for answer in self.answers:
            for title, rows in answer.sections().items():
                joined.setdefault(title, []).extend(rows)
        return joined

    def notes(self) -> list[str]:
        """Notes of all answers."""
        return [note for answer in self.answers for note in answer.notes()]
