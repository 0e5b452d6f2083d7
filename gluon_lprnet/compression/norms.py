"""BatchNorm for the tuning of a network into whose convolutions it is folded.

Such a network trains badly: a step changes the scale of what all layers behind see. Here each convolution with a bias
gets one that changes nothing at first. :func:`gluon_lprnet.deployment.reparametrize.reparametrize` folds it in again.
"""
from collections.abc import Iterable
from typing import Any, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock

from ..graph import SymbolGraph, as_block, attributes, trace

__all__ = ['with_batch_norms']

_EPSILON = 1e-3
# Images are run so many at a time, since the outputs of all convolutions are held for them.
_BATCH = 16


def with_batch_norms(net: HybridBlock, batches: Iterable[mx.nd.NDArray]) -> SymbolBlock:
    """The same function at inference, with a BatchNorm for each convolution that has a bias.

    It stands behind the convolution or, as in an LPR module, behind the sum of that and another convolution. BatchNorms
    of fixed statistics (``use_global_stats``) follow their batches, too, from here on. Each of them gets the statistics
    of ``batches``, and the scale and shift with which it changes nothing.

    Parameters
    ----------
    net : HybridBlock
        Initialized, float32, with one NCHW input. It stays as it is.
    batches : iterable of NDArray
        Images (N, C, H, W) as in training.

    Returns
    -------
    SymbolBlock
        Hybridized.
    """
    graph = _Graph(*trace(net))
    norms = graph.norms()
    if norms:
        for norm, (mean, variance) in zip(norms, _statistics(graph, norms, batches)):
            graph.let_follow(norm, mean, variance)
    block = as_block(*graph.result())
    block.hybridize(static_alloc=True, static_shape=True)
    return block


class _Graph(SymbolGraph):

    def norms(self) -> list[dict[str, Any]]:
        """The BatchNorms that do not follow their batches yet; those that are missing are put in."""
        found = [node for node in self.nodes if node['op'] == 'BatchNorm' and self.has_own_parameters(node)
                 and attributes(node, use_global_stats=False, axis=1) == [True, 1]]
        missing = {self._without_norm(index): None for index in range(len(self.nodes))}
        return found + [self._put_norm_behind(index) for index in missing if index is not None]

    def let_follow(self, norm: dict[str, Any], mean: np.ndarray, variance: np.ndarray) -> None:
        """Give a BatchNorm these statistics, and let it compute what it computed."""
        (epsilon,) = attributes(norm, eps=_EPSILON)
        scale = self.scale_of_norm(norm)
        shift = self.value(norm, 2) - self.value(norm, 3) * scale
        for slot, value in enumerate((scale * np.sqrt(variance + epsilon), shift + mean * scale, mean, variance), 1):
            self.set_value(norm, slot, value)
        norm['attrs'].update(use_global_stats='False', fix_gamma='False')

    def _without_norm(self, index: int) -> Optional[int]:
        """The node that a BatchNorm is missing behind, if node ``index`` is a convolution with a bias."""
        node = self.nodes[index]
        if node['op'] != 'Convolution' or attributes(node, no_bias=False) != [False]:
            return None
        users = [number for number, other in enumerate(self.nodes)
                 if any(source == index for source, *_ in other['inputs'])]
        if self.uses[index] != 1 or len(users) != 1:
            return index
        user = self.nodes[users[0]]
        if user['op'] == 'BatchNorm':
            return None
        if user['op'] == 'elemwise_add' and all(self.sole_convolution(user, slot) for slot in range(2)):
            return users[0]
        return index

    def _put_norm_behind(self, index):
        node = self.nodes[index]
        convolution = node if node['op'] == 'Convolution' else self.nodes[node['inputs'][0][0]]
        (channels,) = attributes(convolution, num_filter=0)
        self.nodes.append(node)
        moved = [len(self.nodes) - 1, 0, 0]
        values = {'gamma': 1.0, 'beta': 0.0, 'moving_mean': 0.0, 'moving_var': 1 - _EPSILON}
        inputs = [moved]
        for part, value in values.items():
            name = f'{node["name"]}_norm_{part}'
            self.params[name] = mx.nd.full(channels, value, ctx=self.context)
            inputs.append(self.add('null', name, [], __shape__=(channels,)))
        self.nodes[index] = {'op': 'BatchNorm', 'name': f'{node["name"]}_norm', 'inputs': inputs,
                             'attrs': {'eps': str(_EPSILON), 'fix_gamma': 'False'}}
        return self.nodes[index]


def _statistics(graph, norms, batches):
    """Mean and variance of each channel of what the norms take in."""
    inputs = SymbolGraph(*graph.result())
    names = {norm['name'] for norm in norms}
    taken = {node['name']: node['inputs'][0] for node in inputs.nodes if node['name'] in names}
    inputs.graph['heads'] = [taken[norm['name']] for norm in norms]
    block = as_block(*inputs.result())
    sums, squares, count = [0.0] * len(norms), [0.0] * len(norms), [0] * len(norms)
    for batch in batches:
        for begin in range(0, len(batch), _BATCH):
            found = block(batch[begin:begin + _BATCH].as_in_context(graph.context))
            for number, values in enumerate(found if isinstance(found, list) else [found]):
                values = values.asnumpy().astype('float64')
                count[number] += values.size // values.shape[1]
                sums[number] = sums[number] + values.sum(axis=(0, 2, 3))
                squares[number] = squares[number] + np.square(values).sum(axis=(0, 2, 3))
    for total, square, positions in zip(sums, squares, count):
        mean = total / positions
        yield mean, np.maximum(square / positions - np.square(mean), 0)
