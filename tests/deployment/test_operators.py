"""The operator library against the standard deployed form, stock MXNet and float64 NumPy."""
import os
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn
from reference import int8
from reference.late import COMPUTED, computed_late
from reference.networks import X, lpr_network, operators, random_images, random_network, reference, relative_error

from gluon_lprnet import blocks, get_model
from gluon_lprnet.deployment import operators as operators_module
from gluon_lprnet.deployment.export import _with_normalization
from gluon_lprnet.deployment.operators import BACKEND, build_library, load_library
from gluon_lprnet.deployment.quantize import LibraryQuantizer, mxnet_function, quantize
from gluon_lprnet.deployment.reparametrize import deploy, reparametrize
from gluon_lprnet.graph import as_block, trace
from gluon_lprnet.utils.errors import InputError

pytestmark = pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')

ENVIRONMENT = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[2]))

NETWORKS = {
    'LPRNet-MobileNet': ('lprnet_mobilenet_x0.25', {}),
    'channels beside blocks': ('lprnet_mobilenet_x0.6', {'rank': 1 / 12}),
    'small images': ('lprnet_mobilenet_x0.25', {'small_image': True}),
    'learned scale': ('lprnet_mobilenet_x0.25', {'l2_norm_scale': 'sqrt_width'}),
    'no residual': ('lprnet_mobilenet_x0.25', {'residual': False}),
    'no normalization': ('lprnet_mobilenet_x0.25', {'l2_norm': False}),
    'MobileNetV1': ('mobilenetv1_x0.25', {}),
    'MobileNetV2': ('mobilenetv2_x0.5', {}),
    'LPRNet-ShuffleNetV2': ('lprnet_shufflenetv2_x0.5', {}),
}


@pytest.fixture(scope='module', autouse=True)
def library():
    load_library()


def operators_run_by(block):
    _, symbol = block._cached_graph
    return operators(symbol)


@pytest.mark.parametrize('case', NETWORKS)
def test_whole_network_is_one_operator(case):
    name, keywords = NETWORKS[case]
    net = random_network(name, **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        deployed = deploy(net, operators=True)
    for images in (random_images(3, 64), random_images(1, 33)):
        assert relative_error(deployed(images).asnumpy(), net(images).asnumpy()) <= 1e-5
    assert operators_run_by(deployed) == {'lprnet_network': 1}


@pytest.mark.parametrize('width', [0.5, 0.75])
def test_compressed_network(width):
    net = get_model(f'compressed_mobilenet_x{width}.imagenet', pretrained=True)
    deployed = deploy(net, operators=True)
    images = random_images(2, 96)
    assert relative_error(deployed(images).asnumpy(), net(images).asnumpy()) <= 1e-5
    assert operators_run_by(deployed) == {'lprnet_network': 1}


def test_standard_call():
    net = random_network('lprnet_mobilenet_x0.25')
    images = random_images(2, 64)
    expected = net(images).asnumpy()
    for options in ({}, {'static_alloc': True, 'static_shape': True}):
        block = as_block(*reparametrize(*trace(net)))
        block.optimize_for(images, backend='LPRNet', **options)
        for _ in range(2):
            assert relative_error(block(images).asnumpy(), expected) <= 1e-5


@pytest.mark.parametrize('late', ['parameters', 'input'])
def test_partitioned_when_all_is_computed(late):
    """A backend that is asked to partition while MXNet computes an array may take its memory from it."""
    net = random_network('lprnet_mobilenet_x0.25')
    images = random_images(1, 32)
    if late == 'parameters':
        symbol, params = reparametrize(*trace(net))
        name = min(params)
        as_block(symbol, {**params, name: computed_late(params[name])})
        assert [params[name].shape] == COMPUTED
    else:
        deployed = deploy(net, operators=True)
        deployed(computed_late(images))
        assert [images.shape] == COMPUTED


def test_normalization_in_the_graph():
    net = random_network('lprnet_mobilenet_x0.25')
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in ([120, 110, 100], [60, 50, 40]))
    symbol, params = _with_normalization(*reparametrize(*trace(net)), mean, std)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 3, 40, 48))
    partitioned = symbol.optimize_for('LPRNet')
    assert operators(partitioned) == {'lprnet_network': 1}
    assert relative_error(as_block(partitioned, params)(mx.nd.array(pixels)).asnumpy(),
                          net(mx.nd.array((pixels - mean) / std)).asnumpy()) <= 1e-5


