"""Tables and lists for the console; numbers that the user wrote."""
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Union

from tabulate import tabulate

_NAMES_SHOWN = 100


def listing(lines: Sequence[str], shown: int = _NAMES_SHOWN) -> str:
    """Lines for a message, indented, and truncated if there are too many."""
    more = [f'and {len(lines) - shown} more'] if len(lines) > shown else []
    return '\n'.join(f'  {line}' for line in [*lines[:shown], *more])


FORMATS = ('text', 'markdown', 'json')
# Columns of a console or a page, for what is printed as text.
WIDTH = 100
_GAP = 2
# Cells are cut into lines of at least so many characters, and of at most so many in a table that becomes several.
_NARROWEST, _WIDEST = 12, 40


def paragraph(text: str, format: str) -> str:
    """A paragraph beside a table: as text in lines of at most ``WIDTH``, in Markdown as it is."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) if format == 'text' else text


def render_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], format: str) -> str:
    """A table as aligned text or Markdown; whole numbers get thousands separators, None gives an empty cell.

    Text is at most ``WIDTH`` wide: where it has to be, long cells go over several lines. Where that does not do, the
    rest follows in further tables, which begin with the first column again.
    """
    cells = [[f'{cell:,}' if isinstance(cell, int) else '' if cell is None else str(cell) for cell in row]
             for row in rows]
    is_number = [any(isinstance(row[column], int) for row in rows) for column in range(len(columns))]
    if format == 'markdown':
        return tabulate(cells, columns, 'pipe', disable_numparse=True,
                        colalign=['right' if right else 'left' for right in is_number])
    widths = _widths(columns, cells)
    return '\n\n'.join(_text_table([columns, *cells], widths, is_number, part) for part in _parts(widths))


def _text_table(rows: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool],
                part: Sequence[int]) -> str:
    """Some of the columns, by number; the first row is that of the headings."""
    lines = []
    for row in rows:
        wrapped = [textwrap.wrap(row[column], max(widths[column], 1), break_on_hyphens=False) for column in part]
        lines += [(' ' * _GAP).join(cell.rjust(widths[column]) if right[column] else cell.ljust(widths[column])
                                    for cell, column in zip(cells, part)).rstrip()
                  for cells in itertools.zip_longest(*wrapped, fillvalue='')] or ['']
        if row is rows[0]:
            lines.append((' ' * _GAP).join('-' * widths[column] for column in part))
    return '\n'.join(lines)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """Of the columns: as wide as heading and cells, or narrower where all of them together are too wide."""
    natural = [max(map(len, column)) for column in zip(columns, *cells)]
    if _whole(natural) <= WIDTH:
        return natural
    # A heading may have a line for each word.
    natural = [max(map(len, [*heading.split(), *column]), default=0) for heading, *column in zip(columns, *cells)]
    for most in range(max(natural), _NARROWEST - 1, -1):
        if _whole([min(width, most) for width in natural]) <= WIDTH:
            return [min(width, most) for width in natural]
    return [min(width, _WIDEST) for width in natural]


def _parts(widths: Sequence[int]) -> Iterator[list[int]]:
    """The columns of each table, by number."""
    part = [0]
    for column in range(1, len(widths)):
        if _whole([widths[each] for each in [*part, column]]) > WIDTH:
            yield part
            part = [0]
        part.append(column)
    yield part


def _whole(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def integer(text: Union[str, bytes]) -> int:
    """The int that a str or bytes of the user says; ValueError for what Python alone reads as one, such as ``1_0``."""
    return int(_plain(text))


def real(text: Union[str, bytes]) -> float:
    """The float that a str or bytes of the user says, likewise."""
    return float(_plain(text))


def _plain(text: Union[str, bytes]) -> Union[str, bytes]:
    if not text.isascii() or ('_' in text if isinstance(text, str) else b'_' in text):
        raise ValueError(f'{text!r} is not a number')
    return text
