"""Top-1 and top-5 accuracy."""
import argparse
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Union

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock
from tqdm import tqdm

from ..artifact import faults_of, load_network
from ..data.batches import IMAGENET_MEAN, IMAGENET_STD, ImageBatches
from ..data.images import AUTO
from ..utils.errors import InputError
from ..utils.flags import positive_float, positive_int
from ..utils.text import real

PathLike = Union[str, 'os.PathLike[str]']

_REQUIRED = {'input_size', 'crop_ratio', 'rgb_mean', 'rgb_std'}
_DEFAULTS = dict(task='classification', input_size=224, crop_ratio=0.875, inter_method=AUTO, rgb_mean=IMAGENET_MEAN,
                 rgb_std=IMAGENET_STD)


class Answers(NamedTuple):
    """What a network says about labeled images, in their order.

    Attributes
    ----------
    labels : ndarray (N,) int
    predicted : ndarray (N,) int
        The class of the largest output.
    probability : ndarray (N,) float
        Of that class.
    in_top5 : ndarray (N,) bool
        Whether the label is among the five largest outputs.
    classes : int
        Outputs of the network.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    in_top5: np.ndarray
    classes: int

    @property
    def correct(self) -> np.ndarray:
        """Whether the label is the class of the largest output: ndarray (N,) bool."""
        return self.predicted == self.labels

    @property
    def metrics(self) -> dict[str, float]:
        """``top1`` and, with more than five classes, ``top5``: fractions of the images."""
        top1 = {'top1': float(self.correct.mean())}
        return {**top1, 'top5': float(self.in_top5.mean())} if self.classes > 5 else top1


def correct_in_top(outputs: np.ndarray, labels: np.ndarray, k: int) -> int:
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
    return int(_in_top(outputs, labels, k).sum())


def _in_top(outputs, labels, k):
    if not np.isfinite(outputs).all():
        raise ArithmeticError('the network returns NaN or infinite outputs')
    top = np.argpartition(-outputs, k - 1, axis=1)[:, :k]
    return (top == labels.astype(int)[:, None]).any(axis=1)


def classify(net: HybridBlock, batches: ImageBatches, context: mx.Context, dtype: str = 'float32') -> Answers:
    """What a network says about the images of an epoch of batches: :class:`Answers`.

    Parameters
    ----------
    net : HybridBlock
    batches : ImageBatches
        Unshuffled, without augmentation.
    context : mx.Context
    dtype : str
        The type of the network's input.

    Raises
    ------
    ArithmeticError
        As of :func:`correct_in_top`.
    """
    rows = []
    for data, label in tqdm(batches.epoch(0), 'validation', len(batches), leave=False, disable=None):
        # Cast before asnumpy, which returns bfloat16 as raw bits.
        outputs = net(data.as_in_context(context).astype(dtype, copy=False)).astype('float32', copy=False)
        probability = outputs.softmax().asnumpy().max(axis=1)
        outputs, label = outputs.asnumpy(), label.asnumpy()
        in_top5 = _in_top(outputs, label, min(5, outputs.shape[1]))
        rows.append((label.astype(int), outputs.argmax(axis=1), probability, in_top5))
    labels, predicted, probabilities, in_top = map(np.concatenate, zip(*rows))
    return Answers(labels, predicted, probabilities, in_top, outputs.shape[1])


def evaluate_classification(net: HybridBlock, batches: ImageBatches, context: mx.Context,
                            dtype: str = 'float32') -> dict[str, float]:
    """Accuracy over an epoch of batches; the parameters are those of :func:`classify`.

    Returns
    -------
    dict
        ``top1`` and ``top5``, fractions of the images; with fewer than six classes ``top5`` is omitted,
        since it is always 1.
    """
    return classify(net, batches, context, dtype).metrics


def add_description_flags(parser: 'argparse._ActionsContainer') -> None:
    """Flags that complete or override the description of a network."""
    parser.add_argument('--input-size', type=positive_int, help='for a file without a description')
    parser.add_argument('--crop-ratio', type=positive_float, help='the same (default: 0.875)')
    parser.add_argument('--rgb-mean', type=real, nargs=3, help="the same (default: ImageNet's)")
    parser.add_argument('--rgb-std', type=real, nargs=3, help="the same (default: ImageNet's)")


def load_described(network: PathLike, args: argparse.Namespace) -> tuple[HybridBlock, dict[str, Any]]:
    """A network and its description, completed and overridden by the flags in ``args``.

    Raises
    ------
    InputError
        If it is not a network, or is a landmark network.
    """
    net, description = load_network(network)
    return net, described(network, description, flags_of_description(args))


def flags_of_description(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags of :func:`add_description_flags` say, as a dict without those that are not given."""
    return {key: getattr(args, key) for key in ('input_size', 'crop_ratio', 'rgb_mean', 'rgb_std')
            if getattr(args, key) is not None}


def check_own(own: Mapping[str, Any]) -> None:
    """Refuse (InputError) an entry of a user's for a description that cannot be."""
    for key, words in faults_of(own).items():
        raise InputError(f'`{key}` {own[key]} is not {words}.')


def described(network: PathLike, description: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A classification network's description, with the entries ``own`` over it, and defaults where it has none.

    Raises
    ------
    InputError
        If it is of a landmark network; if an entry of ``own`` cannot be, or would normalize pixels that the network
        normalizes itself.
    """
    if description.get('task') == 'landmarks':
        raise InputError(f'{network} is a landmark network, not a classifier: use the commands nme and align.')
    check_own(own)
    inside = description.get('normalized_inside')
    for key in ('rgb_mean', 'rgb_std'):
        if inside and list(own.get(key, description[key])) != description[key]:
            raise InputError(f'{network} normalizes pixels itself, with the mean {inside["rgb_mean"]} and the standard '
                             f'deviation {inside["rgb_std"]}: leave out `{key}`.')
    if not description.keys() >= _REQUIRED:
        # What another program wrote says little or nothing.
        description = {**_DEFAULTS, **description}
    return {**description, **own}