def separable(x, channels, stride):
    depthwise = mx.sym.Convolution(x, num_filter=channels, num_group=channels, kernel=(3, 3), stride=stride,
                                   pad=(1, 1))
    return mx.sym.Convolution(mx.sym.relu(depthwise), num_filter=channels, kernel=(1, 1))


def assert_same_as_stock(symbol, x, expected_operators):
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=x.shape)[0]))
    params = {name: mx.nd.random.normal(scale=0.3, shape=shape) for name, shape in shapes.items() if name != 'data'}
    mx.nd.waitall()
    partitioned = symbol.optimize_for('LPRNet', args={'data': x, **params})
    assert operators(partitioned) == expected_operators
    expected = as_block(symbol, params)(x).asnumpy()
    assert expected.std() > 0.01
    assert relative_error(as_block(partitioned, params)(x).asnumpy(), expected) <= 1e-5


def test_unknown_layers_stay_those_of_mxnet():
    x = mx.sym.Activation(separable(mx.sym.var('data'), 20, (1, 1)), act_type='relu')
    middle = mx.sym.Activation(mx.sym.Convolution(x, num_filter=20, kernel=(5, 5), pad=(2, 2)), act_type='sigmoid')
    # Used outside of the first part too, whose output is then a feature map.
    x = mx.sym.Activation(separable(middle + x, 20, (2, 2)), act_type='relu')
    dense = mx.sym.FullyConnected(mx.sym.Pooling(x, global_pool=True, pool_type='avg', kernel=(1, 1)), num_hidden=7)
    assert_same_as_stock(mx.sym.tanh(dense), mx.nd.random.normal(shape=(2, 20, 9, 12)),
                         {'lprnet_network': 2, 'Convolution': 1, 'Activation': 1, 'tanh': 1})


def grouped(x):
    """Between separable convolutions, one with a group for each output and two inputs in each group."""
    x = mx.sym.Convolution(separable(x, 20, (1, 1)), num_filter=10, num_group=10, kernel=(3, 3), pad=(1, 1),
                           name='grouped')
    return separable(x, 10, (2, 2))


def test_several_inputs_of_a_group_stay_those_of_mxnet():
    x = mx.nd.random.normal(shape=(2, 20, 9, 12))
    assert_same_as_stock(grouped(mx.sym.var('data')), x, {'lprnet_network': 2, 'Convolution': 1})
    net = nn.HybridSequential()
    net.add(nn.Conv2D(20, 3, padding=1, in_channels=20), blocks.DSC(20, 32),
            nn.Conv2D(16, 3, padding=1, groups=16, in_channels=32), blocks.DSC(16, 8), nn.GlobalAvgPool2D(),
            nn.Dense(5))
    net.initialize(mx.init.Normal(0.3))
    expected = net(x).asnumpy()
    deployed = deploy(net, operators=True)
    assert relative_error(deployed(x).asnumpy(), expected) <= 1e-5
    assert operators_run_by(deployed) == {'lprnet_network': 2, 'Convolution': 1}
    # In 8 bits, of a symbol that is partitioned without its arrays.
    quantizer = LibraryQuantizer(*reparametrize(*trace(net)), x.asnumpy(), 'naive')
    partitioned, params = quantizer.quantize(quantizer.layers)
    assert {'lprnet_network', 'Convolution'} <= set(operators(partitioned))
    stock = as_block(*quantizer.standard(quantizer.layers))
    assert relative_error(as_block(partitioned, params)(x).asnumpy(), stock(x).asnumpy()) <= 5e-3


def test_layers_behind_one_of_several_outputs_stay_in_float32():
    """As behind the split of ShuffleNetV2, whose other layers are in 8 bits."""
    net, x = random_network('shufflenetv2_x0.5', small_image=True), random_images(4, 32)
    quantizer = LibraryQuantizer(*reparametrize(*trace(net)), x.asnumpy(), 'naive')
    assert len(quantizer.in_float) == 13 and quantizer.in_float < set(quantizer.layers)
    layers = set(quantizer.layers) - quantizer.in_float
    stock = as_block(*quantizer.standard(layers))(x).asnumpy()
    assert relative_error(as_block(*quantizer.quantize(layers))(x).asnumpy(), stock) <= 5e-3
    assert relative_error(stock, net(x).asnumpy()) < 0.5
    outputs = quantizer.floating(x.asnumpy())
    quantized = quantize(quantizer, x.asnumpy(), outputs, [next(iter(quantizer.in_float))], tolerance=10)
    left_out = {layer.name for layer in quantized.layers if layer.left_out in ('input', '--exclude')}
    assert left_out == quantizer.in_float


