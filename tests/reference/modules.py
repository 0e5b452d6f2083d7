"""The paper's modules in NumPy."""
import mxnet as mx
import numpy as np


def conv(x, weight, stride=1, groups=1):
    """Convolution by its definition, with zero padding that keeps the size at stride 1."""
    n, channels, height, width = x.shape
    filters, _, kernel, _ = weight.shape
    pad = kernel // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((n, filters, (height + 2 * pad - kernel) // stride + 1,
                    (width + 2 * pad - kernel) // stride + 1))
    for f in range(filters):
        group = f // (filters // groups)
        inputs = x[:, group * (channels // groups):(group + 1) * (channels // groups)]
        for row in range(out.shape[2]):
            for column in range(out.shape[3]):
                top, left = row * stride, column * stride
                window = inputs[:, :, top:top + kernel, left:left + kernel]
                out[:, f, row, column] = (window * weight[f]).sum(axis=(1, 2, 3))
    return out


def batch_norm(x, gamma, beta, mean, variance):
    gamma, beta, mean, variance = (v[:, None, None] for v in (gamma, beta, mean, variance))
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def shuffle(x, groups):
    """Output channel i * groups + g is channel i of group g."""
    size = x.shape[1] // groups
    return x[:, [g * size + i for i in range(size) for g in range(groups)]]


def average_pool(x, stride=2):
    """3x3, padding 1; the padding counts in the mean."""
    height, width = x.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.stack([np.stack([x[:, :, r:r + 3, c:c + 3].mean(axis=(2, 3)) for c in range(0, width, stride)], -1)
                     for r in range(0, height, stride)], -2)


class Layers:
    """The parameters of a block in the order of its layers; each call uses the next ones up."""

    def __init__(self, block):
        self.values = [p.data().asnumpy() for p in block.collect_params().values()]

    def conv(self, x, stride=1, groups=1):
        return conv(x, self.values.pop(0), stride, groups)

    def conv_bn(self, x, stride=1, groups=1):
        return self.batch_norm(self.conv(x, stride, groups))

    def batch_norm(self, x):
        return batch_norm(x, *(self.values.pop(0) for _ in range(4)))

    def depthwise_bn(self, x, stride=1):
        return self.conv_bn(x, stride, groups=x.shape[1])


def dsc_reference(layers, x, stride=1):
    return relu(layers.conv_bn(relu(layers.depthwise_bn(x, stride))))


def lpr_reference(layers, x, residual=True, l2_norm=True, scaled=False):
    d = layers.depthwise_bn(x)
    y = layers.conv(layers.conv(d))
    if l2_norm:
        y = y / np.sqrt((y ** 2).sum(axis=1, keepdims=True) + 1e-10)
    if scaled:
        y = y * layers.values.pop(0)
    return relu(y + d) if residual else relu(y)


def random_parameters(block, dtype='float64', seed=0):
    """Initialize ``block`` with values that show every mistake: no 0 and 1 in BatchNorm."""
    random = np.random.default_rng(seed)
    block.initialize()
    block.cast(dtype)
    for name, parameter in block.collect_params().items():
        if name.endswith(('gamma', 'running_var')):
            value = random.uniform(0.5, 2, parameter.shape)
        elif name.endswith(('beta', 'running_mean')):
            value = random.normal(0, 1, parameter.shape)
        else:
            value = random.normal(0, 0.5, parameter.shape)
        parameter.set_data(mx.nd.array(value, dtype=parameter.dtype))
    return block
