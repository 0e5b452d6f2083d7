"""The exact re-parametrization: a trained network turned into a smaller and faster equal of itself.

Two rules rewrite its symbol; what fits neither of them stays as it is.

- *Batch normalization* after a convolution is, at inference, a scale and a shift of each channel:
  ``BN(W x) = (s W) x + (beta - s mean)`` with ``s = gamma / sqrt(variance + eps)``.
- *L2 normalization* of ``P2 P1 d`` over its channels, the LPR module's. In the thin QR decomposition
  ``P2 = Q R`` the columns of Q are orthonormal, so that ``q = (R P1) d`` is as long as ``P2 P1 d`` and
  ``P2 P1 d / sqrt(||P2 P1 d||^2 + eps) = Q (q / sqrt(||q||^2 + eps))``. The operator, its epsilon and all, moves
  from the m channels of P2's output to the r = m/8 of P1's; Q, the residual sum and the activation stand together
  then, and MXNet's fused backend makes them one convolution. R need not be invertible.

The new weights are computed in float64.
"""
import ast
import json
from collections import Counter

import mxnet as mx
import numpy as np
from mxnet.gluon import SymbolBlock

from ..blocks import normalize_in_rank_space
from ..errors import InputError

__all__ = ['deploy', 'reparametrize', 'trace']


def deploy(net, operators=False):
    """The same function as ``net`` at inference, with fewer and cheaper operators.

    Parameters
    ----------
    net : HybridBlock
        Initialized, in float32, with one NCHW input. Its parameters stay as they are; its LPR modules are left in
        the plain form (see :func:`gluon_lprnet.blocks.normalize_in_rank_space`).
    operators : bool, default False
        Run its modules in the operator library of :mod:`gluon_lprnet.deployment.operators`: faster, for CPUs alone, and
        compiled on first use.

    Returns
    -------
    SymbolBlock
        On the (first) device of ``net``, hybridized. For inference: there is nothing left in it that training needs.

    Raises
    ------
    InputError
        If a parameter is not float32, or if the operator library cannot be built.
    """
    symbol, params = reparametrize(*trace(net))
    if operators:
        from .operators import with_operators
        symbol, params = with_operators(symbol, params)
    block = as_block(symbol, params)
    block.hybridize(static_alloc=True, static_shape=True)
    return block


def as_block(symbol, params):
    """The SymbolBlock of a symbol with the input ``data`` and its parameters, on the device of these."""
    block = SymbolBlock(symbol, mx.sym.var('data', dtype='float32'))
    block.collect_params().load_dict(params, ctx=next(iter(params.values())).context)
    return block


def trace(net):
    """Symbol and parameters of a network.

    Parameters
    ----------
    net : HybridBlock
        As for :func:`deploy`.

    Returns
    -------
    tuple of (Symbol, dict of str to NDArray)
        The symbol, with the input ``data``, and its parameters and auxiliary states.

    Raises
    ------
    InputError
        If a parameter is not float32.
    """
    normalize_in_rank_space(net, False)
    # Four dimensions of any size: without them L2Normalization fails in optimize_for('MKLDNN', args=...).
    symbol = net(mx.sym.var('data', shape=(0, 0, 0, 0)))
    parameters = net.collect_params()
    params = {name: parameters[name].data(parameters[name].list_ctx()[0])
              for name in symbol.list_inputs() if name != 'data'}
    other = {np.dtype(value.dtype).name for value in params.values()} - {'float32'}
    if other:
        raise InputError(f"the network has parameters in {', '.join(sorted(other))}: call net.cast('float32') first.")
    return symbol, params


def reparametrize(symbol, params):
    """Apply the two rules of this module.

    Parameters
    ----------
    symbol : Symbol
    params : dict of str to NDArray
        Its parameters and auxiliary states.

    Returns
    -------
    tuple of (Symbol, dict of str to NDArray)
        The new symbol with the same inputs, and what it needs. Weights keep their names; the bias of a convolution
        gets the name of the shift (beta) that it takes the place of.
    """
    network = SymbolGraph(symbol, params)
    for index, node in enumerate(network.nodes):
        if node['op'] == 'BatchNorm':
            network.fold_batch_norm(node)
        elif node['op'] == 'L2Normalization':
            network.move_normalization(index)
    return network.result()