@pytest.mark.parametrize('name', ['mobilenet_v2_0_25', 'resnet18_v1', 'resnet18_v2'])
def test_networks_of_others_in_8_bits(name):
    """Vectors in 8 bits that go to convolutions, parts with two outputs, and BatchNorms that stay."""
    net, x = getattr(mx.gluon.model_zoo.vision, name)(classes=5), random_images(4, 64)
    mx.random.seed(1)
    net.initialize(mx.init.Xavier())
    expected = net(x).asnumpy()
    quantizer = LibraryQuantizer(*reparametrize(*trace(net)), x.asnumpy(), 'naive')
    assert relative_error(quantizer.floating(x.asnumpy()), expected) <= 1e-5
    layers = set(quantizer.layers) - quantizer.in_float
    found = as_block(*quantizer.quantize(layers))(x).asnumpy()
    stock = as_block(*quantizer.standard(layers))(x).asnumpy()
    # A number between two steps may be rounded to either.
    assert relative_error(found, stock) <= 0.05 and relative_error(found, expected) < 0.2


class TwiceTheSame(nn.HybridBlock):
    """MXNet computes one ReLU of the two."""

    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.first, self.one, self.other = nn.Conv2D(8, 3, 2, 1), nn.Conv2D(8, 3, 1, 1), nn.Conv2D(8, 1)
            self.output = nn.Dense(5)

    def hybrid_forward(self, F, x):
        x = self.first(x)
        return self.output(F.mean(self.one(F.relu(x)) + self.other(F.relu(x)), axis=(2, 3)))


def test_what_is_computed_twice_stays_in_float32_once():
    net, x = TwiceTheSame(), random_images(4, 32)
    net.initialize(mx.init.Xavier())
    expected = net(x).asnumpy()
    quantizer = LibraryQuantizer(*reparametrize(*trace(net)), x.asnumpy(), 'naive')
    assert len(quantizer.in_float) == 1
    found = as_block(*quantizer.quantize(set(quantizer.layers) - quantizer.in_float))(x).asnumpy()
    assert 0 < relative_error(found, expected) < 0.1


def test_several_inputs_of_a_group_where_no_shape_is_known():
    symbol = grouped(mx.sym.var('data', shape=(0, 0, 0, 0)))
    x = mx.nd.random.normal(shape=(1, 20, 9, 12))
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=x.shape)[0]))
    block = as_block(symbol.optimize_for(BACKEND), {name: mx.nd.ones(shape) for name, shape in shapes.items()
                                                    if name != 'data'})
    with pytest.raises(mx.MXNetError, match='more than one channel.*args'):
        block(x).wait_to_read()


def test_single_convolution_stays_that_of_mxnet():
    convolution = mx.sym.Convolution(mx.sym.var('data'), num_filter=8, kernel=(1, 1))
    assert_same_as_stock(mx.sym.Activation(convolution, act_type='relu'), mx.nd.random.normal(shape=(2, 5, 6, 6)),
                         {'Convolution': 1, 'Activation': 1})


@pytest.mark.parametrize('widths', [(0, 0, 0, 0, 0, 1, 0, 1), (0, 0, 0, 0, 1, 1, 1, 1)])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(7, 10), (8, 9), (4, 5), (2, 3)])
def test_padding(widths, stride, size):
    def padded(x, **keywords):
        return mx.sym.Convolution(mx.sym.pad(x, mode='constant', pad_width=widths), kernel=(3, 3),
                                  stride=(stride, stride), **keywords)

    x = padded(mx.sym.var('data'), num_filter=10)
    x = mx.sym.Convolution(x, num_filter=10, kernel=(1, 1), no_bias=True)
    if min(size) > 3:
        x = padded(x, num_filter=10, num_group=10)
        x = mx.sym.clip(mx.sym.Convolution(x, num_filter=3, kernel=(1, 1)), a_min=0, a_max=6)
    assert_same_as_stock(x, mx.nd.random.normal(shape=(3, 4, *size)), {'lprnet_network': 1})


def test_height_and_width_of_any_size():
    net = random_network('lprnet_mobilenet_x0.25')
    deployed = deploy(net, operators=True)
    for shape in ((1, 3, 40, 97), (2, 3, 97, 40), (1, 3, 1, 1), (1, 3, 2, 130)):
        x = mx.nd.array(np.random.default_rng(4).normal(0, 1, shape))
        assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5


