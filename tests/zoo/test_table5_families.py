"""IGCV3, ESPNetv2, MnasNet and CondenseNet: their modules in NumPy, written from the papers, and their other forms."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from reference.modules import Layers, average_pool, conv, random_parameters, relu, relu6, shuffle
from reference.networks import assert_same_in_every_form, operators, random_images, random_network, relative_error

import gluon_lprnet
from gluon_lprnet import get_model
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo import condensenet, espnetv2, igcv3, mnasnet

# The narrowest of each; all at 64 pixels, where the reinforcement of ESPNetv2 still has all its poolings.
NAMES = ('igcv3_x0.5', 'espnetv2_x1.0', 'mnasnet_x0.5', 'condensenet_x1.0')


def prelu(layers, x):
    slope = layers.values.pop(0)[:, None, None]
    return np.where(x > 0, x, slope * x)


def igcv3_reference(layers, x, stride):
    y = shuffle(layers.conv_bn(x, groups=2), 2)
    y = layers.conv_bn(relu6(layers.depthwise_bn(y, stride)), groups=2)
    return x + y if x.shape == y.shape else y


def dilated(weight, dilation):
    """The kernel with zeros between its weights."""
    channels = weight.shape[0]
    wide = np.zeros((channels, 1, 2 * dilation + 1, 2 * dilation + 1))
    wide[:, :, ::dilation, ::dilation] = weight
    return wide


def pyramid_reference(layers, x, stride, dilations):
    reduced = prelu(layers, layers.conv_bn(x, groups=4))
    branches = []
    for dilation in dilations:
        y = conv(reduced, dilated(layers.values.pop(0), dilation), stride, groups=reduced.shape[1])
        branches.append(y + branches[-1] if branches else y)
    return layers.conv_bn(prelu(layers, layers.batch_norm(np.concatenate(branches, axis=1))), groups=4)


def eesp_reference(layers, x, dilations):
    return prelu(layers, x + pyramid_reference(layers, x, 1, dilations))


def strided_eesp_reference(layers, x, image, stride, dilations):
    y = np.concatenate([average_pool(x, stride), pyramid_reference(layers, x, stride, dilations)], axis=1)
    reinforcement = layers.conv_bn(prelu(layers, layers.conv_bn(image)))
    return prelu(layers, y + reinforcement)


def mbconv_reference(layers, x, stride, kernel, expansion, squeeze):
    y = relu(layers.conv_bn(x)) if expansion != 1 else x
    y = relu(layers.depthwise_bn(y, stride))
    if squeeze:
        mean = y.mean(axis=(2, 3), keepdims=True)
        hidden = relu(layers.conv(mean) + layers.values.pop(0)[:, None, None])
        weight = layers.conv(hidden) + layers.values.pop(0)[:, None, None]
        y = y / (1 + np.exp(-weight))
    y = layers.conv_bn(y)
    return x + y if x.shape == y.shape else y


def test_dilations_by_receptive_field():
    """3 + 2k for branch k, not beyond the limit: ESPNetv2's section 3 and its authors' program."""
    assert [espnetv2._dilations(limit) for limit in (13, 9, 7, 5)] == [
        [1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 2, 3], [1, 1, 1, 2]]


MODULES = {
    'IGCV3': (lambda: igcv3.InterleavedResidual(4, 4, 1, 6), igcv3_reference, (1,), (2, 4, 5, 6)),
    'IGCV3, down': (lambda: igcv3.InterleavedResidual(4, 6, 2, 6), igcv3_reference, (2,), (2, 4, 5, 6)),
    'EESP': (lambda: espnetv2.EESP(16, 7), eesp_reference, ([1, 1, 2, 3],), (2, 16, 7, 5)),
    'MBConv': (lambda: mnasnet.MBConv(8, 8, 1, 3, 5, True), mbconv_reference, (1, 5, 3, True), (2, 8, 7, 5)),
    'MBConv, down': (lambda: mnasnet.MBConv(4, 6, 2, 6, 3, False), mbconv_reference, (2, 3, 6, False), (2, 4, 7, 5)),
    'SepConv': (lambda: mnasnet.MBConv(4, 6, 1, 1, 3, False), mbconv_reference, (1, 3, 1, False), (2, 4, 7, 5)),
}


@pytest.mark.parametrize('case', MODULES)
def test_module(case):
    build, reference, arguments, shape = MODULES[case]
    block = random_parameters(build())
    x = np.random.default_rng(1).normal(0, 1, shape)
    layers = Layers(block)
    expected = reference(layers, x, *arguments)
    assert not layers.values
    np.testing.assert_allclose(block(mx.nd.array(x, dtype='float64')).asnumpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('stride', [1, 2])
def test_strided_eesp(stride):
    block = random_parameters(espnetv2.StridedEESP(16, 32, stride, 5))
    random = np.random.default_rng(1)
    x, image = random.normal(0, 1, (2, 16, 6, 8)), random.normal(0, 1, (2, 3, 6 // stride, 8 // stride))
    layers = Layers(block)
    expected = strided_eesp_reference(layers, x, image, stride, [1, 1, 1, 2])
    assert not layers.values
    found = block(*(mx.nd.array(values, dtype='float64') for values in (x, image))).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('width, channels', [(1.0, [32, 64, 128, 256, 512, 1024]),
                                             (1.25, [32, 80, 160, 320, 640, 1024]),
                                             (2.0, [32, 128, 256, 512, 1024, 1280])])
def test_channels_of_espnetv2(width, channels):
    """Its Table 1."""
    net = get_model(f'espnetv2_x{width}')
    stages = net.features[0]
    found = [stages.stem[0].weight.shape[0], *(unit.activation.alpha.shape[0] for unit in stages.first_units)]
    assert [*found, net.output.weight.shape[1]] == channels


def test_image_reaches_every_stage_of_espnetv2():
    """With the features' own way cut off, the image alone changes what each down-sampling unit returns."""
    net = random_network('espnetv2_x1.0')
    stages = net.features[0]
    outputs = []
    for unit in stages.first_units:
        unit.register_forward_hook(lambda block, inputs, output: outputs.append((inputs[1].shape, output.asnumpy())))
    stages.stem[0].weight.set_data(mx.nd.zeros_like(stages.stem[0].weight.data()))
    x = random_images(2, 64)
    net(x)
    assert [shape[2:] for shape, _ in outputs] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert all(np.abs(output[0] - output[1]).max() > 1e-3 for _, output in outputs)


