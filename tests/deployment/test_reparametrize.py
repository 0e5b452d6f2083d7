"""The deployed form against the network it comes from, and against a float64 NumPy computation of a module."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn
from reference.modules import random_parameters
from reference.networks import X, lpr_network, operators, random_images, random_network, reference, relative_error

from gluon_lprnet import blocks, get_model
from gluon_lprnet.complexity import count
from gluon_lprnet.deployment.reparametrize import deploy, reparametrize
from gluon_lprnet.graph import trace
from gluon_lprnet.utils.errors import InputError

NETWORKS = {
    'LPRNet-MobileNet': ('lprnet_mobilenet_x0.25', {}),
    'LPRNet-MobileNet, no residual': ('lprnet_mobilenet_x0.25', {'residual': False}),
    'LPRNet-MobileNet, no L2Norm': ('lprnet_mobilenet_x0.25', {'l2_norm': False}),
    'LPRNet-MobileNet, neither': ('lprnet_mobilenet_x0.25', {'residual': False, 'l2_norm': False}),
    'LPRNet-MobileNet, scaled L2Norm': ('lprnet_mobilenet_x0.25', {'l2_norm_scale': 'sqrt_width'}),
    'LPRNet-MobileNet, global depthwise': ('lprnet_mobilenet_x0.25', {'global_depthwise': 2}),
    'LPRNet-ShuffleNetV2': ('lprnet_shufflenetv2_x0.5', {}),
    'LPRNet-ShuffleNetV2, no residual': ('lprnet_shufflenetv2_x0.5', {'residual': False}),
    'MobileNetV1': ('mobilenetv1_x0.25', {}),
    'MobileNetV2': ('mobilenetv2_x0.5', {}),
    'ShuffleNetV1': ('shufflenetv1_x0.25', {}),
    'ShuffleNetV2': ('shufflenetv2_x0.5', {}),
}


@pytest.mark.parametrize('case', NETWORKS)
def test_deployed_network_is_the_same_function(case):
    name, keywords = NETWORKS[case]
    net = random_network(name, **keywords)
    x = random_images(3, 64)
    expected = net(x).asnumpy()
    before = {name: parameter.data().asnumpy() for name, parameter in net.collect_params().items()}
    deployed = deploy(net)
    for inputs in (x, x[:1]):
        found = deployed(inputs).asnumpy()
        assert relative_error(found, expected[:len(found)]) <= 1e-5
    assert all((parameter.data().asnumpy() == before[name]).all() for name, parameter in net.collect_params().items())

    as_trained, as_deployed = count(net, (1, 3, 64, 64)), count(deployed, (1, 3, 64, 64))
    assert as_deployed.multiply_adds == as_trained.multiply_adds
    # A bias for gamma and beta.
    assert as_deployed.params < as_trained.params and not as_deployed.auxiliary
    assert not as_deployed.unknown
    found = operators(trace(deployed)[0])
    assert 'BatchNorm' not in found
    assert found['L2Normalization'] == operators(trace(net)[0])['L2Normalization']


def test_normalization_has_r_channels():
    net = random_network('lprnet_mobilenet_x0.25')

    def normalized_channels(network):
        return [layer.output_shape[1] for layer in count(network).layers if layer.operator == 'L2Normalization']

    assert normalized_channels(net) == [32, 64, 128, 128, 128, 128, 128, 256]
    assert normalized_channels(deploy(net)) == [4, 8, 16, 16, 16, 16, 16, 32]


def test_a_learned_number_becomes_part_of_the_weights():
    net = random_network('lprnet_mobilenet_x0.25', l2_norm_scale='sqrt_width')
    assert operators(trace(net)[0])['broadcast_mul'] == 8
    assert operators(reparametrize(*trace(net))[0]) == operators(
        reparametrize(*trace(random_network('lprnet_mobilenet_x0.25')))[0])


def test_trained_network():
    """Trained in rank space: deploy() takes the network as a training leaves it."""
    net = get_model('lprnet_shufflenetv2_x0.5', classes=4, small_image=True)
    net.initialize(mx.init.Xavier())
    blocks.normalize_in_rank_space(net, True)
    net.hybridize()
    random = np.random.default_rng(3)
    labels = mx.nd.array(np.arange(32) % 4)
    patterns = random.normal(0, 1, (4, 3, 16, 16))
    images = mx.nd.array(patterns[np.arange(32) % 4] + random.normal(0, 0.7, (32, 3, 16, 16)))
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.05, 'momentum': 0.9})
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    for _ in range(12):
        with autograd.record():
            loss = loss_of(net(images), labels)
        loss.backward()
        trainer.step(32)
    unseen = mx.nd.array(patterns[np.arange(100) % 4] + random.normal(0, 0.7, (100, 3, 16, 16)))
    expected = net(unseen).asnumpy()
    assert loss.mean().asscalar() < 0.7, 'nothing was learned: these are not trained weights'
    deployed = deploy(net)
    assert operators(trace(deployed)[0])['L2Normalization'] == 13
    found = deployed(unseen).asnumpy()
    assert relative_error(found, expected) <= 1e-5
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))








# From norms that vanish beside the epsilon to norms whose squares are near the end of float32.
@pytest.mark.parametrize('scale', [1e-18, 1e-9, 1e-6, 1e-5, 1e-3, 1.0, 1e6, 1e16])
@pytest.mark.parametrize('residual', [True, False])
def test_module_of_small_and_large_norm(scale, residual):
    net = lpr_network(scale, residual=residual)
    expected = reference(net, X.astype('float64'))
    net.cast('float32')
    found = deploy(net)(mx.nd.array(X)).asnumpy()
    assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize('residual', [True, False])
def test_module_without_normalization(residual):
    net = lpr_network(residual=residual, l2_norm=False)
    expected = reference(net, X.astype('float64'))
    net.cast('float32')
    assert relative_error(deploy(net)(mx.nd.array(X)).asnumpy(), expected) <= 1e-5


@pytest.mark.parametrize('rank', [0, 1, 3])
def test_rank_deficient_p2(rank):
    net = lpr_network(residual=False)
    u, s, v = np.linalg.svd(net[1].p2.weight.data().asnumpy()[:, :, 0, 0], full_matrices=False)
    net[1].p2.weight.set_data(mx.nd.array((u[:, :rank] * s[:rank]) @ v[:rank], dtype='float64').expand_dims(2)
                              .expand_dims(3))
    net.cast('float32')
    # In float32, whose rounding of P2 is part of the function.
    expected = net(mx.nd.array(X)).asnumpy()
    found = deploy(net)(mx.nd.array(X)).asnumpy()
    if rank == 0:
        np.testing.assert_array_equal(expected, 0)
    assert abs(found - expected).max() <= 1e-5


def test_rank_above_the_width():
    """P2 with more columns than rows, which the module does not allow and another network may have."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(9, 1, in_channels=4, use_bias=False), nn.Conv2D(5, 1, in_channels=9, use_bias=False),
            nn.HybridLambda(lambda F, x: F.L2Normalization(x, mode='channel')))
    random_parameters(net, 'float32')
    x = mx.nd.random.normal(shape=(2, 4, 3, 3))
    deployed = deploy(net)
    assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5
    assert count(deployed, (1, 4, 3, 3)).params == 5 * 4 + 5 * 5


