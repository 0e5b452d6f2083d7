"""``python -m gluon_lprnet figure2``: replace a standard convolution of a trained network and compare features.

The paper's experiment behind Figure 2: a DSC or an LPR module replaces one standard convolution of equal width,
everything else is fixed, and only the new module is trained until the network is as accurate as before. The outputs of
the modules on the validation images are then compared, pair by pair.
"""
import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import HybridBlock, nn
from tqdm import tqdm

from .. import checkpoint
from ..artifact import load_network
from ..blocks import DSC, LPR, SConv, normalize_in_rank_space
from ..data.batches import Batch, validation_batches
from ..data.integrity import add_check_flag, check_records, fingerprint
from ..evaluate.classification import correct_in_top, evaluate_classification
from ..evaluate.network_flag import add_network_alone, with_network
from ..train.command import fit
from ..train.config import TrainingConfig, check_same_curve
from ..train.fine_tuning import fix_statistics
from ..train.loop import TrainingTask
from ..utils.errors import InputError
from ..utils.files import PathLike, folder_aside, write_file
from ..utils.flags import Commands, add_parser, add_record_flags, non_negative_int, positive_float, positive_int
from ..utils.text import render_table
from .closed_form import begin_near

ORIGINAL = 'SConv'
MODULES: dict[str, Callable[[int], HybridBlock]] = {
    'DSC': lambda channels: DSC(channels, channels),
    'LPR no Residual': lambda channels: LPR(channels, residual=False),
    'LPR no L2Norm': lambda channels: LPR(channels, l2_norm=False),
    'LPR': LPR,
    # How far apart two modules of the same kind end up, as a yardstick for the other distances.
    'DSC again': lambda channels: DSC(channels, channels),
}
# With --closed-form too, so that it is another one than DSC.
BEGUN_AT_RANDOM = 'DSC again'
# That the closed form is fitted to.
_IMAGES = 1024


@dataclass(frozen=True)
class ModuleTrainingConfig(TrainingConfig):
    """The training of one module; it cannot be resumed with another network or another target."""

    network: str = ''
    match_features: bool = False
    closed_form: bool = False


def split(net: HybridBlock) -> tuple[nn.HybridSequential, SConv, nn.HybridSequential, int]:
    """Split a network around its last SConv of equal input and output width.

    The last one, because training a replacement then only has to run what comes after it.

    Parameters
    ----------
    net : HybridBlock
        From the zoo, with ``features`` and ``output``.

    Returns
    -------
    tuple of (HybridSequential, SConv, HybridSequential, int)
        The part before it, the SConv, the part after it, and its width.

    Raises
    ------
    InputError
        If there is none.
    """
    blocks = list(getattr(net, 'features', ()))
    for index, block in reversed(list(enumerate(blocks))):
        if isinstance(block, SConv) and block[0].weight.shape[0] == block[0].weight.shape[1]:
            before, after = nn.HybridSequential(), nn.HybridSequential()
            before.add(*blocks[:index])
            after.add(*blocks[index + 1:], net.output)
            return before, block, after, block[0].weight.shape[0]
    raise InputError('the network has no standard 3x3 convolution of equal input and output width: give the run of a '
                     'table4_sconv network.')


def freeze(net: HybridBlock) -> None:
    """Fix the parameters of ``net`` in training, including the statistics of BatchNorm."""
    fix_statistics(net)
    net.collect_params().setattr('grad_req', 'null')


class Features:
    """Write the outputs of a network for every image of a set to a file, so they need not fit in memory.

    Parameters
    ----------
    net : HybridBlock
    batches : gluon_lprnet.data.batches.ImageBatches
        Unshuffled, without augmentation.
    path : path
        The NumPy file to write.
    """

    def __init__(self, net: HybridBlock, batches: Any, path: PathLike) -> None:
        self.labels, done = np.empty(batches.count, 'float32'), 0
        self.data: np.ndarray
        self.count, self.batch_size = batches.count, batches.batch_size
        for data, label in tqdm(batches.epoch(0), 'features', len(batches), leave=False, disable=None):
            features = net(data.as_in_context(mx.cpu())).asnumpy()
            if not done:
                self.data = np.lib.format.open_memmap(path, 'w+', 'float32', (batches.count, *features.shape[1:]))
            self.data[done:done + len(features)] = features
            self.labels[done:done + len(features)] = label.asnumpy()
            done += len(features)

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def epoch(self, epoch: int, start: int = 0, seed: Optional[int] = None) -> Iterator[Batch]:
        """Yield the batches from number ``start`` on, shuffled by ``seed`` and ``epoch`` if a seed is given."""
        order = np.arange(self.count) if seed is None else (
            np.random.default_rng((seed, epoch)).permutation(self.count))
        for number in range(start, len(self)):
            rows = np.sort(order[number * self.batch_size:(number + 1) * self.batch_size])
            yield Batch(mx.nd.array(self.data[rows]), mx.nd.array(self.labels[rows]))


