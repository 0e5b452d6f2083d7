"""Counts against arithmetic of their own: loops, hand-computed numbers, and other people's networks."""
import argparse
import itertools
import json
import math

import mxnet as mx
import pytest
from mxnet.gluon import HybridBlock, nn

from gluon_lprnet import complexity, get_model
from gluon_lprnet.complexity import count
from gluon_lprnet.utils.errors import InputError

DATA = mx.sym.var('data')


def run(*arguments):
    parser = argparse.ArgumentParser()
    complexity.add_commands(parser.add_subparsers())
    args = parser.parse_args(['complexity', *map(str, arguments)])
    return args.run(args)


def multiplications(in_channels, size, filters, kernel, stride, pad, dilate, groups):
    """Multiplications of a convolution, by walking every one of them."""
    found = 0
    starts = range(-pad, size + pad - dilate * (kernel - 1), stride)
    for _ in range(filters):
        for _ in itertools.product(starts, starts):
            for _ in range(in_channels // groups):
                for _ in itertools.product(range(kernel), range(kernel)):
                    found += 1
    return found


@pytest.mark.parametrize('bias', [True, False])
# Input channels, size, filters, kernel, stride, pad, dilate, groups.
@pytest.mark.parametrize('layer', [
    (3, 8, 5, 3, 1, 1, 1, 1), (4, 7, 6, 3, 2, 1, 1, 2), (6, 9, 6, 3, 1, 1, 1, 6), (4, 9, 2, 3, 1, 2, 2, 1),
    (8, 5, 3, 1, 1, 0, 1, 1), (2, 11, 2, 5, 3, 0, 1, 1)])
def test_convolution_counted_one_by_one(layer, bias):
    in_channels, size, filters, kernel, stride, pad, dilate, groups = layer
    net = nn.Conv2D(filters, kernel, stride, pad, dilate, groups, use_bias=bias)
    found = count(net, (1, in_channels, size, size))
    assert found.multiply_adds == multiplications(*layer)
    assert found.params == filters * (in_channels // groups) * kernel ** 2 + (filters if bias else 0)
    # A bias is an addition for each output element and no multiply-add.
    assert found.other == (math.prod(found.layers[0].output_shape) if bias else 0)


def test_one_and_three_dimensions_and_other_layouts():
    assert count(nn.Conv1D(5, 3), (1, 4, 10)).multiply_adds == 5 * 8 * 4 * 3
    assert count(nn.Conv3D(5, 3), (1, 4, 10, 9, 8)).multiply_adds == 5 * (8 * 7 * 6) * 4 * 27
    channels_last = count(mx.sym.Convolution(DATA, num_filter=5, kernel=(3, 3), layout='NHWC', name='c'),
                          (1, 10, 9, 4))
    assert channels_last.layers[0].output_shape == (1, 8, 7, 5)
    assert channels_last.multiply_adds == 5 * (8 * 7) * 4 * 9
    assert channels_last.params == 5 * 4 * 9 + 5


def test_deconvolution():
    """Each input element meets a filter of each output channel of its group."""
    found = count(nn.Conv2DTranspose(6, 4, 2, 1, groups=2, in_channels=8), (1, 8, 5, 5))
    assert found.layers[0].output_shape == (1, 6, 10, 10)
    assert found.multiply_adds == (8 * 5 * 5) * (6 // 2) * 16
    assert (found.params, found.other) == (8 * 3 * 16 + 6, 6 * 10 * 10)


@pytest.mark.parametrize('flatten, shape, rows', [(True, (2, 3, 4), 2), (False, (2, 3, 4), 6)])
def test_fully_connected(flatten, shape, rows):
    found = count(nn.Dense(7, flatten=flatten), shape)
    inputs = math.prod(shape) // rows
    assert found.multiply_adds == rows * 7 * inputs
    assert found.params == 7 * inputs + 7
    assert found.other == rows * 7


def test_small_network_by_hand():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, 2, 1, use_bias=False), nn.BatchNorm(), nn.Activation('relu'),
            nn.MaxPool2D(2), nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dropout(0.5), nn.Dense(10))
    found = count(net, (1, 3, 16, 16))
    assert [(layer.operator, layer.output_shape, layer.params, layer.multiply_adds, layer.other)
            for layer in found.layers] == [
        ('Convolution', (1, 8, 8, 8), 216, 13824, 0),
        ('BatchNorm', (1, 8, 8, 8), 16, 0, 1024),
        ('Activation', (1, 8, 8, 8), 0, 0, 512),
        ('Pooling', (1, 8, 4, 4), 0, 0, 512),
        ('Pooling', (1, 8, 1, 1), 0, 0, 128),
        ('Flatten', (1, 8), 0, 0, 0),
        ('Dropout', (1, 8), 0, 0, 0),
        ('FullyConnected', (1, 10), 90, 80, 10)]
    assert (found.params, found.multiply_adds, found.other, found.auxiliary) == (322, 13904, 2186, 16)
    assert not found.unknown


@pytest.mark.parametrize('function, expected', [
    (lambda x: x + x, 1), (lambda x: x * x, 1), (lambda x: x - 1, 1), (lambda x: 1 / x, 1),
    (lambda x: mx.sym.add_n(x, x, x), 2), (lambda x: mx.sym.clip(x, 0, 6), 2), (mx.sym.sigmoid, 1),
    (lambda x: mx.sym.LeakyReLU(x, slope=0.1), 1),
    (lambda x: mx.sym.L2Normalization(x, mode='channel'), 3), (mx.sym.softmax, 3), (mx.sym.square, 1),
    (mx.sym.rsqrt, 1), (lambda x: mx.sym.sum(x, axis=1), 1), (lambda x: mx.sym.mean(x, axis=(2, 3)), 1),
    (lambda x: mx.sym.reshape(x, shape=(0, -4, 2, -1, -2)), 0), (lambda x: mx.sym.swapaxes(x, 1, 2), 0),
    (lambda x: mx.sym.transpose(x, axes=(0, 2, 3, 1)), 0), (lambda x: mx.sym.concat(x, x, dim=1), 0),
    (lambda x: mx.sym.split(x, num_outputs=2, axis=1)[1], 0),
    (lambda x: mx.sym.slice_axis(x, axis=1, begin=0, end=2), 0), (lambda x: mx.sym.cast(x, 'float16'), 0),
])
def test_other_operations_for_each_element(function, expected):
    found = count(function(DATA), (2, 4, 3, 5))
    assert (found.params, found.multiply_adds, found.unknown) == (0, 0, {})
    assert found.other == expected * 2 * 4 * 3 * 5


def test_outputs_of_a_split_are_told_apart():
    parts = mx.sym.split(mx.sym.concat(DATA, DATA, dim=1), num_outputs=2, axis=1, name='parts')
    net = mx.sym.Group([mx.sym.Convolution(parts[1], num_filter=2, kernel=(1, 1), no_bias=True),
                        mx.sym.mean(parts[0], axis=1)])
    found = count(net, (1, 3, 4, 4))
    assert found.multiply_adds == 2 * 16 * 3
    assert [layer.output_shape for layer in found.layers[1:]] == [(1, 3, 4, 4), (1, 2, 4, 4), (1, 4, 4)]


def test_normalization_written_out_is_known():
    """As a deployed network has it: operators that can be converted and fused."""
    norm = mx.sym.rsqrt(mx.sym.sum(mx.sym.square(DATA), axis=1, keepdims=True) + 1e-10)
    found = count(mx.sym.broadcast_mul(DATA, norm), (1, 4, 3, 3))
    assert not found.unknown
    # Square, sum and product over all; epsilon and root at each position.
    assert found.other == 3 * 36 + 2 * 9


@pytest.mark.parametrize('name, shape', [
    ('mobilenet1.0', (1, 3, 64, 64)), ('mobilenetv2_0.5', (1, 3, 64, 64)), ('resnet18_v1', (1, 3, 64, 64)),
    # Its first BatchNorm learns neither gamma nor beta.
    ('resnet18_v2', (1, 3, 64, 64)), ('squeezenet1.1', (1, 3, 224, 224))])
def test_networks_of_gluoncv_before_they_are_initialized(name, shape):
    from gluoncv.model_zoo import get_model as gluoncv_model
    net = gluoncv_model(name)
    found = count(net, shape)
    assert not found.unknown
    deferred = [parameter for parameter in net.collect_params().values() if 0 in parameter.shape]
    assert deferred and all(parameter._data is None for parameter in net.collect_params().values())
    net.initialize()
    net(mx.nd.zeros(shape))
    parameters = net.collect_params().values()
    assert found.params == sum(p.data().size for p in parameters if p.grad_req != 'null')
    assert found.auxiliary == sum(p.data().size for p in parameters if p.name.endswith(('_mean', '_var')))


def test_known_multiply_adds():
    """ResNet-18 and MobileNetV1 as the field counts them; a frozen layer is still made of parameters."""
    from gluoncv.model_zoo import get_model as gluoncv_model
    net = gluoncv_model('resnet18_v1')
    net.features.collect_params().setattr('grad_req', 'null')
    assert (count(net).multiply_adds, count(net).params) == (1814073344, 11689512)
    assert count(get_model('mobilenetv1_x1.0')).multiply_adds == 568740352


def test_lprnet_layer_by_layer():
    """LPRNet-MobileNet x1.0 by the formulas of Table 2."""
    expected = 112 ** 2 * 27 * 32
    for size, m, n in ((112, 32, 64), (56, 64, 128), (28, 128, 256), (14, 256, 512), (7, 512, 1024)):
        expected += size ** 2 * (9 * m + m * n)
    for size, m, modules in ((56, 128, 1), (28, 256, 1), (14, 512, 5), (7, 1024, 1)):
        expected += modules * size ** 2 * (9 * m + 2 * m * (m // 8))
    assert count(get_model('lprnet_mobilenet_x1.0')).multiply_adds == expected + 1024 * 1000


def test_block_symbol_and_file_are_counted_alike(tmp_path):
    net = get_model('lprnet_shufflenetv2_x0.5')
    before = {name: (p.shape, p.grad_req, p._data) for name, p in net.collect_params().items()}
    found = count(net)
    assert {name: (p.shape, p.grad_req, p._data) for name, p in net.collect_params().items()} == before
    symbol = net(DATA)
    symbol.save(str(tmp_path / 'net.json'))
    assert count(symbol) == found
    assert count(tmp_path / 'net.json') == count(str(tmp_path / 'net.json')) == found
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 3, 224, 224)))
    assert count(net) == found


