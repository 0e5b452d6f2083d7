"""``python -m gluon_lprnet compress``: from a trained network to a smaller one, measured and written as files."""
import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import mxnet as mx
from mxnet.gluon import Block

from ..artifact import contents_of, export_network, write_symbol
from ..complexity import count
from ..data.integrity import add_check_flag
from ..deployment.reparametrize import deploy
from ..evaluate.classification import add_description_flags
from ..evaluate.network_flag import add_network_alone, with_network
from ..formats.symbol_files import read_json, read_params, read_symbol
from ..graph import as_block, trace
from ..train.command import fit
from ..train.config import TrainingConfig, check_same_curve, checkpoint_to_resume
from ..train.config import rank as parse_rank
from ..train.fast_form import form_to_train
from ..utils.errors import InputError
from ..utils.files import make_folder, write_file
from ..utils.flags import Commands, add_parser, non_negative_float, non_negative_int, positive_float, positive_int
from ..utils.text import integer, real, render_table
from .latency import median_milliseconds
from .network import METHODS, compress
from .norms import with_batch_norms
from .ranks import VECTOR, Budget, ByLayer, Energy, Latency, as_ranks
from .report import LayerReport, Report
from .tasks import load_task
from .tuning import Best

# For the BatchNorms of a tuning to begin with.
_IMAGES_OF_STATISTICS = 512
# In the folder of a tuning: the network that it begins with, and the best one so far.
_FITTED, _BEST = 'fitted', 'best.params'
# Of a tuning: where files were, and what they were.
_FILES = ('save_dir', 'network', 'calibrate', 'held_out', 'teacher', 'contents')
# Where something was that a resume knows by its content.
_PLACE = dict(free=True, argument={'type': str})


