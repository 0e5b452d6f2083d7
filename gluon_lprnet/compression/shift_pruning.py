"""Channels taken out of trained shift modules: fewer terms of the sum that a module is.

In the view of Lam and others (arXiv 2312.09922) a pointwise convolution, a shift and a pointwise convolution are a sum
of terms ``d_r x a_r x b_r``, one for each channel that is shifted, in which d_r is a single 1. Their pruning of shift
layers takes out terms. The abstract alone was read: that the size of a term is what it is chosen by is inferred.
"""
from collections.abc import Callable, Sequence
from typing import Optional

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from ..blocks import ShiftResidual
from ..utils.errors import InputError
from ..zoo.shiftresnet import ShiftResNet20
from .refit import Moments

__all__ = ['CRITERIA', 'prune_shifts']


def prune_shifts(net: ShiftResNet20, share: float, criterion: str = 'term',
                 images: Sequence[mx.nd.NDArray] = (), seed: int = 0) -> ShiftResNet20:
    """A network without that share of the shifted channels of each module, on the CPU; tune it afterwards.

    With images, the means of what is taken out go into the BatchNorm behind it, whatever the criterion.

    Parameters
    ----------
    net : ShiftResNet20
        Trained, float32. It stays as it is.
    share : float
        Of the channels of each module, from 0 to below 1; rounded down, and one channel stays.
    criterion : str
        Which channels stay. ``'term'``: those whose terms are largest, by the length of the column of the second
        convolution times the deviation of the channel on the images or, without images, the length of the row of the
        first one with the BatchNorm folded in. ``'magnitude'``: those whose rows of the first convolution have the
        largest sum of absolute weights (Li and others, arXiv 1608.08710). ``'random'``.
    images : sequence of NDArray
        Batches (N, 3, H, W), as the network takes them.
    seed : int
        Of the random choice.

    Returns
    -------
    ShiftResNet20

    Raises
    ------
    InputError
        If it is another network, or the share or the criterion does not exist.
    """
    if not isinstance(net, ShiftResNet20):
        raise InputError('only shiftresnet20 has shift modules whose channels can be taken out.')
    if not 0 <= share < 1:
        raise InputError(f'share {share}: give a number from 0 to below 1.')
    if criterion not in CRITERIA:
        raise InputError(f'criterion {criterion!r} is unknown: give {", ".join(CRITERIA)}.')
    modules = [layer for layer in net.features if isinstance(layer, ShiftResidual)]
    moments = _moments(net, modules, images)
    random = np.random.default_rng(seed)
    kept = []
    for module, own in zip(modules, moments):
        sizes = CRITERIA[criterion](module, own, random)
        number = max(1, len(sizes) - int(share * len(sizes)))
        kept.append(np.sort(np.argsort(-sizes, kind='stable')[:number]))
    pruned = ShiftResNet20(1.0, net.output.weight.shape[0], [
        [module.shift.directions[channel] for channel in channels] for module, channels in zip(modules, kept)])
    pruned.initialize()
    _copy(net, pruned, {id(module): channels for module, channels in zip(modules, kept)},
          {id(module): own for module, own in zip(modules, moments)})
    return pruned


def _moments(net, modules, images):
    """Of the shifted channels of each module, where the second convolution reads them; None without images."""
    moments = [Moments() if images else None for _ in modules]
    for batch in images:
        found = dict(zip(map(id, modules), moments))
        x = batch
        for layer in net.features:
            if id(layer) in found:
                stride = layer.second[0]._kwargs['stride'][0]
                shifted = layer.shift(layer.first(x)).asnumpy()[:, :, ::stride, ::stride].astype('float64')
                found[id(layer)].add(shifted.transpose(1, 0, 2, 3).reshape(shifted.shape[1], -1), products=True)
            x = layer(x)
    return moments


def _term(module: ShiftResidual, own: Optional[Moments], random: np.random.Generator) -> np.ndarray:
    columns = np.linalg.norm(_matrix(module.second), axis=0)
    if own is not None:
        return columns * np.sqrt(np.maximum(np.diag(own.covariance), 0))
    norm = module.first[1]
    scale = norm.gamma.data().asnumpy() / np.sqrt(norm.running_var.data().asnumpy() + norm._kwargs['eps'])
    return columns * np.linalg.norm(_matrix(module.first), axis=1) * abs(scale)


def _magnitude(module: ShiftResidual, own: Optional[Moments], random: np.random.Generator) -> np.ndarray:
    return abs(_matrix(module.first)).sum(axis=1)


def _random(module: ShiftResidual, own: Optional[Moments], random: np.random.Generator) -> np.ndarray:
    return random.uniform(size=len(module.shift.directions))


CRITERIA: dict[str, Callable[[ShiftResidual, Optional[Moments], np.random.Generator], np.ndarray]] = {
    'term': _term, 'magnitude': _magnitude, 'random': _random}


def _matrix(convolution: HybridBlock) -> np.ndarray:
    return convolution[0].weight.data().asnumpy()[:, :, 0, 0].astype('float64')


def _copy(net, pruned, kept, moments):
    """The trained values, of the modules those of the channels that are kept."""
    for source, target in zip([*net.features, net.output], [*pruned.features, pruned.output]):
        channels = kept.get(id(source))
        for ours, theirs in zip(source.collect_params().values(), target.collect_params().values()):
            value = ours.data().asnumpy()
            if value.shape != theirs.shape:
                # Outputs of the first convolution and its BatchNorm, inputs of the second.
                value = value[channels] if value.shape[0] != theirs.shape[0] else value[:, channels]
            theirs.set_data(mx.nd.array(value))
        if channels is not None and moments[id(source)] is not None:
            gone = np.setdiff1d(np.arange(len(source.shift.directions)), channels)
            mean = target.second[1].running_mean
            mean.set_data(mean.data() - mx.nd.array(_matrix(source.second)[:, gone] @ moments[id(source)].mean[gone]))
