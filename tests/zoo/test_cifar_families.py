"""ShiftResNet-20 and DenseNet-40, networks for CIFAR-10: their modules in NumPy, and their other forms."""
import mxnet as mx
import numpy as np
import pytest
from reference.modules import Layers, conv, random_parameters, relu
from reference.networks import assert_same_in_every_form, random_images, random_network

from gluon_lprnet import get_model
from gluon_lprnet.blocks import Shift, ShiftResidual
from gluon_lprnet.complexity import count
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo.densenet import DenseLayer

NAMES = ('shiftresnet20_x1.0', 'densenet40_x1.0')


def shifted(x, kernel=3, directions=None):
    """Depthwise convolution with one weight of 1 in each kernel."""
    channels, positions = x.shape[1], kernel ** 2
    if directions is None:
        each = channels // positions
        directions = [number // each if number < each * positions else positions // 2 for number in range(channels)]
    weight = np.zeros((channels, 1, kernel, kernel))
    for channel, direction in enumerate(directions):
        weight[channel, 0, direction // kernel, direction % kernel] = 1
    return conv(x, weight, groups=channels)


@pytest.mark.parametrize('channels, kernel, directions', [
    (9, 3, None), (22, 3, None), (5, 3, None), (30, 5, None), (4, 3, [8, 0, 0, 5]), (1, 3, [3])])
def test_shift(channels, kernel, directions):
    x = np.random.default_rng(0).normal(0, 1, (2, channels, 6, 7)).astype('float32')
    block = Shift(channels, kernel, directions)
    np.testing.assert_array_equal(block(mx.nd.array(x)).asnumpy(), shifted(x, kernel, directions).astype('float32'))
    complexity = count(block, (1, channels, 6, 7))
    assert (complexity.params, complexity.multiply_adds, complexity.other, complexity.unknown) == (0, 0, 0, {})


@pytest.mark.parametrize('directions', [[0, 1], [0, 1, 9], [-1, 0, 1]])
def test_directions_that_are_none(directions):
    with pytest.raises(InputError, match='from 0 to 8'):
        Shift(3, directions=directions)


@pytest.mark.parametrize('in_channels, stride', [(10, 1), (10, 2), (6, 1)])
def test_module_of_shiftresnet(in_channels, stride):
    block = random_parameters(ShiftResidual(in_channels, 10, stride, expansion=2))
    x = np.random.default_rng(1).normal(0, 1, (2, in_channels, 6, 8))
    layers = Layers(block)
    y = shifted(relu(layers.conv_bn(x)))
    y = relu(layers.conv_bn(y, stride))
    expected = y + (layers.conv_bn(x, stride) if (in_channels, stride) != (10, 1) else x)
    assert not layers.values
    np.testing.assert_allclose(block(mx.nd.array(x, dtype='float64')).asnumpy(), expected, rtol=1e-6, atol=1e-7)


def test_layer_of_densenet():
    block = random_parameters(DenseLayer(6, 4))
    x = np.random.default_rng(1).normal(0, 1, (2, 6, 5, 7))
    layers = Layers(block)
    y = conv(relu(layers.batch_norm(x)), layers.values.pop(0))
    assert not layers.values
    np.testing.assert_allclose(block(mx.nd.array(x, dtype='float64')).asnumpy(), np.concatenate([x, y], axis=1),
                               rtol=1e-6, atol=1e-7)


def test_feature_maps_of_32x32():
    for name, channels in zip(NAMES, (64, 448)):
        pooled, = (layer for layer in count(get_model(name, classes=10), (1, 3, 32, 32)).layers
                   if layer.operator == 'Pooling' and layer.output_shape[2:] == (1, 1))
        assert pooled.output_shape == (1, channels, 1, 1)
        # One operation for each element of the windows.
        assert pooled.other == channels * 8 * 8


@pytest.mark.parametrize('name', NAMES)
def test_every_way_out(name, tmp_path):
    """A symbol in stock MXNet, with its fused backend, in ONNX Runtime and deployed: the same outputs."""
    pytest.importorskip('onnxruntime')
    net = random_network(name, small_image=True)
    x = random_images(2, 32)
    expected = net(x).asnumpy()
    assert abs(expected[0] - expected[1]).max() > 1e-3 * abs(expected).max()
    assert_same_in_every_form(net, x, tmp_path)
