"""The forms in which this machine can run an exported network, and the fastest of them.

They compute the same. MXNet runs a network operator by operator; with oneDNN's fusion, which is faster for most
networks and slower for some; or in the operator library (:mod:`gluon_lprnet.deployment.operators`), which takes whole
networks of some families and parts of others, and is then mostly the fastest. Which it is depends on the network and on
the machine: so it is measured where the network is loaded.

A model archive carries this module to the server, where there is no gluon_lprnet: what it imports goes along.
"""
import contextlib
import statistics
import time
from pathlib import Path
from typing import Union

import numpy as np

from .._compat import import_mxnet

import_mxnet()

import mxnet as mx  # noqa: E402  by what makes it importable

from ..deployment.operators import BACKEND, load_library  # noqa: E402
from ..utils.errors import InputError  # noqa: E402

__all__ = ['FORMS', 'Network', 'load_network']

# What a user asks for: the fastest, or one of the two kinds.
FORMS = ('auto', 'library', 'standard')
# By what a log calls it, the backends of `optimize_for` that make it, one after the other.
_PLAIN, _FUSED, _LIBRARY = 'MXNet', "MXNet's fusion", 'the operator library'
_FORMS = {_PLAIN: (), _FUSED: ('MKLDNN',), _LIBRARY: (BACKEND, 'MKLDNN')}
# Images in a pass. MXNet plans the memory of a pass for one number of images, and again for another; more than 8 at a
# time gain nothing on one thread.
_COUNTS = 8, 4, 2, 1
_ROUNDS = 9
# Of the largest output: sums in another order differ by 1e-6.
_TOLERANCE = 1e-3


class Network:
    """A network in one form.

    Parameters
    ----------
    report : str
        Which one in words, with the times it was chosen by.
    passes : dict of int to HybridBlock
        By the number of images of a pass, the largest first.
    """

    def __init__(self, report: str, passes: dict[int, mx.gluon.SymbolBlock]) -> None:
        self.report = report
        self._passes = passes

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """Outputs (N, outputs) for inputs (N, 3, size, size), both float32."""
        outputs, begin = [], 0
        for count, net in self._passes.items():
            while len(data) - begin >= count:
                # In the memory where it is, which nothing writes to meanwhile.
                images = mx.nd.from_numpy(np.ascontiguousarray(data[begin:begin + count]))
                outputs.append(net(images).asnumpy())
                begin += count
        return np.concatenate(outputs)


def load_network(prefix: Union[str, Path], input_size: int, form: str = 'auto') -> Network:
    """Load ``PREFIX-symbol.json`` and ``PREFIX-0000.params`` in one of their forms.

    Parameters
    ----------
    prefix : path
    input_size : int
        Height and width of the inputs, in pixels.
    form : str
        ``library``: in the operator library, as far as that takes the network; ``standard``: by MXNet alone; ``auto``:
        whichever is the fastest, and without a compiler by MXNet alone.

    Returns
    -------
    Network

    Raises
    ------
    InputError
        If ``form`` is ``library`` and the library cannot be built, or fails on the network.
    """
    missing = _load_library(form)
    symbol, data = mx.sym.load(f'{prefix}-symbol.json'), mx.sym.var('data', dtype='float32')
    noise = np.random.default_rng(0).normal(0, 1, (_COUNTS[0], 3, input_size, input_size)).astype('float32')

    def make(name, count):
        net = mx.gluon.SymbolBlock(symbol, data)
        # Of its own: MXNet's convolutions lay shared ones out anew for themselves, and others would do so in each pass.
        net.load_parameters(f'{prefix}-0000.params')
        net.hybridize(static_alloc=True, static_shape=True)
        images = mx.nd.array(noise[:count])
        # optimize_for() may take an array's memory from it while MXNet computes it.
        mx.nd.waitall()
        for backend in _FORMS[name]:
            net.optimize_for(images, backend=backend, static_alloc=True, static_shape=True)
        # Allocates, and chooses kernels: not at the expense of the first request.
        net(images).wait_to_read()
        return net

    image = mx.nd.array(noise[:1])
    nets = {_PLAIN: make(_PLAIN, 1)}
    expected = nets[_PLAIN](image).asnumpy()
    for name in {'library': [_LIBRARY], 'standard': [_FUSED]}.get(form, [_FUSED] if missing else [_FUSED, _LIBRARY]):
        # The fusion fails on some graphs. A form that computes something else is not one.
        with contextlib.suppress(mx.MXNetError):
            net = make(name, 1)
            if np.allclose(net(image).asnumpy(), expected, 0, _TOLERANCE * abs(expected).max(), equal_nan=True):
                nets[name] = net
    if form == 'library':
        if _LIBRARY not in nets:
            raise InputError(f'the operator library fails on {prefix}-symbol.json: take another form.')
        del nets[_PLAIN]
    times = _milliseconds({name: lambda net=net: net(image).wait_to_read() for name, net in nets.items()})
    fastest, *others = sorted(times, key=times.__getitem__)
    report = f'{fastest}: {times[fastest]:.1f} ms a picture' + ''.join(f', {name} {times[name]:.1f}' for name in others)
    return Network(report + (f'; {missing}' if missing else ''),
                   {count: make(fastest, count) if count > 1 else nets[fastest] for count in _COUNTS})


def _load_library(form):
    """Load the operator library if ``form`` has a use for it; why it is not there, if it need not be."""
    if form != 'standard':
        try:
            load_library()
        except InputError as error:
            if form == 'library':
                raise
            return str(error)
    return None


def _milliseconds(functions):
    """The time of each function on the processor, the median of calls that have their turns."""
    times = {name: [] for name in functions}
    for _ in range(_ROUNDS):
        for name, function in functions.items():
            # The one before has taken the cache.
            function()
            begin = time.process_time()
            function()
            times[name].append(1000 * (time.process_time() - begin))
    return {name: statistics.median(taken) for name, taken in times.items()}