def test_batch_multiplies_operations_and_not_parameters():
    one, four = (count(get_model('lprnet_mobilenet_x0.25'), (n, 3, 64, 64)) for n in (1, 4))
    assert (four.multiply_adds, four.other) == (4 * one.multiply_adds, 4 * one.other)
    assert (four.params, four.auxiliary) == (one.params, one.auxiliary)


def test_shared_parameters_are_counted_once():
    net = nn.HybridSequential()
    first = nn.Dense(6, in_units=6)
    net.add(first, nn.Dense(6, in_units=6, params=first.params))
    found = count(net, (1, 6))
    assert [layer.params for layer in found.layers] == [42, 0]
    assert found.multiply_adds == 72


class Twice(HybridBlock):
    """Calls one layer twice, which gives two nodes of one name."""

    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.layer = nn.Conv2D(3, 3, use_bias=False)

    def hybrid_forward(self, F, x):
        return self.layer(self.layer(x))


def test_layer_that_is_called_twice():
    found = count(Twice(), (1, 3, 8, 8))
    assert [layer.output_shape for layer in found.layers] == [(1, 3, 6, 6), (1, 3, 4, 4)]
    assert found.layers[0].name == found.layers[1].name
    assert (found.params, found.multiply_adds) == (81, 81 * (36 + 16))


