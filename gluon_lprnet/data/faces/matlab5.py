"""Matrices of MATLAB files (``*.mat``, version 5, the default of MATLAB 5 to 7.2), read without trust.

``scipy.io.loadmat`` crashes on damaged files: a number that no type has is an index of its tables. The format is that
of "MAT-File Format" by The MathWorks, chapter 1.
"""
import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Union

import numpy as np

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_INT32, _INT8 = 5, 1
# By the number of a type of data; the numbers of the classes of arrays that are numeric: double, single and integers.
_DTYPES = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 9: 'f8', 12: 'i8', 13: 'u8'}
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x800
# In bytes, of a variable that is not compressed.
_LARGEST = 2**26


def read_matrices(path: Union[str, Path], names: Collection[str]) -> dict[str, np.ndarray]:
    """Numeric variables of a MATLAB file.

    Parameters
    ----------
    path : path
    names : collection of str
        Of the variables wanted; others are passed over.

    Returns
    -------
    dict of str to ndarray
        float64, of the variables that are there.

    Raises
    ------
    ValueError
        If the file is damaged, of another version, or a variable is not an array of real numbers; the message completes
        "the file ...".
    OSError
        If it cannot be read.
    """
    data = Path(path).read_bytes()
    order = {b'IM': '<', b'MI': '>'}.get(data[126:128])
    if len(data) < _HEADER or order is None or struct.unpack(order + 'H', data[124:126])[0] >> 8 != 1:
        raise ValueError('has no header of version 5 (save it with MATLAB\'s -v7 or -v6)')
    found = {}
    for kind, content in _elements(data[_HEADER:], order):
        if kind == _COMPRESSED:
            inside = list(_elements(_inflated(content), order))
            if len(inside) != 1:
                raise ValueError('is damaged (a compressed part is not one variable)')
            kind, content = inside[0]
        if kind == _MATRIX:
            name, values = _matrix(content, order, names)
            if values is not None:
                found[name] = values
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError('is cut off')
        kind, size = struct.unpack_from(order + 'II', data, at)
        # Up to four bytes stand in the tag itself, whose upper half is their number.
        small = kind >> 16
        start, kind, size = (at + 4, kind & 0xffff, small) if small else (at + 8, kind, size)
        if size > (4 if small else len(data) - start):
            raise ValueError('is cut off')
        yield kind, data[start:start + size]
        # Elements begin at multiples of 8, except after a compressed one.
        at = at + 8 if small else start + (size if kind == _COMPRESSED else -(-size // 8) * 8)


def _inflated(content: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(content, _LARGEST)
    except zlib.error as error:
        raise ValueError(f'is damaged ({error})') from error
    if inflate.unconsumed_tail or not inflate.eof:
        raise ValueError('is damaged (a variable is cut off, or larger than 64 MiB)')
    return data


def _matrix(content, order, names):
    """Name and values of an array; None for values that are not wanted."""
    parts = _elements(content, order)
    try:
        (_, flags), (kind, shape), (_, name) = (next(parts) for _ in range(3))
        flags, = struct.unpack_from(order + 'I', flags)
    except (StopIteration, RuntimeError, struct.error) as error:
        raise ValueError('is damaged (an array has no header)') from error
    name = name.decode('latin-1')
    if name not in names:
        return name, None
    shape = np.frombuffer(shape, order + 'i4').tolist() if kind == _INT32 and len(shape) % 4 == 0 else [-1]
    kind, values = next(parts, (0, b''))
    if flags & 0xff not in _NUMERIC_CLASSES or flags & _COMPLEX or kind not in _DTYPES:
        raise ValueError(f'has {name} that are not numbers')
    dtype = np.dtype(order + _DTYPES[kind])
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f'is damaged (the size of {name} is not that of its content)')
    return name, np.frombuffer(values, dtype).astype('float64').reshape(shape, order='F')
