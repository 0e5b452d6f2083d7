"""The paper's Table 6: landmark networks on AFLW2000-3D, printed and measured numbers."""
import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from ..artifact import write_symbol
from ..data.integrity import add_check_flag
from ..evaluate.landmarks import BIN_NAMES, PROTOCOL, evaluate_sets, load_networks, summarize
from ..evaluate.network_flag import add_network_flag, split_networks
from ..evaluate.nme import percent
from ..graph import trace
from ..utils.errors import InputError
from ..utils.files import PathLike
from ..utils.flags import Commands, add_parser
from ..utils.text import FORMATS, paragraph, render_table
from ..utils.timing import interleaved_milliseconds

# Timing of each network: rounds in turn with the others, and passes per round.
_ROUNDS = 15
_PASSES = 20
_WARM_UP = 1

_TITLE = 'Table 6: landmark networks on AFLW2000-3D, printed and measured; NME in percent, by |yaw| in degrees'


class PrintedAlignment(NamedTuple):
    """A row of the paper: NME in percent by yaw and its mean, frames per second on one core, size in bytes."""

    name: str
    bin_nme: tuple[float, float, float]
    mean: float
    fps: int
    size: str


# By the name of the network in the zoo. The other methods of the table are not implemented here.
PRINTED = {
    'lprnet_mobilenet_x0.25': PrintedAlignment('LPRNet MobileNet x0.25', (2.58, 3.33, 5.81), 3.89, 95, '619K'),
    'lprnet_mobilenet_x0.5': PrintedAlignment('LPRNet MobileNet x0.5', (2.41, 3.15, 5.52), 3.69, 52, '1.6M'),
    'shufflenetv2_x0.5': PrintedAlignment('ShuffleNetv2 x0.5', (2.54, 3.32, 5.51), 3.79, 51, '3.3M'),
    'shufflenetv1_x0.5': PrintedAlignment('ShuffleNetv1 x0.5', (3.03, 4.01, 6.07), 4.37, 104, '2.1M'),
    'mobilenetv2_x0.5': PrintedAlignment('MobileNetv2 x0.5', (2.51, 3.15, 5.53), 3.73, 40, '2.3M'),
    'mobilenetv1_x0.5': PrintedAlignment('MobileNetv1 x0.5', (2.52, 3.21, 5.76), 3.85, 42, '2.5M'),
}

_SIZES = ('Bytes: the printed ones are "calculated from the compressed model" and follow no single rule. Measured: '
          'params is the .params file of the exported network, float32 weights and running statistics; zipped is the '
          'symbol.json and the .params in one zip archive (deflate).')
_SPEED = ('FPS: passes per second of the network alone, batch 1, in a process with one thread (OMP_NUM_THREADS=1, '
          "MXNet's default engine), median of {rounds} rounds in turn with the other networks; printed: "
          '"Intel-i7 CPU", one core, CPU column.')


def printed_means_that_differ() -> dict[str, float]:
    """The printed rows whose mean is not that of their bins: the recomputed mean, by network."""
    means = {model: sum(row.bin_nme) / 3 for model, row in PRINTED.items()}
    return {model: mean for model, mean in means.items() if abs(mean - PRINTED[model].mean) > 0.006}


