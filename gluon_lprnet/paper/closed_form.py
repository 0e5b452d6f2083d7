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

__all__ = ['begin_near']

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
        _set_norm(depthwise, rows, deviation, _ABOVE_ZERO * deviation)
        rows = _as_rows(depthwise(data))
        matrix = _regression(rows, wanted)
        _set_pointwise(module[1][0], matrix)
        _set_norm(module[1], rows @ matrix.T, (rows @ matrix.T).std(axis=0), wanted.mean(axis=0))
        return
    matrix, rank, covariance = _regression(rows, wanted), module.p1.weight.shape[0], np.cov(rows.T)
    residual, scale = np.zeros(len(matrix)), np.ones(len(matrix))
    if module._residual:
        # BN(D x) is the residual, and what P1 reads: it cannot be 0.
        residual = factorize(matrix, rank, covariance).scale
        least = _LEAST_RESIDUAL * np.median(abs(residual))
        residual = scale = np.where(abs(residual) < least, np.copysign(least, residual), residual)
    factors = factorize(matrix - np.diag(residual), rank, covariance, residual=False)
    p1 = factors.p1 / scale
    product = factors.p2 @ p1 + np.eye(len(matrix)) * module._residual
    _set_norm(depthwise, rows, scale * deviation, np.linalg.lstsq(product, wanted.mean(axis=0), rcond=None)[0])
    _set_pointwise(module.p1, p1)
    _set_pointwise(module.p2, factors.p2)


def _depthwise_kernels(kernel: np.ndarray, data: mx.nd.NDArray) -> np.ndarray:
    """Of each input channel, the kernel whose output tells most of what the channel adds to all outputs."""
    outputs, inputs, *size = kernel.shape
    patches = mx.nd.im2col(data, kernel=size, pad=[side // 2 for side in size]).asnumpy().astype('float64')
    patches = patches.reshape(len(patches), inputs, -1, patches.shape[-1])
    patches -= patches.mean(axis=(0, 3), keepdims=True)
    found = np.empty((inputs, patches.shape[2]))
    for channel in range(inputs):
        own = np.moveaxis(patches[:, channel], 1, 0).reshape(found.shape[1], -1)
        covariance = own @ own.T / own.shape[1]
        covariance[np.diag_indices_from(covariance)] += 1e-6 * np.trace(covariance) + np.finfo('float32').tiny
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


def _set_norm(block: ConvBNReLU, rows: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> None:
    norm = block[1]
    variance = rows.var(axis=0)
    # BatchNorm divides by a little more than the deviation.
    stretch = np.sqrt((variance + norm._kwargs['eps']) / np.maximum(variance, np.finfo('float32').tiny))
    for parameter, values in ((norm.running_mean, rows.mean(axis=0)), (norm.running_var, variance),
                              (norm.gamma, gamma * stretch), (norm.beta, beta)):
        parameter.set_data(mx.nd.array(values))


def _set_pointwise(convolution: nn.Conv2D, matrix: np.ndarray) -> None:
    convolution.weight.set_data(mx.nd.array(matrix[:, :, None, None]))
