"""Irregular kernels (:mod:`gluon_lprnet.zoo.irregular`) as square ones with zeros: the same function, and faster.

The form of segments alone gathers the channels that it multiplies from moved copies of a feature map, and writes and
reads them for that. A square kernel has three to nine times the multiply-adds and parameters, and a feature map is read
once.
"""
from collections.abc import Mapping

import mxnet as mx
import numpy as np

from ..graph import SymbolGraph, attributes

__all__ = ['with_square_kernels']


def with_square_kernels(symbol: mx.sym.Symbol,
                        params: Mapping[str, mx.nd.NDArray]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Write each convolution of segments as one of squares.

    Parameters
    ----------
    symbol : Symbol
    params : dict of str to NDArray
        Its parameters and auxiliary states.

    Returns
    -------
    tuple of (Symbol, dict of str to NDArray)
        The weights of a convolution keep their name; what chose the segments is gone.
    """
    network = _Segments(symbol, params)
    for index, node in enumerate(network.nodes):
        if node['op'] == 'Convolution':
            network.fill_kernels(index)
    return network.result()


class _Segments(SymbolGraph):

    def fill_kernels(self, index):
        convolution = self.nodes[index]
        padding = self._padding_before_segments(convolution)
        if padding is None:
            return
        weight, border = self._source(convolution, 1), _border(self.nodes[padding])
        outputs, inputs, _ = self.value(weight, 0).shape
        side = 2 * border + 1
        impulses = np.zeros((inputs, inputs, side, side))
        impulses[np.arange(inputs), np.arange(inputs), border, border] = 1
        # What an impulse at the center gives is the kernel, seen from its other end.
        outputs_of_impulses = self.block_to((index, 0), padding)(mx.nd.array(impulses, self.context)).asnumpy()
        kernels = outputs_of_impulses.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
        convolution.update(inputs=[self.nodes[padding]['inputs'][0], weight['inputs'][0]],
                           attrs=dict(kernel=str((side, side)), pad=str((border, border)), num_filter=str(outputs),
                                      no_bias='True'))
        self.set_value(convolution, 1, kernels)

    def _padding_before_segments(self, convolution):
        """The number of the Pad node from whose moved copies a convolution gathers its channels, or None."""
        gathered, weight = (self._source(convolution, slot) for slot in (0, 1))
        if not (attributes(convolution, kernel=(), no_bias=False) == [(1, 1), True]
                and gathered['op'] == 'take' and attributes(gathered, axis=0) == [1]
                and self._is_constant(gathered['inputs'][1][0])
                and weight['op'] == 'Reshape' and self.input_name(weight, 0) in self.params
                and self.uses[weight['inputs'][0][0]] == 1 and self.value(weight, 0).ndim == 3):
            return None
        copies = self._source(gathered, 0)
        if copies['op'] != 'Concat':
            return None
        first, *others = {self._before_slices(source) for source, *_ in copies['inputs']}
        border = _border(self.nodes[first])
        return None if others or not border or len(copies['inputs']) != (2 * border + 1) ** 2 else first

    def _source(self, node, slot):
        return self.nodes[node['inputs'][slot][0]]

    def _is_constant(self, index):
        inputs = self.nodes[index]['inputs']
        return (all(self._is_constant(source) for source, *_ in inputs) if inputs
                else self.nodes[index]['name'] in self.params)

    def _before_slices(self, index):
        # A slice that ends at a fixed position works for one size of feature map only.
        while self.nodes[index]['op'] == 'slice_axis' and not self.nodes[index]['attrs']['end'].isdigit():
            index = self.nodes[index]['inputs'][0][0]
        return index


def _border(node):
    """How many zeros a Pad node puts around a feature map, the same on all sides; 0 of what does anything else."""
    if node['op'] != 'Pad' or attributes(node, mode='', constant_value=0.0) != ['constant', 0]:
        return 0
    width, = attributes(node, pad_width=())
    return width[-1] if width == (0,) * 4 + width[-1:] * 4 else 0