@pytest.mark.parametrize('scale', [1e-18, 1e-9, 1e-6, 1e-5, 1e-3, 1.0, 1e6, 1e16])
def test_module_of_small_and_large_norm(scale):
    net = lpr_network(scale)
    expected = reference(net, X.astype('float64'))
    net.cast('float32')
    assert relative_error(deploy(net, operators=True)(mx.nd.array(X)).asnumpy(), expected) <= 1e-5


@pytest.mark.parametrize('channels, rank', [(16, 16), (40, 5), (72, 36), (200, 33)])
def test_module_of_other_widths_and_ranks(channels, rank):
    net = nn.HybridSequential()
    net.add(blocks.LPR(channels, rank))
    net.initialize(mx.init.Normal(0.3))
    x = mx.nd.random.normal(shape=(2, channels, 9, 14))
    deployed = deploy(net, operators=True)
    assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5


def test_nan_is_not_hidden():
    deployed = deploy(random_network('lprnet_mobilenet_x0.25'), operators=True)
    x = random_images(1, 32)
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(deployed(x).asnumpy()).any()


def test_other_types_are_refused():
    block = as_block(*reparametrize(*trace(random_network('lprnet_mobilenet_x0.25'))))
    block.cast('float64')
    images = random_images(1, 32).astype('float64')
    block.optimize_for(images, backend='LPRNet')
    with pytest.raises(mx.MXNetError, match='float32'):
        block(images).wait_to_read()


def test_no_gradient():
    deployed = deploy(random_network('lprnet_mobilenet_x0.25'), operators=True)
    x = random_images(1, 32)
    x.attach_grad()
    with pytest.raises(mx.MXNetError):  # noqa: PT012  MXNet runs later than it is called
        with autograd.record():
            y = deployed(x)
        y.backward()
        mx.nd.waitall()


def test_functions_of_other_libraries_are_not_taken_for_its_own(tmp_path):
    """A library with functions of the same names was loaded before, for all to see, as Horovod's is."""
    symbols = subprocess.run(['nm', '-D', '--defined-only', str(build_library())], check=True, capture_output=True,
                             text=True).stdout
    names = set(re.findall(r' W (_ZN5mxnet\w+)', symbols))
    assert any('CustomOp' in name for name in names)
    (tmp_path / 'other.c').write_text(
        'void abort(void);\n' + ''.join(f'void {name}(void) {{ abort(); }}\n' for name in sorted(names)))
    subprocess.run(['g++', '-x', 'c', '-shared', '-fPIC', str(tmp_path / 'other.c'), '-o', str(tmp_path / 'other.so')],
                   check=True)
    program = ('import ctypes, sys; import gluon_lprnet; from gluon_lprnet.deployment.operators import load_library\n'
               'ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)\n'
               'load_library()')
    subprocess.run([sys.executable, '-c', program, str(tmp_path / 'other.so')], check=True, env=ENVIRONMENT)


def test_a_compiler_that_links_the_standard_library_in(tmp_path):
    """Errors are written by its streams, which took the locale of the other standard library for theirs."""
    program = ('import gluon_lprnet, mxnet as mx\n'
               'net = gluon_lprnet.get_model("lprnet_mobilenet_x0.25", classes=10)\n'
               'net.initialize()\n'
               'deployed = gluon_lprnet.deploy(net, operators=True)\n'
               'x = mx.nd.ones((1, 3, 32, 32))\n'
               'x.attach_grad()\n'
               'with mx.autograd.record():\n'
               '    y = deployed(x)\n'
               'try:\n'
               '    y.backward()\n'
               '    mx.nd.waitall()\n'
               'except mx.MXNetError as error:\n'
               '    assert "no gradient" in str(error), error\n'
               'else:\n'
               '    raise AssertionError("not refused")\n')
    subprocess.run([sys.executable, '-c', program], check=True,
                   env=dict(ENVIRONMENT, CXX='g++ -static-libstdc++ -O1', XDG_CACHE_HOME=str(tmp_path)))


def new_array(parameter, value):
    """It may be where the old one was."""
    parameter.shape = value.shape
    parameter.initialize(mx.init.Normal(1), force_reinit=True)


