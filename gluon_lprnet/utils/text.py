"""Tables and lists for the console."""
from tabulate import tabulate

_NAMES_SHOWN = 100


def listing(lines, shown=_NAMES_SHOWN):
    """Lines for a message, indented, and truncated if there are too many."""
    more = [f'and {len(lines) - shown} more'] if len(lines) > shown else []
    return '\n'.join(f'  {line}' for line in lines[:shown] + more)


FORMATS = ('text', 'markdown', 'json')


def render_table(columns, rows, format):
    """A table as aligned text or Markdown; whole numbers get thousands separators, None gives an empty cell."""
    cells = [[f'{cell:,}' if isinstance(cell, int) else '' if cell is None else cell for cell in row]
             for row in rows]
    alignment = ['right' if any(isinstance(row[column], int) for row in rows) else 'left'
                 for column in range(len(columns))]
    return tabulate(cells, columns, {'text': 'simple', 'markdown': 'pipe'}[format],
                    disable_numparse=True, colalign=alignment)
