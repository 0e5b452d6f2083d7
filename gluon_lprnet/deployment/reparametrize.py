"""The exact re-parametrization: a trained network turned into a smaller and faster one that computes the same.

Four rules rewrite its symbol; whatever fits none of them is left unchanged.

- *Batch normalization* after a convolution is, at inference, a scale and a shift of each channel:
  ``BN(W x) = (s W) x + (beta - s mean)`` with ``s = gamma / sqrt(variance + eps)``. After the sum of two convolutions,
  one of which has a bias, it is the same of both.
- *L2 normalization* of ``P2 P1 d`` over its channels, the LPR module's. In the thin QR decomposition
  ``P2 = Q R`` the columns of Q are orthonormal, so ``q = (R P1) d`` has the same norm as ``P2 P1 d`` and
  ``P2 P1 d / sqrt(||P2 P1 d||^2 + eps) = Q (q / sqrt(||q||^2 + eps))``. The operator, including its epsilon,
  moves from the m channels of P2's output to the r = m/8 channels of P1's. Q, the residual sum and the activation are
  then adjacent, and MXNet's fused backend turns them into one convolution. R need not be invertible.
- *One learned number* that multiplies a convolution's output, such as the scale of LPR's normalization, is multiplied
  into its weights.
- *Irregular kernels* become squares: :mod:`gluon_lprnet.deployment.square_kernels`.

The new weights are computed in float64.
"""
from collections.abc import Mapping

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock

from ..graph import SymbolGraph, as_block, attributes, trace
from .operators import BACKEND, load_library
from .square_kernels import with_square_kernels

__all__ = ['deploy', 'reparametrize']


def deploy(net: HybridBlock, operators: bool = False) -> SymbolBlock:
    """The same function as ``net`` at inference, with fewer and cheaper operators.

    Parameters
    ----------
    net : HybridBlock
        Initialized, in float32, with one NCHW input. It stays as it is, and can be trained on.
    operators : bool, default False
        Run it in the operator library of :mod:`gluon_lprnet.deployment.operators`, whole or in its largest parts:
        faster, for CPUs only, and compiled on first use.

    Returns
    -------
    SymbolBlock
        On the (first) device of ``net``, hybridized. For inference only: what training needs is gone.

    Raises
    ------
    InputError
        If a parameter is not float32, or if the operator library cannot be built.
    """
    symbol, params = reparametrize(*trace(net))
    block = as_block(symbol, params)
    if operators:
        load_library()
    # MXNet partitions the graph in the first pass, when it knows the shapes.
    block.hybridize(backend=BACKEND if operators else None, static_alloc=True, static_shape=True)
    if operators:
        # What as_block() says of the parameters goes for the input of that pass too.
        block.register_forward_pre_hook(_wait_for_inputs)
    return block


def _wait_for_inputs(block, inputs):
    for value in inputs:
        if isinstance(value, mx.nd.NDArray):
            value.wait_to_read()


def reparametrize(symbol: mx.sym.Symbol,
                  params: Mapping[str, mx.nd.NDArray]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Apply the rules of this module.

    Parameters
    ----------
    symbol : Symbol
    params : dict of str to NDArray
        Its parameters and auxiliary states.

    Returns
    -------
    tuple of (Symbol, dict of str to NDArray)
        The new symbol with the same inputs, and the parameters it needs. Weights keep their names; the bias of a
        convolution gets the name of the shift (beta) that it replaces.
    """
    network = _Rules(*with_square_kernels(symbol, params))
    for index, node in enumerate(network.nodes):
        if node['op'] == 'BatchNorm':
            network.fold_batch_norm(node)
        elif node['op'] == 'L2Normalization':
            network.move_normalization(index)
        elif node['op'] == 'broadcast_mul':
            network.fold_scale(node)
    return network.result()


class _Rules(SymbolGraph):

    def fold_batch_norm(self, norm):
        if attributes(norm, axis=1) != [1] or not self.has_own_parameters(norm):
            return
        convolution = self.sole_convolution(norm)
        if convolution is None:
            self._fold_into_sum(norm)
            return
        weight, bias = self.folded_weights(convolution, norm)
        self.set_value(convolution, 1, weight)
        self.set_value(norm, 2, bias)
        norm.update(op='Convolution', attrs={**convolution['attrs'], 'no_bias': 'False'},
                    inputs=convolution['inputs'][:2] + norm['inputs'][2:3])

    def _fold_into_sum(self, norm):
        index = norm['inputs'][0][0]
        total = self.nodes[index]
        if total['op'] != 'elemwise_add' or self.uses[index] != 1:
            return
        convolutions = [self.sole_convolution(total, slot) for slot in range(len(total['inputs']))]
        shifted = next((each for each in convolutions if each and len(each['inputs']) > 2), None)
        if None in convolutions or shifted is None:
            return
        scale = self.scale_of_norm(norm)
        shift = self.value(norm, 2) - self.value(norm, 3) * scale
        for each in convolutions:
            weight = self.value(each, 1)
            self.set_value(each, 1, weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1)))
            if len(each['inputs']) > 2:
                self.set_value(each, 2, self.bias(each) * scale + (shift if each is shifted else 0))
        norm.update(op=total['op'], attrs=total.get('attrs', {}), inputs=total['inputs'])

    def move_normalization(self, index):
        norm = self.nodes[index]
        p2 = self.sole_convolution(norm)
        p1 = p2 and self.sole_convolution(p2)
        if not (attributes(norm, mode='instance') == ['channel'] and p1 and _is_matrix(p1) and _is_matrix(p2)):
            return
        matrix1, matrix2 = (self.value(convolution, 1)[:, :, 0, 0] for convolution in (p1, p2))
        q, r = np.linalg.qr(matrix2)
        self.set_value(p1, 1, (r @ matrix1)[:, :, None, None])
        self.set_value(p2, 1, q[:, :, None, None])
        p1['attrs']['num_filter'] = str(len(r))
        # The two nodes change places: users of the normalized output now use that of P2.
        between = norm['inputs'][0][0]
        self.nodes[between] = {**norm, 'inputs': p2['inputs'][:1]}
        self.nodes[index] = {**p2, 'inputs': norm['inputs'] + p2['inputs'][1:]}

    def fold_scale(self, product):
        convolution = self.sole_convolution(product)
        if convolution is None or not self.has_own_parameters(product) or self.value(product, 1).size != 1:
            return
        for slot in range(1, len(convolution['inputs'])):
            self.set_value(convolution, slot, self.value(convolution, slot) * self.value(product, 1).item())
        product.update(op='Convolution', attrs=convolution['attrs'], inputs=convolution['inputs'])


def _is_matrix(convolution):
    """Whether it multiplies the channels of each position by one matrix, and does nothing else."""
    return attributes(convolution, kernel=(), num_group=1, no_bias=False) == [(1, 1), 1, True]
