"""DSC and LPR modules that begin near a standard convolution, for Figure 2.

As in ``compress``: the depthwise kernels are the best single ones of each input channel, and what follows is fitted to
what the standard convolution gives, by least squares; of LPR as a diagonal plus a product of low rank.
"""
from typing import Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from scipy import linalg

from ..blocks import DSC, LPR, ConvBNReLU, SConv
from ..compression.factorize import factorize
from ..zoo.network import values_of

__all__ = ['away_from_0', 'begin_near', 'set_norm', 'set_pointwise']

# DSC has a ReLU between its convolutions. So many standard deviations above 0 it hardly cuts anything.
_ABOVE_ZERO = 3
# Of the median residual: P1 divides by it.
_LEAST_RESIDUAL = 0.05


def begin_near(module: Union[DSC, LPR], original: SConv, inputs: np.ndarray) -> None:
    """Set the weights of a module so that it gives nearly what a standard convolution gives.

    The normalization of LPR takes the length from its low-rank part, and leaves the direction.

    Parameters
    ----------
    module : gluon_lprnet.blocks.DSC or gluon_lprnet.blocks.LPR
        Of stride 1, initialized; its own statistics of BatchNorm are set too.
    original : gluon_lprnet.blocks.SConv
        Of stride 1 and the same width.
    inputs : ndarray (images, channels, height, width)
        What comes into the original; with few images the fit learns their accidents.
    """
    data = mx.nd.array(inputs)
    convolution, norm, _ = original
    wanted = _as_rows(norm(convolution(data)))
    factor = values_of(norm.gamma) / np.sqrt(values_of(norm.running_var) + norm._kwargs['eps'])
    kernel = values_of(convolution.weight) * factor[:, None, None, None]
    depthwise = module[0] if isinstance(module, DSC) else module.depthwise
    depthwise[0].weight.set_data(mx.nd.array(_depthwise_kernels(kernel, data)))
    rows = _as_rows(depthwise[0](data))
    deviation = rows.std(axis=0)
    if isinstance(module, DSC):
        set_norm(depthwise, rows.mean(axis=0), rows.var(axis=0), deviation, _ABOVE_ZERO * deviation)
        rows = _as_rows(depthwise(data))
        matrix = _regression(rows, wanted)
        set_pointwise(module[1][0], matrix)
        given = rows @ matrix.T
        set_norm(module[1], given.mean(axis=0), given.var(axis=0), given.std(axis=0), wanted.mean(axis=0))
        return
    matrix, rank, covariance = _regression(rows, wanted), module.p1.weight.shape[0], np.cov(rows.T)
    residual, scale = np.zeros(len(matrix)), np.ones(len(matrix))
    if module._residual:
        # BN(D x) is the residual, and what P1 reads: it cannot be 0.
        residual = scale = away_from_0(factorize(matrix, rank, covariance).scale)
    factors = factorize(matrix - np.diag(residual), rank, covariance, residual=False)
    p1 = factors.p1 / scale
    product = factors.p2 @ p1 + np.eye(len(matrix)) * module._residual
    set_norm(depthwise, rows.mean(axis=0), rows.var(axis=0), scale * deviation,
             np.linalg.lstsq(product, wanted.mean(axis=0), rcond=None)[0])
    set_pointwise(module.p1, p1)
    set_pointwise(module.p2, factors.p2)


def away_from_0(residual: np.ndarray) -> np.ndarray:
    """A residual by channel (m,) by which P1 can be divided: none is less than a twentieth of the median."""
    least = _LEAST_RESIDUAL * np.median(abs(residual))
    return np.where(abs(residual) < least, np.copysign(least, residual), residual)


def _depthwise_kernels(kernel: np.ndarray, data: mx.nd.NDArray) -> np.ndarray:
    """Of each input channel, the kernel whose output tells most of what the channel adds to all outputs."""
    outputs, inputs, *size = kernel.shape
    patches = mx.nd.im2col(data, kernel=size, pad=[side // 2 for side in size]).asnumpy().astype('float64')
    patches = patches.reshape(len(patches), inputs, -1, patches.shape[-1])
    patches -= patches.mean(axis=(0, 3), keepdims=True)
    found = np.empty((inputs, patches.shape[2]))
    # Of all channels: one that is 0 on these images would get a kernel of any size.
    ridge = 1e-6 * np.square(patches).mean(axis=(0, 1, 3)).sum() + np.finfo('float32').tiny
    for channel in range(inputs):
        own = np.moveaxis(patches[:, channel], 1, 0).reshape(found.shape[1], -1)
        covariance = own @ own.T / own.shape[1]
        covariance[np.diag_indices_from(covariance)] += ridge
        added = kernel[:, channel].reshape(outputs, -1) @ covariance
        found[channel] = linalg.eigh(added.T @ added, covariance)[1][:, -1]
    return found.reshape(inputs, 1, *size)


def _regression(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The matrix (outputs, inputs) of least squares; means are seen to by BatchNorm."""
    covariance = np.cov(rows.T)
    covariance[np.diag_indices_from(covariance)] += 1e-6 * np.trace(covariance) / len(covariance)
    crossed = (wanted - wanted.mean(axis=0)).T @ (rows - rows.mean(axis=0)) / (len(rows) - 1)
    return linalg.solve(covariance, crossed.T, assume_a='pos').T


def _as_rows(maps: mx.nd.NDArray) -> np.ndarray:
    return np.moveaxis(maps.asnumpy().astype('float64'), 1, -1).reshape(-1, maps.shape[1])


def set_norm(block: ConvBNReLU, mean: np.ndarray, variance: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> None:
    """Make the BatchNorm give ``gamma (x - mean) / sqrt(variance) + beta``; all (channels,)."""
    norm = block[1]
    # BatchNorm divides by a little more than the deviation.
    stretch = np.sqrt((variance + norm._kwargs['eps']) / np.maximum(variance, np.finfo('float32').tiny))
    for parameter, values in ((norm.running_mean, mean), (norm.running_var, variance), (norm.gamma, gamma * stretch),
                              (norm.beta, beta)):
        parameter.set_data(mx.nd.array(values))


def set_pointwise(convolution: nn.Conv2D, matrix: np.ndarray) -> None:
    """Give a pointwise convolution its weights, (outputs, inputs)."""
    convolution.weight.set_data(mx.nd.array(matrix[:, :, None, None]))
