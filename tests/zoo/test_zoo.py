"""The networks against published numbers, another implementation, and their rules."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn
from reference.networks import random_images, random_network

import gluon_lprnet
from gluon_lprnet import blocks, get_model, list_models
from gluon_lprnet.complexity import count
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo.scaling import scale_channels

# Trainable parameters with 1000 classes.
PARAMETERS = {
    # As GluonCV has them.
    'mobilenetv1_x0.25': 470072,
    'mobilenetv1_x0.5': 1331592,
    'mobilenetv1_x0.75': 2585560,
    'mobilenetv1_x1.0': 4231976,
    # As torchvision has them.
    'mobilenetv2_x1.0': 3504872,
    'shufflenetv2_x0.5': 1366792,
    'shufflenetv2_x1.0': 2278604,
    'shufflenetv2_x1.5': 3503624,
    'shufflenetv2_x2.0': 7393996,
    # As the collection imgclsmob has them (x1.0: g = 3).
    'shufflenetv1_x0.25': 305902,
    'shufflenetv1_x0.5': 718324,
    'shufflenetv1_x1.0': 1865728,
    'shufflenetv1_x1.5': 3443212,
    'shufflenetv1_x2.0': 5450776,
    'igcv3_x0.5': 1985528,
    'igcv3_x0.75': 2638084,
    'igcv3_x1.0': 3491688,
    'espnetv2_x1.0': 1669592,
    'espnetv2_x1.25': 1964832,
    'espnetv2_x1.5': 2314120,
    'espnetv2_x2.0': 3497144,
    'mnasnet_x1.0': 3887038,
    'condensenet_x1.0': 2935416,
    # With ten classes 34,906, 95,642, 186,746, 277,850 and 1,019,722, as published; a class has 65 or 449 more.
    'shiftresnet20_x1.0': 34906 + 990 * 65,
    'shiftresnet20_x3.0': 95642 + 990 * 65,
    'shiftresnet20_x6.0': 186746 + 990 * 65,
    'shiftresnet20_x9.0': 277850 + 990 * 65,
    'densenet40_x1.0': 1019722 + 990 * 449,
    'irregular_densenet40_x1.0': 294826 + 990 * 449,
    # By the paper's rule; it prints 356K, 869K, 2.3M, 3.4M, 4.5M, 3.0M, 2.0M, then 2.0M and 6.2M.
    'lprnet_mobilenet_x0.25': 353656,
    'lprnet_mobilenet_x0.5': 869896,
    'lprnet_mobilenet_x1.0': 2393128,
    'lprnet_mobilenet_x1.25': 3400120,
    'lprnet_mobilenet_x1.5': 4570696,
    'lprnet_mobilenet_x1.0_r4': 3003432,
    'lprnet_mobilenet_x1.0_r16': 2087976,
    'lprnet_shufflenetv2_x1.0': 2024274,
    'lprnet_shufflenetv2_x2.0': 6242194,
}


def parameters(net):
    return sum(int(np.prod(p.shape)) for p in net.collect_params().values() if p.grad_req != 'null')


def modules(net, kind):
    found = []
    net.apply(lambda block: found.append(block) if isinstance(block, kind) else None)
    return found


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters(name):
    assert parameters(get_model(name)) == PARAMETERS[name]


def test_listed_names_are_distinct_and_built():
    names = list_models()
    assert len(set(names)) == len(names) >= 28
    assert set(PARAMETERS) <= set(names)
    assert names == gluon_lprnet.zoo.list_models()
    for name in names:
        assert parameters(get_model(name)) > 9e4


@pytest.mark.parametrize('width', [0.25, 1.0])
def test_mobilenetv1_is_that_of_gluoncv(width):
    """The same function, parameter for parameter, at random values."""
    from gluoncv.model_zoo.mobilenet import MobileNet
    ours = get_model(f'mobilenetv1_x{width}', classes=11)
    theirs = MobileNet(width, classes=11)
    theirs.initialize(mx.init.MSRAPrelu('in', slope=0))
    x = mx.nd.array(np.random.default_rng(0).normal(0, 1, (2, 3, 64, 64)))
    theirs(x)
    random = np.random.default_rng(1)
    for parameter in theirs.collect_params().values():
        if parameter.name.endswith(('gamma', 'running_var')):
            parameter.set_data(mx.nd.array(random.uniform(0.5, 2, parameter.shape)))
        elif parameter.name.endswith(('beta', 'running_mean', 'bias')):
            parameter.set_data(mx.nd.array(random.normal(0, 0.5, parameter.shape)))
    ours.initialize()
    mine, others = (list(net.collect_params().values()) for net in (ours, theirs))
    assert len(mine) == len(others)
    for parameter, other in zip(mine, others):
        parameter.set_data(other.data())
    expected = theirs(x).asnumpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours(x).asnumpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('small_image, size', [(False, 224), (True, 32)])
@pytest.mark.parametrize('name', ['mobilenetv1_x0.25', 'lprnet_mobilenet_x0.25', 'mobilenetv2_x0.5',
                                  'shufflenetv1_x0.25', 'shufflenetv2_x0.5', 'lprnet_shufflenetv2_x0.5', 'igcv3_x0.5',
                                  'espnetv2_x1.0', 'mnasnet_x0.5', 'condensenet_x1.0'])
def test_forward(name, small_image, size):
    net = get_model(name, classes=10, small_image=small_image)
    net.initialize(mx.init.Xavier())
    x = mx.nd.random.normal(shape=(2, 3, size, size))
    y = net(x).asnumpy()
    assert y.shape == (2, 10)
    assert np.isfinite(y).all() and (y[0] != y[1]).all()
    # The feature map before pooling is 7x7 at 224 and, two down-samplings fewer, 4x4 at 32.
    for layer in net.features:
        if isinstance(layer, nn.GlobalAvgPool2D):
            break
        x = layer(x)
    assert x.shape[2:] == ((4, 4) if small_image else (7, 7))


@pytest.mark.parametrize('name', sorted({name.rpartition('_x')[0]: name for name in reversed(list_models())}.values()))
def test_every_family_can_be_trained(name):
    """The gradients in float32, by oneDNN, are those in float64, which MXNet's own operators compute."""
    form = {'condensenet_x1.0': {'condensing': True}, 'irregular_densenet40_x1.0': {'relaxed': True}}.get(name, {})
    net, gradients = random_network(name, small_image=True, **form), {}
    for dtype in ('float64', 'float32'):
        net.cast(dtype)
        with autograd.record():
            net(random_images(4, 32).astype(dtype)).square().sum().backward()
        gradients[dtype] = np.concatenate([parameter.grad().asnumpy().ravel()
                                           for parameter in net.collect_params().values()
                                           if parameter.grad_req != 'null'])
    difference = gradients['float32'] - gradients['float64']
    # At the bends of ReLU a gradient may be another one.
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(gradients['float64'])


