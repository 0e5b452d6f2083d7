"""DenseNet-40 with irregular kernels: line segments in place of squares (Guo et al., arXiv 1909.13239).

Public of that paper is its abstract alone. It says: a square kernel is transformed to line segments, how a network is
equipped with them is learned, and DenseNet-40 loses 69% of its parameters, 59% of its calculations and less than 2%
accuracy. Inferred here are:

- the candidates: all straight runs of t neighboring positions of the kernel, along rows, columns and diagonals;
- that each slice, the part of a kernel for one channel of input and one of output, has a segment of its own;
- how it is learned: see :class:`RelaxedConv`;
- how it is stored: one byte for the segment of a slice, and its t weights;
- the lengths t, in ``LENGTHS``. Of 3, 2 and 1 in the three blocks both figures come out, 71.1% and 59.7%: the first
  block computes the most and the last one has the most weights. With t = 2 everywhere these are 67.0% and 63.0%. The
  first convolution and the pointwise ones stay as they are.

There are two forms. For training (``relaxed=True``) the kernels are squares of which the choice leaves more and more
out, and :meth:`IrregularDenseNet40.harden` one segment. :meth:`IrregularDenseNet40.converted` then makes the same
function of segments alone: the form that is counted and deployed.
"""
import functools
import json
from collections.abc import Iterator
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from ..utils.errors import InputError
from .densenet import DenseLayer, DenseNet40
from .network import copy_parameters, values_of
from .registry import register

KERNEL = 3
# Of the segments in the three blocks.
LENGTHS = (3, 2, 1)

# Right, down, and the two diagonals.
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Added to energies, which are 0 where all weights are.
_EPSILON = 1e-20
# A share of 2e-9. Smaller ones become weights below 1e-38, with which a processor takes nearly twice as long.
_LEAST_LOG_SHARE = -20.0


def segments(length: int) -> np.ndarray:
    """The candidates: straight runs of ``length`` neighboring positions of a square kernel.

    Parameters
    ----------
    length : int
        From 1 to 3.

    Returns
    -------
    ndarray of int, (candidates, length)
        Positions from 0 to 8, by rows. There are 9 of one, 20 of two and 8 of three.

    Raises
    ------
    InputError
        If no segment of the kernel has that length.
    """
    if length not in range(1, KERNEL + 1):
        raise InputError(f'length {length!r}: a segment of a kernel of {KERNEL}x{KERNEL} has from 1 to {KERNEL} '
                         'positions.')
    found = []
    for down, right in _DIRECTIONS:
        for row, column in np.ndindex(KERNEL, KERNEL):
            places = [(row + number * down, column + number * right) for number in range(length)]
            if all(0 <= place < KERNEL for place in places[-1]):
                found.append(tuple(KERNEL * one + other for one, other in places))
    # A segment of one position has no direction.
    return np.array(list(dict.fromkeys(found)))


def _constant(block: HybridBlock, name: str, values: np.ndarray) -> mx.gluon.Parameter:
    """A parameter of a block that is never trained. Gluon's own Constant makes another symbol in each process."""
    # As text: the initializer itself can be written into a symbol only once.
    return block.params.get(name, shape=values.shape, init=json.dumps(['constant', {'value': values.tolist()}]),
                            grad_req='null', differentiable=False)


