"""The modules against a NumPy implementation of their own, written from the papers."""
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import SymbolBlock, nn
from reference.modules import (
    Layers,
    average_pool,
    dsc_reference,
    lpr_reference,
    random_parameters,
    relu,
    relu6,
    shuffle,
)

from gluon_lprnet import blocks
from gluon_lprnet.utils.errors import InputError

# The NumPy side: float64, NCHW.









def sconv_reference(layers, x, stride=1):
    return relu(layers.conv_bn(x, stride))






def inverted_residual_reference(layers, x, stride=1, expand=True):
    y = relu6(layers.conv_bn(x)) if expand else x
    y = layers.conv_bn(relu6(layers.depthwise_bn(y, stride)))
    return x + y if y.shape == x.shape else y


def shufflenet_v1_reference(layers, x, stride=1, groups=3, first_groups=3):
    y = shuffle(relu(layers.conv_bn(x, groups=first_groups)), groups)
    y = layers.conv_bn(layers.depthwise_bn(y, stride), groups=groups)
    return relu(np.concatenate([y, average_pool(x)], axis=1) if stride == 2 else x + y)


def v2_branch_reference(layers, x, stride):
    return relu(layers.conv_bn(layers.depthwise_bn(relu(layers.conv_bn(x)), stride)))


def shufflenet_v2_reference(layers, x):
    half = x.shape[1] // 2
    return shuffle(np.concatenate([x[:, :half], v2_branch_reference(layers, x[:, half:], 1)], axis=1), 2)


def shufflenet_v2_down_reference(layers, x):
    transformed = v2_branch_reference(layers, x, 2)
    shortcut = relu(layers.conv_bn(layers.depthwise_bn(x, 2)))
    return shuffle(np.concatenate([shortcut, transformed], axis=1), 2)


# name: (block, its reference, keywords of the reference, input channels, output channels, stride)
CASES = {
    'SConv': (lambda: blocks.SConv(5, 7), sconv_reference, {}, 5, 7, 1),
    'SConv stride 2': (lambda: blocks.SConv(5, 7, 2), sconv_reference, {'stride': 2}, 5, 7, 2),
    'DSC': (lambda: blocks.DSC(5, 7), dsc_reference, {}, 5, 7, 1),
    'DSC stride 2': (lambda: blocks.DSC(5, 7, 2), dsc_reference, {'stride': 2}, 5, 7, 2),
    'LPR': (lambda: blocks.LPR(16), lpr_reference, {}, 16, 16, 1),
    'LPR rank 1/3': (lambda: blocks.LPR(16, 1 / 3), lpr_reference, {}, 16, 16, 1),
    'LPR rank 7': (lambda: blocks.LPR(16, 7), lpr_reference, {}, 16, 16, 1),
    'LPR no residual': (lambda: blocks.LPR(16, residual=False), lpr_reference,
                        {'residual': False}, 16, 16, 1),
    'LPR no L2Norm': (lambda: blocks.LPR(16, l2_norm=False), lpr_reference, {'l2_norm': False}, 16, 16, 1),
    'LPR scaled': (lambda: blocks.LPR(16, l2_norm_scale='one'), lpr_reference, {'scaled': True}, 16, 16, 1),
    'LPR scaled, no residual': (lambda: blocks.LPR(16, residual=False, l2_norm_scale='sqrt_width'), lpr_reference,
                                {'residual': False, 'scaled': True}, 16, 16, 1),
    'LPR neither': (lambda: blocks.LPR(16, residual=False, l2_norm=False), lpr_reference,
                    {'residual': False, 'l2_norm': False}, 16, 16, 1),
    'InvertedResidual': (lambda: blocks.InvertedResidual(4, 4), inverted_residual_reference, {}, 4, 4, 1),
    'InvertedResidual wider': (lambda: blocks.InvertedResidual(4, 6, expansion=2),
                               inverted_residual_reference, {}, 4, 6, 1),
    'InvertedResidual stride 2': (lambda: blocks.InvertedResidual(4, 4, 2), inverted_residual_reference,
                                  {'stride': 2}, 4, 4, 2),
    'InvertedResidual expansion 1': (lambda: blocks.InvertedResidual(4, 4, expansion=1),
                                     inverted_residual_reference, {'expand': False}, 4, 4, 1),
    'ShuffleNetV1': (lambda: blocks.ShuffleNetV1Unit(24, 24), shufflenet_v1_reference, {}, 24, 24, 1),
    'ShuffleNetV1 stride 2': (lambda: blocks.ShuffleNetV1Unit(12, 24, 2), shufflenet_v1_reference,
                              {'stride': 2}, 12, 24, 2),
    'ShuffleNetV1 first': (lambda: blocks.ShuffleNetV1Unit(8, 32, 2, groups=4, first_groups=1),
                           shufflenet_v1_reference, {'stride': 2, 'groups': 4, 'first_groups': 1}, 8, 32, 2),
    'ShuffleNetV2': (lambda: blocks.ShuffleNetV2Unit(10), shufflenet_v2_reference, {}, 10, 10, 1),
    'ShuffleNetV2 down': (lambda: blocks.ShuffleNetV2DownUnit(6, 10), shufflenet_v2_down_reference,
                          {}, 6, 10, 2),
}




