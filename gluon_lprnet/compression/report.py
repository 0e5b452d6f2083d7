"""What a compression did, layer by layer."""
from typing import NamedTuple, Optional

from ..complexity import Complexity
from ..utils.text import paragraph, render_table

__all__ = ['Report', 'LayerReport']


class LayerReport(NamedTuple):
    """One convolution, with the BatchNorm that is folded into it.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Outputs and inputs.
    rank : int or None
        None where it keeps its form; ``skipped`` then says why.
    params_before, params_after, multiply_adds_before, multiply_adds_after : int
    error_before : float or None
        Mean squared error of its output on the calibration images, over the variance of the original's output: in the
        compressed network, with the original's values. None without images, where nothing before it changed, and
        with the method pdp.
    error : float or None
        Likewise as it is now. Without images, of the matrix; None where nothing changed.
    skipped : str or None
    """

    name: str
    shape: tuple[int, int]
    rank: Optional[int]
    params_before: int
    params_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    error_before: Optional[float]
    error: Optional[float]
    skipped: Optional[str]


class Report(NamedTuple):
    """What :func:`gluon_lprnet.compress` did: each convolution that it looked at, and the networks' Complexity.

    ``print(report)`` shows the table.
    """

    layers: list[LayerReport]
    before: Complexity
    after: Complexity

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        replaced = sum(layer.rank is not None for layer in self.layers)
        return (f'<Report: {replaced} of {len(self.layers)} convolutions replaced, '
                f'{self.before.multiply_adds:,} to {self.after.multiply_adds:,} multiply-adds>')

    def table(self, format: str = 'text') -> str:
        """The layers and the totals, as ``'text'`` or ``'markdown'``."""
        rows: list[tuple] = [
            (layer.name, '{1} -> {0}'.format(*layer.shape), layer.rank, layer.params_before, layer.params_after,
             _thousands(layer.multiply_adds_before), _thousands(layer.multiply_adds_after), _error(layer.error_before),
             _error(layer.error)) for layer in self.layers]
        rows.append(('whole network', None, None, self.before.params, self.after.params,
                     _thousands(self.before.multiply_adds), _thousands(self.after.multiply_adds), None, None))
        table = render_table(('layer', 'width', 'rank', 'params', 'after', 'kMAdd', 'after', 'error before', 'after'),
                             rows, format)
        staying: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.skipped:
                staying.setdefault(layer.skipped, []).append(layer.name)
        notes = ['kMAdd: thousands of multiply-adds.',
                 *(f'As before, because {reason}: {", ".join(names)}.' for reason, names in staying.items())]
        return '\n\n'.join([table, *(paragraph(note, format) for note in notes)])


def _thousands(value):
    return round(value / 1000)


def _error(value):
    return None if value is None else f'{value:.4f}'
