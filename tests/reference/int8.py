"""8 bits in NumPy, in the order of arithmetic that the operator library states: equal to the last bit on any processor.

Sums of products are integers. What becomes of them is float32, one operation after the other, rounded half to even.
"""
import ast
import json
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

F = np.float32
ONE = F(1)


@dataclass
class Whole:
    """Whole numbers, and the step that they count."""
    values: np.ndarray
    step: np.float32


@dataclass
class Sums:
    """A layer in 8 bits before its output is rounded: integers, and by channel the step of a sum and the bias."""
    values: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    addend: Optional[Whole] = None
    low: float = -np.inf
    high: float = np.inf

    def output(self, step=ONE, low=None, high=None):
        """In steps, from low to high of them."""
        shape = (1, -1) + (1,) * (self.values.ndim - 2)
        found = self.values.astype(F) * (self.steps / step).reshape(shape) + (self.bias / step).reshape(shape)
        if self.addend is not None:
            found = found + self.addend.values.astype(F) * (self.addend.step / step)
        assert found.dtype == F
        if low is None:
            return np.clip(found, F(self.low), F(self.high))
        return np.rint(np.clip(found, max(low, np.rint(F(self.low) / step)), min(high, np.rint(F(self.high) / step))))


@dataclass
class Normalized:
    values: np.ndarray
    eps: np.float32


def as_float(x):
    return x.output() if isinstance(x, Sums) else x.values.astype(F) * x.step if isinstance(x, Whole) else x


def quantized(x, low, high, is_signed):
    step = F(max(abs(F(low)), abs(F(high)))) / F(127.5) if is_signed else F(high) / F(255.5)
    lowest, highest = (-127, 127) if is_signed else (0, 255)
    if isinstance(x, Sums):
        return Whole(x.output(step, lowest, highest).astype('int64'), step)
    steps = F(1) / step
    if isinstance(x, Normalized):
        return Whole(np.rint(np.clip(x.values * factor_of_norm(x, steps), lowest, highest)).astype('int64'), step)
    return Whole(np.rint(np.clip(x * steps, lowest, highest)).astype('int64'), step)


def factor_of_norm(x, steps):
    """The squares are summed by lane of 16 channels, and then halves of the lanes."""
    count, channels, height, width = x.values.shape
    padded = np.zeros((count, -(-channels // 16), 16, height, width), F)
    padded.reshape(count, -1, height, width)[:, :channels] = x.values * x.values
    lanes = np.zeros((count, 16, height, width), F)
    for part in padded.swapaxes(0, 1):
        lanes = lanes + part
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return steps / np.sqrt(lanes + x.eps)


def convolved(x, weight, stride, pad, groups):
    """Integers: (N, C, H, W) and (outputs, C / groups, k, k)."""
    count, channels, height, width = x.shape
    outputs, _, size, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((length + 2 * pad - size) // stride + 1 for length in (height, width))
    found = np.zeros((count, outputs, rows, columns), 'int64')
    for i in range(size):
        for j in range(size):
            part = x[:, :, i:i + (rows - 1) * stride + 1:stride, j:j + (columns - 1) * stride + 1:stride]
            if groups == 1:
                found += np.einsum('oc,nchw->nohw', weight[:, :, i, j], part)
            else:
                assert groups == channels == outputs
                found += weight[:, 0, i, j].reshape(1, -1, 1, 1) * part
    return found


def mean(x):
    """Over pixels: every fourth to the same of four sums."""
    pixels = x.reshape(*x.shape[:2], -1)
    sums = [np.zeros(x.shape[:2], F) for _ in range(4)]
    for index in range(pixels.shape[2]):
        sums[index % 4] = sums[index % 4] + pixels[:, :, index]
    return ((sums[0] + sums[1] + (sums[2] + sums[3])) / F(pixels.shape[2]))[:, :, None, None]


def run(symbol, params, x):
    """The output of a network of LibraryQuantizer.standard, all of whose layers are in 8 bits, for x (N, C, H, W)."""
    graph = json.loads(symbol.tojson())
    values = []
    for node in graph['nodes']:
        attrs = node.get('attrs', {})
        inputs = [values[index] for index, *_ in node['inputs']]
        values.append(_RUN[node['op']](attrs, inputs) if node['op'] != 'null' else
                      x.astype(F) if node['name'] == 'data' else params[node['name']].asnumpy())
    return as_float(values[graph['heads'][0][0]])


def _number(attrs, name, default):
    return ast.literal_eval(attrs.get(name, default))


def _bias(inputs, outputs):
    return inputs[2] if len(inputs) > 2 else np.zeros(outputs, F)


def _convolution(attrs, inputs):
    x, (weight, scale), *_ = inputs
    stride, pad = (_number(attrs, name, default)[0] for name, default in (('stride', '(1,)'), ('pad', '(0,)')))
    sums = convolved(x.values, weight.astype('int64'), stride, pad, _number(attrs, 'num_group', '1'))
    return Sums(sums, x.step * scale.ravel(), _bias(inputs, len(weight)))


def _dense(attrs, inputs):
    x, (weight, scale), *_ = inputs
    return Sums(x.values.reshape(len(x.values), -1) @ weight.astype('int64').T, x.step * scale.ravel(),
                _bias(inputs, len(weight)))


def _add(attrs, inputs):
    for sums, other in (inputs, inputs[::-1]):
        if isinstance(sums, Sums) and isinstance(other, Whole) and sums.low == -np.inf:
            return replace(sums, addend=other)
    return as_float(inputs[0]) + as_float(inputs[1])


def _clipped(x, low, high):
    return replace(x, low=low, high=high) if isinstance(x, Sums) else np.clip(as_float(x), F(low), F(high))


_RUN = {
    '_contrib_quantize_v2': lambda attrs, inputs: quantized(
        inputs[0], *(float(attrs[f'{end}_calib_range']) for end in ('min', 'max')), attrs['out_type'] == 'int8'),
    '_contrib_dequantize': lambda attrs, inputs: inputs[0],
    'Pad': lambda attrs, inputs: replace(inputs[0], values=np.pad(
        inputs[0].values, np.reshape(ast.literal_eval(attrs['pad_width']), (4, 2)))),
    'Cast': lambda attrs, inputs: inputs[0],
    'broadcast_mul': lambda attrs, inputs: tuple(inputs),
    'Convolution': _convolution,
    'FullyConnected': _dense,
    'Activation': lambda attrs, inputs: _clipped(inputs[0], 0, np.inf),
    'relu': lambda attrs, inputs: _clipped(inputs[0], 0, np.inf),
    'clip': lambda attrs, inputs: _clipped(inputs[0], float(attrs['a_min']), float(attrs['a_max'])),
    'elemwise_add': _add,
    'L2Normalization': lambda attrs, inputs: Normalized(as_float(inputs[0]), F(attrs.get('eps', '1e-10'))),
    'Pooling': lambda attrs, inputs: mean(as_float(inputs[0])),
    'Flatten': lambda attrs, inputs: inputs[0].reshape(len(inputs[0]), -1),
}
