"""The paper's Tables 2, 3 and 5: each printed number next to the one counted on the network built here."""
import argparse
import json
import math
from collections import namedtuple
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any, Callable, NamedTuple, Optional, Union

from ..blocks import DSC, LPR, InvertedResidual, SConv, ShuffleNetV2Unit
from ..complexity import Complexity, count
from ..utils.errors import InputError
from ..utils.flags import Commands, add_parser
from ..utils.text import FORMATS, integer, paragraph, render_table
from ..zoo import get_model
from ..zoo.shufflenetv2 import CHANNELS as SHUFFLENETV2_CHANNELS

__all__ = ['compared_rows', 'complexity_table', 'follows', 'Comparison', 'Row', 'TABLE_NUMBERS']

# Table 2: a module at S_F = 14, C_in = C_out = 256, k = 8 (r = C/k), e = 4.
FEATURE_SIZE = 14
CHANNELS = 256
RANK_DENOMINATOR = 8
EXPANSION = 4


# Notes. A note that states numbers of the network is a function of its Complexity, and computes them.

def _note_mobilenetv2_formula(complexity: Complexity) -> str:
    weights = (9 * EXPANSION + (EXPANSION + 1) * CHANNELS) * CHANNELS
    return ('The printed formula has (e + 1) C^2 pointwise weights, which with 9 e C is '
            f'{weights:,} parameters and {weights * FEATURE_SIZE ** 2:,} multiply-adds. The module expands '
            'and projects: 2 e C^2.')


def _note_batch_norm(complexity: Complexity) -> str:
    elements = sum(math.prod(layer.output_shape) for layer in complexity.layers
                   if layer.operator == 'BatchNorm')
    return ('The printed multiply-adds count one operation for each element of BatchNorm as well: '
            f'{complexity.multiply_adds:,} + {elements:,} = {complexity.multiply_adds + elements:,}.')


def _note_scaled_once(width: float) -> Callable[[Complexity], str]:
    pointwise = 14 * 14 * 256 * 512

    def note(complexity: Complexity) -> str:
        slip = pointwise * (width - width ** 2)
        return ('The printed multiply-adds do not follow from the rule of the other rows. They fit if one '
                f'pointwise layer of {pointwise:,} (w = 1) is scaled by w and not w^2: '
                f'{complexity.multiply_adds:,} {"+" if slip > 0 else "-"} {abs(slip):,.0f} = '
                f'{complexity.multiply_adds + slip:,.0f}.')
    return note


def _note_lpr_025(complexity: Complexity) -> str:
    return (_note_scaled_once(0.25)(complexity)
            + ' The printed parameters do not follow from any reading of the rule that was tried.')


def _note_shufflenetv2_last_layer(complexity: Complexity) -> str:
    *_, in_channels, last_channels = SHUFFLENETV2_CHANNELS[2.0]
    wider = 2153 - last_channels
    # Weights, gamma and beta of the last convolution, weights of the classifier.
    params = complexity.params + wider * (in_channels + 2 + 1000)
    multiply_adds = complexity.multiply_adds + wider * (7 * 7 * in_channels + 1000)
    return (f'The last convolution has {last_channels} channels in the paper of ShuffleNetV2 and 2153 in the '
            f'collection imgclsmob, where it is {params:,} parameters and {multiply_adds:,} multiply-adds. '
            f'For 595M: {_IMGCLSMOB} 595.84M.')


def _note_mobilenetv1_slip(complexity: Complexity) -> str:
    return (f'One digit of the printed parameters is wrong: {complexity.params:,} is 2.6M, as in the paper '
            'of MobileNetV1.')


_IMGCLSMOB = 'the collection imgclsmob, which counts BatchNorm, activations and pooling as well, lists'


def _note_imgclsmob(printed: str, listed: str) -> str:
    return f'For {printed}: {_IMGCLSMOB} {listed}.'


_NOTE_SHUFFLENETV1_025 = (f'For 13M: {_IMGCLSMOB} 13.09M. It has the parameters counted here; 368K does not '
                          'follow.')