CHANGES = {
    'set_data': lambda parameter, value: parameter.set_data(value),
    'from NumPy': lambda parameter, value: parameter.data().__setitem__(slice(None), value.asnumpy()),
    'one element': lambda parameter, value: parameter.data().reshape(-1)[3:4].__setitem__(slice(None), 2),
    'in place': lambda parameter, value: parameter.data().__iadd__(value),
    'a new array': new_array,
}


@pytest.mark.parametrize('change', CHANGES)
def test_changed_parameters_are_seen(change):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(12, 3, padding=1, activation='relu'), blocks.DSC(12, 16), blocks.LPR(16, 1 / 4),
            nn.GlobalAvgPool2D(), nn.Dense(5))
    net.initialize(mx.init.Normal(0.3))
    images = random_images(2, 8)
    net(images)
    symbol, params = reparametrize(*trace(net))
    block, plain = as_block(symbol, params), as_block(symbol, params)
    block.optimize_for(images, backend='LPRNet', static_alloc=True, static_shape=True)
    assert operators_run_by(block) == {'lprnet_network': 1}
    before = block(images).asnumpy()
    assert len(params) == 12
    for name, parameter in block.collect_params().items():
        CHANGES[change](parameter, mx.nd.random.normal(shape=parameter.data().shape))
        plain.collect_params()[name].set_data(parameter.data())
        after = block(images).asnumpy()
        assert relative_error(after, plain(images).asnumpy()) <= 1e-5
        assert abs(after - before).max() > 1e-5
        before = after


def test_networks_and_shapes_side_by_side():
    """Blocks of the same graph with other parameters, and of another graph, each with two shapes, in threads."""
    symbol, params = reparametrize(*trace(random_network('lprnet_mobilenet_x0.25')))
    networks = [(symbol, {name: value * factor for name, value in params.items()}) for factor in (1, 1.1, 0.9)]
    networks.append(reparametrize(*trace(random_network('mobilenetv1_x0.25'))))
    shapes = [random_images(2, 64), random_images(1, 40), random_images(5, 32)]
    expected = [[as_block(*network)(images).asnumpy() for images in shapes] for network in networks]
    deployed = [as_block(symbol.optimize_for('LPRNet'), params) for symbol, params in networks]
    for index, block in enumerate(deployed):
        # Without static_alloc, each pass has an operator of its own.
        block.hybridize(static_alloc=index < 2, static_shape=index < 2)

    def work(index):
        return max(relative_error(deployed[index](images).asnumpy(), expected[index][shape])
                   for _ in range(10) for shape, images in enumerate(shapes))

    with ThreadPoolExecutor(len(networks)) as pool:
        assert max(pool.map(work, range(len(networks)))) <= 1e-5


# Networks all of whose layers are between roundings that NumPy can follow.
IN_8_BITS = ['LPRNet-MobileNet', 'channels beside blocks', 'small images', 'learned scale', 'no residual',
             'MobileNetV2']
TRAINED = ['lprnet_mobilenet_x0.5.cifar10', 'mobilenetv1_x0.5.cifar10', 'compressed_mobilenet_x0.5.imagenet',
           'compressed_mobilenet_x0.75.imagenet']


def in_8_bits(symbol, params, images):
    """A network in 8 bits, in MXNet's operators, and its outputs in NumPy."""
    quantizer = LibraryQuantizer(symbol, params, images, 'naive')
    symbol, params = quantizer.standard(quantizer.layers)
    expected = int8.run(symbol, params, images)
    assert np.ptp(expected, axis=0).max() > 1e-3 * abs(expected).max()
    return symbol, params, expected


def network_that_varies(name, size, **keywords):
    """Symbol and parameters of a network that tells images from each other, and two such images."""
    if name in TRAINED:
        net = get_model(name, pretrained=True)
    else:
        net = random_network(name, **keywords)
        for parameter_name, parameter in net.collect_params().items():
            if parameter_name.endswith(('beta', 'running_mean')):
                parameter.set_data(parameter.data() / 1000)
    images = np.random.default_rng(5).normal(0, 1, (2, 3, size, size)).astype('float32')
    images[1, 0], images[1, 1:] = 2, np.linspace(-3, 3, size, dtype='float32')
    net(mx.nd.array(images))
    return *reparametrize(*trace(net)), images