def random_input(*shape):
    return np.random.default_rng(1).normal(0, 1, shape)


@pytest.mark.parametrize('size', [(7, 7), (8, 5)])
@pytest.mark.parametrize('case', CASES)
def test_block_is_its_definition(case, size):
    make, reference, keywords, in_channels, channels, stride = CASES[case]
    block = random_parameters(make())
    x = random_input(2, in_channels, *size)
    layers = Layers(block)
    expected = reference(layers, x, **keywords)
    assert not layers.values, 'the block has parameters that its definition does not have'
    y = block(mx.nd.array(x, dtype='float64')).asnumpy()
    assert y.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert (y != 0).mean() > 0.1, 'nearly all zero: the comparison would show nothing'
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('name, first', [('one', 1), ('sqrt_width', 4)])
def test_learned_scale_of_the_norm(name, first):
    block = blocks.LPR(16, l2_norm_scale=name)
    block.initialize(mx.init.Xavier())
    assert block.scale.scale.data().asscalar() == first
    plain = blocks.LPR(16)
    plain.initialize()
    assert len(block.collect_params().keys()) == len(plain.collect_params().keys()) + 1
    for wrong, message in ((dict(l2_norm_scale='two'), "'one' or 'sqrt_width'"),
                           (dict(l2_norm_scale='one', l2_norm=False), 'needs l2_norm=True')):
        with pytest.raises(InputError, match=message):
            blocks.LPR(16, **wrong)


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('l2_norm, scale', [(True, None), (True, 'one'), (False, None)])
def test_norm_in_rank_space_is_the_same_function(residual, l2_norm, scale):
    net = nn.HybridSequential()
    net.add(blocks.DSC(6, 16), blocks.LPR(16, 1 / 4, residual, l2_norm, scale))
    random_parameters(net)
    x = random_input(2, 6, 5, 7)
    layers = Layers(net)
    expected = lpr_reference(layers, dsc_reference(layers, x), residual, l2_norm, scaled=bool(scale))
    x = mx.nd.array(x, dtype='float64')
    blocks.normalize_in_rank_space(net, True)
    np.testing.assert_allclose(net(x).asnumpy(), expected, rtol=1e-9, atol=1e-10)
    net.hybridize()
    np.testing.assert_allclose(net(x).asnumpy(), expected, rtol=1e-9, atol=1e-10)
    graph = {node['op'] for node in json.loads(net(mx.sym.var('data')).tojson())['nodes']}
    assert ('rsqrt' in graph) == l2_norm and 'L2Normalization' not in graph
    blocks.normalize_in_rank_space(net, False)
    graph = {node['op'] for node in json.loads(net(mx.sym.var('data')).tojson())['nodes']}
    assert ('L2Normalization' in graph) == l2_norm and 'rsqrt' not in graph