class Scaled(HybridBlock):
    """A parameter and a constant that belong to no layer."""

    def __init__(self):
        super().__init__()
        self.scale = self.params.get('scale', shape=(1, 4, 1, 1))
        self.offset = self.params.get_constant('offset', mx.nd.ones((1, 4, 1, 1)))

    def hybrid_forward(self, F, x, scale, offset):
        return F.broadcast_add(F.broadcast_mul(x, scale), offset)


def test_constants_are_no_parameters():
    found = count(Scaled(), (1, 4, 3, 3))
    assert [layer.params for layer in found.layers] == [4, 0]
    assert found.other == 2 * 36


@pytest.mark.parametrize('name, size', [('condensenet_x1.0', 224), ('irregular_densenet40_x1.0', 32)])
def test_indices_are_not_parameters(name, size, tmp_path):
    """A file does not say what Gluon knows: which of its arrays training cannot change."""
    net = get_model(name)
    net(mx.sym.var('data')).save(str(tmp_path / 'net.json'))
    found, of_file = (count(each, (1, 3, size, size)) for each in (net, tmp_path / 'net.json'))
    assert found.params == of_file.params == sum(
        math.prod(parameter.shape) for name, parameter in net.collect_params().items()
        if name.endswith(('weight', 'bias', 'gamma', 'beta')))
    assert found.layers == of_file.layers