_NOTE_SHUFFLENETV1_05 = _note_imgclsmob('41M', '41.70M')
_NOTE_SHUFFLENETV1_15 = 'The printed multiply-adds are those of the paper of ShuffleNetV1.'
_NOTE_SHUFFLENETV1_1 = f'{_NOTE_SHUFFLENETV1_15} The printed parameters match no number of groups.'
_NOTE_SHUFFLENETV2_025 = 'No layout of this width was published.'
_NOTE_SHUFFLENETV2_1 = _note_imgclsmob('149M', '149.72M')
_NOTE_MOBILENETV2_05 = _note_imgclsmob('100M', '100.13M')
_NOTE_MOBILENETV2_14 = ('The printed numbers are those of the paper of MobileNetV2; its authors list 582M '
                        'and 6.06M for the network that they released.')


class Row(NamedTuple):
    """A row of the paper: its printed numbers, and the model that builds the same here (None: not built)."""

    name: str
    model: Optional[str]
    flops: str
    params: str
    note: Union[str, Callable[[Complexity], str], None] = None


Table = namedtuple('Table', 'title rows')

_MODULES = {
    'SConv': lambda: SConv(CHANNELS, CHANNELS),
    'DSC': lambda: DSC(CHANNELS, CHANNELS),
    'InvertedResidual': lambda: InvertedResidual(CHANNELS, CHANNELS, expansion=EXPANSION),
    'ShuffleNetV2Unit': lambda: ShuffleNetV2Unit(CHANNELS),
    'LPR': lambda: LPR(CHANNELS, 1 / RANK_DENOMINATOR),
}

