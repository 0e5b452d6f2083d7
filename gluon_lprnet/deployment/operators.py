"""The deployed form with a custom operator library: one operator per module of the network.

MXNet runs an LPR module as five operators, each of which reads and writes its feature map, and oneDNN and
L2Normalization want it in different layouts. In ``operators.cc`` an LPR module and a depthwise separable module are
one operator each: a strip of the depthwise convolution's output stays in cache until the module's output is written,
in a layout shared by all of them. MXNet loads the library through its extension interface, ``mx.library.load``.

The library is compiled once on the machine it runs on, for its processor, by g++ (or the compiler in ``CXX``).
"""
import hashlib
import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np

from ..graph import SymbolGraph, attributes
from ..utils.errors import InputError
from ..utils.files import whole

__all__ = ['build_library', 'load_library', 'with_operators']

SOURCE = Path(__file__).with_name('operators.cc')
# -Bsymbolic: the library calls its own functions. Horovod's, which is loaded for all to see, has some of the same names
# with other classes behind them.
FLAGS = ['-std=c++11', '-O3', '-march=native', '-fopenmp', '-shared', '-fPIC', '-Wl,-Bsymbolic']

# Channels of a feature map that are stored together.
BLOCK = 16


def build_library() -> Path:
    """Compile the operator library unless it has been compiled before.

    Returns
    -------
    Path
        The shared object, in ``gluon_lprnet`` below ``XDG_CACHE_HOME`` (by default ``~/.cache``). Its name contains
        a digest of source, compiler, flags and processor, so a change of any of these gives another file.

    Raises
    ------
    InputError
        If there is no compiler, if it fails, or if the folder cannot be written to.
    """
    compiler = shlex.split(os.environ.get('CXX', 'g++'))
    mxnet = Path(mx.__file__).parent
    sources = [SOURCE, mxnet / 'src' / 'lib_api.cc']
    try:
        # What -march=native resolves to identifies the processor.
        target = subprocess.run([*compiler, '-march=native', '-Q', '--help=target'], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, check=True).stdout
        version = subprocess.run([*compiler, '--version'], stdout=subprocess.PIPE, check=True).stdout
        made_of = [target, version, shlex.join(FLAGS).encode(), *(path.read_bytes() for path in sources)]
        digest = hashlib.sha256(b''.join(made_of)).hexdigest()[:16]
        folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'gluon_lprnet'
        library = folder / f'operators-{digest}.so'
        if not library.exists():
            with whole(library) as built:
                subprocess.run([*compiler, *FLAGS, f'-I{mxnet / "include"}', *map(str, sources), '-o', str(built)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f'{shlex.join(compiler)} cannot compile the operator library:\n'
                         f'{(error.stdout or b"").decode(errors="replace")[-2000:]}') from error
    except OSError as error:
        raise InputError(f'the operator library cannot be built ({error.filename}: {error.strerror}). It needs g++ (or '
                         'the compiler in CXX) and a cache folder; the standard form needs neither.') from error
    return library


def load_library() -> None:
    """Load the operators into MXNet, compiling them if necessary, before a symbol that uses them is loaded.

    Raises
    ------
    InputError
        As of :func:`build_library`.
    """
    if not hasattr(mx.sym, 'lprnet_separable'):
        mx.library.load(str(build_library()), verbose=False)


def with_operators(symbol: mx.sym.Symbol,
                   params: Mapping[str, mx.nd.NDArray]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Replace the modules of a deployed network by the library's operators.

    These are LPR modules with normalization and residual, depthwise separable ones, the 3x3 convolution before such
    a module and the global average pooling after one. Everything else is left unchanged.

    Parameters
    ----------
    symbol : Symbol
        From :func:`gluon_lprnet.deployment.reparametrize.reparametrize`.
    params : dict of str to NDArray

    Returns
    -------
    tuple of (Symbol, dict of str to NDArray)
        Weights keep their names and get the shapes that ``operators.cc`` expects.

    Raises
    ------
    InputError
        As of :func:`build_library`.
    """
    load_library()
    return Rewriting(symbol, params).result()


class Module(NamedTuple):
    """An operator of the library for some nodes of the graph: ``source`` is the node whose output it takes,
    ``parameters`` are (node, slot, function from the node's array to the operator's)."""

    operator: str
    attributes: dict
    source: int
    channels: int
    parameters: list


class Rewriting(SymbolGraph):
    """A copy of the graph, node by node: feature maps between the library's operators are blocked, others plain."""

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray]) -> None:
        super().__init__(symbol, params)
        activations = [index for index, node in enumerate(self.nodes)
                       if node['op'] == 'Activation' and attributes(node, act_type='') == ['relu']]
        self.modules = {index: self._separable(index) or self._lpr(index) for index in activations}
        users = Counter(module.source for module in self.modules.values() if module)
        for index in activations:
            # Worthwhile only if nothing else uses its output.
            if not self.modules[index] and 0 < users[index] == self.uses[index]:
                self.modules[index] = self._convolution(index)
        for module in filter(None, self.modules.values()):
            for node, slot, pack in module.parameters:
                self.set_value(node, slot, pack(self.value(node, slot)))
        self.copies: list[dict[str, Any]] = []
        self.plain: dict[int, int] = {}
        self.blocked: dict[int, int] = {}
        for index, node in enumerate(self.nodes):
            module = self.modules.get(index)
            if _is_global_average(node) and self.modules.get(node['inputs'][0][0]):
                self.plain[index] = self._to_plain('lprnet_pool', node['name'], node['inputs'][0][0])
            elif module:
                take = self._plain if module.operator == 'lprnet_convolution' else self._blocked
                self.blocked[index] = self._new(
                    module.operator, node['name'], module.attributes, take(module.source),
                    *(self._plain(owner['inputs'][slot][0]) for owner, slot, _ in module.parameters))
            else:
                self.plain[index] = self._append(dict(node, inputs=[self._copied(entry) for entry in node['inputs']]))
        self.graph.update(nodes=self.copies, heads=[self._copied(entry) for entry in self.graph['heads']],
                          arg_nodes=[index for index, node in enumerate(self.copies) if node['op'] == 'null'])

    def _append(self, node):
        self.copies.append(node)
        return len(self.copies) - 1

    def _new(self, operator, name, attrs, *inputs):
        return self._append({'op': operator, 'name': name, 'attrs': attrs,
                             'inputs': [[index, 0, 0] for index in inputs]})

    def _to_plain(self, operator, name, module):
        return self._new(operator, name, {'channels': str(self.modules[module].channels)}, self.blocked[module])

    def _copied(self, entry):
        return [self._plain(entry[0]), *entry[1:]]

    def _plain(self, index):
        """The copy of a node's output in the plain layout."""
        if index not in self.plain:
            self.plain[index] = self._to_plain('lprnet_unblock', self.nodes[index]['name'] + '_plain', index)
        return self.plain[index]

    def _blocked(self, index):
        """The copy of a node's output in the blocked layout."""
        if index not in self.blocked:
            self.blocked[index] = self._new('lprnet_block', self.nodes[index]['name'] + '_blocked', {},
                                            self._plain(index))
        return self.blocked[index]

    def _separable(self, index):
        """The depthwise separable module that ends with an activation, or None."""
        pointwise = self.sole_convolution(self.nodes[index])
        if not pointwise or not _is_pointwise(pointwise, no_bias=False):
            return None
        between = self.nodes[pointwise['inputs'][0][0]]
        if between['op'] != 'Activation' or attributes(between, act_type='') != ['relu']:
            return None
        depthwise = self.sole_convolution(between)
        if self.uses[pointwise['inputs'][0][0]] != 1 or not depthwise or not _is_depthwise(depthwise):
            return None
        return Module('lprnet_separable', {'stride': _stride(depthwise)}, depthwise['inputs'][0][0],
                      _channels(pointwise), [(depthwise, 1, depthwise_blocks), (depthwise, 2, vector_blocks),
                                             (pointwise, 1, matrix_blocks), (pointwise, 2, vector_blocks)])

    def _lpr(self, index):
        """The LPR module, with normalization and residual, that ends with an activation, or None."""
        total, = (self.nodes[entry[0]] for entry in self.nodes[index]['inputs'])
        if total['op'] != 'elemwise_add' or self.uses[self.nodes[index]['inputs'][0][0]] != 1:
            return None
        p2 = self.sole_convolution(total)
        norm = p2 and self.nodes[p2['inputs'][0][0]]
        if not p2 or norm['op'] != 'L2Normalization' or attributes(norm, mode='instance') != ['channel']:
            return None
        p1 = self.sole_convolution(norm)
        residual = total['inputs'][1][0]
        depthwise = self.nodes[residual]
        if not (self.uses[p2['inputs'][0][0]] == 1 and p1 and p1['inputs'][0][0] == residual
                and self.uses[residual] == 2 and depthwise['op'] == 'Convolution' and _is_depthwise(depthwise)
                and self.has_own_parameters(depthwise) and _stride(depthwise) == '1'
                and _is_pointwise(p1, no_bias=True) and _is_pointwise(p2, no_bias=True)):
            return None
        eps, = attributes(norm, eps=1e-10)
        return Module('lprnet_separable', {'stride': '1', 'eps': str(eps)}, depthwise['inputs'][0][0], _channels(p2),
                      [(depthwise, 1, depthwise_blocks), (depthwise, 2, vector_blocks), (p1, 1, matrix_blocks),
                       (p2, 1, matrix_blocks)])

    def _convolution(self, index):
        """The 3x3 convolution that ends with an activation, or None."""
        convolution = self.sole_convolution(self.nodes[index])
        if not convolution or not _is_3x3(convolution) or attributes(convolution, num_group=1) != [1]:
            return None
        return Module('lprnet_convolution', {'stride': _stride(convolution)}, convolution['inputs'][0][0],
                      _channels(convolution), [(convolution, 1, convolution_blocks), (convolution, 2, vector_blocks)])


