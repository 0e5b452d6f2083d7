"""The form for training computes what the network computes, forward and backward, with the same parameters."""
import dataclasses
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_lprnet import get_model
from gluon_lprnet.formats.symbol_files import read_params
from gluon_lprnet.train import fast_form as module
from gluon_lprnet.train import imagenet
from gluon_lprnet.train.fast_form import form_to_train, rewrite, with_form_to_train
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.train.loop import TrainingTask
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.graph import as_block, node_shapes, trace


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def images(random):
    return mx.nd.array(random.normal(0, 1, (4, 3, 64, 64)))


@pytest.fixture
def net(images):
    # Its first layers: behind more of them, rounding alone puts other values on the other side of 0 or 6.
    net = get_model('mobilenetv1_x0.25', classes=10, activation='relu6', padding='tensorflow').features[:4]
    net.initialize(mx.init.Xavier())
    net(images)
    for parameter in net.collect_params('.*gamma').values():
        # Some of what BatchNorm gives is then beyond 6.
        parameter.set_data(mx.nd.full(parameter.shape, 4))
    return net


def operators(block, images):
    block(images)
    return {node['op'] for node in json.loads(block._cached_graph[1].tojson())['nodes']}


def gradients(block, images, parameters):
    with autograd.record():
        loss = (block(images) ** 2).mean()
    loss.backward()
    return {name: parameter.grad().asnumpy().copy() for name, parameter in parameters.items()
            if parameter.grad_req != 'null'}


def test_outputs_and_gradients(net, images):
    form = rewrite(net, (1, 3, 64, 64))
    assert 'clip' not in operators(form, images)
    expected = net(images).asnumpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(form(images).asnumpy(), expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    wanted = gradients(net, images, net.collect_params())
    found = gradients(form, images, net.collect_params())
    assert all(abs(value).max() > 0 for value in wanted.values())
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=2e-3 * abs(value).max(), err_msg=name)


def test_a_step_trains_the_network_itself(net, images):
    form = rewrite(net, (1, 3, 64, 64))
    before = net(images).asnumpy()
    trainer = gluon.Trainer(form.collect_params(), 'sgd', {'learning_rate': 0.1, 'wd': 0.1})
    with autograd.record():
        loss = form(images).mean()
    loss.backward()
    trainer.step(1)
    after = net(images).asnumpy()
    assert abs(after - before).max() > 1e-3
    np.testing.assert_allclose(form(images).asnumpy(), after, atol=1e-3 * abs(after).max())


@pytest.mark.parametrize('times', [([2], [1]), ([1], [2])])
def test_the_faster_form_is_taken_and_the_network_stays_as_it_is(net, monkeypatch, times):
    before = {name: parameter.data().asnumpy() for name, parameter in net.collect_params().items()}

    def measured(steps, *_, **__):
        for step in steps:
            step()
        return times
    monkeypatch.setattr(module, 'interleaved_milliseconds', measured)
    form = form_to_train(net, (1, 3, 64, 64))
    for name, parameter in net.collect_params().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[name])
    assert (form is net) == (times[1] < times[0])


def test_a_network_that_no_rule_is_about_is_not_measured(monkeypatch):
    monkeypatch.setattr(module, 'interleaved_milliseconds', None)
    net = get_model('lprnet_mobilenet_x0.25', classes=10)
    net.initialize()
    assert form_to_train(net, (1, 3, 32, 32)) is net


@pytest.mark.parametrize('slopes', [5, 1])
@pytest.mark.parametrize('size', [(4, 4), (), (4,)])
def test_prelu(random, slopes, size):
    """Of feature maps, behind a dense layer, and of sequences."""
    symbol = mx.sym.LeakyReLU(mx.sym.var('data'), act_type='prelu', name='prelu')
    symbol = mx.sym.broadcast_mul(symbol, mx.sym.var('factor', shape=(1, 5, *(1 for _ in size))))
    net = as_block(symbol, {'prelu_gamma': mx.nd.array(random.uniform(-0.5, 0.5, slopes)),
                            'factor': mx.nd.array(random.normal(0, 1, (1, 5, *(1 for _ in size))))})
    parameters = net.collect_params()
    for parameter in parameters.values():
        parameter.grad_req = 'write'
    values = random.normal(0, 1, (3, 5, *size)).astype('float32')
    # Where the two parts meet.
    values[0] = 0
    images = mx.nd.array(values)
    images.attach_grad()
    form = rewrite(net, images.shape)
    assert 'LeakyReLU' not in operators(form, images)
    np.testing.assert_allclose(form(images).asnumpy(), net(images).asnumpy(), rtol=1e-5, atol=1e-6)
    wanted = {**gradients(net, images, parameters), 'data': images.grad.asnumpy()}
    found = {**gradients(form, images, parameters), 'data': images.grad.asnumpy()}
    assert set(wanted) == {'prelu_gamma', 'factor', 'data'}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('pad, kernel, stride', [
    ((0, 0, 0, 0, 0, 1, 0, 1), 3, 2), ((0, 0, 0, 0, 1, 0, 0, 1), 3, 2), ((0, 0, 0, 0, 0, 2, 2, 1), 5, 3),
    ((0, 0, 0, 0, 1, 1, 1, 1), 3, 1)])