class SymbolGraph:
    """The nodes of a symbol's JSON, rewritten in place: those that fall out of use are dropped at the end."""

    def __init__(self, symbol, params):
        self.graph = json.loads(symbol.tojson())
        # The rules change how many outputs a node has, which this states; MXNet reads a symbol without it.
        del self.graph['node_row_ptr']
        self.nodes = self.graph['nodes']
        self.params = dict(params)
        self.uses = Counter(index for inputs in [self.graph['heads'], *(node['inputs'] for node in self.nodes)]
                            for index, *_ in inputs)

    def fold_batch_norm(self, norm):
        convolution = self._sole_convolution(norm)
        if convolution is None or attributes(norm, axis=1) != [1] or not self._has_own_parameters(norm):
            return
        weight, bias = self._folded(convolution, norm)
        self._set(convolution, 1, weight)
        self._set(norm, 2, bias)
        norm.update(op='Convolution', attrs={**convolution['attrs'], 'no_bias': 'False'},
                    inputs=convolution['inputs'][:2] + norm['inputs'][2:3])

    def move_normalization(self, index):
        norm = self.nodes[index]
        p2 = self._sole_convolution(norm)
        p1 = p2 and self._sole_convolution(p2)
        if not (attributes(norm, mode='instance') == ['channel'] and p1 and _is_matrix(p1) and _is_matrix(p2)):
            return
        matrix1, matrix2 = (self._value(convolution, 1)[:, :, 0, 0] for convolution in (p1, p2))
        q, r = np.linalg.qr(matrix2)
        self._set(p1, 1, (r @ matrix1)[:, :, None, None])
        self._set(p2, 1, q[:, :, None, None])
        p1['attrs']['num_filter'] = str(len(r))
        # The two nodes change places, so that who takes the normalized output takes P2's.
        between = norm['inputs'][0][0]
        self.nodes[between] = {**norm, 'inputs': p2['inputs'][:1]}
        self.nodes[index] = {**p2, 'inputs': norm['inputs'] + p2['inputs'][1:]}

    def result(self):
        symbol = mx.sym.load_json(json.dumps(self.graph))
        return symbol, {name: self.params[name] for name in symbol.list_inputs() if name in self.params}

    def _folded(self, convolution, norm):
        """Weight and bias, float64, of a convolution with the BatchNorm that follows it."""
        eps, fix_gamma = attributes(norm, eps=1e-3, fix_gamma=True)
        gamma, beta, mean, variance = (self._value(norm, slot) for slot in (1, 2, 3, 4))
        scale = (1 if fix_gamma else gamma) / np.sqrt(variance + eps)
        weight = self._value(convolution, 1)
        return weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1)), beta + (self._bias(convolution) - mean) * scale

    def _bias(self, convolution):
        return self._value(convolution, 2) if len(convolution['inputs']) > 2 else 0

    def _sole_convolution(self, node):
        """The convolution whose output ``node`` and nothing else takes, if its weights serve it alone; or None."""
        index = node['inputs'][0][0]
        source = self.nodes[index]
        if source['op'] == 'Convolution' and self.uses[index] == 1 and self._has_own_parameters(source):
            return source
        return None

    def _has_own_parameters(self, node):
        return all(self.uses[index] == 1 and self.nodes[index]['name'] in self.params
                   for index, *_ in node['inputs'][1:])

    def _name(self, node, slot):
        return self.nodes[node['inputs'][slot][0]]['name']

    def _value(self, node, slot):
        return self.params[self._name(node, slot)].asnumpy().astype('float64')

    def _set(self, node, slot, value):
        name = self._name(node, slot)
        # Gluon writes the shapes of its parameters into the symbol.
        self.nodes[node['inputs'][slot][0]].setdefault('attrs', {})['__shape__'] = str(value.shape)
        self.params[name] = mx.nd.array(value, ctx=self.params[name].context, dtype='float32')


def attributes(node, **defaults):
    """Values of a node's attributes, as a list in the order of ``defaults``."""
    found = node.get('attrs', {})
    return [type(default)(_literal(found[name])) if name in found else default
            for name, default in defaults.items()]


def _literal(text):
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def _is_matrix(convolution):
    """Whether it multiplies the channels of each position with one matrix, and does nothing else."""
    return attributes(convolution, kernel=(), num_group=1, no_bias=False) == [(1, 1), 1, True]