@pytest.mark.parametrize('case', IN_8_BITS + TRAINED)
def test_8_bits_are_those_of_integer_arithmetic(case):
    name, keywords = NETWORKS.get(case, (case, {}))
    symbol, params, images = network_that_varies(name, 45, **keywords)
    symbol, params, expected = in_8_bits(symbol, params, images)
    partitioned = symbol.optimize_for(BACKEND)
    assert operators(partitioned) == {'lprnet_network': 1}
    block = as_block(partitioned, params)
    np.testing.assert_array_equal(block(mx.nd.array(images)).asnumpy(), expected)
    one = int8.run(symbol, params, images[:1, :, 3:40])
    np.testing.assert_array_equal(block(mx.nd.array(images[:1, :, 3:40])).asnumpy(), one)


def test_8_bits_by_the_standard_call():
    symbol, params, images = network_that_varies('lprnet_mobilenet_x0.5.cifar10', 32)
    symbol, params, expected = in_8_bits(symbol, params, images)
    block = as_block(symbol, params)
    x = mx.nd.array(images)
    # MXNet's own operators round a half up, and sum in another order.
    assert relative_error(block(x).asnumpy(), expected) < 5e-3
    block.optimize_for(x, backend=BACKEND, static_alloc=True, static_shape=True)
    assert operators_run_by(block) == {'lprnet_network': 1}
    np.testing.assert_array_equal(block(x).asnumpy(), expected)


def every_kind():
    """Layers on signed inputs and on small feature maps, a clip, and sums with what is rounded."""
    x = mx.sym.Convolution(mx.sym.var('data', shape=(0, 0, 0, 0)), num_filter=21, kernel=(3, 3), pad=(1, 1))
    x = mx.sym.Convolution(x, num_filter=21, num_group=21, kernel=(3, 3), pad=(1, 1), no_bias=True)
    x = mx.sym.Convolution(x, num_filter=21, num_group=21, kernel=(3, 3), pad=(1, 1), stride=(2, 2))
    x = mx.sym.elemwise_add(x, mx.sym.Convolution(x, num_filter=21, kernel=(1, 1)))
    x = mx.sym.clip(mx.sym.Convolution(x, num_filter=35, kernel=(1, 1)), a_min=-1, a_max=2)
    x = mx.sym.relu(mx.sym.Convolution(x, num_filter=13, kernel=(3, 3), pad=(1, 1), stride=(2, 2)))
    x = mx.sym.relu(mx.sym.Convolution(x, num_filter=9, kernel=(1, 1)))
    return mx.sym.FullyConnected(mx.sym.Pooling(x, global_pool=True, pool_type='avg', kernel=(1, 1)), num_hidden=6)


def random_parameters(symbol, images):
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=images.shape)[0]))
    random = np.random.default_rng(6)
    return {name: mx.nd.array(random.normal(0, 0.3, shape)) for name, shape in shapes.items() if name != 'data'}


@pytest.mark.parametrize('shape', [(3, 5, 13, 22), (2, 3, 2, 3), (2, 19, 1, 1)])
def test_8_bits_of_every_kind_of_layer(shape):
    images = np.random.default_rng(7).normal(0, 1, shape).astype('float32')
    symbol = every_kind()
    symbol, params, expected = in_8_bits(symbol, random_parameters(symbol, images), images)
    partitioned = symbol.optimize_for(BACKEND)
    assert operators(partitioned) == {'lprnet_network': 1}
    np.testing.assert_array_equal(as_block(partitioned, params)(mx.nd.array(images)).asnumpy(), expected)


def test_largest_products_do_not_saturate():
    """Neighboring products of 255 and 127, and of 255 and -127, which do not fit into 16 bits."""
    symbol = every_kind()
    images = np.random.default_rng(8).normal(0, 1, (2, 64, 6, 6)).astype('float32')
    params = random_parameters(symbol, images)
    params = {name: mx.nd.sign(value) for name, value in params.items()}
    for name, value in params.items():
        # Inputs from 0 to 6 times the calibration's largest, all of which become 255.
        if value.ndim > 1:
            params[name] = mx.nd.abs(value) if value.shape[0] % 2 else -mx.nd.abs(value) * (value.shape[1] != 35)
    quantizer = LibraryQuantizer(symbol, params, images, 'naive')
    symbol, params = quantizer.standard(quantizer.layers)
    assert any(abs(value.asnumpy()).min() == 127 for value in params.values() if value.dtype == np.int8)
    many = 6 * abs(images)
    np.testing.assert_array_equal(as_block(symbol.optimize_for(BACKEND), params)(mx.nd.array(many)).asnumpy(),
                                  int8.run(symbol, params, many))


