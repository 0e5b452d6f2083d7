"""The symbol and the parameters of an MXNet network, as files.

MXNet's own readers end the process on some damaged files and take others for sound. So a file's structure is checked
here before MXNet sees the symbol, and parameters are read by NumPy.
"""
import json
import re
import struct
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np

from ..graph import with_own_spelling
from ..utils.errors import InputError

__all__ = ['latest_params', 'read_bytes', 'read_json', 'read_params', 'read_symbol']

PathLike = Union[str, Path]

# By MXNet's numbers of types.
_TYPES = dict(enumerate(('float32', 'float64', 'float16', 'uint8', 'int32', 'int8', 'int64', 'bool', 'int16', 'uint16',
                         'uint32', 'uint64')))
_BFLOAT16 = 12

_LIST_MAGIC = 0x112
# Arrays of MXNet 0.12 and later, the same with NumPy's shapes, and of 0.9 to 0.11.
_SPARSE_MAGICS = (0xF993FAC9, 0xF993FACA)
_DENSE_MAGIC = 0xF993FAC8
_MAX_DIMENSIONS = 32

# Operators whose outputs after the first are used: by their number, where no attribute says it.
_OUTPUTS = {'BatchNorm': 3, 'Dropout': 2, 'L2Normalization': 2, 'LayerNorm': 3, 'RNN': 3, 'moments': 2, 'topk': 2}
_QUANTIZED = re.compile('_contrib_quantize|_contrib_requantize|_contrib_quantized_|_sg_mkldnn_')
_MAX_INDEX = 2 ** 31 - 1
# Of gluon_lprnet.deployment.operators.
_OF_LIBRARY = 'lprnet_network'
# What an operator divides by, or makes so many of: 0 or less ends the process.
_POSITIVE = ('kernel', 'stride', 'dilate', 'num_group', 'num_filter', 'num_hidden', 'num_outputs', 'output_size')


def read_bytes(path: PathLike) -> bytes:
    """The content of a regular file.

    Raises
    ------
    InputError
        If there is none, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f'{path} does not exist.')
    if not path.is_file():
        # A named pipe would be waited for.
        raise InputError(f'{path} is not a file.')
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}.') from error


def read_json(path: PathLike, kind: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    InputError
        If it does not hold one; the message calls the file a ``kind``.
    """
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}, {kind}, is not valid JSON: {error}.') from error
    if not isinstance(found, dict):
        raise InputError(f'{path}, {kind}, is not a JSON object.')
    return found


def latest_params(symbol_path: PathLike) -> Path:
    """``NAME-NNNN.params`` beside ``NAME-symbol.json``, of the highest number where there are several.

    Raises
    ------
    InputError
        If there is none.
    """
    path = Path(symbol_path)
    prefix = path.name[:-len('-symbol.json')]
    numbered = ((re.fullmatch(re.escape(prefix) + r'-(\d{4,})\.params', file.name), file)
                for file in path.parent.iterdir())
    found = [(int(match[1]), file) for match, file in numbered if match]
    if not found:
        raise InputError(f'{path}: no {prefix}-NNNN.params beside it.')
    return max(found)[1]


def read_symbol(path: PathLike) -> mx.sym.Symbol:
    """The symbol in a ``-symbol.json`` file of any version of MXNet.

    Raises
    ------
    InputError
        If there is none, or it is damaged, or of operators that are not loaded.
    """
    graph = read_json(path, 'the symbol of a network')
    fault = _fault_of(graph)
    if fault:
        raise InputError(f'{path} is not the symbol of an MXNet network: {fault}.')
    if not hasattr(mx.sym, _OF_LIBRARY) and any(node['op'] == _OF_LIBRARY for node in graph['nodes']):
        raise InputError(f'{path} is for the operator library, which the commands do not load: run it in Python, after '
                         'gluon_lprnet.deployment.operators.load_library(), or give them another form of the network.')
    try:
        return with_own_spelling(mx.sym.load_json(json.dumps(graph, ensure_ascii=False)))
    except (mx.MXNetError, UnicodeEncodeError) as error:
        raise InputError(f'{path} is not a symbol that MXNet {mx.__version__} can load: {last_line(error)}') from error


def last_line(error: Exception) -> str:
    """The last line of an error's message: MXNet puts its stack before it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _fault_of(graph: dict[str, Any]) -> Optional[str]:
    """What is wrong with the structure of a symbol's JSON."""
    nodes = graph.get('nodes')
    if not isinstance(nodes, list) or not nodes:
        return 'it has no list "nodes"'
    variables = set()
    for index, node in enumerate(nodes):
        if not isinstance(node, dict) or not isinstance(node.get('op'), str) or not isinstance(node.get('name'), str):
            return f'node {index} has no "op" or no "name"'
        if not _are_entries(node.get('inputs'), nodes[:index]):
            return f'node {index}, {node["name"]!r}, has inputs that do not come before it'
        for key in ('attrs', 'attr', 'param'):
            attributes = node.get(key, {})
            if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
                return f'the attributes of node {index}, {node["name"]!r}, are not text'
            bad = [name for name in _POSITIVE if not _is_positive(attributes.get(name, '1'))]
            if bad and node['op'] != 'null':
                return f'node {index}, {node["name"]!r}, has the {bad[0]} {attributes[bad[0]]!r}'
        if node['op'] == 'null':
            if node['inputs']:
                return f'the variable {node["name"]!r} has inputs'
            if node['name'] in variables:
                return f'there are two variables of the name {node["name"]!r}'
            variables.add(node['name'])
        elif not node['inputs'] and not node['op'].startswith('_'):
            return f'node {index}, {node["name"]!r}, has no inputs'
    indices = graph.get('arg_nodes')
    if not isinstance(indices, list) or not all(_is_index(each, nodes) and nodes[each]['op'] == 'null'
                                                for each in indices):
        return '"arg_nodes" does not list variables'
    if not graph.get('heads') or not _are_entries(graph['heads'], nodes):
        return '"heads", its outputs, are not outputs of its nodes'
    return None