_TABLES = {
    2: Table('Table 2: modules at S_F = 14, S_k = 3, C_in = C_out = 256, k = 8, e = 4; convolutions only', (
        Row('SConv', 'SConv', '115,605,504', '589,824'),
        Row('DSC', 'DSC', '13,296,640', '67,840'),
        Row('Mobilev2', 'InvertedResidual', '66,031,616', '336,896', _note_mobilenetv2_formula),
        Row('Shufflev2', 'ShuffleNetV2Unit', '6,648,320', '33,920'),
        Row('LPR', 'LPR', '3,662,848', '18,688'),
    )),
    3: Table('Table 3: the rank of LPR in MobileNetV1, 224x224, 1000 classes', (
        Row('r = m/4', 'lprnet_mobilenet_x1.0_r4', '363M', '3.0M'),
        Row('r = m/8', 'lprnet_mobilenet_x1.0', '260M', '2.3M'),
        Row('r = m/16', 'lprnet_mobilenet_x1.0_r16', '209M', '2.0M'),
        Row('MobileNet', 'mobilenetv1_x1.0', '574M', '4.2M', _note_batch_norm),
    )),
    # The first region of the printed table repeats rows of the others and is left out.
    5: Table('Table 5: networks for ImageNet, 224x224, 1000 classes', (
        Row('ShuffleNetv1 x0.25', 'shufflenetv1_x0.25', '13M', '368K', _NOTE_SHUFFLENETV1_025),
        Row('ShuffleNetv2 x0.25', None, '14M', '587K', _NOTE_SHUFFLENETV2_025),
        Row('LPRNet MobileNet x0.25', 'lprnet_mobilenet_x0.25', '26M', '356K', _note_lpr_025),
        Row('MobileNetv1 x0.25', 'mobilenetv1_x0.25', '42M', '470K', _note_batch_norm),
        Row('ShuffleNetv1 x0.5', 'shufflenetv1_x0.5', '41M', '718K', _NOTE_SHUFFLENETV1_05),
        Row('LPRNet MobileNet x0.5', 'lprnet_mobilenet_x0.5', '78M', '869K', _note_scaled_once(0.5)),

        Row('IGCV3 x0.5', 'igcv3_x0.5', '111M', '2.0M', _note_imgclsmob('111M', '111.12M')),
        Row('MobileNetv1 x0.5', 'mobilenetv1_x0.5', '152M', '1.3M', _note_batch_norm),
        Row('MobileNetv2 x0.5', 'mobilenetv2_x0.5', '100M', '1.9M', _NOTE_MOBILENETV2_05),
        Row('ESPNetv2 x1.0', 'espnetv2_x1.0', '98M', '1.7M', _note_imgclsmob('98M', '98.09M')),
        Row('ESPNetv2 x1.25', 'espnetv2_x1.25', '138M', '1.9M', _note_imgclsmob('138M', '138.18M')),
        Row('LPRNet ShuffleNet2 x1.0', 'lprnet_shufflenetv2_x1.0', '113M', '2.0M'),

        Row('ShuffleNetv1 x1.0', 'shufflenetv1_x1.0', '140M', '2.2M', _NOTE_SHUFFLENETV1_1),
        Row('ESPNetv2 x1.5', 'espnetv2_x1.5', '185M', '2.3M', _note_imgclsmob('185M', '185.77M')),
        Row('IGCV3 x0.75', 'igcv3_x0.75', '210M', '2.6M', _note_imgclsmob('210M', '210.95M')),
        Row('ShuffleNetv2 x1.0', 'shufflenetv2_x1.0', '149M', '2.3M', _NOTE_SHUFFLENETV2_1),
        Row('CondenseNet', 'condensenet_x1.0', '291M', '2.9M', _note_imgclsmob('291M', '291.52M')),
        Row('LPRNet MobileNet x1.0', 'lprnet_mobilenet_x1.0', '260M', '2.3M'),

        Row('MobileNetv1 x0.75', 'mobilenetv1_x0.75', '325M', '3.6M', _note_mobilenetv1_slip),
        Row('ESPNetv2 x2.0', 'espnetv2_x2.0', '306M', '3.5M', _note_imgclsmob('306M', '306.93M')),
        Row('ShuffleNetv1 x1.5', 'shufflenetv1_x1.5', '292M', '3.4M', _NOTE_SHUFFLENETV1_15),
        Row('IGCV3 x1.0', 'igcv3_x1.0', '340M', '3.4M', _note_imgclsmob('340M', '340.79M')),
        Row('MobileNetv2 x1.0', 'mobilenetv2_x1.0', '301M', '3.5M'),
        Row('LPRNet MobileNet x1.25', 'lprnet_mobilenet_x1.25', '389M', '3.4M', _note_scaled_once(1.25)),

        Row('MobileNetv1 x1.0', 'mobilenetv1_x1.0', '574M', '4.2M', _note_batch_norm),
        Row('ShuffleNetv1 x2.0', 'shufflenetv1_x2.0', '524M', '5.4M'),
        Row('LPRNet ShuffleNet2 x2.0', 'lprnet_shufflenetv2_x2.0', '437M', '6.2M'),
        Row('ShuffleNetv2 x2.0', 'shufflenetv2_x2.0', '595M', '7.6M', _note_shufflenetv2_last_layer),
        Row('MobileNetv2 x1.4', 'mobilenetv2_x1.4', '585M', '6.9M', _NOTE_MOBILENETV2_14),
        Row('LPRNet MobileNet x1.5', 'lprnet_mobilenet_x1.5', '544M', '4.5M', _note_scaled_once(1.5)),
    )),
}
TABLE_NUMBERS = tuple(_TABLES)

_UNITS = {'K': 10 ** 3, 'M': 10 ** 6}
_LEGEND = ('deviation: counted against printed. follows: whether the printed number is the counted one at '
           'the printed digits; "truncated" or "rounded" if only that gives it, "yes" if both do.')


class Comparison(NamedTuple):
    """A printed number and the counted one; the rest is None if nothing is built.

    ``deviation`` is counted / printed - 1; for ``follows`` see :func:`follows`.
    """

    printed: str
    counted: Optional[int] = None
    deviation: Optional[float] = None
    follows: Optional[str] = None

    @classmethod
    def of(cls, printed: str, counted: int) -> 'Comparison':
        """That of a printed number, such as ``'2.3M'``, with a count."""
        number, unit = _parse(printed)
        return cls(printed, counted, counted / float(number * unit) - 1, follows(printed, counted))


def follows(printed: str, counted: int) -> str:
    """Whether ``printed`` is the whole number ``counted`` at its printed digits.

    Returns
    -------
    str
        'yes' if both truncating and rounding (half up) give it, 'truncated' or 'rounded' if only one does, else
        'no'.
    """
    number, unit = _parse(printed)
    scaled = Decimal(counted) / unit
    truncated = scaled.quantize(number, ROUND_DOWN) == number
    rounded = scaled.quantize(number, ROUND_HALF_UP) == number
    if truncated and rounded:
        return 'yes'
    return 'truncated' if truncated else 'rounded' if rounded else 'no'


