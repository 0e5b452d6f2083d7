"""A tensor in Torch7's binary serialization (``.t7``), as LS3D-W has its landmarks.

OpenCV's reader, which every installation has, ends the process or does not return on damaged files; so does what SciPy
and torchfile build on. The format, little-endian: an object is an int32 4, an int32 number and two strings (int32
length, then bytes), ``V 1`` and its class. A tensor is such an object with the number of its dimensions (int32), sizes,
strides and the offset of the first element, counted from 1 (int64 each), and its storage: another object, with the
number of elements (int64) and the elements.
"""
import math
import struct
from os import PathLike
from typing import Union

import numpy as np

_OBJECT = 4
_VERSION = b'V 1'
_TYPES = {b'Float': '<f4', b'Double': '<f8'}
_MOST_DIMENSIONS = 8
# 68 landmarks of an image have some 1 KB.
_MOST_BYTES = 1 << 24


def read_tensor(path: Union[str, 'PathLike[str]']) -> np.ndarray:
    """The tensor of floats or doubles in a file, float32 or float64.

    Raises
    ------
    ValueError
        If the file is not one whole tensor.
    OSError
        If it cannot be read.
    """
    with open(path, 'rb') as file:
        content = file.read(_MOST_BYTES)
    try:
        return _Reader(content).tensor()
    except struct.error:
        raise ValueError('it ends too early') from None


class _Reader:

    def __init__(self, content):
        self._content, self._position = content, 0

    def tensor(self):
        kind = self._class(b'Tensor')
        dimensions, = self._numbers('i', 1)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f'it has {dimensions} dimensions')
        sizes, strides = self._numbers('q', dimensions), self._numbers('q', dimensions)
        offset, = self._numbers('q', 1)
        if self._class(b'Storage') != kind:
            raise ValueError('its elements are of another type than it says')
        count, = self._numbers('q', 1)
        if not 0 < count <= (len(self._content) - self._position) // np.dtype(kind).itemsize:
            raise ValueError(f'it does not hold the {count} elements that it announces')
        elements = np.frombuffer(self._content, kind, count, self._position)
        # Python's whole numbers, which do not overflow.
        last = offset - 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides))
        if min(*sizes, *strides, offset) < 1 or last >= count or math.prod(sizes) > count:
            raise ValueError(f'its shape {sizes} does not fit its {count} elements')
        steps = [stride * elements.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(elements[offset - 1:], sizes, steps).copy()

    def _class(self, ending):
        kind, _ = self._numbers('i', 2)
        if kind != _OBJECT or self._text() != _VERSION:
            raise ValueError('an object of it is not a tensor')
        name = self._text()
        for prefix, dtype in _TYPES.items():
            if name == b'torch.' + prefix + ending:
                return dtype
        raise ValueError(f'it holds a {name[:40].decode("ascii", "replace")}, not floats or doubles')

    def _text(self):
        length, = self._numbers('i', 1)
        if not 0 <= length <= len(self._content) - self._position:
            raise ValueError('the length of a name is wrong')
        self._position += length
        return self._content[self._position - length:self._position]

    def _numbers(self, kind, count):
        values = struct.unpack_from(f'<{count}{kind}', self._content, self._position)
        self._position += struct.calcsize(f'<{count}{kind}')
        return values
