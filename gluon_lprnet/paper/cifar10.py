"""``python -m gluon_lprnet experiment``, on CIFAR-10.

Table 4, the module's open choices, ranks, Table 5's families, and irregular kernels.
"""
import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..complexity import count
from ..data.integrity import add_check_flag, check_records
from ..evaluate.figures import write_csv
from ..utils.errors import InputError
from ..utils.files import PathLike, write_file
from ..utils.flags import Commands, add_parser, add_record_flags, non_negative_int, positive_float, positive_int
from ..utils.text import paragraph, render_table
from ..zoo import get_model, list_models
from . import networks  # noqa: F401  registers the networks of the rows
from .grid import ExperimentRow, Grid, Result, mean_and_deviation


class Experiment(NamedTuple):
    """The rows to train, and the one that the others are compared with.

    Attributes
    ----------
    title : str
    rows : tuple of :class:`~gluon_lprnet.paper.grid.ExperimentRow`
        ``printed``: accuracy in percent and parameters.
    reference : str
        Name of the row the others are compared with, seed by seed.
    flags : str
        Flags of ``train_imagenet.py``, shared by all rows.
    """

    title: str
    rows: tuple
    reference: str
    flags: str = '--preset table4'


def _row(name: str, title: str, model: str, flags: str = '', printed: tuple = ()) -> ExperimentRow:
    return ExperimentRow(name, title, f'--model {model} {flags}', printed)


def table4(width: float) -> Experiment:
    """Modules of one kind in MobileNetV1: in four of the five places of width 512, as printed, or in all eight."""
    lpr, all_lpr = f'table4_lpr_x{width}', f'lprnet_mobilenet_x{width}'
    scale = '--l2-norm-scale sqrt_width'
    dsc = _row(f'mobilenetv1_x{width}', 'DSC Module', f'mobilenetv1_x{width}', '', (91.8, '3.1M'))
    return Experiment(f'Table 4, x{width}', (
        _row(f'table4_sconv_x{width}', 'SConv', f'table4_sconv_x{width}', '', (92.1, '11M')),
        dsc,
        _row(f'{lpr}_no_residual', 'LPR Module (no Residual)', lpr, '--no-residual', (88.5, '2.4M')),
        _row(f'{lpr}_no_l2_norm', 'LPR Module (no L2Norm)', lpr, '--no-l2-norm', (90.6, '2.4M')),
        _row(lpr, 'LPR Module', lpr, '', (91.8, '2.4M')),
        _row(f'{lpr}_scale_sqrt_width', 'LPR Module, its L2Norm with a learned scale', lpr, scale),
        _row(f'{all_lpr}_no_residual', 'in all eight places: no Residual', all_lpr, '--no-residual'),
        _row(f'{all_lpr}_no_l2_norm', 'in all eight places: no L2Norm', all_lpr, '--no-l2-norm'),
        _row(all_lpr, 'in all eight places: LPR Module', all_lpr),
        _row(f'{all_lpr}_scale_sqrt_width', 'in all eight places: its L2Norm with a learned scale', all_lpr, scale)),
        dsc.name)


def choices(width: float) -> Experiment:
    """The other answers to what equation (6) leaves open, each in all modules of LPRNet-MobileNet."""
    default = _row(f'lprnet_mobilenet_x{width}', 'equation (6) as it is here', f'lprnet_mobilenet_x{width}')
    return Experiment(f'Open choices of the module, LPRNet-MobileNet x{width}', (
        default, *(_row(f'{family}_x{width}', title, f'{family}_x{width}') for family, title in (
            ('lprnet_with_depthwise_relu', 'ReLU after BN(D x) too'),
            ('lprnet_with_depthwise_relu_alone', 'ReLU after BN(D x) in place of after the sum'),
            ('lprnet_with_batch_norm_after_l2_norm', 'BatchNorm after the L2 norm'),
            ('lprnet_with_batch_norm_for_l2_norm', 'BatchNorm in place of the L2 norm'),
            ('lprnet_with_spatial_l2_norm', 'L2 norm of each channel over its positions'),
            ('lprnet_with_instance_l2_norm', 'L2 norm of all channels and positions together'),
            ('lprnet_with_small_depthwise_scale', 'scale of BN(D x) starts at 1 / sqrt(m)'),
            ('lprnet_with_orthogonal_init', 'P1, P2 start orthogonal'),
            ('lprnet_with_small_init', 'P1, P2 start small (0.01)'),
            ('lprnet_without_decay_of_p', 'no weight decay on P1, P2'))),
        *(_row(f'{default.name}_scale_{scale}', title, default.name, f'--l2-norm-scale {scale}') for scale, title in (
            ('one', 'learned scale of the L2 norm'),
            ('sqrt_width', 'learned scale of the L2 norm, starts at the root of the width')))), default.name)