def test_what_is_used_as_an_index_and_as_a_number_is_a_parameter():
    weight = mx.sym.var('weight', shape=(3,))
    gathered = mx.sym.take(mx.sym.var('table', shape=(5, 3)), mx.sym.reshape(weight, shape=(-1,)))
    assert count(mx.sym.broadcast_add(DATA, gathered), (3, 3)).params == 15
    assert count(mx.sym.broadcast_add(mx.sym.broadcast_mul(DATA, weight), gathered), (3, 3)).params == 18


# MXNet's default is to fix it.
@pytest.mark.parametrize('keywords, expected', [
    ({}, 5), ({'fix_gamma': True}, 5), ({'fix_gamma': False}, 10)])
def test_fixed_gamma_is_not_counted(keywords, expected):
    found = count(mx.sym.BatchNorm(DATA, **keywords), (1, 5, 2, 2))
    assert (found.params, found.auxiliary) == (expected, 10)


def test_label_is_no_parameter():
    found = count(mx.sym.SoftmaxOutput(mx.sym.FullyConnected(DATA, num_hidden=3), name='softmax'), (2, 4))
    assert found.params == 15
    assert not found.unknown


def test_unknown_operator_is_named(tmp_path, capsys):
    symbol = mx.sym.sin(mx.sym.FullyConnected(DATA, num_hidden=3, name='dense'), name='wave')
    symbol = mx.sym.sin(mx.sym.broadcast_mul(symbol, mx.sym.var('w', shape=(1, 3))), name='second')
    found = count(symbol, (2, 4))
    assert found.unknown == {'sin': ['wave', 'second']}
    assert found.layers[1] == ('wave', 'sin', (2, 3), 0, None, None)
    assert (found.params, found.multiply_adds, found.other) == (18, 24, 6 + 6)
    symbol.save(str(tmp_path / 'net.json'))
    assert run(tmp_path / 'net.json', '--input-shape', '2,4') == 1
    text = capsys.readouterr().out
    assert 'WARNING: unknown operator sin, not counted: wave, second' in text and '?' in text
    assert run(tmp_path / 'net.json', '--input-shape', '2,4', '--format', 'json') == 1
    assert json.loads(capsys.readouterr().out)['unknown'] == found.unknown