def exported_sizes(net: HybridBlock) -> tuple[int, int]:
    """Sizes of a network as files, in bytes.

    Parameters
    ----------
    net : HybridBlock
        Initialized; it stays as it is.

    Returns
    -------
    tuple of int
        Size of the ``.params`` file, and of symbol and params in a zip archive.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_symbol(*trace(net, cast=True), Path(folder) / 'network')
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
            for part in sorted(Path(folder).iterdir()):
                file.write(part, part.name)
        return (Path(folder) / 'network-0000.params').stat().st_size, len(archive.getvalue())


def frames_per_second(paths: Sequence[PathLike], rounds: int = _ROUNDS) -> list[float]:
    """Passes per second of networks, batch 1, on one thread.

    Measured in a separate process, because the number of threads is set when MXNet is loaded.

    Parameters
    ----------
    paths : sequence of path
        As for :func:`gluon_lprnet.evaluate.landmarks.load_landmark_network`.
    rounds : int
        Every network has a turn in each round, so that other load affects all of them equally.

    Returns
    -------
    list of float
        Medians of the rounds.

    Raises
    ------
    RuntimeError
        If that process fails; the message has its output.
    """
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, 'OMP_NUM_THREADS': '1',
                   'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))}
    done = subprocess.run([sys.executable, '-m', __name__, str(rounds), *map(str, paths)], env=environment,
                          capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'the timing failed:\n{done.stderr}')
    return json.loads(done.stdout)


def _time_networks(rounds: int, paths: Sequence[str]) -> list[float]:
    def one_pass(net: Any, description: dict[str, Any]) -> Callable[[], None]:
        data = mx.nd.random.normal(shape=(1, 3, description['input_size'], description['input_size']))
        return lambda: net(data).wait_to_read()

    times = interleaved_milliseconds([one_pass(*network) for network in load_networks(paths).values()], rounds,
                                     _PASSES, _WARM_UP)
    return [1000 / statistics.median(by_round) for by_round in times]


def measure(paths: Sequence[PathLike], rec: PathLike, rounds: int = _ROUNDS,
            data_check: str = 'full') -> list[dict[str, Any]]:
    """The measured rows.

    Parameters
    ----------
    paths : sequence of path
        Networks for 68 landmarks.
    rec : path
        AFLW2000-3D, packed.
    rounds : int
        Of the timing.
    data_check : str
        As of :func:`gluon_lprnet.data.integrity.check_records`.

    Returns
    -------
    list of dict
        With ``network`` (label), ``model``, ``input_size``, ``fps``, ``params_bytes``, ``zipped_bytes`` and what
        :func:`gluon_lprnet.evaluate.landmarks.summarize` gives.

    Raises
    ------
    InputError
        If a network or the file is invalid, or the faces have no yaw.
    """
    networks = load_networks(paths)
    found, = evaluate_sets(networks, {Path(rec).stem: rec}, data_check=data_check).values()
    if np.isnan(next(iter(found.values())).yaw).all():
        raise InputError(f'{rec} has no yaw for its faces, but Table 6 is by yaw: pack AFLW2000-3D with "pack faces '
                         '... --layout aflw2000-3d", or use the command nme.')
    rows = []
    for (label, (net, description)), fps in zip(networks.items(), frames_per_second(paths, rounds)):
        params, zipped = exported_sizes(net)
        rows.append({'network': label, 'model': description.get('model'), 'input_size': description['input_size'],
                     'fps': fps, 'params_bytes': params, 'zipped_bytes': zipped,
                     **summarize(found[label].errors, found[label].yaw)})
    return rows


def alignment_table(rows: list[dict[str, Any]], format: str = 'text', rounds: int = _ROUNDS) -> str:
    """Measured rows (:func:`measure`) next to the printed ones, as a string in one of ``FORMATS``."""
    if format == 'json':
        return json.dumps({'title': _TITLE, 'notes': _notes(rows, rounds), 'rows': [
            {**row, 'printed': PRINTED[row['model']]._asdict() if row['model'] in PRINTED else None}
            for row in rows], 'printed': {model: row._asdict() for model, row in PRINTED.items()}}, indent=1)
    columns = ('network', '', *BIN_NAMES, 'mean of bins', 'of faces', 'FPS', 'params', 'zipped')
    cells = []
    for model, printed in PRINTED.items():
        cells.append((printed.name, 'printed', *(f'{nme:.2f}' for nme in printed.bin_nme), f'{printed.mean:.2f}', None,
                      str(printed.fps), printed.size, None))
        for row in rows:
            if row['model'] == model:
                cells += [_measured(row), _deviation(row, printed)]
    cells += [_measured(row) for row in rows if row['model'] not in PRINTED]
    notes = [paragraph(note, format) for note in _notes(rows, rounds)]
    return '\n\n'.join([paragraph(_TITLE, format), render_table(columns, cells, format), *notes])


def _measured(row: dict[str, Any]) -> tuple:
    return (row['network'], 'measured', *map(percent, row['bin_nme']), percent(row['mean_of_bins']),
            percent(row['mean']), f'{row["fps"]:.0f}', f'{row["params_bytes"]:,}', f'{row["zipped_bytes"]:,}')


def _deviation(row: dict[str, Any], printed: PrintedAlignment) -> tuple:
    pairs = [*zip((*row['bin_nme'], row['mean_of_bins']), (*printed.bin_nme, printed.mean))]
    return (row['network'], 'deviation', *('-' if nme is None else f'{100 * nme / paper - 1:+.1%}'
                                           for nme, paper in pairs), None,
            f'{row["fps"] / printed.fps - 1:+.0%}', f'{row["params_bytes"] / _bytes(printed.size) - 1:+.1%}',
            f'{row["zipped_bytes"] / _bytes(printed.size) - 1:+.1%}')


def _bytes(printed: str) -> float:
    return float(printed[:-1]) * {'K': 10 ** 3, 'M': 10 ** 6}[printed[-1]]


def _notes(rows: list[dict[str, Any]], rounds: int) -> list[str]:
    counts = ', '.join(f'{name} {count:,}' for name, count in zip(BIN_NAMES, rows[0]['bin_faces']))
    sizes = sorted({row['input_size'] for row in rows})
    return [
        PROTOCOL,
        f'Measured on {rows[0]["faces"]:,} faces, {counts}; the full set has 2,000, and by the yaw in its files '
        f'1,312, 383 and 305. Inputs: {", ".join(f"{size}x{size}" for size in sizes)}; the paper gives no input size.',
        _SPEED.format(rounds=rounds), _SIZES,
        'deviation: measured / printed - 1.',
        'Printed means that do not match their bins: '
        + '; '.join(f'{PRINTED[model].name} {PRINTED[model].mean:.2f}, bins {mean:.3f}'
                    for model, mean in printed_means_that_differ().items()) + '.']


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'table6', help="the paper's Table 6, printed and measured",
        example='gluon-lprnet table6 data/aflw2000_3d.rec --network runs/face',
        description="NME by yaw, frames per second on one thread and sizes of landmark networks, next to the paper's.")
    parser.add_argument('inputs', nargs='*', metavar='REC', help='AFLW2000-3D, packed by "pack faces"')
    add_network_flag(parser, 'landmarks', several=True)
    parser.add_argument('--rec', nargs=1, default=(), help=argparse.SUPPRESS)
    add_check_flag(parser)
    parser.add_argument('--format', choices=FORMATS, default='text', help='how to print (default: %(default)s)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    networks, inputs = split_networks('table6', 'landmarks', args.inputs, args.network, args.rec, several=True)
    if len(inputs) > 1:
        raise InputError(f'table6 is of one set, and {len(inputs)} are given: {", ".join(inputs)}.')
    print(alignment_table(measure(networks, inputs[0], data_check=args.data_check), args.format))


if __name__ == '__main__':
    # Started by frames_per_second; MXNet's own output goes elsewhere.
    with contextlib.redirect_stdout(sys.stderr):
        measured = _time_networks(int(sys.argv[1]), sys.argv[2:])
    print(json.dumps(measured))
