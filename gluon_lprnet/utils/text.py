"""Tables and lists for the console; numbers that the user wrote."""
from collections.abc import Sequence
from typing import Any, Union

from tabulate import tabulate

_NAMES_SHOWN = 100


def listing(lines: Sequence[str], shown: int = _NAMES_SHOWN) -> str:
    """Lines for a message, indented, and truncated if there are too many."""
    more = [f'and {len(lines) - shown} more'] if len(lines) > shown else []
    return '\n'.join(f'  {line}' for line in [*lines[:shown], *more])


FORMATS = ('text', 'markdown', 'json')


def render_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], format: str) -> str:
    """A table as aligned text or Markdown; whole numbers get thousands separators, None gives an empty cell."""
    cells = [[f'{cell:,}' if isinstance(cell, int) else '' if cell is None else cell for cell in row]
             for row in rows]
    alignment = ['right' if any(isinstance(row[column], int) for row in rows) else 'left'
                 for column in range(len(columns))]
    return tabulate(cells, columns, {'text': 'simple', 'markdown': 'pipe'}[format],
                    disable_numparse=True, colalign=alignment)


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
