"""Kernels as sums of terms, against NumPy: on known tensors, in the metric of data, and in networks."""
import math

import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import get_model as get_gluoncv_model
from mxnet.gluon import nn
from reference.modules import conv, random_parameters
from reference.networks import random_images, relative_error

from gluon_lprnet.blocks import DSC, LPR, PDP, SConv
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import Budget, ByLayer, Energy, Latency, compress, latency
from gluon_lprnet.compression.pdp import SpatialGraph, decompose, full_rank
from gluon_lprnet.graph import trace
from gluon_lprnet.utils.errors import InputError


@pytest.fixture
def random():
    return np.random.default_rng(5)


def sum_of_terms(terms):
    """By its definition, term by term."""
    return sum(terms.b[:, r, None, None] * terms.a[r][:, None] * terms.d[r] for r in range(len(terms.a)))


def covariance_of(random, size):
    """Eigenvalues over three orders of magnitude, in no special basis."""
    basis = np.linalg.qr(random.normal(0, 1, (size, size)))[0]
    return basis @ np.diag(np.logspace(0, -3, size)) @ basis.T


def error_of(tensor, approximation, covariance):
    rest, matrix = (each.reshape(len(tensor), -1) for each in (tensor - approximation, tensor))
    return np.trace(rest @ covariance @ rest.T) / np.trace(matrix @ covariance @ matrix.T)


@pytest.mark.parametrize('shape', [(6, 5, 9), (3, 16, 9), (20, 2, 9), (8, 8, 25), (4, 1, 9)])
@pytest.mark.parametrize('metric', [None, 'data'])
def test_at_full_rank_the_kernel_is_as_it_was(random, shape, metric):
    tensor = random.normal(0, 1, shape)
    covariance = metric and covariance_of(random, shape[1] * shape[2])
    rank = full_rank(*shape)
    assert rank <= min(shape[0] * shape[1], shape[1] * shape[2], shape[0] * shape[2])
    terms = decompose(tensor, rank, covariance)
    assert terms.a.shape == (rank, shape[1]) and terms.d.shape == (rank, shape[2]) and terms.b.shape == (shape[0], rank)
    assert relative_error(sum_of_terms(terms), tensor) < 1e-5
    np.testing.assert_allclose(terms.tensor, sum_of_terms(terms), atol=1e-12)


@pytest.mark.parametrize('metric', [None, 'data'])
def test_the_error_is_that_of_the_outputs_and_falls_in_every_round(random, metric):
    tensor = random.normal(0, 1, (12, 10, 9))
    covariance = covariance_of(random, 90) if metric else np.eye(90)
    terms = decompose(tensor, 20, metric and covariance)
    assert terms.error == pytest.approx(error_of(tensor, sum_of_terms(terms), covariance), rel=1e-6)
    assert len(terms.errors) > 3 and (np.diff(terms.errors) <= 0).all()
    assert terms.error < 0.8 * terms.errors[0]
    # Nothing near is better by more than the rounds that were left out.
    for step in (1e-3, 1e-2, 0.1):
        for _ in range(30):
            a, d, b = (value + step * random.normal(0, 1, value.shape) for value in (terms.a, terms.d, terms.b))
            other = terms._replace(a=a, d=d, b=b)
            assert error_of(tensor, sum_of_terms(other), covariance) > 0.995 * terms.error


def test_what_is_of_few_terms_is_found(random):
    a, d, b = random.normal(0, 1, (4, 12)), random.normal(0, 1, (4, 9)), random.normal(0, 1, (16, 4))
    tensor = np.einsum('or,ri,rk->oik', b, a, d)
    # As few would do, some more lead there.
    assert decompose(tensor, 8).error < 1e-3
    assert decompose(tensor, 8).errors[0] > 0.05


def test_the_metric_is_that_of_the_data(random):
    tensor, covariance = random.normal(0, 1, (12, 10, 9)), covariance_of(random, 90)
    errors = [error_of(tensor, decompose(tensor, 20, metric).tensor, covariance) for metric in (covariance, None)]
    assert errors[0] < 0.6 * errors[1]
    # Channels that are always 0 do not matter.
    covariance[:9] = covariance[:, :9] = 0
    terms = decompose(tensor, 20, covariance)
    assert np.isfinite(terms.tensor).all() and terms.error < 0.6