def test_table():
    found = count(get_model('lprnet_mobilenet_x0.25', classes=7), (1, 3, 64, 64))
    text, markdown = found.table(), found.table('markdown')
    for row in text.splitlines(), markdown.splitlines():
        (total,) = [line for line in row if 'total' in line]
        assert all(f'{number:,}' in total for number in (found.params, found.multiply_adds, found.other))
    assert 'For an input of 1x3x64x64' in text and '1x7 ' in text and 'WARNING' not in text
    assert sum(line.startswith('|') for line in markdown.splitlines()) == len(found.layers) + 3
    fields = json.loads(found.table('json'))
    assert fields['multiply_adds'] == found.multiply_adds == sum(
        layer['multiply_adds'] for layer in fields['layers'])
    assert fields['layers'][0]['output_shape'] == [1, 8, 32, 32]
    assert fields['params'] == sum(layer['params'] for layer in fields['layers']) == found.params


def test_command(tmp_path, capsys):
    assert run('lprnet_mobilenet_x1.0_r4', '--format', 'json') == 0
    assert json.loads(capsys.readouterr().out)['multiply_adds'] == 363219456
    assert run('mobilenetv1_x0.25', '--input-size', '32', '--small-image', '--classes', '10',
               '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['input_shape'] == [1, 3, 32, 32]
    assert found['layers'][-1]['output_shape'] == [1, 10]
    assert found['layers'][0]['output_shape'] == [1, 8, 32, 32]
    # A trained network, as it is and with other outputs.
    name = 'lprnet_mobilenet_x0.5.cifar10'
    for flags, outputs in (([], 10), (['--small-image', '--input-size', '32'], 10), (['--classes', '7'], 7)):
        assert run(name, *flags, '--format', 'json') == 0
        found = json.loads(capsys.readouterr().out)
        assert found['input_shape'] == [1, 3, 32, 32] and found['layers'][-1]['output_shape'] == [1, outputs]
    net = mx.sym.FullyConnected(mx.sym.var('image'), num_hidden=3)
    net.save(str(tmp_path / 'net.json'))
    assert run(tmp_path / 'net.json', '--input-shape', '2,4', '--input-name', 'image',
               '--format', 'json') == 0
    assert json.loads(capsys.readouterr().out)['multiply_adds'] == 24


@pytest.mark.parametrize('shape, message', [
    ((1, 4, 224, 224), 'does not fit the network'), ((1, 3), 'does not fit the network'),
    ((1, 3, 0, 0), 'positive whole numbers'), ((1, 3, 2.5, 2), 'positive whole numbers'),
    ((), 'positive whole numbers'), (224, 'positive whole numbers'), (None, 'positive whole numbers')])
def test_shape_that_does_not_fit(shape, message, capsys):
    with pytest.raises(InputError, match=message):
        count(get_model('mobilenetv1_x0.25'), shape)
    assert capsys.readouterr().out == ''


def test_second_input_and_wrong_name():
    with pytest.raises(InputError, match='does not determine the shapes of other'):
        count(mx.sym.concat(mx.sym.broadcast_add(DATA, DATA), mx.sym.var('other'), dim=1), (1, 3))
    with pytest.raises(InputError, match="no input 'image'; its first variables are data"):
        count(DATA + 1, (1, 3), input_name='image')


@pytest.mark.parametrize('content', ['', '{', '[]', '{"nodes": []}', 'lprnet', b'\xff\xfe\x00'])
def test_file_that_is_no_symbol(tmp_path, content):
    path = tmp_path / 'net.json'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match='net.json.* is not'):
        count(path)


def test_other_things_that_are_no_network(tmp_path):
    with pytest.raises(InputError, match='missing.json does not exist'):
        count(tmp_path / 'missing.json')
    with pytest.raises(InputError, match='is not a HybridBlock, a Symbol or the path'):
        count(3)
    with pytest.raises(InputError, match='--input-shape 1x3'):
        run('mobilenetv1_x0.25', '--input-shape', '1x3')
    with pytest.raises(InputError, match='unknown network'):
        run('mobilenet_x0.25')