@pytest.mark.parametrize('case', CASES)
def test_hybridized_and_exported_are_equal(case, tmp_path):
    make, _, _, in_channels, *_ = CASES[case]
    block = random_parameters(make(), 'float32')
    x = mx.nd.array(random_input(2, in_channels, 7, 6), dtype='float32')
    expected = block(x).asnumpy()
    block.hybridize()
    np.testing.assert_allclose(block(x).asnumpy(), expected, rtol=1e-5, atol=1e-5)
    block.export(str(tmp_path / 'block'))
    imported = SymbolBlock.imports(str(tmp_path / 'block-symbol.json'), ['data'],
                                   str(tmp_path / 'block-0000.params'))
    np.testing.assert_allclose(imported(x).asnumpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('groups', [1, 2, 3, 6])
def test_channel_shuffle(groups):
    x = random_input(2, 6, 3, 2)
    y = blocks.channel_shuffle(mx.nd, mx.nd.array(x, dtype='float64'), groups).asnumpy()
    np.testing.assert_array_equal(y, shuffle(x, groups))
    back = blocks.channel_shuffle(mx.nd, mx.nd.array(y, dtype='float64'), 6 // groups).asnumpy()
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize('rank, channels, expected', [
    (1 / 8, 64, 8), (1 / 4, 116, 29), (1 / 8, 116, 14), (1 / 16, 8, 1), (1.0, 8, 8), (1, 8, 1), (8, 8, 8)])
def test_rank(rank, channels, expected):
    assert blocks.resolve_rank(rank, channels) == expected
    assert blocks.LPR(channels, rank).p1.weight.shape == (expected, channels, 1, 1)


@pytest.mark.parametrize('rank', [0, -1, 9, 0.0, -0.5, 1.5, float('nan'), True, None, '4'])
def test_rank_that_does_not_fit(rank):
    with pytest.raises(InputError, match='8 channels'):
        blocks.LPR(8, rank)


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('l2_norm, rank_space, scale', [
    (True, False, None), (True, False, 'one'), (True, True, None), (True, True, 'one'), (False, False, None)])
def test_gradient_of_lpr(residual, l2_norm, rank_space, scale):
    """Against finite differences along a random direction, for the input and each parameter, in training."""
    block = random_parameters(blocks.LPR(8, 1 / 4, residual, l2_norm, scale))
    blocks.normalize_in_rank_space(block, rank_space)
    random = np.random.default_rng(2)
    x = mx.nd.array(random_input(2, 8, 5, 4), dtype='float64')
    projection = mx.nd.array(random.normal(0, 1, x.shape), dtype='float64')
    x.attach_grad()
    with autograd.record():
        loss = (block(x) * projection).sum()
    loss.backward()

    def loss_at():
        with autograd.train_mode():
            return float((block(x) * projection).sum().asscalar())

    variables = {name: (p.data(), p.grad().asnumpy()) for name, p in block.collect_params().items()
                 if p.grad_req != 'null'}
    assert len(variables) == 5 + bool(scale)
    variables['x'] = (x, x.grad.asnumpy())
    step = 1e-6
    for name, (value, gradient) in variables.items():
        direction = random.normal(0, 1, value.shape)
        original = value.asnumpy()
        value[:] = mx.nd.array(original + step * direction, dtype='float64')
        above = loss_at()
        value[:] = mx.nd.array(original - step * direction, dtype='float64')
        below = loss_at()
        value[:] = mx.nd.array(original, dtype='float64')
        expected = (above - below) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('rank_space', [False, True])
def test_zero_input_has_no_nan(rank_space):
    """Where the low-rank output is 0 everywhere, the norm must not divide 0 by 0, nor its gradient."""
    block = blocks.LPR(8)
    block.initialize()
    blocks.normalize_in_rank_space(block, rank_space)
    x = mx.nd.zeros((1, 8, 3, 3))
    x.attach_grad()
    with autograd.record():
        y = block(x)
    y.backward()
    np.testing.assert_array_equal(y.asnumpy(), 0)
    assert np.isfinite(x.grad.asnumpy()).all()


@pytest.mark.parametrize('rank_space', [False, True])
@pytest.mark.parametrize('scale', [0, 1e-4, 300])
def test_lpr_in_float16(monkeypatch, scale, rank_space):
    """In float16 the epsilon is 0, 1e-4 squared is 0 and 300 squared is infinite."""
    # MXNet has no float16 convolution on CPU: all of the module but the convolutions runs here.
    monkeypatch.setattr(nn.Conv2D, 'hybrid_forward', lambda self, F, x, weight, bias=None: x)
    block = blocks.LPR(16, residual=False)
    block.initialize()
    block.cast('float16')
    blocks.normalize_in_rank_space(block, rank_space)
    y = block(mx.nd.full((1, 16, 2, 2), scale, dtype='float16'))
    assert y.dtype == np.float16
    # All channels are alike, so that each is 1/sqrt(16) of a norm of 1.
    np.testing.assert_allclose(y.asnumpy(), 0.25 if scale else 0, rtol=2e-3)


def test_float16_symbol_normalizes_in_float32():
    block = blocks.LPR(16)
    block.cast('float16')
    symbol = block(mx.sym.var('data'))
    nodes = json.loads(symbol.tojson())['nodes']
    norm = next(node for node in nodes if node['op'] == 'L2Normalization')
    assert nodes[norm['inputs'][0][0]]['op'] == 'Cast'
    assert symbol.infer_type(data='float16')[1] == [np.float16]
    # Cast back, it is the module that it was.
    block.cast('float32')
    assert 'Cast' not in {node['op'] for node in json.loads(block(mx.sym.var('data')).tojson())['nodes']}
