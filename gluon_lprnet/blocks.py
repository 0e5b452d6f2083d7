"""The modules of the paper's Table 2 and Figure 3.

All are ``HybridBlock`` s from NCHW to NCHW, so a network of them runs imperatively, hybridized and as an
exported symbol. A stride-1 module keeps height and width, a stride-2 module
halves them, rounding up (with ``'tensorflow'`` padding down).
"""
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from .utils.errors import InputError

__all__ = ['ConvBNReLU', 'SConv', 'DSC', 'LPR', 'PDP', 'Shift', 'ShiftResidual', 'InvertedResidual', 'ShuffleNetV1Unit',
           'ShuffleNetV2Unit', 'ShuffleNetV2DownUnit', 'normalize_in_rank_space', 'plain_form', 'resolve_rank']


ACTIVATIONS = ('relu', 'relu6')
PADDINGS = ('symmetric', 'tensorflow')


class OneSidedConv2D(nn.Conv2D):
    """A 3x3 convolution of stride 2 with one row of zeros below and one column of zeros on the right."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        return super().hybrid_forward(F, F.pad(x, mode='constant', pad_width=(0, 0, 0, 0, 0, 1, 0, 1)), weight, bias)


class ConvBNReLU(nn.HybridSequential):
    """A bias-free convolution with batch normalization and, unless ``activation`` is None, an activation.

    Without ``batch_norm`` the convolution has a bias instead, as where a trained network's is folded in.

    Padding keeps the size of the feature map at stride 1. At stride 2 it is the same on all sides (``'symmetric'``) or
    on the right and below only (``'tensorflow'``), which for even sizes is what TensorFlow calls SAME. Of odd sizes the
    last row and column are then not seen, where TensorFlow pads on all sides.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, groups: int = 1, in_channels: int = 0,
                 activation: Optional[str] = 'relu', padding: str = 'symmetric', batch_norm: bool = True,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if padding not in PADDINGS:
            raise InputError(f'padding {padding!r} is unknown: give {" or ".join(map(repr, PADDINGS))}.')
        if activation not in (None, *ACTIVATIONS):
            raise InputError(f'activation {activation!r} is unknown: give {" or ".join(map(repr, ACTIVATIONS))}.')
        one_sided = padding == 'tensorflow' and stride == 2 and kernel == 3
        with self.name_scope():
            self.add((OneSidedConv2D if one_sided else nn.Conv2D)(
                channels, kernel, stride, 0 if one_sided else kernel // 2, groups=groups, use_bias=not batch_norm,
                in_channels=in_channels))
            if batch_norm:
                self.add(nn.BatchNorm(in_channels=channels))
            if activation is not None:
                self.add(activation_of(activation))


class ReLU6(HybridBlock):
    """``min(max(x, 0), 6)``, the activation of MobileNetV2."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.clip(x, 0, 6)


def activation_of(name: str) -> HybridBlock:
    """The block of an activation, one of ACTIVATIONS."""
    return ReLU6() if name == 'relu6' else nn.Activation(name)


def depthwise(channels: int, stride: int = 1, activation: Optional[str] = 'relu', padding: str = 'symmetric',
              batch_norm: bool = True) -> ConvBNReLU:
    """The depthwise 3x3 convolution D of equation (2) with batch normalization."""
    return ConvBNReLU(channels, 3, stride, groups=channels, in_channels=channels, activation=activation,
                      padding=padding, batch_norm=batch_norm)


class SConv(ConvBNReLU):
    """Standard 3x3 convolution, equation (1)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, **kwargs: Any) -> None:
        super().__init__(channels, 3, stride, in_channels=in_channels, **kwargs)