def _parse(printed: str) -> tuple[Decimal, int]:
    unit = _UNITS.get(printed[-1], 1)
    digits = printed[:-1] if printed[-1] in _UNITS else printed
    return Decimal(digits.replace(',', '')), unit


def compared_rows(number: int) -> list[dict[str, Any]]:
    """The rows of one table.

    Parameters
    ----------
    number : int
        2, 3 or 5.

    Returns
    -------
    list of dict
        With ``name`` (as in the paper), ``model`` (None: not built), ``multiply_adds`` and ``params``
        (:class:`Comparison`), ``note`` (str or None).

    Raises
    ------
    InputError
        If there is no such table.
    """
    return [_compared(number, row) for row in _table(number).rows]


def _table(number: int) -> Table:
    if number not in _TABLES:
        raise InputError(f'there is no Table {number} to count: choose from '
                         f'{", ".join(map(str, TABLE_NUMBERS))}.')
    return _TABLES[number]


def _compared(number: int, row: Row) -> dict[str, Any]:
    if row.model is None:
        return {'name': row.name, 'model': None, 'multiply_adds': Comparison(row.flops),
                'params': Comparison(row.params), 'note': row.note}
    if number == 2:
        complexity = count(_MODULES[row.model](), (1, CHANNELS, FEATURE_SIZE, FEATURE_SIZE))
        params = sum(layer.params for layer in complexity.layers if layer.operator == 'Convolution')
    else:
        complexity = count(get_model(row.model))
        params = complexity.params
    return {'name': row.name, 'model': row.model,
            'multiply_adds': Comparison.of(row.flops, complexity.multiply_adds),
            'params': Comparison.of(row.params, params),
            'note': row.note(complexity) if callable(row.note) else row.note}


def complexity_table(number: int, format: str = 'text') -> str:
    """One table as a string, in one of ``FORMATS``; see :func:`compared_rows`."""
    title, compared = _table(number).title, compared_rows(number)
    if format == 'json':
        return json.dumps({'title': title, 'rows': [
            {**row, 'multiply_adds': row['multiply_adds']._asdict(), 'params': row['params']._asdict()}
            for row in compared]}, indent=2)
    notes = list(dict.fromkeys(row['note'] for row in compared if row['note']))
    columns = ('in the paper', 'built here', 'FLOPs printed', 'multiply-adds', 'deviation', 'follows',
               'params printed', 'parameters', 'deviation', 'follows', 'note')
    cells = [(row['name'], row['model'] or 'not built', *_cells(row['multiply_adds']), *_cells(row['params']),
              f'[{notes.index(row["note"]) + 1}]' if row['note'] else '') for row in compared]
    # As text in two tables: multiply-adds, parameters.
    parts = [range(6), [0, *range(6, 11)]] if format == 'text' else [range(11)]
    tables = [render_table([columns[column] for column in part], [[row[column] for column in part] for row in cells],
                           format) for part in parts]
    notes = [_LEGEND, *(f'[{index}] {note}' for index, note in enumerate(notes, 1))]
    return '\n\n'.join([title, *tables, *(paragraph(note, format) for note in notes)])


def _cells(comparison: Comparison) -> tuple:
    deviation = None if comparison.deviation is None else f'{comparison.deviation:+.1%}'
    return comparison.printed, comparison.counted, deviation, comparison.follows


def add_commands(subparsers: Commands) -> None:
    parser = add_parser(
        subparsers, 'tables', help="the paper's Tables 2, 3 and 5, printed and counted",
        example='gluon-lprnet tables 3 5 --format markdown',
        description="Print the paper's tables of multiply-adds and parameters next to the numbers counted here.")
    parser.add_argument('numbers', nargs='*', type=integer, metavar='NUMBER', default=list(TABLE_NUMBERS),
                        help=f'of {", ".join(map(str, TABLE_NUMBERS))} (default: all)')
    parser.add_argument('--format', choices=FORMATS, default='text', help='how to print (default: %(default)s)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    texts = [complexity_table(number, args.format) for number in args.numbers]
    print('[' + ',\n'.join(texts) + ']' if args.format == 'json' else '\n\n'.join(texts))