@dataclass(frozen=True)
class TuningConfig(TrainingConfig):
    """The tuning of a compressed network, with what it was compressed from and how: a resume takes no other."""

    network: str = field(default='', metadata=_PLACE)
    calibrate: Optional[str] = None
    images: int = 512
    rank: Optional[Sequence] = None
    energy: Optional[float] = None
    budget: Optional[float] = None
    latency: Optional[float] = None
    milliseconds: Optional[float] = None
    layers: Optional[Sequence[str]] = None
    exclude: Sequence[str] = ()
    no_residual: bool = False
    l2_norm: bool = False
    any_width: bool = False
    method: str = METHODS[0]
    temperature: float = 4.0
    teacher: Optional[str] = field(default=None, metadata=_PLACE)
    labels: bool = False
    held_out: Optional[str] = field(default=None, metadata=_PLACE)
    pad: int = 0
    min_random_scale: float = 1.0
    no_mirror: bool = False
    # Where they are not those of the network's description.
    input_size: Optional[int] = None
    crop_ratio: Optional[float] = None
    rgb_mean: Optional[Sequence[float]] = None
    rgb_std: Optional[Sequence[float]] = None
    # By the layer's name: those chosen, of which a measurement is not repeated.
    ranks: Optional[Mapping[str, int]] = None
    # Checksums of the network and the teacher.
    contents: Optional[Mapping[str, str]] = field(default=None, metadata=_PLACE)


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'compress', help='turn a trained network into one of LPR modules, without training from scratch',
        example='gluon-lprnet compress --network runs/mobilenetv1 --calibrate data/photos.rec --out compressed\n'
                'gluon-lprnet compress --network runs/mobilenetv1 --budget 0.8 --calibrate data/photos.rec \\\n'
                '    --no-residual --tune-epochs 4 --rec-train data/photos.rec \\\n'
                '    --held-out data/photos-held-out.rec --out compressed',
        description='Turn the depthwise + pointwise pairs of equal width into LPR modules, in closed form from the '
                    'activations on calibration images; optionally tune the result with the original as teacher; '
                    'write it as MXNet files and print numbers before and after.')
    add_network_alone(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument('-j', '--num-data-workers', type=positive_int, default=2, metavar='N',
                        help='threads that decode images (default: %(default)s)')
    parser.add_argument('--batch-size', type=positive_int, default=64, help='images of a step (default: %(default)s)')
    parser.add_argument('--seed', type=integer, default=0, help='seed of the calibration images and of the tuning')

    rank = parser.add_argument_group('rank').add_mutually_exclusive_group()
    rank.add_argument('--rank', type=_rank, action='append', metavar='[NAME=]RANK',
                      help='a fraction of the width (1/8, 0.125) or a number of channels (default: 1/8); with the name '
                           'of a layer or a pattern ("*dsc2_*=1/4"), and given again, by layer: the last match '
                           'counts, and layers without a match stay')
    rank.add_argument('--energy', type=positive_float, metavar='SHARE',
                      help="by layer: keep this share of each output's variance, for example 0.95 (pdp: of the "
                           'weights, before they are fitted)')
    rank.add_argument('--budget', type=_budget, metavar='MULTIPLY_ADDS',
                      help='by layer: at most this many multiply-adds of the network, or this fraction (0.5) of them')
    rank.add_argument('--latency', type=positive_float, metavar='SHARE',
                      help="by layer: at most this share of the original's measured time (0.8), for one image on "
                           'OMP_NUM_THREADS threads')
    rank.add_argument('--milliseconds', type=positive_float, metavar='TIME', help='the same in milliseconds')
    module = parser.add_argument_group('modules')
    module.add_argument('--method', choices=METHODS, default=METHODS[0],
                        help='lpr: pairs of a depthwise and a pointwise convolution become LPR modules; svd: the same '
                             'without the residual; pdp: convolutions larger than 1x1 become pointwise, depthwise, '
                             'pointwise, and a rank is a fraction of what would save nothing (default: %(default)s)')
    module.add_argument('--layers', nargs='+', metavar='NAME',
                        help='pointwise convolutions, or patterns (default: all)')
    module.add_argument('--exclude', nargs='+', metavar='NAME', default=(),
                        help='layers, or patterns, that stay as they are')
    module.add_argument('--no-residual', action='store_true', help='truncated SVD, without the residual')
    module.add_argument('--l2-norm', action='store_true', help="the paper's normalized form, which needs tuning")
    module.add_argument('--any-width', action='store_true',
                        help='take the other 1x1 convolutions too, as two of low rank without the residual')

    data = parser.add_argument_group('data')
    data.add_argument('--calibrate', metavar='REC', help='RecordIO file of images like those of the training')
    data.add_argument('--images', type=positive_int, default=512,
                      help='number of calibration images (default: %(default)s)')
    data.add_argument('--rec-val', metavar='REC', help='measure accuracy before and after')
    add_check_flag(data)
    add_description_flags(data)

    tuning = parser.add_argument_group('tuning')
    tuning.add_argument('--tune-epochs', type=non_negative_int, default=0, metavar='N',
                        help='epochs of tuning (default: %(default)s)')
    tuning.add_argument('--rec-train', metavar='REC',
                        help='images to tune on; any photos will do, since the original network says what they show')
    tuning.add_argument('--held-out', metavar='REC',
                        help='other such images: of the network before the tuning and after each epoch the one is kept '
                             'that agrees with the teacher most often on them (default: the last one)')
    tuning.add_argument('--teacher', metavar='NETWORK',
                        help='another network to learn from, as --network takes it (default: the original)')
    tuning.add_argument('--labels', action='store_true', help='learn from the labels of --rec-train too')
    tuning.add_argument('--lr', type=positive_float, default=3e-4,
                        help='initial rate of Adam, which follows a cosine to 0 (default: %(default)s)')
    tuning.add_argument('--wd', type=non_negative_float, default=1e-4, help='weight decay (default: %(default)s)')
    tuning.add_argument('--temperature', type=positive_float, default=4.0,
                        help='temperature of the distillation (default: %(default)s)')
    tuning.add_argument('--pad', type=non_negative_int, default=0,
                        help='pixels added on each side before the random crop')
    tuning.add_argument('--min-random-scale', type=positive_float, default=1.0,
                        help='smallest random scale before the crop (default: %(default)s)')
    tuning.add_argument('--no-mirror', action='store_true', help='do not flip left and right at random')
    tuning.add_argument('--resume', action='store_true', help='continue from the newest checkpoint in DIR/tuning')
    parser.set_defaults(run=_run)


def _budget(text):
    """A share of all multiply-adds as a float, or a number of them as an int."""
    value = real(text)
    if not 0 < value < math.inf or value > 1 and value != int(value):
        raise argparse.ArgumentTypeError(f'{text!r} is neither a fraction up to 1 nor a number of multiply-adds')
    return int(value) if value > 1 else value


def _rank(text):
    """(name or pattern, rank) from the flag of one layer; the pattern that matches all layers if it has no name."""
    pattern, _, rank = text.rpartition('=')
    return pattern or '*', parse_rank(rank)


def _ranks_of(args):
    """The ranks as :func:`gluon_lprnet.compress` takes them."""
    if args.energy:
        return Energy(args.energy)
    if args.budget:
        return Budget(args.budget)
    if args.latency or args.milliseconds:
        return Latency(args.latency, args.milliseconds)
    ranks: dict[str, Any] = {}
    for pattern, rank in args.rank or [('*', 1 / 8)]:
        # The last match counts, also of a pattern that came before.
        ranks.pop(pattern, None)
        ranks[pattern] = rank
    return as_ranks(ranks['*']) if set(ranks) == {'*'} else ByLayer(ranks)


def _run(args):
    args = with_network('compress', args)
    if args.tune_epochs and not (args.rec_train and (args.held_out or args.rec_val)):
        raise InputError('--tune-epochs needs --rec-train, and --held-out or --rec-val.')
    if args.resume and not args.tune_epochs:
        raise InputError('--resume goes on with a tuning: give --tune-epochs too.')
    if args.teacher and not args.tune_epochs:
        raise InputError('--teacher is for tuning: give --tune-epochs too.')
    out = Path(args.out)
    found = args.tune_epochs and checkpoint_to_resume(out / 'tuning', args.resume)
    # Before the network is loaded: what is at its place later may be another one.
    config = args.tune_epochs and _tuning_config(args, found.state['config']['ranks'] if found else None)
    if found:
        _check_same_contents(config, found)
        check_same_curve(config, found)
    task = load_task(args)
    if found:
        net, report = _read_fitted(out / 'tuning', task)
    else:
        with task.calibration() as images:
            net, report = compress(task.net, _ranks_of(args), args.layers, args.exclude, args.l2_norm,
                                   not args.no_residual, images, task.input_shape, args.any_width, args.method)
    chosen = {layer.name: layer.rank for layer in report.layers if layer.rank}
    print(report)
    if not chosen:
        raise InputError('no layer was replaced, for the reasons above; nothing was written.')
    make_folder(out)
    if args.tune_epochs and not found:
        net = with_batch_norms(net, task.first_of_tuning(_IMAGES_OF_STATISTICS))
        report = report._replace(after=count(trace(net)[0], task.input_shape))
        _write_fitted(net, report, out / 'tuning')
    columns = {'original': task.measured(task.net), 'compressed': task.measured(net)}
    if args.tune_epochs:
        columns['tuned'] = _tuned(net, columns['compressed'], task, replace(config, ranks=chosen), found)
    latencies = median_milliseconds([deploy(task.net), deploy(net)], task.input_shape)
    print(f'\n{_table(columns, report, latencies)}')
    for warning in _warnings(report, *latencies):
        print(f'Warning: {warning}', file=sys.stderr)
    recipe = replace(config, ranks=chosen).to_dict() if args.tune_epochs else {'ranks': chosen}
    name = f"{task.description.get('model', Path(args.network).name.replace('-symbol.json', ''))}-compressed"
    _write(net, dict(task.description, model=name), out, report, columns, latencies, method=args.method,
           residual=not args.no_residual and args.method == 'lpr',
           recipe={key: value for key, value in recipe.items() if key not in _FILES})


def _write_fitted(net, report, folder):
    """What a tuning begins with, for a resume: fitted and, by latency, chosen again, it would not be quite the same."""
    make_folder(folder)
    # Of a tuning that was stopped before its first checkpoint.
    (folder / _BEST).unlink(missing_ok=True)
    write_symbol(*trace(net), folder / _FITTED)
    write_file(folder / f'{_FITTED}-report.json',
               json.dumps({'layers': [layer._asdict() for layer in report.layers]}, indent=1))


def _read_fitted(folder, task):
    symbol = read_symbol(folder / f'{_FITTED}-symbol.json')
    params = read_params(folder / f'{_FITTED}-0000.params')
    rows = read_json(folder / f'{_FITTED}-report.json', 'the report of the fit')['layers']
    net = as_block(symbol, {name: mx.nd.array(value, dtype=value.dtype) for name, value in params.items()})
    net.hybridize(static_alloc=True, static_shape=True)
    return net, Report([LayerReport(**{**row, 'shape': tuple(row['shape'])}) for row in rows],
                       count(trace(task.net)[0], task.input_shape), count(symbol, task.input_shape))


def _check_same_contents(config, found):
    # The files may be elsewhere now.
    before = list((found.state['config'].get('contents') or config.contents).values())
    if list(config.contents.values()) != before:
        changed = [file for file, checksum in config.contents.items() if checksum not in before] or config.contents
        raise InputError(f'Cannot resume: {", ".join(changed)} is not what the tuning began with. Give that, or tune '
                         'in a new folder.')


def _tuning_config(args, ranks):
    # Adam's steps do not depend on the scale of a layer, and P1 has no BatchNorm behind it.
    return TuningConfig.from_args(args, num_epochs=args.tune_epochs, save_dir=str(Path(args.out) / 'tuning'),
                                  ranks=ranks, optimizer='adam', contents={
                                      file: checksum for network in (args.network, args.teacher) if network
                                      for file, checksum in contents_of(network).items()})


def _tuned(net, numbers, task, config, found):
    """Tune the network, which has these numbers; those that it has then. It stays as it is if no epoch is better."""
    tuned = _Tuned(net)
    best = Best(tuned, Path(config.save_dir) / _BEST)

    def offer(numbers):
        score = task.score(numbers)
        if score is not None:
            best.offer(score)
        return numbers

    def evaluate():
        return offer(task.measured(net))

    offer(numbers)
    form = form_to_train(net, task.input_shape, found.state if found else {})
    tuning = replace(task.tuning(tuned, evaluate), form=None if form is net else form)
    fit(tuning, config, found)
    best.take()
    if best.score == task.score(numbers):
        print('\nNo epoch of the tuning is nearer to the teacher than the network before it, which is kept. Try a '
              'lower --lr,\nor more photos that are like those of the training.')
    return task.measured(net)


class _Tuned(Block):
    """A network as its checkpoints have it: a SymbolBlock alone does not load what it has saved."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images)


def _warnings(report, before, after):
    """Where the network did not get faster, and why that may be."""
    if after >= before:
        yield (f'the compressed network takes {after:.2f} ms for an image and the original {before:.2f} ms: fewer '
               'multiply-adds alone are not faster. Choose ranks by --latency, or try --no-residual.')
    slow = [layer for layer in report.layers if layer.rank and layer.rank % VECTOR and min(layer.shape) >= 4 * VECTOR]
    if slow:
        yield (f'ranks that are not multiples of {VECTOR} are slow on most processors: '
               f'{", ".join(f"{layer.name} ({layer.rank})" for layer in slow)}.')


def _table(columns, report, latencies):
    """Before, after and their ratio; one row per number."""
    last = list(columns)[-1]
    threads = os.environ.get('OMP_NUM_THREADS', "MXNet's default")

    def row(name, before, after, form):
        return (name, form.format(before), *[form.format(after)] * (len(columns) - 1), f'{after / before:.3f}')

    rows = [(key, *(f'{values[key]:.4f}' for values in columns.values()),
             f'{columns[last][key] - columns["original"][key]:+.4f}') for key in columns['original']]
    rows += [row('parameters', report.before.params, report.after.params, '{:,}'),
             row('multiply-adds', report.before.multiply_adds, report.after.multiply_adds, '{:,}'),
             row(f'milliseconds, one image (threads: {threads})', *latencies, '{:.2f}')]
    return render_table(('', *columns, 'ratio or difference'), rows, 'text')


def _write(net, description, out, report, columns, latencies, **more):
    symbol = export_network(net, description, out)
    write_file(out / f'{description["model"]}-report.json', json.dumps({
        'accuracy': columns, 'milliseconds': dict(zip(('original', 'compressed'), latencies)),
        **{when: {'params': complexity.params, 'multiply_adds': complexity.multiply_adds}
           for when, complexity in (('before', report.before), ('after', report.after))},
        'layers': [layer._asdict() for layer in report.layers], **more}, indent=1) + '\n')
    print(symbol)