def trained_condensenet(stages=7):
    """In its training form, condensed, with values that show every mistake."""
    net = random_network('condensenet_x1.0', condensing=True, small_image=True)
    for _ in range(stages):
        net.condense()
    return net


def test_condensing_removes_the_smallest_inputs_of_each_group():
    layer = condensenet.LearnedGroupConv(16, 32)
    random_parameters(layer, 'float32')
    layer.mask.set_data(mx.nd.ones(layer.mask.shape))
    weight = layer.weight.data().asnumpy()[:, :, 0, 0]
    left = {group: list(range(16)) for group in range(8)}
    for _ in range(7):
        layer.condense()
        for group, inputs in left.items():
            size = np.abs(weight[group::8]).sum(axis=0)
            for smallest in sorted(inputs, key=lambda i: size[i])[:2]:
                inputs.remove(smallest)
        mask = layer.mask.data().asnumpy()[:, :, 0, 0]
        for group, inputs in left.items():
            assert (mask[group::8] == np.isin(np.arange(16), inputs)).all()
    assert [list(kept) for kept in layer.kept()] == list(left.values())


def test_condensenet_is_condensed_in_seven_stages():
    net = trained_condensenet(0)
    x = random_images(2, 32)
    dense = net(x).asnumpy()
    assert net.stages_left == 7
    with pytest.raises(InputError, match='7 condensing stages are left'):
        net.converted()
    for left in range(6, -1, -1):
        net.condense()
        assert net.stages_left == left
    assert relative_error(net(x).asnumpy(), dense) > 0.01
    with pytest.raises(InputError, match='all 7 condensing stages are done'):
        net.condense()
    # What is removed gets no gradient, so that it stays out.
    layer = net.features[1].pointwise
    with autograd.record():
        net(x).sum().backward()
    gradient, mask = layer.weight.grad().asnumpy(), layer.mask.data().asnumpy()
    assert (gradient[mask == 0] == 0).all() and (gradient[mask == 1] != 0).mean() > 0.9
    assert mask.sum() == mask.size / 8


def test_converted_condensenet_is_the_same_function():
    net = trained_condensenet()
    x = random_images(2, 32)
    converted = net.converted()
    assert relative_error(converted(x).asnumpy(), net(x).asnumpy()) < 1e-5
    assert operators(converted(mx.sym.var('data')))['take'] == 36 + 1
    with pytest.raises(InputError, match='form for inference'):
        converted.condense()
    # A checkpoint in the middle goes on where it was.
    halfway = trained_condensenet(3)
    other = get_model('condensenet_x1.0', classes=10, condensing=True, small_image=True)
    other.initialize()
    for name, parameter in other._collect_params_with_prefix().items():
        parameter.set_data(halfway._collect_params_with_prefix()[name].data())
    assert other.stages_left == halfway.stages_left == 4
    for _ in range(4):
        halfway.condense()
        other.condense()
    assert (halfway(x).asnumpy() == other(x).asnumpy()).all()


def test_group_lasso():
    """The sum over groups and inputs of the root of the sum of squares (its equation 1)."""
    net = trained_condensenet(2)
    expected = 0
    for unit in (layer for layer in net.features if isinstance(layer, condensenet.DenseUnit)):
        layer = unit.pointwise
        weight = (layer.weight.data() * layer.mask.data()).asnumpy()[:, :, 0, 0].astype('float64')
        expected += sum(np.sqrt((weight[group::8] ** 2).sum(axis=0)).sum() for group in range(8))
    with autograd.record():
        lasso = net.group_lasso()
    lasso.backward()
    assert lasso.asscalar() == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(layer.pointwise.weight.grad().asnumpy()).all() for layer in net.features
               if isinstance(layer, condensenet.DenseUnit))


@pytest.mark.parametrize('name', NAMES)
def test_every_way_out(name, tmp_path):
    """A symbol in stock MXNet, with its fused backend, in ONNX Runtime and deployed: the same outputs."""
    pytest.importorskip('onnxruntime')
    net = trained_condensenet().converted() if name.startswith('condensenet') else random_network(name)
    x = random_images(2, 32 if name.startswith('condensenet') else 64)
    assert_same_in_every_form(net, x, tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_compress_says_what_it_finds(name):
    net = random_network(name)
    with pytest.raises(InputError, match='no .*pointwise|nothing'):
        gluon_lprnet.compress(net, random_images(2, 64))
