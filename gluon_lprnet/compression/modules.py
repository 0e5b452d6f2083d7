"""Pointwise convolutions of a network as a graph: found, read, and rewritten as LPR modules."""
from dataclasses import dataclass
from typing import NamedTuple, Optional

import mxnet as mx
import numpy as np

from ..graph import SymbolGraph, attributes
from ..utils.errors import InputError
from .factorize import Factors

__all__ = ['Convolution', 'Pointwise', 'Form', 'Replacement', 'Refit', 'PointwiseGraph']

# Between the depthwise convolution and the pointwise one, element by element.
_BETWEEN = ('BatchNorm', 'Activation', 'clip', 'relu', 'LeakyReLU')


@dataclass(frozen=True)
class Convolution:
    """A convolution that can be replaced, with the BatchNorm that can be folded into it.

    Attributes
    ----------
    name : str
        Of its node, whose number is ``node``; ``norm`` is that of the BatchNorm, or None.
    shape : tuple of int
        Outputs and inputs.
    """

    name: str
    node: int
    norm: Optional[int]
    shape: tuple[int, int]

    @property
    def last(self) -> int:
        """The number of its last node."""
        return self.node if self.norm is None else self.norm

    @property
    def stem(self) -> str:
        """What the names of its parameters begin with."""
        return self.name[:-len('_fwd')] if self.name.endswith('_fwd') else self.name


@dataclass(frozen=True)
class Pointwise(Convolution):
    """A 1x1 convolution over all channels.

    Attributes
    ----------
    plain : bool
        It multiplies each position by a matrix of its own, and does nothing else.
    pair : bool
        Of equal width, after a depthwise 3x3 convolution: what becomes an LPR module. Others can be of low rank alone.
    skipped : str or None
        Why it cannot be replaced.
    """

    plain: bool
    pair: bool
    skipped: Optional[str]


class Form(NamedTuple):
    """Of the modules: ``residual`` and ``l2_norm`` as :func:`gluon_lprnet.compress` takes them."""

    residual: bool
    l2_norm: bool

    def of(self, layer: Pointwise) -> 'Form':
        """The form of what replaces a layer: a plain product where it is not of a pair."""
        return self if layer.pair else Form(False, False)


class Replacement(NamedTuple):
    """The LPR module in the place of a pointwise convolution: ``c L2norm(P2 P1 d) + s * d + b``.

    ``norm_scale`` is c; None is the form without normalization. Without ``residual`` there is no s.
    """

    factors: Factors
    bias: np.ndarray
    norm_scale: Optional[float]
    residual: bool