class DSC(nn.HybridSequential):
    """Depthwise separable convolution, equation (4): depthwise 3x3, then pointwise."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, activation: str = 'relu',
                 padding: str = 'symmetric', batch_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.add(depthwise(in_channels, stride, activation, padding, batch_norm),
                     ConvBNReLU(channels, 1, in_channels=in_channels, activation=activation, batch_norm=batch_norm))


class PDP(nn.HybridSequential):
    """Pointwise-depthwise-pointwise, the low-rank form of a convolution (arXiv 2312.09922), with BatchNorm and ReLU.

    Its three bias-free convolutions have nothing between them, so that they are one with the kernel
    ``W[o, i, k] = sum over r of b[o, r] a[r, i] d[r, k]``, of r (C_in + k^2 + C_out) parameters. DSC without what is
    between its convolutions is the case where a is the identity, LPR without its normalization that where b is the
    identity plus a matrix of low rank as well.

    Parameters
    ----------
    in_channels, channels : int
    rank : int
        Terms of the sum, channels between the pointwise convolutions.
    stride : int, default 1
    kernel : int, default 3
    """

    def __init__(self, in_channels: int, channels: int, rank: int, stride: int = 1, kernel: int = 3,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.add(nn.Conv2D(rank, 1, use_bias=False, in_channels=in_channels),
                     nn.Conv2D(rank, kernel, stride, kernel // 2, groups=rank, use_bias=False, in_channels=rank),
                     ConvBNReLU(channels, 1, in_channels=rank))


def concat_channels(F: Any, *parts: Any) -> Any:
    """Feature maps (N, C, H, W) behind each other, whatever their channels.

    The gradient of MXNet's ``concat`` of four dimensions goes through oneDNN. Where a part begins at a channel that is
    not a multiple of 8, that fails ("could not construct a sub-memory") or kills the process (SIGFPE).
    """
    return F.squeeze(F.concat(*(F.expand_dims(part, axis=2) for part in parts), dim=1), axis=2)


class Shift(HybridBlock):
    """Each channel moved by one position or not at all, in one of the k * k directions (arXiv 1711.08141, its 2.2).

    It has no weights and no arithmetic. Each direction has C // k^2 channels, in the order of a kernel's positions from
    left to right and from top to bottom, and the rest of the channels, the last ones, stay where they are. What comes
    in from outside is 0. A channel holds what a depthwise convolution with a single weight, 1, at the position of its
    direction would give.

    Parameters
    ----------
    channels : int
    kernel : int, default 3
    directions : sequence of int, optional
        Of each channel the number of its position in the kernel, in place of equal shares.

    Raises
    ------
    InputError
        If the directions are not one for each channel, or are not of the kernel.
    """

    def __init__(self, channels: int, kernel: int = 3, directions: Optional[Sequence[int]] = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        positions = kernel ** 2
        if directions is None:
            directions = [*np.repeat(range(positions), channels // positions),
                          *[positions // 2] * (channels % positions)]
        self.directions = tuple(map(int, directions))
        self._kernel = kernel
        if len(self.directions) != channels or not all(0 <= each < positions for each in self.directions):
            raise InputError(f'directions {self.directions} are not one for each of {channels} channels, from 0 to '
                             f'{positions - 1}.')

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        half = self._kernel // 2
        padded = F.pad(x, mode='constant', pad_width=(0, 0, 0, 0, half, half, half, half))
        parts, begin = [], 0
        for direction, run in itertools.groupby(self.directions):
            end = begin + len(list(run))
            part = F.slice_axis(padded, axis=1, begin=begin, end=end)
            for axis, place in zip((2, 3), divmod(direction, self._kernel)):
                left_out = 2 * half - place
                part = F.slice_axis(part, axis=axis, begin=place, end=-left_out if left_out else None)
            parts.append(part)
            begin = end
        return concat_channels(F, *parts)


class ShiftResidual(HybridBlock):
    """The module of ShiftResNet (arXiv 1711.08141): pointwise, shift, pointwise, and the input added.

    BatchNorm and ReLU follow both pointwise convolutions, the stride is that of the second. Where the shapes differ, a
    pointwise convolution with BatchNorm is on the way of the input.

    Parameters
    ----------
    in_channels, channels, stride : int
    expansion : float
        Channels that are shifted, over ``channels``.
    directions : sequence of int, optional
        Of the channels that are shifted, in place of the expansion: see :class:`Shift`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, expansion: float = 1.0,
                 directions: Optional[Sequence[int]] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hidden = max(1, int(channels * expansion)) if directions is None else len(directions)
        with self.name_scope():
            self.first = ConvBNReLU(hidden, 1, in_channels=in_channels)
            self.shift = Shift(hidden, directions=directions)
            self.second = ConvBNReLU(channels, 1, stride, in_channels=hidden)
            self.shortcut = None if (stride, in_channels) == (1, channels) else ConvBNReLU(
                channels, 1, stride, in_channels=in_channels, activation=None)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.second(self.shift(self.first(x))) + (self.shortcut(x) if self.shortcut else x)