def test_ranks_out_of_range(random):
    with pytest.raises(InputError, match='1 to 30'):
        decompose(random.normal(0, 1, (6, 5, 9)), 31)
    assert decompose(np.zeros((4, 3, 9)), 2).error == 0


# --- the family

def kernel_of(pdp):
    """Of a PDP block's three convolutions, as one: (outputs, inputs, k, k)."""
    a, d, b = (values.data().asnumpy().astype('float64') for values in
               (pdp[0].weight, pdp[1].weight, pdp[2][0].weight))
    return np.einsum('or,ri,rkl->oikl', b[:, :, 0, 0], a[:, :, 0, 0], d[:, 0])


@pytest.mark.parametrize('stride, kernel', [(1, 3), (2, 3), (1, 5)])
def test_the_module_is_a_convolution_with_that_kernel(stride, kernel):
    pdp = random_parameters(PDP(5, 7, 4, stride, kernel))
    x = np.random.default_rng(1).normal(0, 1, (2, 5, 6, 8))
    norm = pdp[2][1]
    gamma, beta, mean, variance = (value.data().asnumpy()[:, None, None] for value in
                                   (norm.gamma, norm.beta, norm.running_mean, norm.running_var))
    y = (conv(x, kernel_of(pdp), stride) - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(pdp(mx.nd.array(x, dtype='float64')).asnumpy(), np.maximum(y, 0), rtol=1e-6, atol=1e-6)


def test_parameters_and_multiply_adds_of_the_module():
    complexity = count(PDP(64, 128, 96, stride=2), (1, 64, 14, 14))
    convolutions = [layer for layer in complexity.layers if layer.operator == 'Convolution']
    assert sum(layer.params for layer in convolutions) == 96 * (64 + 9 + 128)
    assert complexity.multiply_adds == 96 * (64 * 14 * 14 + (9 + 128) * 7 * 7)


def without_norm(weight, norm):
    scale = norm.gamma.data().asnumpy() / np.sqrt(norm.running_var.data().asnumpy() + 1e-5)
    return weight.data().asnumpy() * scale[:, None, None, None]


def test_dsc_is_a_member():
    """docs/compressing.md: a is the identity, r = C_in."""
    dsc = random_parameters(DSC(6, 8), 'float32')
    depthwise, pointwise = dsc[0], dsc[1]
    d, b = depthwise[0].weight.data().asnumpy(), pointwise[0].weight.data().asnumpy()
    x = np.random.default_rng(1).normal(0, 1, (2, 6, 5, 7)).astype('float32')
    expected = pointwise[0](depthwise[0](mx.nd.array(x))).asnumpy()
    kernel = np.einsum('or,ri,rkl->oikl', b[:, :, 0, 0], np.eye(6), d[:, 0])
    np.testing.assert_allclose(conv(x, kernel), expected, atol=1e-4)
    assert d.size + b.size == 6 * (9 + 8)


def test_lpr_is_a_member():
    """docs/compressing.md: a is the identity, b the identity plus P2 P1, r = m."""
    m, rank = 16, 2
    lpr = random_parameters(LPR(m, rank, l2_norm=False), 'float32')
    depthwise, norm = lpr.depthwise[0].weight, lpr.depthwise[1]
    d = without_norm(depthwise, norm)
    shift = (norm.beta.data() - norm.running_mean.data() * norm.gamma.data()
             / (norm.running_var.data() + 1e-5).sqrt()).asnumpy()
    p1, p2 = (layer.weight.data().asnumpy()[:, :, 0, 0] for layer in (lpr.p1, lpr.p2))
    b = np.eye(m) + p2 @ p1
    x = np.random.default_rng(1).normal(0, 1, (2, m, 5, 7)).astype('float32')
    y = conv(x, np.einsum('or,ri,rkl->oikl', b, np.eye(m), d[:, 0])) + (b @ shift)[:, None, None]
    np.testing.assert_allclose(lpr(mx.nd.array(x)).asnumpy(), np.maximum(y, 0), rtol=1e-3, atol=1e-3)
    assert p1.size + p2.size + d.size == 2 * m * rank + 9 * m
    # So is it found: the terms of a DSC's or LPR's kernel are as many as channels.
    assert decompose(np.einsum('or,ri,rkl->oikl', b, np.eye(m), d[:, 0]).reshape(m, m, 9), m).error < 1e-10


# --- networks

def small_network():
    net = nn.HybridSequential()
    net.add(SConv(3, 12, 2), SConv(12, 16), nn.Conv2D(8, 5, 2, 2, in_channels=16), nn.GlobalAvgPool2D(), nn.Flatten(),
            nn.Dense(5, in_units=8))
    return random_parameters(net, 'float32')


@pytest.mark.parametrize('calibrated', [False, True])
def test_every_replaced_layer_is_the_sum_of_its_terms(calibrated):
    net, x = small_network(), random_images(64, 24)
    expected = net(x).asnumpy()
    found, report = compress(net, 1.0, method='pdp', calibration=x if calibrated else None, input_shape=(1, 3, 24, 24))
    layers = [layer for layer in report.layers if layer.rank]
    assert [layer.shape for layer in report.layers] == [(12, 3), (16, 12), (8, 16)]
    assert len(layers) == 3 and all(layer.multiply_adds_after < layer.multiply_adds_before for layer in layers)
    assert count(found, (1, 3, 24, 24)).multiply_adds == report.after.multiply_adds
    for layer in layers:
        outputs, inputs = layer.shape
        area, before = {(12, 3): (144, 576), (16, 12): (144, 144), (8, 16): (36, 144)}[layer.shape]
        positions = 25 if layer.shape == (8, 16) else 9
        assert layer.multiply_adds_after == layer.rank * (inputs * before + (positions + outputs) * area)
        assert 0 <= layer.error < 1
    fewer, _ = compress(net, 1, method='pdp', calibration=x if calibrated else None, input_shape=(1, 3, 24, 24))
    assert relative_error(found(x).asnumpy(), expected) < 0.7 * relative_error(fewer(x).asnumpy(), expected)
    assert net(x).asnumpy().tolist() == expected.tolist()


def test_images_make_the_outputs_nearer():
    """Channels that are 0 on all images, and mean values: what images show."""
    net, x = small_network(), random_images(96, 24)
    net[0][1].beta.set_data(mx.nd.array([-20] * 6 + [1] * 6))
    expected = net(x).asnumpy()
    errors = []
    for calibration in (None, x):
        found, report = compress(net, 6, layers=[net[1][0].name + '*'], method='pdp', calibration=calibration,
                                 input_shape=(1, 3, 24, 24))
        errors.append(np.square(found(x).asnumpy() - expected).mean())
    assert errors[1] < 0.5 * errors[0]


def test_layers_are_fitted_in_sequence():
    """The second kernel corrects what few terms of the first do wrong: nearer than fitted to the original's inputs."""
    net, x = small_network(), random_images(96, 24)
    first, second = net[1], net[2]
    few, rank = {f'{first[0].name}*': 6}, 32
    found, report = compress(net, ByLayer({**few, f'{second.name}*': rank}), method='pdp', calibration=x)
    assert [layer.rank for layer in report.layers] == [None, 6, rank]
    alone, _ = compress(net, ByLayer(few), method='pdp', calibration=x)

    def inner(block, output):
        part = mx.gluon.SymbolBlock(block(mx.sym.var('data')).get_internals()[output], mx.sym.var('data'))
        part.collect_params().load_dict({name: value.data() for name, value in block.collect_params().items()},
                                        ignore_extra=True)
        return part(x)

    def columns(values):
        return values.asnumpy().astype('float64').transpose(1, 0, 2, 3).reshape(values.shape[1], -1)

    def patches(values):
        found = mx.nd.im2col(values, kernel=(5, 5), stride=(2, 2), pad=(2, 2))
        return columns(found.expand_dims(3))

    inputs = first(net[0](x))
    original = columns(second(inputs))
    patches_of_original, patches_now = patches(inputs), patches(inner(alone, f'{first.name}_relu0_fwd_output'))
    weight = second.weight.data().asnumpy().astype('float64').reshape(8, 16, 25)
    tensor = decompose(weight, rank, np.cov(patches_of_original)).tensor.reshape(8, -1)
    shift = original.mean(axis=1, keepdims=True) - tensor @ patches_of_original.mean(axis=1, keepdims=True)
    apart = tensor @ patches_now + shift
    fitted = columns(inner(found, f'{second.name}_p2_output'))
    errors = [np.square(each - original).sum() for each in (fitted, apart)]
    assert errors[0] < 0.8 * errors[1]


def test_the_reported_error_is_that_of_the_layer_s_outputs():
    """Against the original's, from the inputs that the layer has in the compressed network."""
    net, x = small_network(), mx.nd.array(random_images(48, 24))
    found, report = compress(net, 5, method='pdp', calibration=x)

    def output_of(block, name):
        symbol = block(mx.sym.var('data')).get_internals()[f'{name}_output']
        part = mx.gluon.SymbolBlock(symbol, mx.sym.var('data'))
        part.collect_params().load_dict({name: value.data() for name, value in block.collect_params().items()},
                                        ignore_extra=True)
        return part(x).asnumpy().astype('float64')

    replaced = [layer for layer in report.layers if layer.rank]
    assert len(replaced) == 3
    for layer, block in zip(replaced, (net[0], net[1], net[2])):
        # Of the BatchNorm behind it, where it has one.
        last = block[1].name if isinstance(block, nn.HybridSequential) else block.name
        expected = output_of(net, f'{last}_fwd')
        output = output_of(found, f'{layer.name.removesuffix("_fwd")}_p2')
        variation = np.square(expected - expected.mean(axis=(0, 2, 3), keepdims=True)).sum()
        assert np.square(output - expected).sum() / variation == pytest.approx(layer.error, rel=1e-3)


def test_without_layers_to_replace_all_stay():
    _, report = compress(small_network(), 5, layers=[], method='pdp')
    assert not [layer for layer in report.layers if layer.rank]


def test_resnet18_of_gluoncv():
    """Random weights, as it comes: the original stays, and every convolution larger than 1x1 is replaced."""
    mx.random.seed(0)
    net = get_gluoncv_model('resnet18_v1', classes=10)
    net.initialize(mx.init.Xavier())
    x = random_images(2, 64)
    expected = net(x).asnumpy()
    # Few terms, so that it is a matter of seconds.
    found, report = compress(net, ByLayer({'*': 8}), method='pdp', input_shape=(1, 3, 64, 64))
    assert len(report.layers) == 17 and [layer.rank for layer in report.layers] == [8] * 17
    assert [layer.shape for layer in report.layers][:2] == [(64, 3), (64, 64)]
    assert report.after.multiply_adds < 0.15 * report.before.multiply_adds
    assert np.isfinite(found(x).asnumpy()).all() and net(x).asnumpy().tolist() == expected.tolist()
    assert 'convolutions replaced' in repr(report) and 'kMAdd' in str(report)


def test_ranks_by_budget_and_energy():
    net = small_network()
    whole = count(net, (1, 3, 24, 24)).multiply_adds
    found, report = compress(net, Budget(0.5), method='pdp', input_shape=(1, 3, 24, 24))
    assert 0.3 * whole < report.after.multiply_adds <= 0.5 * whole
    _, report = compress(net, Energy(0.4), method='pdp', input_shape=(1, 3, 24, 24))
    assert all(layer.error <= 0.6 for layer in report.layers if layer.rank)
    assert any(layer.rank for layer in report.layers)


def test_ranks_by_latency(monkeypatch):
    """As if all of the time was that of multiply-adds; the copies of a layer are timed at its own stride."""
    net, timed = small_network(), []

    def milliseconds(networks, shape, rounds):
        counts = [count(network, shape) for network in networks]
        timed.extend(counts)
        return [[each.multiply_adds / 1e6] * rounds for each in counts]
    monkeypatch.setattr(latency, '_milliseconds', milliseconds)
    errors = []
    for share in (0.5, 0.8):
        _, report = compress(net, Latency(share), method='pdp', input_shape=(1, 3, 24, 24))
        assert 0.8 * share < report.after.multiply_adds / report.before.multiply_adds <= share
        errors.append(sum(layer.error or 0 for layer in report.layers))
    assert errors[1] < errors[0]
    alone = {each.multiply_adds // latency.COPIES for each in timed if each.layers[0].name == 'layer0'}
    assert {row.multiply_adds for row in report.before.layers if row.operator == 'Convolution'
            and row.name in [layer.name for layer in report.layers if layer.skipped in (None, Latency.stays)]} <= alone


@pytest.mark.parametrize('arguments, message', [
    (dict(method='cp'), 'lpr, svd, pdp'), (dict(method='pdp', l2_norm=True), 'l2_norm'),
    (dict(method='pdp', any_width=True), 'any_width'),
    (dict(method='svd', l2_norm=True), 'residual=True'), (dict(method='pdp', layers=['*nothing*']), 'nothing'),
    (dict(method='pdp', rank=10000), '10000')])
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        compress(small_network(), input_shape=(1, 3, 24, 24), **arguments)


def test_a_network_of_1x1_convolutions_has_nothing_for_it():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 1, in_channels=3), nn.Conv2D(4, 3, groups=4, in_channels=4), nn.GlobalAvgPool2D(),
            nn.Flatten())
    net.initialize()
    with pytest.raises(InputError, match='larger than 1x1'):
        compress(net, method='pdp', input_shape=(1, 3, 8, 8))


