"""An exponential moving average of a network's weights, which is kept and evaluated in their place."""
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mxnet as mx
from mxnet.gluon.block import HybridBlock

from .distributed import Workers


class WeightAverage:
    """The average of the parameters of ``net``, running statistics included, in float32.

    Parameters
    ----------
    net : HybridBlock
        On several devices the first one's values are averaged.
    decay : float
        Part of itself that the average holds on to at each update, once there have been some.
    """

    def __init__(self, net: HybridBlock, decay: float) -> None:
        self._net = net
        self._decay = decay
        self._values: dict[str, mx.nd.NDArray] = {}

    def start(self) -> None:
        """Begin with the weights that the network has now."""
        self._values = {name: value.astype('float32') for name, value in self._weights()}

    def update(self, step: int) -> None:
        """Take the weights after update number ``step``, counted from 1, into the average."""
        if not self._values:
            self.start()
        # The first steps count for more than they would: they begin at random weights.
        decay = min(self._decay, step / (step + 9))
        for name, value in self._weights():
            average = self._values[name]
            # In this form what stays the same keeps its last bit.
            average += (1 - decay) * (value.astype('float32', copy=False) - average)

    def average_statistics(self, workers: Workers) -> None:
        """Take the mean of the workers' running statistics; of the weights they all have the same average."""
        values = [self._values[name] for name, parameter in self._net.collect_params().items()
                  if parameter.grad_req == 'null' and self._values]
        for value, mean in zip(values, workers.average([value.asnumpy() for value in values])):
            value[:] = mean

    def take(self) -> None:
        """Give the network the average."""
        self._set(self._values)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A context in which the network has the average."""
        trained = {name: value.copy() for name, value in self._weights()}
        self.take()
        try:
            yield
        finally:
            self._set(trained)

    def _weights(self) -> list[tuple[str, mx.nd.NDArray]]:
        return [(name, parameter.list_data()[0]) for name, parameter in self._net.collect_params().items()]

    def _set(self, values: Mapping[str, mx.nd.NDArray]) -> None:
        for name, parameter in self._net.collect_params().items():
            parameter.set_data(values[name].astype(parameter.dtype))