def _is_pointwise(convolution, no_bias):
    return attributes(convolution, kernel=(), stride=(1, 1), pad=(0, 0), num_group=1, no_bias=False) == [
        (1, 1), (1, 1), (0, 0), 1, no_bias]


def _is_3x3(convolution):
    return attributes(convolution, kernel=(), pad=(0, 0), dilate=(1, 1), no_bias=False) == [
        (3, 3), (1, 1), (1, 1), False] and attributes(convolution, stride=(1, 1)) in ([(1, 1)], [(2, 2)])


def _is_depthwise(convolution):
    groups, = attributes(convolution, num_group=1)
    return _is_3x3(convolution) and groups == _channels(convolution) > 1


def _is_global_average(node):
    return node['op'] == 'Pooling' and attributes(node, pool_type='max', global_pool=False) == ['avg', True]


def _stride(convolution):
    (stride, _), = attributes(convolution, stride=(1, 1))
    return str(stride)


def _channels(convolution):
    channels, = attributes(convolution, num_filter=0)
    return channels


def _padded(array, axis):
    """Pad an axis with zeros at its end, up to a multiple of BLOCK."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % BLOCK)
    return np.pad(array, widths)


def vector_blocks(vector: np.ndarray) -> np.ndarray:
    return _padded(vector, 0).reshape(-1, BLOCK)


def matrix_blocks(weight: np.ndarray) -> np.ndarray:
    """A weight of (rows, ...) as blocks of rows, each column by column."""
    matrix = _padded(_padded(weight.reshape(len(weight), -1), 0), 1)
    return matrix.reshape(-1, BLOCK, matrix.shape[1]).transpose(0, 2, 1)


def convolution_blocks(weight: np.ndarray) -> np.ndarray:
    """A 3x3 convolution as blocks: the columns run over kernel row, channel and kernel column."""
    return matrix_blocks(weight.transpose(0, 2, 1, 3))


def depthwise_blocks(weight: np.ndarray) -> np.ndarray:
    """Blocks of channels, each tap by tap."""
    return _padded(weight, 0).reshape(-1, BLOCK, 9).transpose(0, 2, 1)
