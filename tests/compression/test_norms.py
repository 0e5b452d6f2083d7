"""BatchNorms that a compressed network is tuned with: they change nothing at first, and are folded in again."""
import json

import mxnet as mx
import numpy as np
import pytest
from reference.networks import network_of_unit_activations, operators, random_images, relative_error

from gluon_lprnet.compression import compress
from gluon_lprnet.compression.norms import with_batch_norms
from gluon_lprnet.deployment.reparametrize import reparametrize
from gluon_lprnet.graph import as_block, trace


@pytest.fixture
def images():
    return random_images(64, 64)


def compressed(images, residual, folded):
    """A network with two LPR modules; ``folded``: without any BatchNorm."""
    original = network_of_unit_activations('mobilenetv1_x0.25', activation='relu6')
    net, _ = compress(original, 1 / 4, layers=['*dsc6_*', '*dsc7_*'], residual=residual, calibration=images)
    return as_block(*reparametrize(*trace(net))) if folded else net


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('folded, added', [(False, 2), (True, 27)])
def test_same_function_with_a_norm_for_each_convolution(images, residual, folded, added):
    net = compressed(images, residual, folded)
    expected = net(images).asnumpy()
    assert expected.std(axis=0).min() > 1e-3
    found = with_batch_norms(net, [images[:24], images[24:]])
    assert relative_error(found(images).asnumpy(), expected) < 1e-4
    # 13 depthwise convolutions, 13 pointwise ones or modules, and the stem.
    assert operators(trace(found)[0])['BatchNorm'] == 27
    assert operators(trace(net)[0])['BatchNorm'] == 27 - added


@pytest.mark.parametrize('residual', [False, True])
def test_statistics_are_those_of_the_images(images, residual):
    net = compressed(images, residual, folded=True)
    found = with_batch_norms(net, [images[:24], images[24:]])
    symbol, params = trace(found)
    graph = json.loads(symbol.tojson())['nodes']
    for node in (node for node in graph if node['op'] == 'BatchNorm'):
        source, output = graph[node['inputs'][0][0]], node['inputs'][0][1]
        inner = symbol.get_internals()[f'{source["name"]}_output' if not output else f'{source["name"]}_output{output}']
        values = as_block(inner, {key: params[key] for key in inner.list_inputs() if key in params})(images).asnumpy()
        mean, variance = (params[graph[slot]['name']].asnumpy() for slot, *_ in node['inputs'][3:])
        np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), atol=1e-4)
        np.testing.assert_allclose(variance, values.var(axis=(0, 2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('residual', [False, True])
def test_norms_are_folded_in_again_after_training(images, residual):
    net = with_batch_norms(compressed(images, residual, folded=True), [images])
    for parameter in net.collect_params('.*(gamma|beta|moving|running).*').values():
        parameter.set_data(parameter.data() + mx.nd.random.uniform(0.1, 0.4, parameter.data().shape))
    symbol, params = reparametrize(*trace(net))
    assert 'BatchNorm' not in operators(symbol)
    assert relative_error(as_block(symbol, params)(images).asnumpy(), net(images).asnumpy()) < 1e-4


def test_fixed_statistics_become_those_of_the_batches(images):
    net = network_of_unit_activations('mobilenetv1_x0.25')
    norm = net.features[3][1][1]
    norm._kwargs['use_global_stats'] = True
    expected = net(images).asnumpy()
    found = with_batch_norms(net, [images])
    assert relative_error(found(images).asnumpy(), expected) < 1e-4
    assert "'use_global_stats': 'True'" not in str(json.loads(trace(found)[0].tojson())['nodes'])
    changed = [name for name, value in trace(net)[1].items()
               if abs(value - trace(found)[1][name]).max().asscalar() > 0]
    assert set(changed) == {norm.gamma.name, norm.beta.name, norm.running_mean.name, norm.running_var.name}
