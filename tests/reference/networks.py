"""Networks of random weights, and how far two outputs are apart."""
import json
from collections import Counter

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import nn
from reference.modules import Layers, dsc_reference, lpr_reference, random_parameters

from gluon_lprnet import blocks, get_model
from gluon_lprnet.deployment.onnx import run_onnx, write_onnx
from gluon_lprnet.deployment.reparametrize import reparametrize
from gluon_lprnet.graph import as_block, trace


def relative_error(found, expected):
    return abs(found - expected).max() / abs(expected).max()


def operators(symbol):
    return Counter(node['op'] for node in json.loads(symbol.tojson())['nodes'] if node['op'] != 'null')


def random_network(name, **keywords):
    """With statistics of BatchNorm that are not 0 and 1, at the scale that keeps activations in range."""
    random = np.random.default_rng(0)
    net = get_model(name, classes=10, **keywords)
    net.initialize(mx.init.Xavier())
    for parameter_name, parameter in net.collect_params().items():
        if parameter_name.endswith(('gamma', 'running_var')):
            parameter.set_data(mx.nd.array(random.uniform(0.5, 2, parameter.shape)))
        elif parameter_name.endswith(('beta', 'running_mean')):
            parameter.set_data(mx.nd.array(random.normal(0, 0.3, parameter.shape)))
    return net


def network_of_unit_activations(name, **keywords):
    """With statistics of BatchNorm that are those of the activations, as after a training."""
    mx.random.seed(0)
    net = get_model(name, classes=10, **keywords)
    net.initialize(mx.init.Xavier())
    net.apply(lambda block: block._kwargs.update(momentum=0) if isinstance(block, nn.BatchNorm) else None)
    with autograd.record():
        outputs = net(random_images(64, 64))
    outputs.backward()
    return net


def random_images(count, size):
    return mx.nd.array(np.random.default_rng(1).normal(0, 1, (count, 3, size, size)))


def assert_same_in_every_form(net, x, folder):
    """As a symbol in stock MXNet, with its fused backend, in ONNX Runtime and deployed: the same outputs."""
    expected = net(x).asnumpy()
    trained = trace(net)
    for form, (symbol, params) in {'training': trained, 'deployed': reparametrize(*trained)}.items():
        fused = symbol.get_backend_symbol('MKLDNN')
        assert '_sg_mkldnn_conv' in operators(fused)
        onnx_file = folder / f'{form}.onnx'
        write_onnx(symbol, params, x.shape[1:], onnx_file)
        for output in (as_block(symbol, params)(x).asnumpy(), as_block(fused, params)(x).asnumpy(),
                       run_onnx(onnx_file, x.asnumpy())):
            assert relative_error(output, expected) < 1e-4


def lpr_network(scale=1.0, **keywords):
    """A DSC and an LPR module in float64, whose P2 is multiplied with ``scale``."""
    net = nn.HybridSequential()
    net.add(blocks.DSC(6, 16), blocks.LPR(16, 1 / 4, **keywords))
    random_parameters(net)
    net[1].p2.weight.set_data(net[1].p2.weight.data() * scale)
    return net


def reference(net, x):
    """``net`` of :func:`lpr_network` in float64 NumPy, without the residual if it has none."""
    layers = Layers(net)
    lpr = net[1]
    return lpr_reference(layers, dsc_reference(layers, x), lpr._residual, lpr._l2_norm)


X = np.random.default_rng(2).normal(0, 1, (2, 6, 5, 7)).astype('float32')