# Of a trained network: with random weights, a sum that rounds to another whole number because it is added up in another
# order makes as much of a difference as the 8 bits themselves.
@pytest.mark.parametrize('chosen', [lambda index: index % 2, lambda index: index % 3 == 0])
def test_some_layers_in_8_bits(chosen):
    symbol, params, images = network_that_varies('lprnet_mobilenet_x0.5.cifar10', 32)
    quantizer = LibraryQuantizer(symbol, params, images, 'naive')
    layers = [layer for index, layer in enumerate(quantizer.layers) if chosen(index)]
    symbol, params = quantizer.standard(layers)
    x = mx.nd.array(images)
    expected = mxnet_function(as_block(symbol, params))(images)
    partitioned = symbol.optimize_for(BACKEND, args={'data': x, **params})
    assert operators(partitioned) == {'lprnet_network': 1}
    found = as_block(partitioned, params)(x).asnumpy()
    assert np.ptp(expected, axis=0).max() > 1e-3 * abs(expected).max()
    assert relative_error(found, expected) < 5e-3
    assert relative_error(quantizer.floating(images), expected) > 5e-3


def test_changed_weights_of_8_bits_are_seen():
    images = np.random.default_rng(7).normal(0, 1, (2, 4, 9, 9)).astype('float32')
    symbol = every_kind()
    symbol, params, before = in_8_bits(symbol, random_parameters(symbol, images), images)
    block = as_block(symbol.optimize_for(BACKEND), params)
    block.hybridize(static_alloc=True, static_shape=True)
    x = mx.nd.array(images)
    np.testing.assert_array_equal(block(x).asnumpy(), before)
    for name, parameter in block.collect_params().items():
        value = params[name].asnumpy()
        params[name] = mx.nd.array(value // 2 if value.dtype == np.int8 else value * 0.7, dtype=value.dtype)
        parameter.set_data(params[name])
        expected = int8.run(symbol, params, images)
        np.testing.assert_array_equal(block(x).asnumpy(), expected)
        assert abs(expected - before).max() > 0
        before = expected


def test_8_bits_of_nan_and_of_any_size():
    """What is beyond the calibration's range is at its end, and NaN at the lowest."""
    images = np.random.default_rng(7).normal(0, 1, (2, 3, 8, 8)).astype('float32')
    symbol = every_kind()
    symbol, params, _ = in_8_bits(symbol, random_parameters(symbol, images), images)
    block = as_block(symbol.optimize_for(BACKEND), params)
    large, lowest = (mx.nd.array(images.copy()) for _ in range(2))
    large[0, 0], lowest[0, 0] = 1e30, -1e30
    np.testing.assert_array_equal(block(large).asnumpy(), int8.run(symbol, params, large.asnumpy()))
    expected = block(lowest).asnumpy()
    np.testing.assert_array_equal(expected, int8.run(symbol, params, lowest.asnumpy()))
    lowest[0, 0] = np.nan
    np.testing.assert_array_equal(block(lowest).asnumpy(), expected)


def run_elsewhere(folder, library, threads):
    """The outputs of files of a network in ``folder``, in a process that has MXNet and the library alone."""
    program = (
        'import sys; from gluon_lprnet._compat import import_mxnet; mx = import_mxnet(); import numpy as np\n'
        'mx.library.load(sys.argv[1], verbose=False)\n'
        "net = mx.gluon.SymbolBlock.imports('net-symbol.json', ['data'], 'net-0000.params')\n"
        "np.save('outputs.npy', net(mx.nd.array(np.load('images.npy'))).asnumpy())\n"
        "assert 'gluon_lprnet.deployment' not in sys.modules")
    subprocess.run([sys.executable, '-c', program, str(library)], cwd=folder, check=True,
                   env=dict(ENVIRONMENT, OMP_NUM_THREADS=threads))
    return np.load(folder / 'outputs.npy')


def write_files(symbol, params, images, folder):
    symbol.optimize_for(BACKEND).save(str(folder / 'net-symbol.json'))
    mx.nd.save(str(folder / 'net-0000.params'), {f'arg:{name}': value for name, value in params.items()})
    np.save(folder / 'images.npy', images)


@pytest.mark.parametrize('threads', ['1', '3'])
@pytest.mark.parametrize('name', ['lprnet_mobilenet_x0.25', 'lprnet_shufflenetv2_x0.5'])
def test_files_need_the_library_alone(name, threads, tmp_path):
    """Saved, and loaded by MXNet in another process with another number of threads: fewer and more than images."""
    net = random_network(name)
    images = random_images(2, 64)
    write_files(*reparametrize(*trace(net)), images.asnumpy(), tmp_path)
    assert relative_error(run_elsewhere(tmp_path, build_library(), threads), net(images).asnumpy()) <= 1e-5


def test_8_bits_of_threads_that_share_an_image(tmp_path):
    """Their rows of a feature map begin at even and odd ones."""
    images = np.random.default_rng(7).normal(0, 1, (2, 5, 13, 22)).astype('float32')
    symbol = every_kind()
    symbol, params, expected = in_8_bits(symbol, random_parameters(symbol, images), images)
    write_files(symbol, params, images, tmp_path)
    np.testing.assert_array_equal(run_elsewhere(tmp_path, build_library(), '5'), expected)


# AVX-VNNI's product of bytes, element by element.
VNNI = '''
#include <immintrin.h>
static inline __m256i product_of_bytes(__m256i sums, __m256i x, __m256i weights) {
  int total[8];
  unsigned char left[32];
  signed char right[32];
  _mm256_storeu_si256((__m256i*)total, sums);
  _mm256_storeu_si256((__m256i*)left, x);
  _mm256_storeu_si256((__m256i*)right, weights);
  for (int i = 0; i < 32; ++i) total[i / 4] += left[i] * right[i];
  return _mm256_loadu_si256((const __m256i*)total);
}
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 product_of_bytes
'''


@pytest.mark.slow
@pytest.mark.parametrize('flags', ['-march=x86-64', '-march=sandybridge', '-march=haswell',
                                   '-march=haswell -include vnni.h'])
def test_8_bits_on_other_processors(tmp_path, monkeypatch, flags):
    """Without AVX, with it but without integers of its width, with both, and with VNNI, emulated."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', f'g++ -I{tmp_path} {flags}')
    (tmp_path / 'vnni.h').write_text(VNNI)
    library = build_library()
    images = np.random.default_rng(7).normal(0, 1, (3, 5, 13, 22)).astype('float32')
    symbol = every_kind()
    networks = [in_8_bits(symbol, random_parameters(symbol, images), images),
                in_8_bits(*network_that_varies('lprnet_mobilenet_x0.6', 45, rank=1 / 12))]
    for (symbol, params, expected), x in zip(networks, (images, network_that_varies('mobilenetv1_x0.25', 45)[2])):
        write_files(symbol, params, x, tmp_path)
        np.testing.assert_array_equal(run_elsewhere(tmp_path, library, '2'), expected)


@pytest.mark.slow
@pytest.mark.parametrize('processor', ['skylake-avx512', 'sapphirerapids', 'alderlake'])
def test_compiles_for(processor, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', f'g++ -march={processor}')
    assert build_library().exists()


@pytest.mark.slow
def test_other_processors(tmp_path, monkeypatch):
    """Without AVX."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'g++ -march=x86-64')
    library = build_library()
    for name in ('lprnet_mobilenet_x0.25', 'lprnet_shufflenetv2_x0.5'):
        net = random_network(name)
        images = random_images(2, 50)
        write_files(*reparametrize(*trace(net)), images.asnumpy(), tmp_path)
        assert relative_error(run_elsewhere(tmp_path, library, '2'), net(images).asnumpy()) <= 1e-5


def test_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'g++ -O0')
    library = build_library()
    written = library.stat().st_mtime_ns
    assert build_library() == library and library.stat().st_mtime_ns == written
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    # Without a compiler it is still there, for this source alone.
    monkeypatch.setenv('CXX', str(tmp_path / 'missing-g++'))
    assert build_library() == library
    source = tmp_path / 'operators.cc'
    source.write_bytes(operators_module.SOURCES[0].read_bytes() + b'// changed')
    monkeypatch.setattr(operators_module, 'SOURCES', [source, *operators_module.SOURCES[1:]])
    with pytest.raises(InputError, match='missing-g'):
        build_library()


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', str(tmp_path / 'missing-g++'))
    with pytest.raises(InputError, match='missing-g.*standard form needs neither'):
        build_library()


def test_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'g++ -DBLOCK=')
    with pytest.raises(InputError, match='cannot compile'):
        build_library()
    assert not list((tmp_path / 'gluon_lprnet').iterdir())


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with pytest.raises(InputError, match='file'):
        build_library()