@pytest.mark.parametrize('size', [8, 9])
def test_padding_of_any_sides(random, pad, kernel, stride, size):
    data = mx.sym.var('data')
    padded = mx.sym.Pad(data, mode='constant', pad_width=pad)
    symbol = mx.sym.Convolution(padded, kernel=(kernel, kernel), stride=(stride, stride), num_filter=4, name='conv')
    params = {'conv_weight': mx.nd.array(random.normal(0, 1, (4, 3, kernel, kernel))),
              'conv_bias': mx.nd.array(random.normal(0, 1, 4))}
    net = as_block(symbol, params)
    images = mx.nd.array(random.normal(0, 1, (2, 3, size, size)))
    form = rewrite(net, images.shape)
    expected = net(images).asnumpy()
    assert form(images).shape == expected.shape
    np.testing.assert_allclose(form(images).asnumpy(), expected, rtol=1e-4, atol=1e-5)
    assert trace(form)[0].get_internals()['conv_output'].list_inputs()[0] == 'data'
    assert [node['inputs'][0][0] for node in json.loads(trace(form)[0].tojson())['nodes'] if node['op'] == 'Pad'] != [0]


def convolution(random, channels, in_channels, groups, kernel=3, **attributes):
    """The network of a convolution with a bias, whose parameters are trained."""
    symbol = mx.sym.Convolution(mx.sym.var('data'), num_filter=channels, num_group=groups, kernel=(kernel, kernel),
                                name='conv', **attributes)
    shape = channels, in_channels // groups, kernel, kernel
    net = as_block(symbol, {'conv_weight': mx.nd.array(random.normal(0, 1, shape)),
                            'conv_bias': mx.nd.array(random.normal(0, 1, channels))})
    for parameter in net.collect_params().values():
        parameter.grad_req = 'write'
    return net


def assert_equal_gradients(form, net, images):
    images.attach_grad()
    np.testing.assert_allclose(form(images).asnumpy(), net(images).asnumpy(), rtol=1e-4, atol=1e-4)
    parameters = net.collect_params()
    wanted = {**gradients(net, images, parameters), 'data': images.grad.asnumpy()}
    found = {**gradients(form, images, parameters), 'data': images.grad.asnumpy()}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5 * abs(value).max(), err_msg=name)


def convolutions(form, images):
    """Of each convolution of a form, its groups and the shape of its weight."""
    symbol = trace(form)[0]
    shapes = node_shapes(symbol, images.shape)
    nodes = json.loads(symbol.tojson())['nodes']
    return [(int(node['attrs'].get('num_group', 1)), shapes[nodes[node['inputs'][1][0]]['name']])
            for node in nodes if node['op'] == 'Convolution']


@pytest.mark.parametrize('channels, in_channels, groups, kernel, attributes, expected', [
    (8, 32, 8, 3, {'pad': (1, 1)}, (1, (8, 32, 3, 3))),
    (16, 64, 8, 3, {'stride': (2, 2)}, (2, (16, 32, 3, 3))),
    (32, 64, 16, 1, {}, (4, (32, 16, 1, 1))),
    (24, 48, 6, 3, {'dilate': (2, 2)}, (3, (24, 16, 3, 3))),
    # Not even all groups together have whole blocks.
    (12, 20, 2, 3, {'pad': (1, 1)}, (1, (16, 24, 3, 3)))])
def test_groups_are_merged_until_their_blocks_of_channels_are_whole(random, channels, in_channels, groups, kernel,
                                                                    attributes, expected):
    net = convolution(random, channels, in_channels, groups, kernel, **attributes)
    images = mx.nd.array(random.normal(0, 1, (2, in_channels, 9, 9)))
    form = rewrite(net, images.shape, every_rule=True)
    assert convolutions(form, images) == [expected]
    assert_equal_gradients(form, net, images)


@pytest.mark.parametrize('channels, in_channels, filled_up', [
    (12, 16, (16, 16)), (16, 12, (16, 16)), (9, 20, (16, 24)), (1, 100, (8, 104))])