class Refit(NamedTuple):
    """New values of a pointwise convolution that keeps its form: ``weight`` (outputs, inputs) and ``bias``.

    With the BatchNorm folded in; ``mean`` is that of its inputs, to be told apart again.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray


class PointwiseGraph(SymbolGraph):
    """A network's pointwise convolutions: found, read, and rewritten."""

    def pointwise(self, any_width: bool = False) -> list[Pointwise]:
        """Its pointwise convolutions, in order of computation; with ``any_width`` all plain ones can be replaced."""
        return [self._pointwise(index, node, any_width) for index, node in enumerate(self.nodes)
                if node['op'] == 'Convolution' and attributes(node, kernel=(), num_group=1) == [(1, 1), 1]
                and self.input_name(node, 1) in self.params]

    def folded(self, layer: Pointwise) -> tuple[np.ndarray, np.ndarray]:
        """Weight (outputs, inputs) and bias (outputs,), float64, with the BatchNorm folded in.

        Raises
        ------
        InputError
            If they are not finite.
        """
        weight, bias = self._finite_weights(layer)
        return weight[:, :, 0, 0], bias

    def _finite_weights(self, layer):
        convolution = self.nodes[layer.node]
        if layer.norm is None:
            weight, bias = self.value(convolution, 1), self.bias(convolution) + np.zeros(layer.shape[0])
        else:
            weight, bias = self.folded_weights(convolution, self.nodes[layer.norm])
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise InputError(f'the parameters of {layer.name} and its BatchNorm are NaN or infinite: take an earlier '
                             'checkpoint.')
        return weight, bias

    def replace(self, layer: Pointwise, new: Replacement) -> None:
        """Put the LPR module in the place of the convolution and of the BatchNorm that is folded."""
        data = self.nodes[layer.node]['inputs'][0]
        p1 = self._convolution(f'{layer.stem}_p1', data, new.factors.p1)
        if not new.residual:
            self._put(layer, self._convolution(f'{layer.stem}_p2', p1, new.factors.p2, new.bias))
            return
        low_rank = self._convolution(f'{layer.stem}_p2', p1, new.factors.p2)
        if new.norm_scale is not None:
            low_rank = self.add('L2Normalization', f'{layer.stem}_l2norm', [low_rank], mode='channel')
            low_rank = self.add('_mul_scalar', f'{layer.stem}_l2norm_scale', [low_rank], scalar=new.norm_scale)
        scaled = self._convolution(f'{layer.stem}_residual', data, new.factors.scale[:, None], new.bias,
                                   groups=len(new.bias))
        self._put(layer, self.add('elemwise_add', f'{layer.stem}_sum', [low_rank, scaled]))

    def refit(self, layer: Pointwise, new: Refit) -> None:
        """Give the convolution new values; its BatchNorm stays, for a training to come, with a mean that fits them."""
        convolution = self.nodes[layer.node]
        if layer.norm is None:
            self.set_value(convolution, 1, new.weight[:, :, None, None])
            if len(convolution['inputs']) > 2:
                self.set_value(convolution, 2, new.bias)
            else:
                convolution['inputs'].append(self._variable(f'{layer.stem}_bias', new.bias))
                convolution['attrs']['no_bias'] = 'False'
            return
        norm = self.nodes[layer.norm]
        scale = self.scale_of_norm(norm)
        weight = self.value(convolution, 1)
        told_apart = abs(scale) > 1e-12
        weight[told_apart] = (new.weight[told_apart] / scale[told_apart, None])[:, :, None, None]
        mean = weight[:, :, 0, 0] @ new.mean + self.bias(convolution)
        self.set_value(convolution, 1, weight)
        self.set_value(norm, 3, mean)
        self.set_value(norm, 2, new.bias + scale * (mean - self.bias(convolution)))

    def _pointwise(self, index, node, any_width):
        shape = self.params[self.input_name(node, 1)].shape[:2]
        source = self.nodes[node['inputs'][0][0]]
        while source['op'] in _BETWEEN:
            source = self.nodes[source['inputs'][0][0]]
        depthwise = (source['op'] == 'Convolution' and attributes(source, kernel=(), num_group=1, num_filter=0)
                     == [(3, 3), shape[1], shape[1]])
        own, plain = self.has_own_parameters(node), _is_plain(node)
        pair = depthwise and shape[0] == shape[1]
        skipped = (None if own and plain and (pair or any_width) else
                   'its input and output differ in width' if shape[0] != shape[1] and not any_width else
                   'no depthwise 3x3 convolution before it' if not pair and not any_width else
                   'its weight is used elsewhere too' if not own else
                   'its stride, padding or layout is not plain')
        return Pointwise(node['name'], index, self._norm_after(index), shape, own and plain, pair, skipped)

    def _norm_after(self, index):
        for number, node in enumerate(self.nodes):
            if (node['op'] == 'BatchNorm' and node['inputs'][0][0] == index and self.uses[index] == 1
                    and attributes(node, axis=1) == [1] and self.has_own_parameters(node)):
                return number
        return None

    def _convolution(self, name, data, matrix, bias=None, groups=1):
        """A 1x1 convolution with the weight ``matrix``, (outputs, inputs of a group)."""
        inputs = [data, self._variable(f'{name}_weight', matrix[:, :, None, None])]
        if bias is not None:
            inputs.append(self._variable(f'{name}_bias', bias))
        return self.add('Convolution', name, inputs, kernel=(1, 1), num_filter=len(matrix), num_group=groups,
                        no_bias=bias is None)

    def _variable(self, name, value):
        self.params[name] = mx.nd.array(value, ctx=self.context, dtype='float32')
        return self.add('null', name, [], __shape__=value.shape)

    def _put(self, layer, entry):
        """Whoever takes the output of the layer's last node takes that of ``entry``, the node added last."""
        self.nodes[layer.last] = self.nodes.pop(entry[0])


def _is_plain(node):
    stride, dilate, pad, layout = attributes(node, stride=(1, 1), dilate=(1, 1), pad=(0, 0), layout='None')
    return (stride, dilate, pad) == ((1, 1), (1, 1), (0, 0)) and layout in ('None', 'NCHW')