def test_all_zero_activations():
    """0 / sqrt(0 + eps) is 0, at some positions or at all."""
    net = nn.HybridSequential()
    net.add(blocks.LPR(8))
    net.initialize()
    deployed = deploy(net)
    np.testing.assert_array_equal(deployed(mx.nd.zeros((1, 8, 3, 3))).asnumpy(), 0)
    x = mx.nd.zeros((1, 8, 9, 9))
    x[:, :, :3, :3] = mx.nd.random.normal(shape=(1, 8, 3, 3))
    found = deployed(x).asnumpy()
    assert relative_error(found, net(x).asnumpy()) <= 1e-5
    np.testing.assert_array_equal(found[:, :, 5:], 0)


def test_convolution_with_bias_and_fixed_gamma():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(6, 3, in_channels=4, groups=2), nn.BatchNorm(in_channels=6, scale=False, epsilon=0.1))
    random_parameters(net, 'float32')
    x = mx.nd.random.normal(shape=(2, 4, 7, 7))
    deployed = deploy(net)
    assert operators(trace(deployed)[0]) == {'Convolution': 1}
    assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5


class Kept(gluon.HybridBlock):
    """Of 4 channels and 5 rows; no rule fits anything in it."""

    def __init__(self):
        super().__init__()

        def convolution(**keywords):
            return nn.Conv2D(4, 1, in_channels=4, **{'use_bias': False, **keywords})

        with self.name_scope():
            self.output_used_twice, self.used_twice, self.other_axis, self.scaled = (convolution() for _ in range(4))
            self.factors = self.params.get('factors_weight', shape=(1, 4, 1, 1))
            self.norm1, self.norm2, self.norm3 = (nn.BatchNorm(in_channels=4) for _ in range(3))
            self.norm_of_rows = nn.BatchNorm(axis=2, in_channels=5)
            self.pairs = nn.HybridSequential()
            self.pairs.add(convolution(groups=2), convolution(),
                           convolution(), convolution(groups=2),
                           convolution(), convolution(use_bias=True),
                           convolution(), convolution())

    def hybrid_forward(self, F, x, factors):
        y = F.broadcast_mul(self.scaled(x), factors)
        y = self.output_used_twice(y)
        y = self.norm1(y) + y
        y = self.norm2(self.used_twice(self.norm3(self.used_twice(y))))
        y = self.norm_of_rows(self.other_axis(y))
        pairs = list(self.pairs)
        outputs = [p2(p1(y)) for p1, p2 in zip(pairs[::2], pairs[1::2])]
        return F.concat(*(F.L2Normalization(output, mode='channel') for output in outputs[:-1]),
                        F.L2Normalization(outputs[-1], mode='spatial'), dim=1)


