"""Top-1 and top-5 accuracy."""
import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..artefact import load_network
from ..data.batches import IMAGENET_MEAN, IMAGENET_STD, validation_batches
from ..data.images import AUTO
from ..data.integrity import check_records
from ..utils.errors import InputError
from ..utils.flags import positive_float, positive_int
from ..utils.text import real


def correct_in_top(outputs, labels, k):
    """The number of rows with their label among the ``k`` largest outputs.

    Parameters
    ----------
    outputs : ndarray (N, classes)
    labels : ndarray (N,)
    k : int

    Raises
    ------
    ArithmeticError
        If an output is NaN or infinite: the accuracy of such a network would be meaningless.
    """
    if not np.isfinite(outputs).all():
        raise ArithmeticError('the network returns NaN or infinite outputs')
    top = np.argpartition(-outputs, k - 1, axis=1)[:, :k]
    return int((top == labels.astype(int)[:, None]).any(axis=1).sum())


def evaluate_classification(net, batches, context, dtype='float32'):
    """Accuracy over an epoch of batches.

    Parameters
    ----------
    net : HybridBlock
    batches : ImageBatches
        Unshuffled, without augmentation.
    context : mx.Context
    dtype : str
        The type of the network's input.

    Returns
    -------
    dict
        ``top1`` and ``top5``, fractions of the images; with fewer than six classes ``top5`` is omitted,
        since it is always 1.
    """
    images = 0
    correct = {'top1': 0, 'top5': 0}
    for data, label in tqdm(batches.epoch(0), 'validation', len(batches), leave=False, disable=None):
        # Cast before asnumpy, which returns bfloat16 as raw bits.
        outputs = net(data.as_in_context(context).astype(dtype, copy=False)).astype('float32', copy=False).asnumpy()
        label = label.asnumpy()
        images += len(label)
        correct['top1'] += correct_in_top(outputs, label, 1)
        if outputs.shape[1] > 5:
            correct['top5'] += correct_in_top(outputs, label, 5)
    return {name: value / images for name, value in correct.items() if name == 'top1' or outputs.shape[1] > 5}


def add_commands(commands):
    parser = commands.add_parser('evaluate', help='top-1 and top-5 accuracy of a trained network on a RecordIO file')
    parser.add_argument('network', help='run folder, checkpoint folder or -symbol.json')
    parser.add_argument('--rec-val', required=True)
    parser.add_argument('--rec-val-idx', help='default: the path of --rec-val with .idx')
    parser.add_argument('--batch-size', type=positive_int, default=64)
    parser.add_argument('-j', '--num-data-workers', type=positive_int, default=2)
    parser.set_defaults(run=_run)
    add_description_flags(parser)


def add_description_flags(parser):
    """Flags that :func:`load_described` reads in addition to ``network``."""
    parser.add_argument('--input-size', type=positive_int, help='for a -symbol.json without a description')
    parser.add_argument('--crop-ratio', type=positive_float, help='the same (default: 0.875)')
    parser.add_argument('--rgb-mean', type=real, nargs=3, help="the same (default: ImageNet's)")
    parser.add_argument('--rgb-std', type=real, nargs=3, help="the same (default: ImageNet's)")


def load_described(args):
    """The network of ``args`` and its description, completed and overridden by the flags.

    Raises
    ------
    InputError
        If it is not a network, or is a landmark network.
    """
    net, description = load_network(args.network)
    return net, described(args.network, description, {
        key: getattr(args, key) for key in ('input_size', 'crop_ratio', 'rgb_mean', 'rgb_std')
        if getattr(args, key) is not None})


def described(network, description, own):
    """A classification network's description, with the entries ``own`` over it, and defaults where it has none.

    Raises
    ------
    InputError
        If it is of a landmark network.
    """
    if description.get('task') == 'landmarks':
        raise InputError(f'{network} is a landmark network, not a classifier: use the commands nme and align.')
    if not description:
        description = dict(input_size=224, crop_ratio=0.875, inter_method=AUTO, rgb_mean=IMAGENET_MEAN,
                           rgb_std=IMAGENET_STD)
    return {**description, **own}


def _run(args):
    net, description = load_described(args)
    size = description['input_size']
    classes = net(mx.nd.zeros((1, 3, size, size))).shape[1]
    records = check_records(args.rec_val, args.rec_val_idx, num_classes=classes)
    batches = validation_batches(records, description, args.batch_size, args.num_data_workers)
    metrics = evaluate_classification(net, batches, mx.cpu())
    print(f'{args.rec_val}: {records.count} images, {classes} classes, '
          + ', '.join(f'{name} {value:.4f}' for name, value in metrics.items()))