def resolve_rank(rank: Union[int, float], channels: int) -> int:
    """The rank r as a number of channels.

    Parameters
    ----------
    rank : float or int
        A fraction of ``channels`` (``1 / 8`` is the paper's r = m/8), rounded down and at least 1, or,
        as an int, the rank itself.
    channels : int
        Width m of the module.

    Raises
    ------
    InputError
        If the rank is not in 1 .. ``channels`` (int) or in (0, 1] (fraction).
    """
    if isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= channels:
        return rank
    if isinstance(rank, float) and 0 < rank <= 1:
        return max(1, int(channels * rank))
    raise InputError(f'rank {rank!r} is not valid for a module of {channels} channels: give a fraction in '
                     f'(0, 1], for example 0.125 for m/8, or a whole number from 1 to {channels}.')


# What the learned scale of LPR begins as, by its name, for a width.
L2_NORM_SCALES = {'one': lambda channels: 1.0, 'sqrt_width': math.sqrt}


class Scale(HybridBlock):
    """Multiplication by one learned number, which begins as ``initial``."""

    def __init__(self, initial: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.scale = self.params.get('scale', shape=(1, 1, 1, 1), init=mx.init.Constant(initial))

    def hybrid_forward(self, F: Any, x: Any, scale: Any) -> Any:
        return F.broadcast_mul(x, scale)


class LPR(HybridBlock):
    """Low-rank pointwise residual convolution, equation (6) and Figure 3 (a).

    With ``d = BN(D x)`` the output is ``ReLU(L2norm(P2 P1 d) + d)``: the depthwise 3x3 convolution D, two
    bias-free pointwise convolutions of rank r with nothing between them, L2 normalization over the
    channels of each position, and the depthwise output as residual. Input and output have the same shape.

    Parameters
    ----------
    channels : int
        Width m, of input and output.
    rank : float or int, default 1/8
        See :func:`resolve_rank`.
    residual : bool, default True
        Add the depthwise output (False: "LPR Module (no Residual)" of Table 4).
    l2_norm : bool, default True
        Normalize the low-rank output (False: "LPR Module (no L2Norm)" of Table 4).
    l2_norm_scale : str, optional
        Multiply the normalized output by one learned number s, ``ReLU(s L2norm(P2 P1 d) + d)``, which is not in the
        paper. It begins as 1, equation (6), for ``'one'``, and as the root of m for ``'sqrt_width'``: the mean square
        of the normalized channels is then 1, as that of d, and not 1/m.

    Raises
    ------
    InputError
        If the rank does not fit, or the scale is unknown or has no normalization to scale.
    """

    # Added to the sum of squares under the root, as MXNet's L2Normalization operator does.
    EPSILON = 1e-10

    # Set by normalize_in_rank_space.
    _rank_space = False

    def __init__(self, channels: int, rank: Union[int, float] = 1 / 8, residual: bool = True, l2_norm: bool = True,
                 l2_norm_scale: Optional[str] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if l2_norm_scale not in (None, *L2_NORM_SCALES):
            raise InputError(f'l2_norm_scale {l2_norm_scale!r} is unknown: give None, '
                             f'{" or ".join(map(repr, L2_NORM_SCALES))}.')
        if l2_norm_scale and not l2_norm:
            raise InputError(f'l2_norm_scale {l2_norm_scale!r} needs l2_norm=True: there is nothing to scale.')
        self._residual = residual
        self._l2_norm = l2_norm
        self._half = False
        self._channels = channels
        self._rank = resolve_rank(rank, channels)
        with self.name_scope():
            self.depthwise = depthwise(channels, activation=None)
            self.p1 = nn.Conv2D(self._rank, 1, use_bias=False, in_channels=channels)
            self.p2 = nn.Conv2D(channels, 1, use_bias=False, in_channels=self._rank)
            self.activation = nn.Activation('relu')
            self.scale = Scale(L2_NORM_SCALES[l2_norm_scale](channels)) if l2_norm_scale else None

    def cast(self, dtype: str) -> None:
        super().cast(dtype)
        self._half = np.dtype(dtype) == np.float16

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        d = self.depthwise(x)
        q = self.p1(d)
        if self._l2_norm and self._rank_space and not self._half:
            y = self.p2(q * self._scaled_inverse_norm(F, q))
        else:
            y = self.p2(q)
            if self._l2_norm:
                y = self._normalize(F, y)
            if self.scale:
                y = self.scale(y)
        return self._output(F, y, d)

    def _output(self, F: Any, y: Any, d: Any) -> Any:
        return self.activation(y + d if self._residual else y)

    def _normalize(self, F: Any, y: Any) -> Any:
        if not self._half:
            return F.L2Normalization(y, mode='channel', eps=self.EPSILON)
        # In float16 EPSILON is 0 and sums of squares over- and underflow: 0 / 0 would give NaN.
        y = F.L2Normalization(F.cast(y, 'float32'), mode='channel', eps=self.EPSILON)
        return F.cast(y, 'float16')

    def _scaled_inverse_norm(self, F: Any, q: Any) -> Any:
        """``s / ||P2 q||`` at each position, as (N, rank, H, W), from ``||P2 q||^2 = q' (P2' P2) q``."""
        weight = self.p2.weight.var() if F is mx.sym else self.p2.weight.data(q.context)
        matrix = F.reshape(weight, shape=(self._channels, self._rank))
        gram = F.reshape(F.dot(matrix, matrix, transpose_a=True), shape=(self._rank, self._rank, 1, 1))
        # Sum and broadcast over channels as convolutions with ones: MXNet's own take several times longer.
        ones = F.ones_like(F.slice_axis(gram, axis=0, begin=0, end=1))
        squares = _pointwise(F, q * _pointwise(F, q, gram, self._rank), ones, 1)
        # Rounding can take a sum of squares that is nearly 0 below it.
        inverse = F.rsqrt(F.relu(squares) + self.EPSILON)
        # The gradient of s on the feature map, a sum over all of it, would take a third of a training step.
        spread = F.swapaxes(ones, 0, 1)
        return _pointwise(F, inverse, self.scale(spread) if self.scale else spread, self._rank)


def _pointwise(F: Any, x: Any, weight: Any, channels: int) -> Any:
    return F.Convolution(x, weight, kernel=(1, 1), num_filter=channels, no_bias=True)


def normalize_in_rank_space(net: HybridBlock, active: bool) -> None:
    """Choose how the LPR modules of ``net`` compute their L2 normalization; the function stays the same.

    Over the m channels of P2's output MXNet's normalization takes as long as the rest of the network,
    forward and backward. In rank space the same norm is computed on r = m/8 channels, from the Gram matrix
    of P2, and applied before P2, with the learned scale where there is one. Training uses it; the plain
    form, which is equation (6) as it stands, is the one that is exported and counted. In float32 the two
    agree up to rounding, except where P2 q is a thousandth of ``||P2|| ||q||`` or less.

    Hybridize a hybridized network again afterwards, to drop its old graph.
    """
    def choose(block: HybridBlock) -> None:
        if isinstance(block, LPR):
            block._rank_space = active
    net.apply(choose)


@contextmanager
def plain_form(net: HybridBlock) -> Iterator[None]:
    """Within the context the LPR modules of ``net`` are equation (6) as it stands, in float32; then as they were.

    For a symbol of the network. A graph that the network was hybridized with stays.
    """
    modules = []
    net.apply(lambda block: modules.append(block) if isinstance(block, LPR) else None)
    before = [(module._rank_space, module._half) for module in modules]
    try:
        for module in modules:
            module._rank_space = module._half = False
        yield
    finally:
        for module, form in zip(modules, before):
            module._rank_space, module._half = form


class InvertedResidual(HybridBlock):
    """MobileNetV2's module: expand by ``expansion``, depthwise 3x3, project linearly.

    The input is added where the shapes permit it (stride 1 and equal widths). At expansion 1 there is no
    expanding convolution, as in the first module of MobileNetV2.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, expansion: int = 6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shortcut = stride == 1 and in_channels == channels
        hidden = in_channels * expansion
        with self.name_scope():
            self.body = nn.HybridSequential()
            if expansion != 1:
                self.body.add(ConvBNReLU(hidden, 1, in_channels=in_channels, activation='relu6'))
            self.body.add(depthwise(hidden, stride, activation='relu6'),
                          ConvBNReLU(channels, 1, in_channels=hidden, activation=None))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.body(x)
        return x + y if self._shortcut else y


def channel_shuffle(F: Any, x: Any, groups: int) -> Any:
    """Interleave the channels of ``groups`` groups (ShuffleNetV1, section 3.1)."""
    x = F.reshape(x, shape=(0, -4, groups, -1, -2))
    return F.reshape(F.swapaxes(x, 1, 2), shape=(0, -3, -2))


class ShuffleNetV1Unit(HybridBlock):
    """ShuffleNetV1's unit (its Figure 2 b, c): grouped pointwise, shuffle, depthwise 3x3, grouped pointwise.

    The bottleneck has a quarter of the output's channels. At stride 2 the average-pooled input is
    concatenated instead of added. ``first_groups=1`` is for the very first unit, whose input is too
    narrow for a grouped convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, groups: int = 3,
                 first_groups: Optional[int] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._groups = groups
        self._down = stride == 2
        hidden = channels // 4
        branch_channels = channels - in_channels if self._down else channels
        with self.name_scope():
            self.compress = ConvBNReLU(hidden, 1, groups=first_groups or groups, in_channels=in_channels)
            self.expand = nn.HybridSequential()
            self.expand.add(depthwise(hidden, stride, activation=None),
                            ConvBNReLU(branch_channels, 1, groups=groups, in_channels=hidden,
                                       activation=None))
            self.activation = nn.Activation('relu')
            if self._down:
                self.pool = nn.AvgPool2D(3, 2, 1)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.expand(channel_shuffle(F, self.compress(x), self._groups))
        if self._down:
            return self.activation(F.concat(y, self.pool(x), dim=1))
        return self.activation(x + y)


def _shufflenet_v2_branch(in_channels: int, channels: int, stride: int) -> nn.HybridSequential:
    """Pointwise, depthwise 3x3, pointwise: the transformed branch of both ShuffleNetV2 units."""
    branch = nn.HybridSequential()
    branch.add(ConvBNReLU(channels, 1, in_channels=in_channels),
               depthwise(channels, stride, activation=None),
               ConvBNReLU(channels, 1, in_channels=channels))
    return branch


class ShuffleNetV2Unit(HybridBlock):
    """ShuffleNetV2's stride-1 unit (its Figure 3 c): half of the channels pass through, half are transformed."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.branch = _shufflenet_v2_branch(channels // 2, channels // 2, stride=1)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        passed, transformed = F.split(x, num_outputs=2, axis=1)
        return channel_shuffle(F, F.concat(passed, self.branch(transformed), dim=1), 2)


class ShuffleNetV2DownUnit(HybridBlock):
    """ShuffleNetV2's down-sampling unit (its Figure 3 d, the paper's Figure 3 c), stride 2."""

    def __init__(self, in_channels: int, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        half = channels // 2
        with self.name_scope():
            self.branch = _shufflenet_v2_branch(in_channels, half, stride=2)
            self.shortcut = nn.HybridSequential()
            self.shortcut.add(depthwise(in_channels, 2, activation=None),
                              ConvBNReLU(half, 1, in_channels=in_channels))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return channel_shuffle(F, F.concat(self.shortcut(x), self.branch(x), dim=1), 2)