def ranks(width: float) -> Experiment:
    """Table 3's ranks compared with MobileNetV1 at widths of about equal multiply-adds."""
    default = _row(f'lprnet_mobilenet_x{width}', 'LPRNet-MobileNet r = m/8', f'lprnet_mobilenet_x{width}')
    return Experiment(f'Ranks of LPRNet-MobileNet x{width} beside widths of MobileNetV1', (
        _row(f'{default.name}_r4', 'LPRNet-MobileNet r = m/4', f'{default.name}_r4'),
        default,
        _row(f'{default.name}_r16', 'LPRNet-MobileNet r = m/16', f'{default.name}_r16'),
        *(_row(f'mobilenetv1_x{narrow}', f'MobileNetV1 x{narrow}', f'mobilenetv1_x{narrow}')
          for narrow in (round(share * width, 4) for share in (1, 0.8, 0.7, 0.6)))), default.name)


# Families of Table 5 as papers write them, in the order of the rows.
_FAMILIES = {
    'mobilenetv1': 'MobileNetV1', 'igcv3': 'IGCV3', 'espnetv2': 'ESPNetv2', 'mnasnet': 'MnasNet',
    'condensenet': 'CondenseNet', 'mobilenetv2': 'MobileNetV2', 'shufflenetv1': 'ShuffleNetV1',
    'shufflenetv2': 'ShuffleNetV2', 'lprnet_shufflenetv2': 'LPRNet-ShuffleNetV2'}
# The factor of the lasso is its paper's.
_FLAGS = {'condensenet_x1.0': '--condensing --group-lasso 1e-5 --fast-form'}
# By its layout, and not by its cost: it is the network that LPRNet-MobileNet was made from.
_SAME_WIDTH = ('mobilenetv1',)


def families(width: float) -> Experiment:
    """LPRNet-MobileNet beside one network of each family at 32x32, the listed width nearest in multiply-adds."""
    ours = f'lprnet_mobilenet_x{width}'
    wanted = _multiply_adds(ours)
    models = [f'{family}_x{width}' if family in _SAME_WIDTH else
              min((name for name in list_models() if re.fullmatch(rf'{family}_x[0-9.]+', name)),
                  key=lambda name: abs(_multiply_adds(name) - wanted)) for family in _FAMILIES]
    # The name says the recipe: the other experiments have rows of the same networks at 64x64.
    rows = (_row(f'cifar10_{ours}', f'LPRNet-MobileNet x{width}', ours),
            _row(f'cifar10_{ours}_scale_sqrt_width', f'LPRNet-MobileNet x{width}, learned scale of the L2 norm', ours,
                 '--l2-norm-scale sqrt_width'),
            *(_row(f'cifar10_{model}', f'{title} {model.rpartition("_")[2]}', model, _FLAGS.get(model, ''))
              for model, title in zip(models, _FAMILIES.values())))
    return Experiment(f'Networks of Table 5 nearest to LPRNet-MobileNet x{width} in multiply-adds, CIFAR-10 at 32x32',
                      rows, rows[0].name, '--preset cifar10 --num-epochs 10 --tuning-epochs 0')


def irregular(width: float) -> Experiment:
    """DenseNet-40 with square kernels and with line segments (arXiv 1909.13239), both trained from scratch."""
    square = f'densenet40_x{width}'
    return Experiment('Irregular kernels in DenseNet-40, CIFAR-10 at 32x32', (
        _row(square, 'DenseNet-40, square kernels', square),
        _row(f'irregular_{square}', 'DenseNet-40, irregular kernels', f'irregular_{square}', '--relaxed')), square,
        '--preset cifar10 --num-epochs 4 --tuning-epochs 0 --fast-form')


def _multiply_adds(model: str) -> int:
    return count(get_model(model, classes=10, small_image=True), (1, 3, 32, 32)).multiply_adds