def test_a_network_with_nan_is_refused():
    net = small_network()
    weight = next(value for value in net.collect_params().values() if value.shape[2:] == (3, 3))
    weight.set_data(weight.data() * float('nan'))
    with pytest.raises(InputError, match='the parameters of .* are NaN'):
        compress(net, method='pdp', input_shape=(1, 3, 24, 24))


@pytest.mark.parametrize('images, side', [(1, 4), (1, 12)])
def test_few_images_are_refused(images, side):
    """As few as the weights of a filter: with fewer positions any error is 0, and the layer is worth nothing."""
    with pytest.raises(InputError, match=r'each filter has \d+ weights: give at least \d+ images'):
        compress(small_network(), 4, method='pdp', calibration=random_images(images, side))


def test_positions_of_large_maps_are_from_everywhere():
    net, x = nn.HybridSequential(), mx.nd.zeros((1, 1, 56, 56))
    net.add(nn.Conv2D(2, 3, padding=1, in_channels=1))
    net.initialize()
    x[:] = mx.nd.arange(56 * 56).reshape((1, 1, 56, 56)) + 1
    graph = SpatialGraph(*trace(net))
    columns = np.concatenate(list(graph.patches(graph.spatial()[0], [x])), axis=1)
    middle = columns[4].astype(int) - 1
    assert columns.shape == (9, 784) and len(set(middle)) == 784
    # Each column of the map about as often as the others, its borders too.
    counts = np.bincount(middle % 56, minlength=56)
    assert counts.min() >= 4 and counts.max() <= 28
    assert (columns[3][middle % 56 == 0] == 0).all() and (columns[5][middle % 56 == 55] == 0).all()


def test_svd_is_the_form_without_the_residual():
    from gluon_lprnet import get_model
    net = get_model('mobilenetv1_x0.25', classes=10)
    net.initialize(mx.init.Xavier())
    x = random_images(2, 32)
    net(x)
    outputs = [compress(net, 1 / 4, input_shape=(1, 3, 32, 32), **form)[0](x).asnumpy()
               for form in (dict(method='svd'), dict(residual=False), dict())]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert relative_error(outputs[2], outputs[0]) > 1e-6
    assert math.isfinite(outputs[0].sum())