def test_small_image_has_the_same_parameters():
    for name in list_models():
        assert parameters(get_model(name, small_image=True)) == parameters(get_model(name))


@pytest.mark.parametrize('name, denominator', [
    ('lprnet_mobilenet_x1.0_r4', 4), ('lprnet_mobilenet_x1.0', 8), ('lprnet_mobilenet_x1.0_r16', 16)])
def test_lprnet_mobilenet_has_lpr_at_the_places_of_equal_width(name, denominator):
    net = get_model(name)
    widths = [128, 256, 512, 512, 512, 512, 512, 1024]
    lpr = modules(net, blocks.LPR)
    assert [m.p2.weight.shape[:2] for m in lpr] == [(w, w // denominator) for w in widths]
    assert len(modules(net, blocks.DSC)) == 5
    assert not modules(get_model('mobilenetv1_x1.0'), blocks.LPR)
    assert len(modules(get_model('mobilenetv1_x1.0'), blocks.DSC)) == 13


def test_lprnet_shufflenetv2_has_lpr_for_each_stride_1_unit():
    net = get_model('lprnet_shufflenetv2_x1.0')
    widths = [116] * 3 + [232] * 7 + [464] * 3
    assert [m.p1.weight.shape[:2] for m in modules(net, blocks.LPR)] == [(w // 8, w) for w in widths]
    assert len(modules(net, blocks.ShuffleNetV2DownUnit)) == 3
    assert not modules(net, blocks.ShuffleNetV2Unit)
    assert len(modules(get_model('shufflenetv2_x1.0'), blocks.ShuffleNetV2Unit)) == 13


def test_switches_of_lpr_reach_every_module():
    plain = get_model('lprnet_mobilenet_x0.25', residual=False, l2_norm=False)
    operators = plain(mx.sym.var('data')).tojson()
    assert 'L2Normalization' not in operators and 'elemwise_add' not in operators
    full = get_model('lprnet_mobilenet_x0.25')(mx.sym.var('data')).tojson()
    assert full.count('"L2Normalization"') == full.count('"elemwise_add"') == 8
    assert parameters(plain) == PARAMETERS['lprnet_mobilenet_x0.25']


def test_any_width_and_rank():
    net = get_model('lprnet_mobilenet_x0.6_r12')
    widths = [76, 153, 307, 307, 307, 307, 307, 614]
    assert [m.p1.weight.shape[:2] for m in modules(net, blocks.LPR)] == [(w // 12, w) for w in widths]
    assert parameters(get_model('lprnet_mobilenet_x2.0', rank=5)) > 5e6
    assert get_model('mobilenetv2_x0.6').output.weight.shape == (1000, 1280)
    assert get_model('mobilenetv2_x1.4').output.weight.shape == (1000, 1792)
    assert parameters(get_model('lprnet_mobilenet', width=0.5)) == PARAMETERS['lprnet_mobilenet_x0.5']
    # One sixteenth of 8 channels is half a channel: the rank is then 1.
    narrow = get_model('lprnet_mobilenet_x0.0625_r16')
    assert [m.p1.weight.shape[0] for m in modules(narrow, blocks.LPR)] == [1, 1, 2, 2, 2, 2, 2, 4]


@pytest.mark.parametrize('channels, width, divisor, expected', [
    (64, 0.6, 1, 38), (116, 0.125, 1, 14), (32, 0.5, 8, 16), (24, 1.4, 8, 32), (24, 0.1, 8, 8),
    # 16 would be over 10% below 19.9 and 80 is not over 10% below 83.
    (199, 0.1, 8, 24), (83, 1.0, 8, 80)])
def test_scaled_channels(channels, width, divisor, expected):
    assert scale_channels(channels, width, divisor) == expected


@pytest.mark.parametrize('name, keywords, message', [
    ('lprnet_mobilnet', {}, 'Did you mean lprnet_mobilenet'),
    ('lprnet_mobilenet_1.0', {}, 'Did you mean lprnet_mobilenet_x1.0'),
    ('resnet18', {}, 'Families: .*lprnet_mobilenet'),
    ('', {}, 'unknown network'),
    (None, {}, 'unknown network'),
    ('shufflenetv2_x0.75', {}, 'x0.5, x1.0, x1.5, x2.0'),
    ('shufflenetv1_x0.1', {}, 'x0.25, x0.5, x1.0'),
    ('mobilenetv1_x1.0', {'rank': 0.25}, 'has no rank; it takes width'),
    ('mobilenetv1_x1.0_r4', {}, 'has no rank'),
    ('lprnet_mobilenet_x1.0', {'depth': 3}, 'has no depth'),
    ('lprnet_mobilenet_x1.0', {'width': 0.5}, 'width is given twice'),
    ('lprnet_mobilenet_x1.0_r4', {'rank': 0.25}, 'rank is given twice'),
    ('lprnet_mobilenet_x1.0_r0', {}, 'm/0'),
    ('lprnet_mobilenet_x1.0', {'classes': 0}, 'classes'),
    ('lprnet_mobilenet_x1.0', {'classes': 2.5}, 'classes'),
    ('lprnet_mobilenet_x0.0', {}, 'width must be a positive number'),
    ('mobilenetv2', {'width': -1}, 'width must be a positive number'),
    ('mobilenetv1', {'width': '1.0'}, 'width must be a positive number'),
    ('mobilenetv1_x0.01', {}, 'leaves no channel'),
    ('lprnet_mobilenet_x1.0', {'rank': 200}, 'rank 200 is not valid for a module of 128 channels'),
])
def test_what_cannot_be_built_is_said(name, keywords, message):
    with pytest.raises(InputError, match=message):
        get_model(name, **keywords)


@pytest.mark.parametrize('name', ['lprnet_mobilenet_x0.25_r4', 'lprnet_shufflenetv2_x0.5'])
def test_scale_of_the_normalization_is_a_switch_of_every_lpr_network(name):
    net, plain = get_model(name, l2_norm_scale='sqrt_width'), get_model(name)
    scales = [module.scale.scale for module in modules(net, blocks.LPR)]
    assert len(scales) == len(modules(plain, blocks.LPR)) > 0
    assert parameters(net) == parameters(plain) + len(scales)
    counted, without = count(net), count(plain)
    assert counted.params == without.params + len(scales) and counted.multiply_adds == without.multiply_adds
    assert counted.other > without.other and not counted.unknown


@pytest.mark.parametrize('name', ['lprnet_mobilenet_x0.25', 'mobilenetv1_x0.25'])
def test_a_global_depthwise_convolution_begins_as_the_average_and_weighs_positions(name):
    net, plain = get_model(name, classes=10, global_depthwise=4), get_model(name, classes=10)
    for each in (net, plain):
        each.initialize(mx.init.Xavier())
    given = plain._collect_params_with_prefix()
    weight, = set(net._collect_params_with_prefix()) - set(given)
    for key, parameter in net._collect_params_with_prefix().items():
        if key != weight:
            parameter.set_data(given[key].data())
    x = mx.nd.random.normal(shape=(2, 3, 112, 112))
    np.testing.assert_allclose(net(x).asnumpy(), plain(x).asnumpy(), rtol=1e-4, atol=1e-6)

    weights = np.random.default_rng(0).normal(0, 1, (256, 4, 4))
    net._collect_params_with_prefix()[weight].set_data(mx.nd.array(weights[:, None]))
    last_map = x
    for layer in net.features[:-2]:
        last_map = layer(last_map)
    pooled = np.einsum('ncyx,cyx->nc', last_map.asnumpy().astype('float64'), weights)
    expected = pooled @ net.output.weight.data().asnumpy().T
    np.testing.assert_allclose(net(x).asnumpy(), expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
    counted, without = count(net, (1, 3, 112, 112)), count(plain, (1, 3, 112, 112))
    assert counted.params - without.params == counted.multiply_adds - without.multiply_adds == 256 * 16
    with pytest.raises(mx.MXNetError):
        net(mx.nd.zeros((1, 3, 160, 160))).wait_to_read()


def test_former_name_of_the_scaled_network():
    """Runs and exports that were made under it still load: same names of parameters, same shapes."""
    def saved(net):
        return {name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}
    former = saved(get_model('lprnet_with_learned_scale_of_width_x0.5', small_image=True))
    assert former == saved(get_model('lprnet_mobilenet_x0.5', l2_norm_scale='sqrt_width', small_image=True))
    assert sum(name.endswith('.scale.scale') for name in former) == 8
    assert not [name for name in list_models() if 'learned_scale' in name]