EXPERIMENTS = {'table4': table4, 'choices': choices, 'rank': ranks, 'families': families, 'irregular': irregular}


def accuracy_table(experiment: Experiment, results: dict[str, Result], format: str = 'text') -> str:
    """The experiment's table, as a string.

    Parameters
    ----------
    experiment : Experiment
    results : dict of str to gluon_lprnet.paper.grid.Result
        By the names of rows.
    format : str
        ``text`` or ``markdown``.
    """
    reference = results[experiment.reference].accuracies
    printed = any(row.printed for row in experiment.rows)
    timed = any(result.milliseconds for result in results.values())
    cells = []
    for row in experiment.rows:
        result = results[row.name]
        taken = result.milliseconds and f'{result.milliseconds:.2f}'
        shared = sorted(set(result.accuracies) & set(reference))
        difference = '' if row.name == experiment.reference else mean_and_deviation(
            [result.accuracies[seed] - reference[seed] for seed in shared], '+.2f')
        speed = result.images_per_second
        cells.append((row.title, *((row.printed or (None, None)) if printed else ()),
                      mean_and_deviation(list(result.accuracies.values()), '.2f'), difference,
                      len(result.accuracies), result.params, round(result.multiply_adds / 1000),
                      speed and f'{speed:.0f}', *((taken,) if timed else ())))
    columns = ('', *(('printed %', 'printed params') if printed else ()), 'top-1 %', 'against the reference', 'seeds',
               'params', 'kMAdd', 'img/s', *(('ms',) if timed else ()))
    title = next(row.title for row in experiment.rows if row.name == experiment.reference)
    note = (f'Reference, seed by seed: {title}. Mean ± standard deviation over the seeds. kMAdd: thousands of '
            'multiply-adds. img/s: images per second in training, along with whatever else ran.')
    if timed:
        note += (f' ms: one image through the deployed network, fused by MXNet, median; threads: '
                 f'{os.environ["OMP_NUM_THREADS"]}.')
    return '\n\n'.join([paragraph(experiment.title, format), render_table(columns, cells, format),
                        paragraph(note, format)])


def write_accuracies(results: dict[str, Result], path: PathLike) -> None:
    """Write a CSV file with one line for each finished run.

    Parameters
    ----------
    results : dict of str to gluon_lprnet.paper.grid.Result
        By the names of rows.
    path : path
        Without its extension, ``.csv``.
    """
    write_csv(path, ('row', 'parameters', 'multiply_adds', 'seed', 'top1_percent', 'training_images_per_second',
                     'milliseconds'),
              [(name, result.params, result.multiply_adds, seed, round(accuracy, 2),
                result.images_per_second and round(result.images_per_second),
                result.milliseconds and round(result.milliseconds, 3))
               for name, result in results.items() for seed, accuracy in sorted(result.accuracies.items())])


def draw_accuracies(experiment: Experiment, results: dict[str, Result], path: PathLike) -> None:
    """Draw accuracy against multiply-adds and, where it was measured, against latency.

    One curve per family of networks (the first word of a row's title). The legend has what the titles of its rows
    begin with, and the points the rest of them.

    Parameters
    ----------
    experiment : Experiment
    results : dict of str to gluon_lprnet.paper.grid.Result
        By the names of rows.
    path : path
        Its extension is the format.
    """
    # The object interface: no display is needed, and nothing global of matplotlib changes.
    from matplotlib.figure import Figure
    trained = [(row, results[row.name]) for row in experiment.rows if results[row.name].accuracies]
    timed = [(row, result) for row, result in trained if result.milliseconds is not None]
    panels: list[tuple[str, Any, list[Any]]] = [
        ('multiply-adds (millions)', trained, [result.multiply_adds / 1e6 for _, result in trained])]
    if timed:
        panels.append(('milliseconds, one image', timed, [result.milliseconds for _, result in timed]))
    figure = Figure(figsize=(6 * len(panels), 4), layout='constrained')
    for axis, (label, rows, costs) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        _draw_against(axis, rows, costs)
        axis.set_xlabel(label)
    figure.axes[0].set_ylabel('top-1 (%), mean and range over the seeds')
    figure.axes[0].legend(fontsize='small')
    write_file(path, lambda scratch: figure.savefig(scratch, dpi=110))


