"""``python -m gluon_lprnet nme``: errors of landmark networks by yaw, as a table and as figures."""
import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from ..data.faces.landmarks import JAWS
from ..data.integrity import add_check_flag
from ..utils.flags import add_parser, positive_float
from ..utils.text import FORMATS, paragraph, render_table
from .figures import draw_all
from .landmarks import (
    BIN_NAMES,
    PROTOCOL,
    THRESHOLD,
    FaceErrors,
    distinct_names,
    evaluate_sets,
    load_networks,
    summarize,
)
from .network_flag import add_network_flag, split_networks


def percent(value: Optional[float], digits: int = 2) -> str:
    """A fraction in percent, or '-' for None."""
    return '-' if value is None else f'{100 * value:.{digits}f}'


def nme_table(results: Mapping[str, Mapping[str, FaceErrors]], threshold: float = THRESHOLD,
              format: str = 'text') -> str:
    """The results of :func:`gluon_lprnet.evaluate.landmarks.evaluate_sets` as a string, in one of ``FORMATS``."""
    rows = [{'set': name, 'network': label, **summarize(found.errors, found.yaw, threshold)}
            for name, networks in results.items() for label, found in networks.items()]
    if format == 'json':
        # As fractions, the unit of the functions.
        return json.dumps({'protocol': PROTOCOL, 'yaw_bins': BIN_NAMES, 'rows': rows}, indent=1)
    columns = ('network', 'set', *BIN_NAMES, 'mean of bins', 'of faces', 'median', 'p95',
               f'failures > {100 * threshold:g}', 'AUC')
    cells = [(row['network'], row['set'], *map(percent, row['bin_nme']), percent(row['mean_of_bins']),
              percent(row['mean']), percent(row['median']), percent(row['percentile_95']), percent(row['failure_rate']),
              f'{row["auc"]:.4f}') for row in rows]
    counts = {row['set']: (row['faces'], row['bin_faces']) for row in rows}
    protocol = (f'{PROTOCOL} p95: the error that 95% of the faces are below. AUC: area under the cumulative error '
                f'distribution from 0 to {100 * threshold:g}%, at most 1.')
    return '\n\n'.join([
        'NME and failures in percent; [0,30] and so on: |yaw| in degrees', render_table(columns, cells, format),
        paragraph(protocol, format),
        '\n'.join(f'Faces in {name}: {faces:,}, by yaw '
                  + (', '.join(f'{bin_name} {count}' for bin_name, count in zip(BIN_NAMES, bins)) if any(bins)
                     else 'unknown') + '.' for name, (faces, bins) in counts.items())])


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'nme', help='errors of facial landmarks, by yaw, with curves and figures',
        example='gluon-lprnet nme data/aflw2000_3d.rec --network runs/face --out figures',
        description='Evaluate networks for 68 landmarks on RecordIO files of faces.')
    parser.add_argument('inputs', nargs='*', metavar='REC', help='test sets, packed by "pack faces"')
    add_network_flag(parser, 'landmarks', several=True)
    parser.add_argument('--rec', nargs='+', default=(), help=argparse.SUPPRESS)
    parser.add_argument('--mean-face', nargs='+', metavar='TRAIN_REC',
                        help='also evaluate the mean landmarks of these training sets')
    parser.add_argument('--out', metavar='DIR',
                        help='write CED curves, error by yaw and grids of faces (PNG, SVG, CSV) to this folder')
    parser.add_argument('--threshold', type=positive_float, default=100 * THRESHOLD, metavar='PERCENT',
                        help='NME beyond which a face is a failure, and limit of the AUC (default: %(default)g)')
    parser.add_argument('--jaw', choices=JAWS,
                        help='the jaw that networks with two of them give: that of the head, hidden or not, or the '
                             "visible contour (default: the one in each set's landmarks)")
    parser.add_argument('--flip', action='store_true',
                        help='the mean of what a network finds in the crop and in its mirror image, in twice the time')
    add_check_flag(parser)
    parser.add_argument('--format', choices=FORMATS, default='text', help='how to print (default: %(default)s)')
    parser.set_defaults(run=_run)


def _run(args):
    networks, inputs = split_networks('nme', 'landmarks', args.inputs, args.network, args.rec, several=True)
    recs = dict(zip(distinct_names([Path(rec).stem for rec in inputs], inputs), inputs))
    results = evaluate_sets(load_networks(networks), recs, args.mean_face, args.jaw, args.flip, args.data_check)
    print(nme_table(results, args.threshold / 100, args.format))
    if args.out:
        draw_all(results, recs, args.out)
