"""The form for training computes what the network computes, forward and backward, with the same parameters."""
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_lprnet import get_model
from gluon_lprnet.compression import training_form as module
from gluon_lprnet.compression.training_form import fastest_in_training, training_form
from gluon_lprnet.graph import as_block, trace


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def images(random):
    return mx.nd.array(random.normal(0, 1, (4, 3, 64, 64)))


@pytest.fixture
def net(images):
    net = get_model('mobilenetv1_x0.25', classes=10, activation='relu6', padding='tensorflow')
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
    form = training_form(net, (1, 3, 64, 64))
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
    form = training_form(net, (1, 3, 64, 64))
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
def test_the_faster_form_is_taken_and_the_network_stays_as_it_is(net, images, monkeypatch, tmp_path, times):
    before = {name: parameter.data().asnumpy() for name, parameter in net.collect_params().items()}

    def measured(steps, *_, **__):
        for step in steps:
            step()
        return times
    monkeypatch.setattr(module, 'interleaved_milliseconds', measured)
    trained = fastest_in_training(net, (1, 3, 64, 64))
    for name, parameter in net.collect_params().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[name])
    assert (trained._compute.__self__ is net) == (times[0] < times[1])
    assert set(trained.collect_params()) == set(net.collect_params())
    expected = trained(images).asnumpy()
    trained.save_parameters(str(tmp_path / 'saved.params'))
    for parameter in net.collect_params('.*weight').values():
        parameter.set_data(mx.nd.zeros(parameter.shape))
    trained.load_parameters(str(tmp_path / 'saved.params'))
    np.testing.assert_array_equal(trained(images).asnumpy(), expected)


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
    form = training_form(net, images.shape)
    expected = net(images).asnumpy()
    assert form(images).shape == expected.shape
    np.testing.assert_allclose(form(images).asnumpy(), expected, rtol=1e-4, atol=1e-5)
    assert trace(form)[0].get_internals()['conv_output'].list_inputs()[0] == 'data'
    assert [node['inputs'][0][0] for node in json.loads(trace(form)[0].tojson())['nodes'] if node['op'] == 'Pad'] != [0]


@pytest.mark.parametrize('operator, attributes', [
    ('clip', {'a_min': -1, 'a_max': 6}), ('Pad', {'mode': 'edge', 'pad_width': (0, 0, 0, 0, 0, 1, 0, 1)}),
    ('Pad', {'mode': 'constant', 'constant_value': 1, 'pad_width': (0, 0, 0, 0, 0, 1, 0, 1)})])
def test_what_fits_no_rule_stays(random, operator, attributes):
    inner = getattr(mx.sym, operator)(mx.sym.var('data'), **attributes)
    symbol = mx.sym.Convolution(inner, kernel=(3, 3), num_filter=2, no_bias=True, name='conv')
    net = as_block(symbol, {'conv_weight': mx.nd.array(random.normal(0, 1, (2, 3, 3, 3)))})
    images = mx.nd.array(random.normal(0, 4, (2, 3, 8, 8)))
    form = training_form(net, images.shape)
    assert operator in operators(form, images)
    np.testing.assert_allclose(form(images).asnumpy(), net(images).asnumpy(), rtol=1e-5, atol=1e-5)