@pytest.mark.parametrize('kernel, attributes', [(3, {'pad': (1, 1)}), (1, {'stride': (2, 2)})])
def test_channels_are_filled_up(random, channels, in_channels, filled_up, kernel, attributes):
    net = convolution(random, channels, in_channels, 1, kernel, **attributes)
    images = mx.nd.array(random.normal(0, 1, (2, in_channels, 7, 9)))
    form = rewrite(net, images.shape, every_rule=True)
    assert convolutions(form, images) == [(1, (*filled_up, kernel, kernel))]
    assert_equal_gradients(form, net, images)


@pytest.mark.parametrize('channels, in_channels, groups, kernel, size', [
    (16, 24, 1, 3, 9), (16, 32, 2, 3, 9), (12, 12, 12, 3, 9), (12, 3, 1, 3, 9), (12, 20, 1, 1, 1)])
def test_convolutions_that_stay(random, channels, in_channels, groups, kernel, size):
    """Of whole blocks, depthwise, of images, and of pooled features."""
    net = convolution(random, channels, in_channels, groups, kernel)
    images = mx.nd.array(random.normal(0, 1, (2, in_channels, size, size)))
    assert convolutions(rewrite(net, images.shape, every_rule=True), images) == convolutions(net, images)


@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions_of_sequences_stay(random, groups):
    symbol = mx.sym.Convolution(mx.sym.var('data'), num_filter=12, num_group=groups, kernel=(3,), no_bias=True,
                                name='conv')
    net = as_block(symbol, {'conv_weight': mx.nd.array(random.normal(0, 1, (12, 20 // groups, 3)))})
    sequences = mx.nd.array(random.normal(0, 1, (2, 20, 9)))
    form = rewrite(net, sequences.shape, every_rule=True)
    np.testing.assert_array_equal(form(sequences).asnumpy(), net(sequences).asnumpy())


def test_pooled_features_that_a_convolution_reads(random):
    data = mx.sym.var('data')
    pooled = mx.sym.Pooling(data, global_pool=True, pool_type='avg')
    symbol = mx.sym.broadcast_mul(data, mx.sym.Convolution(pooled, kernel=(1, 1), num_filter=4, name='conv'))
    symbol = mx.sym.Pooling(symbol, global_pool=True, pool_type='avg', name='last')
    net = as_block(symbol, {'conv_weight': mx.nd.array(random.normal(0, 1, (4, 4, 1, 1))),
                            'conv_bias': mx.nd.array(random.normal(0, 1, 4))})
    for parameter in net.collect_params().values():
        parameter.grad_req = 'write'
    images = mx.nd.array(random.normal(0, 1, (2, 4, 5, 6)))
    form = rewrite(net, images.shape, every_rule=True)
    nodes = json.loads(trace(form)[0].tojson())['nodes']
    assert [node['name'] for node in nodes if node['op'] == 'Pooling'] == ['last']
    assert_equal_gradients(form, net, images)


@pytest.mark.parametrize('operator, attributes', [
    ('clip', {'a_min': -1, 'a_max': 6}), ('Pad', {'mode': 'edge', 'pad_width': (0, 0, 0, 0, 0, 1, 0, 1)}),
    ('Pad', {'mode': 'constant', 'constant_value': 1, 'pad_width': (0, 0, 0, 0, 0, 1, 0, 1)})])
def test_what_fits_no_rule_stays(random, operator, attributes):
    inner = getattr(mx.sym, operator)(mx.sym.var('data'), **attributes)
    symbol = mx.sym.Convolution(inner, kernel=(3, 3), num_filter=2, no_bias=True, name='conv')
    net = as_block(symbol, {'conv_weight': mx.nd.array(random.normal(0, 1, (2, 3, 3, 3)))})
    images = mx.nd.array(random.normal(0, 4, (2, 3, 8, 8)))
    form = rewrite(net, images.shape, every_rule=True)
    assert operator in operators(form, images)
    np.testing.assert_allclose(form(images).asnumpy(), net(images).asnumpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('model, layout', [
    ('mnasnet_x0.5', {}), ('igcv3_x0.5', {}), ('shufflenetv1_x0.5', {}), ('condensenet_x1.0', {'condensing': True}),
    ('densenet40_x1.0', {}), ('irregular_densenet40_x1.0', {'relaxed': True})])
def test_networks_of_incomplete_blocks(random, model, layout):
    net = get_model(model, classes=10, small_image=True, **layout)
    net.initialize(mx.init.MSRAPrelu())
    images = mx.nd.array(random.normal(0, 1, (4, 3, 32, 32)))
    net(images)
    net.hybridize(static_alloc=True, static_shape=True)
    form = rewrite(net, images.shape, every_rule=True)
    assert operators(form, images) - operators(net, images)
    # Twice: MXNet keeps weights in oneDNN's order after the first time.
    for _ in range(2):
        expected = net(images).asnumpy()
        # 6 - (6 - x) has the rounding of 6.
        np.testing.assert_allclose(form(images).asnumpy(), expected, atol=1e-3 * abs(expected).max() + 1e-6)
    wanted = gradients(net, images, net.collect_params())
    found = gradients(form, images, net.collect_params())
    largest = max(np.linalg.norm(value) for value in wanted.values())
    for name, value in wanted.items():
        # Rounding may put single values on the other side of 0.
        assert np.linalg.norm(found[name] - value) <= 0.05 * np.linalg.norm(value) + 1e-4 * largest, name


def test_an_update_in_either_form_is_the_same(training_flags, monkeypatch, tmp_path):
    flags = [*training_flags, '--model', 'mobilenetv2_x0.25', '--batch-size', '50', '--num-epochs', '1',
             '--tuning-epochs', '0', '--warmup-epochs', '0']
    trained = []
    for name, times, rate in (('net', ([2], [1]), '0.1'), ('form', ([1], [2]), '0.1'), ('still', ([1], [2]), '1e-8')):
        monkeypatch.setattr(module, 'interleaved_milliseconds', lambda *_, times=times, **__: times)
        run = tmp_path / name
        assert imagenet.main([*flags, '--lr', rate, '--save-dir', str(run)]) == 0
        assert ('other operators' in (run / 'train.log').read_text()) == (times < ([2], [1]))
        trained.append(read_params(run / 'export' / 'mobilenetv2_x0.25-0000.params').items())
    for (name, value), (_, other), (_, begun) in zip(*trained):
        if 'running' not in name:
            change = np.linalg.norm(value - begun)
            assert change > 0, name
            assert np.linalg.norm(other - value) <= 0.1 * change + 1e-5, name


def test_slopes_of_prelu_are_trained_by_their_gradient(random):
    """Hybridized, MXNet's own gradients of most slopes of this network are a quarter of what they should be."""
    net = get_model('espnetv2_x1.0', classes=3, small_image=True)
    net.initialize(mx.init.MSRAPrelu())
    images = mx.nd.array(random.normal(0, 1, (50, 3, 16, 16)))
    slopes = net.collect_params('.*alpha')
    wanted = gradients(net, images, slopes)
    net.hybridize(static_alloc=True, static_shape=True)
    form = form_to_train(net, images.shape)
    found = gradients(form, images, slopes)
    assert len(wanted) == 58
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=0.02 * abs(value).max(), err_msg=name)


def espnet_task(contexts):
    net = get_model('espnetv2_x1.0', classes=3, small_image=True)
    net.initialize(ctx=contexts)
    return TrainingTask(net, contexts, *[None] * 5)


def test_prelu_on_several_devices_and_in_other_precisions(random):
    config = ClassificationConfig(input_size=32)
    contexts = [mx.cpu(0), mx.cpu(1)]
    form = with_form_to_train(espnet_task(contexts), config).form
    images = random.normal(0, 1, (2, 3, 32, 32))
    one, other = (form(mx.nd.array(images, ctx=context)).asnumpy() for context in contexts)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(InputError, match='`dtype` bfloat16: a network with PReLU'):
        with_form_to_train(espnet_task([mx.cpu()]), dataclasses.replace(config, dtype='bfloat16'))


def test_the_fast_form_is_not_measured(monkeypatch):
    """What is measured may come out differently, and a resumed training then differs by rounding."""
    monkeypatch.setattr(module, 'interleaved_milliseconds', None)
    net = get_model('lprnet_mobilenet_x0.25', classes=10)
    net.initialize()
    task = TrainingTask(net, [mx.cpu()], *[None] * 5)
    config = ClassificationConfig(input_size=32)
    assert with_form_to_train(task, config) is task
    fast = dataclasses.replace(config, fast_form=True)
    # Where there is nothing to rewrite the network is trained as it is, and no log says otherwise.
    other = get_model('lprnet_mobilenet_x0.5', classes=10)
    other.initialize()
    plain = dataclasses.replace(task, net=other)
    assert with_form_to_train(plain, fast) is plain
    # P1 of its first module has a rank of 4.
    assert (1, (8, 32, 1, 1)) in convolutions(with_form_to_train(task, fast).form, mx.nd.zeros((1, 3, 32, 32)))
    for other in (dataclasses.replace(task, contexts=[mx.cpu(0), mx.cpu(1)]), task):
        with pytest.raises(InputError, match='`fast_form` is for float32 and one CPU'):
            with_form_to_train(other, dataclasses.replace(fast, dtype='bfloat16' if other is task else 'float32'))