def _draw_against(axis: Any, rows: Sequence[tuple[ExperimentRow, Result]], costs: Sequence[Any]) -> None:
    families: dict[str, list[tuple[list[str], float, list[float]]]] = {}
    for (row, result), cost in zip(rows, costs):
        family, *rest = row.title.split(maxsplit=1)
        parts = ''.join(rest).strip(' ,').split(', ')
        families.setdefault(family, []).append((parts, cost, list(result.accuracies.values())))
    middle = (min(costs) + max(costs)) / 2
    for number, (family, members) in enumerate(families.items()):
        names, places, accuracies = zip(*members)
        shared = os.path.commonprefix(names)
        means = [sum(values) / len(values) for values in accuracies]
        axis.errorbar(places, means, [[mean - min(values) for mean, values in zip(means, accuracies)],
                                      [max(values) - mean for mean, values in zip(means, accuracies)]],
                      marker='o', capsize=3, label=f'{family} {", ".join(shared)}'.strip())
        for name, place, mean in zip(names, places, means):
            # Above the curve for one family, below it for the next, and towards the middle.
            axis.annotate(', '.join(name[len(shared):]), (place, mean), fontsize='small', textcoords='offset points',
                          xytext=(0, -14 if number % 2 else 7), ha='left' if place < middle else 'right')
    axis.margins(0.1)
    axis.grid(alpha=0.3)


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'experiment',
        help="on CIFAR-10: Table 4, the module's open choices, ranks, Table 5's families, irregular kernels",
        example='gluon-lprnet experiment rank --rec-train cifar10/train.rec --rec-val cifar10/test.rec \\\n'
                '    --width 0.5 --seeds 0 --jobs 2',
        description='Train every row of an experiment with every seed and print its table. Finished runs are not '
                    'trained again, and stopped ones continue: call it again with the same flags.')
    parser.add_argument('name', choices=EXPERIMENTS, help='the experiment')
    add_record_flags(parser, 'RecordIO file of CIFAR-10')
    add_check_flag(parser)
    parser.add_argument('--width', type=positive_float, default=1.0,
                        help="width multiplier; the paper's is 1.0 (default: %(default)s)")
    parser.add_argument('--out', default='runs/experiments', metavar='DIR',
                        help='folder of the runs; experiments share rows (default: %(default)s)')
    parser.add_argument('--seeds', type=non_negative_int, nargs='+', default=[0, 1, 2],
                        help='each row is trained once with each (default: 0 1 2)')
    parser.add_argument('--num-epochs', type=positive_int, help="epochs of each run (default: the experiment's)")
    parser.add_argument('--jobs', type=positive_int, default=1, help='parallel runs (default: %(default)s)')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='only these rows (default: all)')
    parser.add_argument('--format', choices=('text', 'markdown'), default='text',
                        help='how to print (default: %(default)s)')
    parser.add_argument('--latency', action='store_true',
                        help="measure one image's time through the deployed network of each of these rows too")
    parser.add_argument('--plot', metavar='PICTURE', help='draw accuracy against multiply-adds and latency')
    parser.add_argument('--csv', metavar='FILE', help='write what the finished runs gave, a line each')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    experiment = EXPERIMENTS[args.name](args.width)
    names = [row.name for row in experiment.rows]
    unknown = set(args.rows or ()) - set(names)
    if unknown:
        raise InputError(f'--rows: {args.name} has no {", ".join(sorted(unknown))}; it has {", ".join(names)}.')
    for rec in (args.rec_train, args.rec_val):
        check_records(rec, num_classes=10, data_check=args.data_check)
    flags = [*experiment.flags.split(), '--rec-train', args.rec_train, '--rec-val', args.rec_val, '-j', '1',
             '--data-check', 'structure', *(['--num-epochs', str(args.num_epochs)] if args.num_epochs else [])]
    grid = Grid(experiment.rows, flags, args.seeds, args.out)
    failed = grid.train(args.jobs, args.rows or names)
    results = grid.results()
    if args.latency:
        for name, taken in grid.milliseconds(args.rows or names).items():
            results[name] = results[name]._replace(milliseconds=taken)
    print(accuracy_table(experiment, results, args.format))
    if args.plot:
        draw_accuracies(experiment, results, args.plot)
    if args.csv:
        write_accuracies(results, args.csv.removesuffix('.csv'))
    for folder, reason in failed:
        print(f'{folder} failed: {reason}', file=sys.stderr)
    return 1 if failed else 0