def test_what_the_rules_do_not_fit_stays():
    net = random_parameters(Kept(), 'float32')
    x = mx.nd.random.normal(shape=(2, 4, 5, 5))
    deployed = deploy(net)
    assert operators(trace(deployed)[0]) == operators(trace(net)[0])
    assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5


def test_deployed_network_deploys_to_itself():
    net = random_network('lprnet_mobilenet_x0.25', residual=False)
    once = reparametrize(*trace(net))
    twice = reparametrize(*once)
    assert twice[0].tojson() == once[0].tojson()
    assert all((twice[1][name] == value).asnumpy().all() for name, value in once[1].items())


def test_several_outputs_are_refused():
    class Two(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            return x, F.relu(x)
    with pytest.raises(InputError, match='gives several outputs'):
        deploy(Two())


def test_other_types_are_refused():
    net = get_model('lprnet_mobilenet_x0.25')
    net.initialize()
    net.cast('float16')
    with pytest.raises(InputError, match='float16.*cast'):
        deploy(net)


@pytest.mark.parametrize('arguments', ['nothing', 'parameters', 'parameters and data'])
def test_fused_backend_takes_it(arguments):
    """Each convolution with its sum and activation in one operator, however optimize_for() is called."""
    net = random_network('lprnet_mobilenet_x0.25')
    x = random_images(2, 64)
    symbol, params = reparametrize(*trace(net))
    keywords = {'nothing': {}, 'parameters': {'args': params}, 'parameters and data': {'args': {**params, 'data': x}}}
    fused = symbol.optimize_for('MKLDNN', **keywords[arguments])
    found = operators(fused)
    assert found['_sg_mkldnn_conv'] == operators(symbol)['Convolution']
    assert found['L2Normalization'] == 8
    assert not {'Convolution', 'Activation', 'elemwise_add'} & set(found)
    executor = fused.bind(mx.cpu(), {**params, 'data': x}, grad_req='null')
    assert relative_error(executor.forward(is_train=False)[0].asnumpy(), net(x).asnumpy()) <= 1e-5