def _are_entries(entries, nodes):
    """Whether these are references to outputs of these nodes: [node, output] or [node, output, version]."""
    return isinstance(entries, list) and all(
        isinstance(entry, list) and len(entry) in (2, 3) and all(type(each) is int for each in entry)
        and 0 <= entry[0] < len(nodes) and 0 <= entry[1] < _outputs_of(nodes[entry[0]])
        and 0 <= entry[-1] <= _MAX_INDEX for entry in entries)


def _is_index(number, nodes):
    return type(number) is int and 0 <= number < len(nodes)


def _outputs_of(node):
    """The number of a node's outputs that others may use."""
    attributes = {**node.get('param', {}), **node.get('attr', {}), **node.get('attrs', {})}
    if node['op'] == '_split_v2':
        # Either so many sections, or the places where they begin.
        numbers = {key: re.findall('[0-9]+', attributes.get(key, '')) for key in ('sections', 'indices')}
        return max([*map(int, numbers['sections']), len(numbers['indices'])])
    if 'num_outputs' in attributes:
        return int(re.sub('[^0-9]', '', attributes['num_outputs']) or 1)
    return 3 if _QUANTIZED.match(node['op']) else _OUTPUTS.get(node['op'], 1)


def _is_positive(text):
    """Whether an attribute is a number, or a tuple of numbers, of at least 1; or None."""
    numbers = [part.strip() for part in text.strip('()[] ').split(',')]
    # Python 2 wrote 3L.
    return text == 'None' or all(re.fullmatch('0*[1-9][0-9]{0,8}L?', number) for number in numbers if number)


def read_params(path: PathLike) -> dict[str, np.ndarray]:
    """The parameters and auxiliary states in a ``.params`` file of any version of MXNet, by name, on the CPU.

    Raises
    ------
    InputError
        If there is none; if it is damaged or cut off; if it has sparse arrays, arrays without names, NaN or infinity.
    """
    data = read_bytes(path)
    try:
        reader = _Reader(data)
        if reader.number('<Q') != _LIST_MAGIC:
            raise InputError(f'{path} is not a file of parameters of MXNet.')
        reader.number('<Q')
        # Counts are bounded by what is left of the file.
        arrays = [_read_array(reader) for _ in range(reader.count(8))]
        names = [reader.take(reader.count(1)).decode() for _ in range(reader.count(8))]
    except (struct.error, _Damaged, UnicodeDecodeError, MemoryError) as error:
        raise InputError(f'{path} is damaged or cut off: {error}.') from error
    if len(set(names)) != len(arrays) or len(names) != len(arrays) or reader.left:
        raise InputError(f'{path} is damaged: it has {len(arrays)} arrays, {len(set(names))} names and {reader.left} '
                         'bytes more.')
    params = {re.sub('^(arg|aux):', '', name): array for name, array in zip(names, arrays)}
    for name, array in params.items():
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise InputError(f'{path}: the parameter {name} is NaN or infinite; take an earlier file.')
    return params


class _Damaged(Exception):
    """What is wrong with the file."""


class _Reader:
    """Takes numbers and bytes from the front."""

    def __init__(self, data):
        self._data, self._position = data, 0

    @property
    def left(self):
        return len(self._data) - self._position

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, size):
        """How many things follow, each of at least ``size`` bytes."""
        count = self.number('<Q')
        if count > self.left // size:
            raise _Damaged(f'it says that {count} things follow, and has {self.left} bytes left')
        return count

    def take(self, size):
        if size > self.left:
            raise _Damaged(f'it ends {size - self.left} bytes too early')
        self._position += size
        return self._data[self._position - size:self._position]


def _read_array(reader):
    """An array as MXNet's ``NDArray::Save`` writes it."""
    magic = reader.number('<I')
    if magic in _SPARSE_MAGICS:
        if reader.number('<i') != 0:
            raise _Damaged('it has a sparse array')
        dimensions, form = reader.number('<i'), '<q'
    elif magic == _DENSE_MAGIC:
        dimensions, form = reader.number('<I'), '<q'
    else:
        # Before 0.9, the number of dimensions came first.
        dimensions, form = magic, '<I'
    if not 0 < dimensions <= _MAX_DIMENSIONS:
        raise _Damaged(f'an array has {dimensions} dimensions')
    shape = [reader.number(form) for _ in range(dimensions)]
    # The device that it was on.
    reader.take(8)
    kind = reader.number('<i')
    if min(shape) < 1 or kind not in (*_TYPES, _BFLOAT16):
        raise _Damaged(f'an array has the shape {tuple(shape)} and the type {kind}')
    # Python's numbers: those of a damaged file may be too long for NumPy's.
    size = 1
    for length in shape:
        size *= length
    if kind == _BFLOAT16:
        # The upper half of a float32.
        upper = np.frombuffer(reader.take(2 * size), '<u2').astype('<u4')
        return (upper << 16).view('float32').reshape(shape)
    dtype = np.dtype(_TYPES[kind])
    return np.frombuffer(reader.take(dtype.itemsize * size), dtype.newbyteorder('<')).astype(dtype).reshape(shape)
