"""The base of every network of the zoo: features, followed by an output layer."""
from typing import Any, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..utils.errors import InputError


class Network(HybridBlock):
    """``features`` up to the pooled channels, then the fully connected ``output``; the names are GluonCV's."""

    features: nn.HybridSequential
    output: nn.Dense

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.output(self.features(x))

    def reset_class(self, classes: int, initializer: Optional[mx.init.Initializer] = None) -> None:
        """Give the network a new output layer, for other classes or another task.

        Parameters
        ----------
        classes : int
            Outputs of the new layer.
        initializer : mx.init.Initializer, optional
            For its weights (default: Xavier); the biases start at 0.

        Raises
        ------
        InputError
            If ``classes`` is not a positive whole number, or the network is not initialized.
        """
        if not isinstance(classes, int) or classes < 1:
            raise InputError(f'classes must be a positive whole number, not {classes!r}.')
        weight = self.output.weight
        try:
            contexts = weight.list_ctx()
        except RuntimeError as error:
            raise InputError('reset_class needs a network with weights: initialize it or load them first.') from error
        with self.name_scope():
            self.output = nn.Dense(classes, in_units=weight.shape[1], dtype=weight.dtype)
        self.output.initialize(initializer or mx.init.Xavier(), ctx=contexts)


def values_of(parameter: mx.gluon.Parameter) -> np.ndarray:
    """Those on the first device; all have the same."""
    return parameter.list_data()[0].asnumpy()


def copy_parameters(source: HybridBlock, target: HybridBlock) -> None:
    """Give a block the values of another one that is built alike."""
    for ours, theirs in zip(source.collect_params().values(), target.collect_params().values()):
        theirs.set_data(mx.nd.array(values_of(ours)))