class RelaxedConv(HybridBlock):
    """The form for training: a bias-free square convolution of whose slices a relaxed choice leaves out a part.

    The energy of a candidate is the sum of the squares of a slice's weights on it, and its share ``(energy / largest
    energy) ** sharpness``, at least 2e-9: a softmax of the logarithms, over its largest value. A weight is multiplied
    by the shares of the candidates it belongs to, added up and at most 1, so that choice and weights are learned
    together. At sharpness 0, where a training begins, all shares are 1, and the convolution is the square one: it can
    begin with trained weights. As the sharpness rises, the segment of the largest energy is left.

    Parameters
    ----------
    in_channels, channels : int
    length : int
        Of the segments: see :func:`segments`.
    """

    def __init__(self, in_channels: int, channels: int, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._channels = channels
        candidates = np.zeros((len(segments(length)), KERNEL ** 2))
        np.put_along_axis(candidates, segments(length), 1, axis=1)
        shape = (channels, in_channels, KERNEL, KERNEL)
        with self.name_scope():
            self.weight = self.params.get('weight', shape=shape)
            self.mask = self.params.get('mask', shape=shape, init='ones', grad_req='null', differentiable=False)
            self.sharpness = self.params.get('sharpness', shape=(1, 1), init='zeros', grad_req='null',
                                             differentiable=False)
            self.candidates = _constant(self, 'candidates', candidates)

    def hybrid_forward(self, F: Any, x: Any, weight: Any, mask: Any, sharpness: Any, candidates: Any) -> Any:
        kernel = weight * mask
        energy = F.dot(F.square(F.reshape(kernel, shape=(-1, KERNEL ** 2))), candidates, transpose_b=True)
        size = F.log(energy + _EPSILON)
        size = F.broadcast_sub(size, F.max(size, axis=1, keepdims=True))
        shares = F.dot(F.exp(F.maximum(F.broadcast_mul(size, sharpness), _LEAST_LOG_SHARE)), candidates)
        return F.Convolution(x, kernel * F.reshape_like(F.clip(shares, 0, 1), kernel), kernel=(KERNEL, KERNEL),
                             pad=(KERNEL // 2, KERNEL // 2), num_filter=self._channels, no_bias=True)

    @property
    def hardened(self) -> bool:
        return not values_of(self.mask).all()

    def sharpen(self, sharpness: float) -> None:
        self.sharpness.set_data(mx.nd.full((1, 1), sharpness))

    def chosen(self) -> np.ndarray:
        """The number of each slice's candidate of the largest energy, in :func:`segments`; (channels, in_channels)."""
        kernel = values_of(self.weight).astype('float64') * values_of(self.mask)
        energy = kernel.reshape(*kernel.shape[:2], -1) ** 2 @ values_of(self.candidates).T
        return energy.argmax(axis=2)

    def harden(self) -> None:
        """Leave each slice the candidate of its largest energy, for good; the sharpness, of no use then, is 0 again."""
        self.mask.set_data(mx.nd.array(values_of(self.candidates)[self.chosen()].reshape(self.mask.shape)))
        self.sharpen(0)


class SegmentConv(HybridBlock):
    """The form for inference: a bias-free convolution of which each slice is one segment.

    Each channel of output is the sum of the t products of each channel of input, gathered from its moved copies: a
    group convolution of ``in_channels * t`` multiply-adds a value. The feature map of height and width H, W is copied
    to ``channels * in_channels * t * H * W`` numbers for it.

    Parameters
    ----------
    in_channels, channels : int
    length : int
        Of the segments: see :func:`segments`.
    """

    def __init__(self, in_channels: int, channels: int, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._channels, self._terms = channels, in_channels * length
        with self.name_scope():
            self.segment = self.params.get('segment', shape=(channels, in_channels), dtype='uint8', init='zeros',
                                           grad_req='null', differentiable=False)
            self.weight = self.params.get('weight', shape=(channels, in_channels, length))
            # Of the moved copies, which lie behind each other.
            self.places = _constant(self, 'places', segments(length) * in_channels)
            self.inputs = _constant(self, 'inputs', np.arange(in_channels).reshape(1, -1, 1))

    def hybrid_forward(self, F: Any, x: Any, segment: Any, weight: Any, places: Any, inputs: Any) -> Any:
        copies = F.concat(*_moved(F, x), dim=1)
        index = F.broadcast_add(F.take(places, segment), inputs)
        return F.Convolution(F.take(copies, F.reshape(index, shape=(-1,)), axis=1),
                             F.reshape(weight, shape=(self._channels, self._terms, 1, 1)), kernel=(1, 1),
                             num_filter=self._channels, num_group=self._channels, no_bias=True)

    def cast(self, dtype: str) -> None:
        """Leaves the indices as they are: float16 has not all whole numbers above 2048."""
        self.weight.cast(dtype)

    def take_from(self, relaxed: RelaxedConv) -> None:
        """Compute what a hardened convolution computes."""
        chosen = relaxed.chosen()
        length = self.weight.shape[2]
        kernel = (values_of(relaxed.weight) * values_of(relaxed.mask)).reshape(*chosen.shape, -1)
        self.segment.set_data(mx.nd.array(chosen, dtype='uint8'))
        self.weight.set_data(mx.nd.array(np.take_along_axis(kernel, segments(length)[chosen], axis=2),
                                         dtype=self.weight.dtype))


def _moved(F: Any, x: Any) -> Iterator[Any]:
    """What each position of a kernel sees of a feature map, by rows, with zeros around it."""
    border = KERNEL // 2
    padded = F.pad(x, mode='constant', pad_width=(0, 0, 0, 0, border, border, border, border))
    for place in np.ndindex(KERNEL, KERNEL):
        part = padded
        for axis, begin in zip((2, 3), place):
            part = F.slice_axis(part, axis=axis, begin=begin, end=begin - 2 * border or None)
        yield part


class IrregularDenseNet40(DenseNet40):

    def __init__(self, classes: int, relaxed: bool) -> None:
        kind = RelaxedConv if relaxed else SegmentConv
        super().__init__(classes, [functools.partial(kind, length=length) for length in LENGTHS])
        self._relaxed = relaxed

    def _convolutions(self) -> list[RelaxedConv]:
        if not self._relaxed:
            raise InputError('this network of irregular kernels is in its form for inference. To train one, build it '
                             'with relaxed=True.')
        return [layer.body[-1] for layer in self.features if isinstance(layer, DenseLayer)]

    @property
    def chosen(self) -> bool:
        """Whether each slice has one segment, so that :meth:`converted` can be called."""
        return self._convolutions()[0].hardened

    def sharpen(self, sharpness: float) -> None:
        """How sharply the choice prefers the segment of the largest energy: 0, not at all, and more."""
        for convolution in self._convolutions():
            convolution.sharpen(sharpness)

    def harden(self) -> None:
        """Leave each slice the segment of its largest energy; its weights alone are trained from here on.

        Raises
        ------
        InputError
            If the network is in its form for inference.
        """
        for convolution in self._convolutions():
            convolution.harden()

    def converted(self) -> 'IrregularDenseNet40':
        """The same function in the form for inference, as a new network on the CPU.

        Raises
        ------
        InputError
            If the choice has not hardened, or the network is in its form for inference.
        """
        if not self.chosen:
            raise InputError('the choice of segments has not hardened: the form for inference cannot hold the weights '
                             'yet.')
        net = IrregularDenseNet40(self.output.weight.shape[0], relaxed=False)
        net.initialize()
        for ours, theirs in zip(self.features, net.features):
            if isinstance(ours, DenseLayer):
                copy_parameters(ours.body[0], theirs.body[0])
                theirs.body[-1].take_from(ours.body[-1])
            else:
                copy_parameters(ours, theirs)
        copy_parameters(self.output, net.output)
        return net


@register(widths=(1.0,))
def irregular_densenet40(width: float = 1.0, classes: int = 1000, small_image: bool = True,
                         relaxed: bool = False) -> IrregularDenseNet40:
    return IrregularDenseNet40(classes, relaxed)