def mean_squared_errors(outputs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean squared error between each pair of feature arrays of the same shape.

    Parameters
    ----------
    outputs : sequence of ndarray
        Each (images, channels, height, width); memory maps are accepted.

    Returns
    -------
    tuple of ndarray
        The errors (n, n), and the errors by channel (n, n, channels).
    """
    total, count = np.zeros(()), 0.0
    for begin in range(0, len(outputs[0]), 256):
        chunk = np.stack([output[begin:begin + 256] for output in outputs]).astype('float64')
        total = total + np.stack([((chunk - one) ** 2).sum(axis=(1, 3, 4)) for one in chunk])
        count += chunk[0].size / chunk.shape[2]
    by_channel = total / count
    return by_channel.mean(axis=2), by_channel


def draw_errors(names: Sequence[str], errors: np.ndarray, by_channel: np.ndarray, path: PathLike) -> None:
    """Figure 2: the errors as a matrix with their numbers, and by channel for each pair with the standard convolution.

    Parameters
    ----------
    names : list of str
        Names of the modules, the standard convolution first.
    errors, by_channel
        See :func:`mean_squared_errors`.
    path : path
        Its extension is the format.
    """
    # The object interface: no display is needed, and nothing global of matplotlib changes.
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    figure = Figure(figsize=(14, 6.4), layout='constrained')
    matrix, maps = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    scale = LogNorm(max(by_channel[by_channel > 0].min(), 1e-6), by_channel.max())
    axis = matrix.subplots()
    # The diagonal is 0, which has no color on a logarithmic scale.
    picture = axis.imshow(np.where(errors > 0, errors, np.nan), norm=scale, cmap='viridis')
    for row, column in np.ndindex(errors.shape):
        axis.text(column, row, f'{errors[row, column]:.4f}', ha='center', va='center', color='white', fontsize='small',
                  bbox={'facecolor': 'black', 'alpha': 0.35, 'linewidth': 0, 'boxstyle': 'round,pad=0.15'})
    axis.set_xticks(range(len(names)), names, rotation=30, ha='right')
    axis.set_yticks(range(len(names)), names)
    axis.set_title('MSE between output features')
    pairs = [(first, second) for first in range(len(names)) for second in range(first + 1, len(names))]
    columns = next(width for width in range(int(by_channel.shape[2] ** 0.5), 0, -1) if by_channel.shape[2] % width == 0)
    axes = maps.subplots(-(-len(pairs) // 4), 4, squeeze=False).ravel()
    for axis in axes:
        axis.axis('off')
    for axis, (first, second) in zip(axes, pairs):
        axis.imshow(by_channel[first, second].reshape(columns, -1), norm=scale, cmap='viridis')
        axis.set_title(f'{names[first]} and\n{names[second]}: {errors[first, second]:.4f}', fontsize='small')
    maps.suptitle('by channel, row by row', fontsize='medium')
    figure.colorbar(picture, ax=matrix.axes, shrink=0.6, location='bottom')
    write_file(path, lambda scratch: figure.savefig(scratch, dpi=110))


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'figure2',
        help='Figure 2: replace one standard convolution of a trained network by DSC and LPR modules',
        example='gluon-lprnet figure2 --network runs/experiments/table4_sconv_x1.0-seed0 \\\n'
                '    --rec-train cifar10/train.rec --rec-val cifar10/test.rec --out figure2',
        description='Replace the last standard convolution of a trained network, train only the new module, and '
                    'compare the output features of each pair of modules. Called again with the same flags, it '
                    'continues.')
    add_network_alone(parser, 'run or checkpoint of a table4_sconv network')
    add_record_flags(parser, 'RecordIO file')
    add_check_flag(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the modules and figures')
    parser.add_argument('--num-epochs', type=positive_int, default=10,
                        help='epochs of each module (default: %(default)s)')
    parser.add_argument('--lr', type=positive_float, default=0.1,
                        help='initial rate, which follows a cosine to 0 (default: %(default)s)')
    parser.add_argument('--match-features', action='store_true',
                        help="train on the squared error to the original's output features instead of the labels")
    parser.add_argument('--closed-form', action='store_true',
                        help=f'begin each module as the closed form near the original, fitted to {_IMAGES:,} images, '
                             f'in place of random numbers; but {BEGUN_AT_RANDOM!r}')
    parser.add_argument('--batch-size', type=positive_int, default=128,
                        help='images of a step (default: %(default)s)')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='seed of the new modules and of the order')
    parser.add_argument('-j', '--num-data-workers', type=positive_int, default=2, metavar='N',
                        help='threads that decode images (default: %(default)s)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    args = with_network('figure2', args)
    net, description = load_network(args.network)
    before, original, after, channels = split(net)
    # Before a fixed layer is hybridized, because the graph keeps the setting it was made with.
    freeze(net)
    out = Path(args.out)
    batches, data = {}, {}
    for subset in ('train', 'val'):
        records = check_records(getattr(args, f'rec_{subset}'), num_classes=description['num_classes'],
                                data_check=args.data_check)
        batches[subset] = validation_batches(records, description, args.batch_size, args.num_data_workers)
        data[subset] = fingerprint(records)
    accuracy = evaluate_classification(net, batches['val'], mx.cpu())['top1']
    print(f'original: top-1 {accuracy:.4f}')
    with folder_aside(out, 'features') as folder:
        before.hybridize()
        inputs = {subset: Features(before, batches[subset], folder / f'{subset}.npy') for subset in batches}
        outputs = {ORIGINAL: Features(original, inputs['val'], folder / 'original.npy').data}
        target = Features(original, inputs['train'], folder / 'target.npy') if args.match_features else None
        accuracies = {ORIGINAL: accuracy}
        for number, (name, make) in enumerate(MODULES.items()):
            module = make(channels)
            mx.random.seed(args.seed + number)
            module.initialize(mx.init.MSRAPrelu())
            if args.closed_form and name != BEGUN_AT_RANDOM:
                begin_near(module, original, inputs['train'].data[:_IMAGES])
            accuracies[name] = _train(module, after, inputs, target, accuracy, data, args, out / name)['top1']
            outputs[name] = Features(module, inputs['val'], folder / f'{name}.npy').data
        errors, by_channel = mean_squared_errors(list(outputs.values()))
        square = float(np.mean(np.square(outputs[ORIGINAL], dtype='float64')))
    names = list(outputs)
    draw_errors(names, errors, by_channel, out / 'figure2.png')
    write_file(out / 'figure2.json', json.dumps(
        {'top1': accuracies, 'mean_square_of_original': square, 'mse': {
            one: {other: errors[i, j] for j, other in enumerate(names)} for i, one in enumerate(names)}}, indent=1))
    print(render_table(('', 'top-1', *(f'MSE to {name}' for name in names)),
                       [(name, f'{accuracies[name]:.4f}', *(f'{value:.5f}' for value in row))
                        for name, row in zip(names, errors)], 'text'))
    print(f'mean square of the features of {ORIGINAL}: {square:.5f}\n{out / "figure2.png"}')


def _train(module: Any, after: Any, inputs: dict[str, Any], target: Any, accuracy: float, data: dict[str, Any],
           args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train an initialized module in front of fixed layers ``after``, or for the features ``target``: last metrics."""
    net = nn.HybridSequential()
    net.add(module, after)
    normalize_in_rank_space(net, True)
    net.hybridize(static_alloc=True, static_shape=True)

    def evaluate() -> dict[str, float]:
        return evaluate_classification(net, inputs['val'], mx.cpu())

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return inputs['train'].epoch(epoch, start, args.seed)

    def features(epoch: int, start: int) -> Iterator[Batch]:
        # With the same seed both have the same order.
        for (data, _), (wanted, _) in zip(batches(epoch, start), target.epoch(epoch, start, args.seed)):
            yield Batch(data, wanted)

    common: dict[str, Any] = dict(contexts=[mx.cpu()], batches_per_epoch=len(inputs['train']), evaluate=evaluate,
                                  data=data)
    if target:
        task = TrainingTask(
            net=module, batches=features, **common,
            loss=lambda outputs, wanted: ((outputs - wanted) ** 2).sum(axis=1).mean(axis=(1, 2)),
            count=lambda outputs, wanted: {'mse': float(((outputs - wanted) ** 2).mean(axis=(1, 2, 3)).sum())})
    else:
        task = TrainingTask(
            net=net, batches=batches, **common, loss=gluon.loss.SoftmaxCrossEntropyLoss(),
            count=lambda outputs, label: {'top1': correct_in_top(outputs, label, 1)},
            reached=lambda metrics: metrics['top1'] >= accuracy)
    config = ModuleTrainingConfig.from_args(args, save_dir=str(folder))
    found = checkpoint.newest(folder)
    if found:
        check_same_curve(config, found)
    return fit(task, config, found)
