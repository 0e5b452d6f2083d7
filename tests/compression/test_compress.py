"""Compression against NumPy, against known matrices, and on networks as GluonCV and this zoo make them."""
import argparse
import gc
import itertools
import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records
from gluoncv.model_zoo import get_model as get_gluoncv_model
from mxnet import autograd, gluon
from mxnet.gluon import nn
from reference.networks import network_of_unit_activations, random_images, random_network, relative_error

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.artifact import load_network
from gluon_lprnet.blocks import DSC
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import (
    Budget,
    ByLayer,
    Energy,
    Fraction,
    Latency,
    Rank,
    command,
    tasks,
    compress,
    distill,
    distillation_loss,
    latency,
    refit,
)
from gluon_lprnet.compression.factorize import factorize, ranks_within, spectrum
from gluon_lprnet.compression.modules import Form, PointwiseGraph
from gluon_lprnet.compression.refit import replacement, ridge
from gluon_lprnet.compression.tuning import Agreement, Best, as_teacher
from gluon_lprnet.data.recordio import read_records, write_records
from gluon_lprnet.deployment.onnx import write_onnx
from gluon_lprnet.graph import as_block, trace
from gluon_lprnet.train import fast_form
from gluon_lprnet.train.loop import TrainingTask
from gluon_lprnet.utils.errors import InputError

M = 24


@pytest.fixture
def random():
    return np.random.default_rng(5)


def low_rank(random, rank, m=M):
    return random.normal(0, 1, (m, rank)) @ random.normal(0, 1, (rank, m))


def anisotropic(random, m=M):
    """A covariance whose eigenvalues span four orders of magnitude, in no special basis."""
    basis = np.linalg.qr(random.normal(0, 1, (m, m)))[0]
    return basis @ np.diag(np.logspace(0, -4, m)) @ basis.T


def mean_square(matrix, covariance):
    return np.trace(matrix @ covariance @ matrix.T)


# --- the closed form

@pytest.mark.parametrize('scale', ['one number', 'by channel', 'none'])
@pytest.mark.parametrize('metric', ['identity', 'anisotropic'])
def test_what_fits_is_recovered(random, scale, metric):
    s = {'one number': np.full(M, -1.7), 'by channel': random.normal(0, 3, M), 'none': np.zeros(M)}[scale]
    matrix = np.diag(s) + low_rank(random, 3)
    factors = factorize(matrix, 3, anisotropic(random) if metric == 'anisotropic' else None, residual=scale != 'none')
    assert factors.error < 1e-9
    # Along directions with a ten-thousandth of the data's variance, errors a hundred times as large are as good.
    accuracy = 1e-2 if metric == 'anisotropic' else 1e-6
    assert relative_error(factors.matrix, matrix) < accuracy
    np.testing.assert_allclose(factors.scale, s, atol=accuracy)


@pytest.mark.parametrize('outputs', [M, 2 * M, M // 2])
def test_weighted_svd_is_that_of_the_whitened_matrix(random, outputs):
    matrix, covariance = random.normal(0, 1, (outputs, M)), anisotropic(random)
    whitening = np.linalg.cholesky(covariance)
    u, s, v = np.linalg.svd(matrix @ whitening)
    expected = (u[:, :5] * s[:5]) @ v[:5] @ np.linalg.inv(whitening)
    factors = factorize(matrix, 5, covariance, residual=False)
    np.testing.assert_allclose(factors.matrix, expected, atol=1e-8)
    assert factors.error == pytest.approx((s[5:] ** 2).sum() / (s ** 2).sum())
    np.testing.assert_allclose(1 - np.cumsum(spectrum(matrix, covariance))[4], factors.error)
    np.testing.assert_allclose(np.linalg.norm(factors.p1, axis=1), np.linalg.norm(factors.p2, axis=0))


@pytest.mark.parametrize('residual', [True, False])
def test_nothing_near_is_better(random, residual):
    matrix, covariance = random.normal(0, 1, (M, M)), anisotropic(random)
    factors = factorize(matrix, 5, covariance, residual)
    best = mean_square(matrix - factors.matrix, covariance)
    assert best == pytest.approx(factors.error * mean_square(matrix, covariance))
    for step in (1e-3, 1e-2, 0.1):
        for _ in range(50):
            p1, p2, scale = (value + step * random.normal(0, 1, value.shape) for value in factors[:3])
            other = p2 @ p1 + np.diag(scale if residual else factors.scale)
            # The alternation ends short of the optimum by less than a thousandth.
            assert mean_square(matrix - other, covariance) > 0.999 * best


def test_the_metric_is_that_of_the_data(random):
    matrix, covariance = random.normal(0, 1, (M, M)), anisotropic(random)
    data = np.linalg.cholesky(covariance) @ random.normal(0, 1, (M, 5000))
    errors = [np.square((matrix - factorize(matrix, 5, metric, residual=False).matrix) @ data).sum()
              for metric in (covariance, None)]
    assert errors[0] < 0.5 * errors[1]


def test_residual_is_not_worse_and_singular_covariance_is_fine(random):
    matrix, covariance = random.normal(0, 1, (M, M)), anisotropic(random)
    for rank in (1, 4, 12, M):
        assert factorize(matrix, rank, covariance).error <= factorize(matrix, rank, covariance, residual=False).error
    data = random.normal(0, 1, (M, 6))
    data[0] = 0
    factors = factorize(matrix, 6, data @ data.T)
    assert factors.error < 1e-12 and np.isfinite(factors.matrix).all()
    assert factorize(np.zeros((4, 4)), 2).error == 0


def test_ranks_within_a_budget():
    """Against all combinations: within the budget, and near the least error there is."""
    random = np.random.default_rng(1)
    spectra = [np.sort(random.dirichlet(np.full(6, 0.3)))[::-1] for _ in range(3)]
    unit, full = [3, 5, 8], [9, 15, 24]
    costs = [{None: whole, **{rank: rank * one for rank in range(1, 7)}} for one, whole in zip(unit, full)]

    def error(ranks):
        return sum(0 if rank is None else 1 - shares[:rank].sum() for rank, shares in zip(ranks, spectra))

    def cost(ranks):
        return sum(by_rank[rank] for rank, by_rank in zip(ranks, costs))

    # From rank 3 on a layer costs as much as it does as it is.
    combinations = list(itertools.product((1, 2, None), repeat=3))
    excess = []
    for budget in range(16, 49):
        found = ranks_within(budget, spectra, costs)
        assert cost(found) <= budget
        within = sorted(error(ranks) for ranks in combinations if cost(ranks) <= budget)
        assert error(found) >= within[0] - 1e-12
        excess.append((error(found) - within[0], np.mean(within) - within[0]))
    greedy, blind = np.mean(excess, axis=0)
    # A choice that does not look at errors is as good as the mean of all that fit.
    assert greedy < 0.15 * blind
    assert ranks_within(48, spectra, costs) == [None] * 3
    with pytest.raises(InputError, match='1 multiply-adds too small'):
        ranks_within(15, spectra, costs)


def test_the_budget_goes_where_the_error_is():
    """Two layers of equal cost, one of which rank 1 is exact: all of the budget is the other's."""
    spectra = [np.eye(8)[0], np.full(8, 1 / 8)]
    for order in ([0, 1], [1, 0]):
        costs = [{None: 100, **{rank: 10 * rank for rank in range(1, 9)}}] * 2
        found = ranks_within(60, [spectra[number] for number in order], costs)
        assert [found[order.index(number)] for number in (0, 1)] == [1, 5]


# --- the sequential fit

def test_ridge_against_the_normal_equations(random):
    """As least squares with rows added for the penalty, on data whose covariance is singular."""
    x, weight, target = random.normal(0, 1, (6, 200)), random.normal(0, 1, (4, 6)), random.normal(0, 1, (4, 200))
    x[2] = 0
    x -= x.mean(axis=1, keepdims=True)
    target -= target.mean(axis=1, keepdims=True)
    covariance = x @ x.T / 200
    penalty = 1e-3 * np.trace(covariance) / 6
    rows = np.vstack([x.T / np.sqrt(200), np.sqrt(penalty) * np.eye(6)])
    values = np.vstack([target.T / np.sqrt(200), np.sqrt(penalty) * weight.T])
    expected = np.linalg.lstsq(rows, values, rcond=None)[0].T
    found = weight + ridge(covariance, (target - weight @ x) @ x.T / 200)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    # Nothing is known of a channel that is always 0: it keeps its weights.
    np.testing.assert_allclose(found[:, 2], weight[:, 2])


# --- networks

def test_it_is_a_public_name_that_costs_nothing_until_used():
    script = """
import sys, gluon_lprnet
assert not any(name.startswith('gluon_lprnet.compression') for name in sys.modules)
import gluon_lprnet.compression
assert gluon_lprnet.compress is gluon_lprnet.compression.compress and not hasattr(gluon_lprnet, 'compres')
"""
    subprocess.run([sys.executable, '-c', script], check=True)


SHAPE = (1, 3, 64, 64)


def gluoncv_network():
    mx.random.seed(3)
    net = get_gluoncv_model('mobilenet0.25', classes=10)
    net.initialize(mx.init.Xavier())
    return net


def dsc_network(random, matrix):
    """A stem and a DSC whose pointwise weight is ``matrix``, with BatchNorms of no special kind."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(M, 3, in_channels=3), DSC(M, M))
    net.initialize(mx.init.Xavier())
    for name, parameter in net.collect_params().items():
        if name.endswith(('gamma', 'running_var')):
            parameter.set_data(mx.nd.array(random.uniform(0.5, 2, parameter.shape)))
        elif name.endswith(('beta', 'running_mean', 'bias')):
            parameter.set_data(mx.nd.array(random.normal(0, 0.3, parameter.shape)))
    net[1][1][0].weight.set_data(mx.nd.array(matrix[:, :, None, None]))
    return net


def folded(net):
    """Weight and bias of the pointwise convolution of ``dsc_network`` with its BatchNorm, float64."""
    conv, norm = net[1][1][0], net[1][1][1]
    gamma, beta, mean, variance = (parameter.data().asnumpy().astype('float64') for parameter in
                                   (norm.gamma, norm.beta, norm.running_mean, norm.running_var))
    scale = gamma / np.sqrt(variance + 1e-5)
    return conv.weight.data().asnumpy()[:, :, 0, 0].astype('float64') * scale[:, None], beta - mean * scale


def rows(x):
    """NCHW to (channels, positions), float64."""
    x = x.asnumpy().astype('float64')
    return x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)


def of_low_rank(net, share, any_width=False):
    """The network with its pointwise weights of equal width, or all, replaced by matrices of a lower rank."""
    random = np.random.default_rng(2)
    for parameter in net.collect_params().values():
        if len(parameter.shape) == 4 and parameter.shape[2:] == (1, 1) and (
                any_width or parameter.shape[0] == parameter.shape[1]):
            n, m = parameter.shape[:2]
            rank = max(1, int(min(n, m) * share))
            matrix = random.normal(0, 1, (n, rank)) @ random.normal(0, 1, (rank, m))
            parameter.set_data(mx.nd.array(matrix[:, :, None, None] * np.sqrt(2 / m) / matrix.std()))
    return net


@pytest.mark.parametrize('make', [gluoncv_network, lambda: random_network('mobilenetv1_x0.25'),
                                  lambda: random_network('shufflenetv2_x0.5')], ids=['GluonCV', 'zoo', 'ShuffleNetV2'])
@pytest.mark.parametrize('calibrated', [True, False])
def test_a_network_of_that_rank_is_the_same_function(make, calibrated):
    net = make()
    x = random_images(4, 64)
    net(x)
    expected = of_low_rank(net, 1 / 4)(x).asnumpy()
    found, report = compress(net, 1 / 4, residual=False, calibration=random_images(80, 64) if calibrated else None,
                             input_shape=SHAPE)
    assert relative_error(found(x).asnumpy(), expected) < 1e-4
    replaced = [layer for layer in report.layers if layer.rank]
    assert len(replaced) >= 8 and all(layer.rank == layer.shape[0] // 4 for layer in replaced)
    assert max(layer.error for layer in replaced) < 1e-6
    kept, report = compress(net, 1.0, residual=False, input_shape=SHAPE)
    np.testing.assert_array_equal(kept(x).asnumpy(), expected)
    assert all('would not lower' in layer.skipped for layer in report.layers if layer.shape[0] == layer.shape[1] and
               'depthwise' not in layer.skipped)


def small_resnet():
    """Of bottlenecks, as ResNet-50 is."""
    resnet = gluon.model_zoo.vision.resnet
    mx.random.seed(4)
    net = resnet.ResNetV1(resnet.BottleneckV1, [1, 2, 1, 1], [8, 32, 64, 96, 128], classes=7)
    net.initialize(mx.init.Xavier())
    return net


@pytest.mark.parametrize('make, taken, kept', [
    (small_resnet, 8, {'its stride, padding or layout is not plain'}),
    (lambda: random_network('mobilenetv2_x0.5'), 34, set()),
    (lambda: random_network('mobilenetv1_x0.25'), 13, set())], ids=['ResNet', 'MobileNetV2', 'MobileNetV1'])
@pytest.mark.parametrize('calibrated', [True, False])
def test_any_width(make, taken, kept, calibrated):
    """Every 1x1 convolution that is of low rank is replaced, and the function stays."""
    net, x = make(), random_images(4, 64)
    net(x)
    expected = of_low_rank(net, 1 / 4, any_width=True)(x).asnumpy()
    found, report = compress(net, 1 / 4, residual=False, any_width=True, input_shape=SHAPE,
                             calibration=random_images(330, 64) if calibrated else None)
    assert relative_error(found(x).asnumpy(), expected) < 1e-3
    replaced = [layer for layer in report.layers if layer.rank]
    assert len(replaced) == taken and all(layer.rank == max(1, min(layer.shape) // 4) for layer in replaced)
    assert {layer.skipped for layer in report.layers if not layer.rank} == kept
    for layer in replaced:
        positions, remainder = divmod(layer.multiply_adds_before, layer.shape[0] * layer.shape[1])
        assert not remainder and layer.multiply_adds_after == positions * layer.rank * sum(layer.shape)


def test_the_residual_is_that_of_pairs_alone():
    net = random_network('mobilenetv1_x0.25')
    found, report = compress(net, 1 / 8, any_width=True, input_shape=SHAPE)
    with_residual = {name[:-len('_residual_weight')] for name in found.collect_params() if
                     name.endswith('_residual_weight')}
    assert with_residual == {layer.name[:-len('_fwd')] for layer in report.layers
                             if layer.rank and layer.shape[0] == layer.shape[1]}
    assert len(with_residual) == 8 and sum(layer.rank is not None for layer in report.layers) == 13


def test_ranks_of_any_width_within_a_budget_and_a_latency(monkeypatch):
    net = random_network('mobilenetv1_x0.25')
    before = count(net, SHAPE).multiply_adds
    for ranks in (Budget(0.5), Latency(0.5)):
        clock(monkeypatch, lambda network: network.multiply_adds / 1e6)
        found, report = compress(net, ranks, any_width=True, input_shape=SHAPE)
        assert count(found, SHAPE).multiply_adds == report.after.multiply_adds <= 0.5 * before
        assert any(layer.rank for layer in report.layers if layer.shape[0] != layer.shape[1])


class Unusual(gluon.HybridBlock):
    """A pointwise convolution with a bias, whose output is used twice, and one weight that two of them share."""

    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.stem = nn.Conv2D(M, 3, in_channels=3)
            self.depthwise, self.depthwise2 = (nn.Conv2D(M, 3, padding=1, groups=M, in_channels=M) for _ in range(2))
            self.pointwise = nn.Conv2D(M, 1, in_channels=M, bias_initializer=mx.init.Normal(1))
            self.shared = nn.Conv2D(M, 1, in_channels=M)
            self.norm = nn.BatchNorm(in_channels=M)

    def hybrid_forward(self, F, x):
        y = self.pointwise(F.clip(self.depthwise(self.stem(x)), 0, 6))
        y = self.norm(y) + y
        return self.shared(self.depthwise2(self.shared(y)))


def test_what_cannot_be_folded_or_replaced_stays(random):
    net = Unusual()
    net.initialize(mx.init.Xavier())
    net.pointwise.weight.set_data(mx.nd.array(low_rank(random, 4)[:, :, None, None]))
    x = random_images(4, 12)
    expected = net(x).asnumpy()
    found, report = compress(net, 4, residual=False, calibration=x)
    assert relative_error(found(x).asnumpy(), expected) < 1e-5
    assert [layer.rank for layer in report.layers] == [4, None, None]
    assert [layer.skipped for layer in report.layers] == [
        None, 'no depthwise 3x3 convolution before it', 'its weight is used elsewhere too']
    assert any('gamma' in name for name in found.collect_params())


def test_report_is_what_is_counted():
    net = gluoncv_network()
    found, report = compress(net, 1 / 8, input_shape=SHAPE)
    before, after = count(trace(net)[0], SHAPE), count(found, SHAPE)
    for field in ('params', 'multiply_adds'):
        assert getattr(report.before, field) == getattr(before, field)
        assert getattr(report.after, field) == getattr(after, field)
        difference = sum(getattr(layer, f'{field}_after') - getattr(layer, f'{field}_before')
                         for layer in report.layers)
        assert getattr(after, field) - getattr(before, field) == difference < 0
    replaced = [layer for layer in report.layers if layer.rank]
    assert [layer.rank for layer in replaced] == [4, 8, 16, 16, 16, 16, 16, 32]
    last = replaced[-1]
    # P2 P1 and scale: 2 x 2 positions; parameters with the bias, and before with gamma and beta.
    assert last.multiply_adds_after == 4 * (2 * 32 * 256 + 256) and last.multiply_adds_before == 4 * 256 * 256
    assert last.params_after == 2 * 32 * 256 + 2 * 256 and last.params_before == 256 * 256 + 2 * 256
    assert not after.unknown and 'mobilenet' in str(report) and f'{after.params:,}' in report.table('markdown')
    assert repr(report).startswith('<Report: 8 of 13') and len(repr(report)) < 200


def test_module_against_numpy(random):
    """Its outputs, and the report's error, from the depthwise outputs and a factorization by whitening."""
    net = dsc_network(random, random.normal(0, 1, (M, M)))
    x = random_images(8, 10)
    data = rows(net[1][0](net[0](x)))
    weight, bias = folded(net)
    mean = data.mean(axis=1, keepdims=True)
    # A channel that its ReLU holds at 0 makes the covariance singular.
    values, vectors = np.linalg.eigh(np.cov(data, bias=True))
    whitening = vectors * np.sqrt(np.maximum(values, 0))
    u, s, v = np.linalg.svd(weight @ whitening)
    matrix = (u[:, :4] * s[:4]) @ v[:4] @ np.linalg.pinv(whitening)
    expected = matrix @ (data - mean) + weight @ mean + bias[:, None]

    found, report = compress(net, 4, residual=False, calibration=[x[:3], x[3:]])
    np.testing.assert_allclose(rows(found(x)), np.maximum(expected, 0), atol=1e-4)
    exact = weight @ data + bias[:, None]
    error = np.square(expected - exact).sum() / np.square(exact - exact.mean(axis=1, keepdims=True)).sum()
    assert report.layers[0].error == pytest.approx(error, rel=1e-5)

    _, with_residual = compress(net, 4, calibration=x)
    _, in_no_metric = compress(net, 4)
    assert with_residual.layers[0].error < error < in_no_metric.layers[0].error


@pytest.mark.parametrize('l2_norm', [False, True])
def test_lpr_form(random, l2_norm):
    """``P2 P1 d + s d + b``, from the parameters by name; what fits it exactly is the same function."""
    net = dsc_network(random, 0.8 * np.eye(M) + 0.2 * low_rank(random, 3))
    x = random_images(4, 10)
    found, _ = compress(net, 3, calibration=x, l2_norm=l2_norm)
    values = {name.rpartition('conv0_')[2]: parameter.data().asnumpy().astype('float64')
              for name, parameter in found.collect_params().items()}
    data = rows(net[1][0](net[0](x)))
    product = values['p2_weight'][:, :, 0, 0] @ values['p1_weight'][:, :, 0, 0] @ data
    if l2_norm:
        size = np.sqrt(np.square(product).sum(axis=0).mean())
        product *= size / np.linalg.norm(product, axis=0)
    expected = product + values['residual_weight'][:, 0, 0] * data + values['residual_bias'][:, None]
    np.testing.assert_allclose(rows(found(x)), np.maximum(expected, 0), atol=1e-4)
    if not l2_norm:
        assert relative_error(found(x).asnumpy(), net(x).asnumpy()) < 1e-5


def test_it_trains_and_exports(random, tmp_path):
    net = random_network('mobilenetv1_x0.25', small_image=True)
    x, label = random_images(8, 16), mx.nd.array(np.arange(8) % 3)
    found, _ = compress(net, 1 / 4, input_shape=(1, 3, 16, 16))
    before = {name: parameter.data().asnumpy() for name, parameter in found.collect_params().items()}
    trainer = gluon.Trainer(found.collect_params(), 'sgd', {'learning_rate': 0.01})
    for _ in range(2):
        with autograd.record():
            loss = gluon.loss.SoftmaxCrossEntropyLoss()(found(x), label)
        loss.backward()
        trainer.step(8)
    for name, parameter in found.collect_params().items():
        assert parameter.grad_req == ('null' if 'running' in name else 'write')
        assert (parameter.data().asnumpy() != before[name]).any(), name

    found.export(str(tmp_path / 'net'))
    np.save(tmp_path / 'x.npy', x.asnumpy())
    script = '''
import sys, numpy as np
for name, builtin in {'bool': bool, 'int': int, 'float': float, 'object': object}.items():
    setattr(np, name, builtin)
import mxnet as mx
folder = sys.argv[1]
block = mx.gluon.SymbolBlock.imports(folder + '/net-symbol.json', ['data'], folder + '/net-0000.params')
np.save(folder + '/y.npy', block(mx.nd.array(np.load(folder + '/x.npy'))).asnumpy())
'''
    subprocess.run([sys.executable, '-c', script, str(tmp_path)], check=True, stderr=subprocess.DEVNULL)
    assert relative_error(np.load(tmp_path / 'y.npy'), found(x).asnumpy()) < 1e-6


def test_symbol_from_files(tmp_path):
    net = of_low_rank(random_network('mobilenetv1_x0.25'), 1 / 4)
    x = random_images(2, 64)
    net.hybridize()
    expected = net(x).asnumpy()
    net.export(str(tmp_path / 'net'))
    loaded, _ = load_network(tmp_path / 'net-symbol.json')
    found, report = compress(loaded, ByLayer({'*dsc12*': 1 / 4}), residual=False, input_shape=SHAPE)
    assert [layer.rank for layer in report.layers if not layer.skipped] == [64]
    assert relative_error(found(x).asnumpy(), expected) < 1e-5


def test_ranks_by_energy_budget_and_layer():
    net, x = network_of_unit_activations('mobilenetv1_x0.25'), random_images(64, 64)
    _, report = compress(net, Energy(0.7), residual=False, calibration=x)
    for layer in [layer for layer in report.layers if layer.shape[0] == layer.shape[1]]:
        weight, _ = folded_layer(net, layer.name)
        energies = np.linalg.eigvalsh(weight @ np.cov(layer_of(net, x, layer.name, 0)) @ weight.T)[::-1]
        # The next multiple of 8, which is as fast.
        rank = -(-(int((np.cumsum(energies) / energies.sum() < 0.7).sum()) + 1) // 8) * 8
        assert layer.rank == rank or f'rank {rank} would not lower' in layer.skipped
    assert len({layer.rank for layer in report.layers}) > 2
    sums = []
    for share in (0.6, 0.8):
        _, report = compress(net, Budget(share), calibration=x)
        assert 0.97 * share < report.after.multiply_adds / report.before.multiply_adds <= share
        assert all(layer.rank % 8 == 0 for layer in report.layers if layer.rank)
        sums.append(sum(layer.error or 0 for layer in report.layers))
    assert sums[1] < sums[0]
    total = report.after.multiply_adds
    assert compress(net, Budget(total), input_shape=SHAPE)[1].after.multiply_adds <= total
    _, uniform = compress(net, 1 / 8, calibration=x)
    _, chosen = compress(net, Budget(uniform.after.multiply_adds), calibration=x)
    assert sum(layer.error or 0 for layer in chosen.layers) < sum(layer.error or 0 for layer in uniform.layers)

    _, report = compress(net, ByLayer({'*dsc2_*': 1 / 4, '*dsc12*': 5}), input_shape=SHAPE)
    assert [(layer.name.split('_')[1], layer.rank) for layer in report.layers if layer.rank] == [
        ('dsc2', 8), ('dsc12', 5)]
    _, report = compress(net, layers=['*dsc6*', '*dsc7*'], exclude='*dsc7*', input_shape=SHAPE)
    assert [layer.name.split('_')[1] for layer in report.layers if layer.rank] == ['dsc6']
    assert {layer.skipped for layer in report.layers} == {
        None, 'excluded', 'not among the layers to compress', 'its input and output differ in width'}


def clock(monkeypatch, milliseconds):
    """A time for each network from its multiply-adds, in place of the measured one; returns what was timed."""
    timed = []

    def measured(networks, shape, passes):
        timed.extend(networks)
        return [[milliseconds(count(network, shape))] * passes for network in networks]
    monkeypatch.setattr(latency, '_milliseconds', measured)
    return timed


def test_ranks_by_latency(monkeypatch):
    net = random_network('mobilenetv1_x0.25')
    # As if all of the time was that of multiply-adds.
    timed = clock(monkeypatch, lambda network: network.multiply_adds / 1e6)
    sums = []
    for target in (0.7, 0.9):
        _, report = compress(net, Latency(target), input_shape=SHAPE)
        before, after = report.before.multiply_adds, report.after.multiply_adds
        assert 0.95 * target < after / before <= target
        sums.append(sum(layer.error or 0 for layer in report.layers))
    assert sums[1] < sums[0]
    _, report = compress(net, Latency(milliseconds=0.7 * before / 1e6), input_shape=SHAPE)
    assert sum(layer.error or 0 for layer in report.layers) == sums[0]
    # In the deployed form: no BatchNorm is left, and the layers in series have what the module has.
    assert not any('gamma' in name for network in timed for name in network.collect_params())
    stays = {layer.skipped for layer in compress(net, Latency(1.0), input_shape=SHAPE)[1].layers}
    assert stays == {'the latency holds it as it is', 'its input and output differ in width'}


def test_latency_of_the_whole_corrects_that_of_the_layers(monkeypatch):
    """Where modules cost more within the network than in series, ranks fall until the whole meets the target."""
    net = random_network('mobilenetv1_x0.25')

    def milliseconds(network):
        series = network.layers[0].name.startswith('layer')
        modules = sum(layer.name.endswith('_p2') for layer in network.layers)
        return network.multiply_adds / 1e6 + (0 if series else 0.02 * modules)
    clock(monkeypatch, milliseconds)
    found, report = compress(net, Latency(0.8), input_shape=SHAPE)
    assert milliseconds(report.after) <= 0.8 * milliseconds(report.before)
    assert report.after.multiply_adds < 0.8 * report.before.multiply_adds

    clock(monkeypatch, lambda network: 5.0)
    with pytest.raises(InputError, match='the fastest network .* takes 5 ms, the original 5 ms'):
        compress(net, Latency(0.8), input_shape=SHAPE)


def test_networks_take_turns_on_the_clock():
    nets = [random_network('mobilenetv1_x0.25'), random_network('lprnet_mobilenet_x0.25')]
    times = latency.median_milliseconds(nets, SHAPE)
    assert len(times) == 2 and min(times) > 0


@pytest.mark.parametrize('arguments, message', [
    (dict(rank=0), 'rank 0 is not valid'), (dict(rank=257), 'rank 257 is not valid'), (dict(rank=1.5), 'rank 1.5'),
    (dict(rank=Budget(0.01)), 'too small'), (dict(rank=ByLayer({'*dsc2_*': 33})), 'rank 33 is not valid'),
    (dict(rank=ByLayer({'dsc99': 3})), "ByLayer: no layer .* named 'dsc99'.*dsc12"),
    (dict(layers=['nothing']), "layers: no layer .*'nothing'"),
    (dict(exclude=['nothing']), "exclude: no layer .*'nothing'"),
    (dict(l2_norm=True, residual=False), 'residual=True'), (dict(calibration=[]), 'no images'),
    (dict(calibration=random_images(2, 64)), '2 images give 32 positions.*128 channels: give at least 8 images'),
    (dict(calibration=mx.nd.full((9, 3, 64, 64), float('nan'))), 'images are NaN'),
])
def test_bad_arguments(arguments, message):
    net = random_network('mobilenetv1_x0.25')
    with pytest.raises(InputError, match=message):
        compress(net, **{'input_shape': SHAPE, **arguments})


@pytest.mark.parametrize('make, message', [
    (lambda: Energy(2), 'a share above 0'), (lambda: Energy(0.0), 'a share above 0'),
    (lambda: Budget(-1), 'a positive number of multiply-adds'), (lambda: Latency(1.1), 'a share of the original'),
    (lambda: Latency(milliseconds=0.0), 'a positive number'), (Latency, 'a share or milliseconds'),
    (lambda: Latency(0.5, 3.0), 'a share or milliseconds')])
def test_bad_choices_of_ranks(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_numbers_stand_for_ranks_and_fractions():
    net = random_network('mobilenetv1_x0.25')

    def ranks(rank):
        return [layer.rank for layer in compress(net, rank, input_shape=SHAPE)[1].layers]
    assert ranks(5) == ranks(Rank(5)) != ranks(1 / 8) == ranks(Fraction()) == ranks(Fraction(0.125))


def test_network_with_nan_is_refused():
    net = random_network('mobilenetv1_x0.25')
    parameter = next(value for name, value in net.collect_params().items() if 'dsc7_convbnrelu1_conv0_weight' in name)
    parameter.set_data(parameter.data() * float('nan'))
    with pytest.raises(InputError, match='dsc7_convbnrelu1_conv0_fwd .* NaN'):
        compress(net, input_shape=SHAPE)


@pytest.mark.parametrize('name', ['mobilenetv2_x0.5', 'lprnet_mobilenet_x0.25'])
def test_nothing_to_compress(name):
    with pytest.raises(InputError, match='nothing to compress'):
        compress(random_network(name), input_shape=SHAPE)


def two_modules(random):
    """A stem, a module, a wider one and one of equal width again, with a shortcut around the last."""
    class Network(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            with self.name_scope():
                self.stem = nn.Conv2D(M, 3, in_channels=3)
                self.first, self.wider, self.last = DSC(M, M), DSC(M, 2 * M), DSC(2 * M, 2 * M)

        def hybrid_forward(self, F, x):
            y = self.wider(self.first(self.stem(x)))
            return self.last(y) + y

    net = Network()
    mx.random.seed(0)
    net.initialize(mx.init.Xavier())
    for name, parameter in net.collect_params().items():
        if name.endswith(('gamma', 'running_var')):
            parameter.set_data(mx.nd.array(random.uniform(0.5, 2, parameter.shape)))
        elif name.endswith(('beta', 'running_mean', 'bias')):
            parameter.set_data(mx.nd.array(random.normal(0, 0.3, parameter.shape)))
    return net


def layer_of(net, x, name, slot):
    """What a layer of a network takes (slot 0) or puts out (None), as rows."""
    symbol, params = trace(net)
    internals = symbol.get_internals()
    node = internals[name + '_output']
    entry = node if slot is None else node.get_children()[slot]
    names = set(entry.list_inputs())
    block = as_block(entry, {key: value for key, value in params.items() if key in names})
    return rows(block(x))


@pytest.mark.parametrize('residual', [True, False])
def test_layers_are_fitted_in_sequence(random, residual):
    """In NumPy: each layer from what reaches it in the compressed network to what the original puts out.

    The second has another width: it keeps its form and its BatchNorm, and gets new values; the third is replaced.
    """
    net, x = two_modules(random), random_images(12, 10)
    found, report = compress(net, 6, calibration=[x[:5], x[5:]], residual=residual)
    first, second, third = report.layers
    assert (first.rank, second.rank, third.rank) == (6, None, 6) and second.skipped

    def targets(name):
        return layer_of(net, x, name.replace('conv0_fwd', 'batchnorm0_fwd'), None)

    # The layer that keeps its form, folded.
    data = layer_of(found, x, second.name, 0)
    y = targets(second.name)
    weight, bias = folded_layer(net, second.name)
    left_over = y - weight @ data - bias[:, None]
    mean = data.mean(axis=1, keepdims=True)
    covariance = np.cov(data, bias=True)
    penalty = 1e-3 * np.trace(covariance) / M
    cross = (left_over - left_over.mean(axis=1, keepdims=True)) @ (data - mean).T / data.shape[1]
    expected = weight + np.linalg.solve(covariance + penalty * np.eye(M), cross.T).T
    new_weight, new_bias = folded_layer(found, second.name)
    np.testing.assert_allclose(new_weight, expected, atol=1e-4 * abs(expected).max())
    np.testing.assert_allclose(new_weight @ mean[:, 0] + new_bias, y.mean(axis=1), atol=1e-4)
    assert abs(new_weight - weight).max() > 1e-2

    # The errors are those of the network that came of it.
    def error(difference):
        return np.square(difference).sum() / np.square(y - y.mean(axis=1, keepdims=True)).sum()
    output = layer_of(found, x, second.name.replace('conv0_fwd', 'batchnorm0_fwd'), None)
    assert second.error == pytest.approx(error(output - y), rel=1e-3)
    assert second.error_before == pytest.approx(error(left_over), rel=1e-3)
    assert second.error < second.error_before
    y, suffix = targets(third.name), 'sum' if residual else 'p2'
    output = layer_of(found, x, third.name.replace('fwd', suffix), None)
    assert third.error == pytest.approx(error(output - y), rel=1e-3)
    data = layer_of(found, x, third.name.replace('fwd', 'p1'), 0)
    weight, bias = folded_layer(net, third.name)
    assert third.error_before == pytest.approx(error(y - weight @ data - bias[:, None]), rel=1e-3)
    np.testing.assert_allclose(output.mean(axis=1), y.mean(axis=1), atol=1e-3)
    assert first.error_before is None and first.error > 0

    mx.random.seed(0)
    with autograd.record():
        outputs = found(x)
    outputs.backward()
    assert all(np.isfinite(parameter.grad().asnumpy()).all() for parameter in found.collect_params().values()
               if parameter.grad_req != 'null')


def folded_layer(net, name):
    """Weight and bias of a convolution with its BatchNorm, from the parameters by name, float64."""
    stem = name[:-len('conv0_fwd')]
    params = {key: value.data().asnumpy().astype('float64') for key, value in net.collect_params().items()}
    norm = f'{stem}batchnorm0_'
    scale = params[f'{norm}gamma'] / np.sqrt(params[f'{norm}running_var'] + 1e-5)
    return (params[f'{stem}conv0_weight'][:, :, 0, 0] * scale[:, None],
            params[f'{norm}beta'] - params[f'{norm}running_mean'] * scale)


def test_the_sequential_fit_is_better_than_statistics_of_the_original(random):
    """On images that were not calibrated on; what is fitted to the original alone piles up its errors."""
    net, x, unseen = two_modules(random), random_images(40, 16), mx.nd.array(random.normal(0, 1, (10, 3, 16, 16)))
    expected = net(unseen).asnumpy()
    in_sequence, _ = compress(net, 2, calibration=x)
    graph = PointwiseGraph(*trace(net))
    for layer in [layer for layer in graph.pointwise() if not layer.skipped]:
        data = layer_of(net, x, layer.name, 0)
        graph.replace(layer, replacement(*graph.folded(layer), 2, Form(residual=True, l2_norm=False),
                                         data.mean(axis=1), np.cov(data, bias=True)))
    separately = as_block(*graph.result())
    errors = [np.square(block(unseen).asnumpy() - expected).mean() for block in (in_sequence, separately)]
    assert errors[0] < 0.95 * errors[1]


def test_memory_holds_two_layers(random, monkeypatch):
    """However deep the network: the arrays of one place in each of the two networks, and one batch between them."""
    held = []
    original = refit._Fitting.add

    def add(self, inputs, own_inputs):
        gc.collect()
        mx.nd.waitall()
        held.append(sum(array.size for array in gc.get_objects() if type(array) is mx.nd.NDArray
                        and array.shape[:1] == (8,) and array.ndim == 4))
        return original(self, inputs, own_inputs)
    monkeypatch.setattr(refit._Fitting, 'add', add)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(M, 3, in_channels=3), *(DSC(M, M) for _ in range(6)))
    net.initialize(mx.init.Xavier())
    images = [random_images(8, 10) for _ in range(10)]
    compress(net, 4, calibration=images)
    layer = 80 * M * 8 * 8
    # Its own inputs and outputs and the stage's, of one batch.
    assert max(held) - 80 * 3 * 10 * 10 < 2 * layer + 6 * layer / 10


def test_calibration_images_are_copied(random):
    """Record iterators write the next batch into the memory of the last."""
    net, x = dsc_network(random, random.normal(0, 1, (M, M))), random_images(8, 10)
    memory = mx.nd.zeros((4, 3, 10, 10))

    def batches():
        for begin in (0, 4):
            memory[:] = x[begin:begin + 4]
            yield (memory, None)
    found, expected = compress(net, 4, calibration=batches())[0], compress(net, 4, calibration=x)[0]
    np.testing.assert_allclose(found(x).asnumpy(), expected(x).asnumpy(), atol=1e-5)


# --- tuning and the command

def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_distillation_loss(random):
    outputs, taught = random.normal(0, 2, (2, 5, 4))
    label = np.array([0, 3, 1, 1, 2])
    targets = mx.nd.array(np.column_stack([label, taught]))
    p, q = softmax(taught / 3), softmax(outputs / 3)
    divergence = 9 * (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(distillation_loss(3.0)(mx.nd.array(outputs), targets).asnumpy(), divergence, rtol=1e-4)
    expected = -0.5 * np.log(softmax(outputs)[np.arange(5), label]) + 0.5 * divergence
    np.testing.assert_allclose(distillation_loss(3.0, labels=True)(mx.nd.array(outputs), targets).asnumpy(), expected,
                               rtol=1e-4)


@pytest.mark.parametrize('labels', [False, True])
def test_distill_keeps_the_experiment(random, labels):
    teacher = nn.Dense(3, in_units=2)
    teacher.initialize(mx.init.Normal(1))
    data, label = mx.nd.array(random.normal(0, 1, (4, 2))), mx.nd.array([0, 1, 2, 1])
    seen = []
    experiment = distill(TrainingTask(
        net=None, contexts=[mx.cpu()], batches=lambda epoch, start: [(data, label)] * (epoch + start),
        batches_per_epoch=1, loss=None, count=lambda outputs, labels: seen.append(labels) or {}, evaluate=None),
        teacher, labels=labels)
    batches = list(experiment.batches(1, 2))
    assert len(batches) == 3
    taught = teacher(data).asnumpy()
    np.testing.assert_array_equal(batches[0].label[:, 1:].asnumpy(), taught)
    outputs = taught.copy()
    outputs[0] = -taught[0]
    counted = experiment.count(outputs, batches[0].label.asnumpy())
    if labels:
        np.testing.assert_array_equal(seen[0], label.asnumpy())
    else:
        assert counted == {'agreement': 3} and not seen


def test_a_teacher_that_sees_images_otherwise(random):
    """Its own normalization and size, and of its classes those that the student knows, in the student's order."""
    seen = []

    def net(images):
        seen.append(images.asnumpy())
        return mx.nd.arange(4).reshape((1, 4)) + 10 * mx.nd.arange(len(images)).reshape((-1, 1))

    own = dict(input_size=8, rgb_mean=[10.0, 20.0, 30.0], rgb_std=[2.0, 4.0, 5.0], num_classes=4,
               class_names=['a', 'b', 'c', 'd'])
    student = dict(input_size=4, rgb_mean=[1.0, 2.0, 3.0], rgb_std=[5.0, 5.0, 5.0], num_classes=2,
                   class_names=['d', 'b'])
    pixels = np.broadcast_to(random.uniform(0, 255, (2, 3, 1, 1)), (2, 3, 4, 4))
    images = (pixels - np.reshape(student['rgb_mean'], (3, 1, 1))) / 5
    found = as_teacher(net, own, student, 'teacher')(mx.nd.array(images)).asnumpy()
    np.testing.assert_array_equal(found, [[3, 1], [13, 11]])
    expected = (pixels[..., :1, :1] - np.reshape(own['rgb_mean'], (3, 1, 1))) / np.reshape(own['rgb_std'], (3, 1, 1))
    np.testing.assert_allclose(seen[0], np.broadcast_to(expected, (2, 3, 8, 8)), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match='teacher does not know all classes'):
        as_teacher(net, own, dict(student, class_names=['x', 'b']), 'teacher')
    with pytest.raises(InputError, match='teacher has 4 classes, and the network to compress 2'):
        as_teacher(net, own, dict(student, class_names=None), 'teacher')


def test_agreement(random):
    """The share of equal classes, by hand; NaN is no class."""
    teacher, net = nn.Dense(3, in_units=2), nn.Dense(3, in_units=2)
    for each in (teacher, net):
        each.initialize(mx.init.Normal(1))
    batches = [(mx.nd.array(random.normal(0, 1, (count, 2))), None) for count in (5, 2)]
    agreement = Agreement(teacher, lambda: batches)
    assert agreement.of(teacher) == 1
    data = np.concatenate([data.asnumpy() for data, _ in batches])
    classes = [(data @ each.weight.data().asnumpy().T).argmax(axis=1) for each in (teacher, net)]
    assert agreement.of(net) == (classes[0] == classes[1]).mean() < 1
    net.bias.set_data(mx.nd.array([0, np.nan, 0]))
    with pytest.raises(ArithmeticError, match='NaN'):
        agreement.of(net)


def test_the_best_is_kept(tmp_path):
    net = nn.Dense(1, in_units=1)
    net.initialize()

    def offered(best, score, value):
        net.weight.set_data(mx.nd.array([[value]]))
        best.offer(score)

    best = Best(net, tmp_path / 'best.params')
    best.take()
    for score, value in ((0.5, 1.0), (0.7, 2.0), (0.7, 3.0), (0.6, 4.0)):
        offered(best, score, value)
    # Another process goes on.
    best = Best(net, tmp_path / 'best.params')
    assert best.score == 0.7
    offered(best, 0.65, 5.0)
    best.take()
    assert net.weight.data().asscalar() == 2
    offered(best, 0.8, 6.0)
    offered(best, 0.1, 7.0)
    best.take()
    assert net.weight.data().asscalar() == 6
    wider = nn.Dense(2, in_units=1)
    wider.initialize()
    with pytest.raises(InputError, match='best.params holds the parameters of another network'):
        Best(wider, tmp_path / 'best.params')


CONFIG = {'model': 'mobilenetv1_x0.25', 'num_classes': 3, 'input_size': 16, 'small_image': True, 'rank': None,
          'no_residual': False, 'no_l2_norm': False, 'crop_ratio': 1.0, 'task': 'classification',
          'rgb_mean': [80.0] * 3, 'rgb_std': [60.0] * 3, 'class_names': ['red', 'green', 'blue']}


def save_run(folder, model):
    """A run's folder with a checkpoint of an untrained network."""
    net = get_model(model, classes=3, small_image=True)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, 16, 16)))
    trainer = gluon.Trainer(net.collect_params(), 'sgd', kvstore=None, update_on_kvstore=False)
    checkpoint.save(folder, net, trainer, {'step': 1, 'config': {**CONFIG, 'model': model}})
    return folder


@pytest.fixture
def trained(tmp_path):
    return save_run(tmp_path / 'trained', CONFIG['model'])


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_commands(parser.add_subparsers())
    args = parser.parse_args(['compress', *map(str, arguments), '-j', '1', '--batch-size', '16'])
    return args.run(args)


@pytest.fixture
def records(tiny_records):
    return f'{tiny_records[0]}.rec'


def test_command(trained, records, tmp_path, capsys, monkeypatch):
    # 50 images make 50 positions in front of the last layers.
    flags = [trained, '--calibrate', records, '--exclude', '*dsc[6-9]*', '*dsc1[0-2]*', '--rank', '1/4',
             '--rec-val', records, '--rec-train', records, '--held-out', records, '--tune-epochs', '2', '--pad', '2',
             '--out', tmp_path / 'out']
    assert not run(*flags)
    printed = capsys.readouterr().out
    name = 'mobilenetv1_x0.25-compressed'
    net, description = load_network(tmp_path / 'out' / f'{name}-symbol.json')
    assert description['model'] == name and description['class_names'] == ['red', 'green', 'blue']
    found = count(tmp_path / 'out' / f'{name}-symbol.json', (1, 3, 16, 16))
    report = json.loads((tmp_path / 'out' / f'{name}-report.json').read_text())
    assert report['after'] == {'params': found.params, 'multiply_adds': found.multiply_adds}
    assert report['before']['params'] > found.params
    assert set(report['accuracy']) == {'original', 'compressed', 'tuned'}
    assert report['accuracy']['original']['agreement'] == 1
    metrics = [json.loads(line) for line in (tmp_path / 'out' / 'tuning' / 'metrics.jsonl').read_text().splitlines()]
    agreements = [row['val_agreement'] for row in metrics if 'val_agreement' in row]
    assert len(agreements) == 2
    assert report['accuracy']['tuned']['agreement'] == max(report['accuracy']['compressed']['agreement'], *agreements)
    assert ('No epoch of the tuning' in printed) == (report['accuracy']['compressed']['agreement'] >= max(agreements))
    assert min(report['milliseconds'].values()) > 0
    for text in ('top1', 'parameters', 'multiply-adds', 'milliseconds', f'{found.multiply_adds:,}', 'excluded'):
        assert text in printed
    with pytest.raises(InputError, match='tuning holds checkpoints'):
        run(*flags)
    with pytest.raises(InputError, match='.lr. .was 0.0003, is 0.5. would change'):
        run(*flags, '--resume', '--lr', '0.5')
    (tmp_path / 'out' / f'{name}-symbol.json').unlink()
    # What was fitted is there.
    monkeypatch.setattr(command, 'compress', None)
    assert not run(*flags, '--resume')
    assert json.loads((tmp_path / 'out' / f'{name}-report.json').read_text())['layers'] == report['layers']
    again, _ = load_network(tmp_path / 'out' / f'{name}-symbol.json')
    x = random_images(2, 16)
    np.testing.assert_array_equal(again(x).asnumpy(), net(x).asnumpy())


@pytest.mark.parametrize('times', [([1], [2]), ([2], [1])])
def test_a_resumed_tuning_goes_on_in_its_form(records, tmp_path, monkeypatch, times):
    """Of ReLU6, of which another measurement might choose the other one."""
    monkeypatch.setattr(fast_form, 'interleaved_milliseconds', lambda *_, **__: times)
    flags = ['--network', save_run(tmp_path / 'trained', 'mobilenetv2_x0.5'), '--any-width', '--rank', '1/4',
             '--layers', '*invertedresidual[1-4]_*', '--calibrate', records, '--rec-train', records,
             '--held-out', records, '--tune-epochs', '2', '--pad', '2', '--out', tmp_path / 'out']
    assert not run(*flags)
    expected = epoch_records(tmp_path / 'out' / 'tuning')[-1]
    shutil.rmtree(sorted((tmp_path / 'out' / 'tuning' / 'checkpoints').iterdir())[-1])
    monkeypatch.setattr(fast_form, 'interleaved_milliseconds', lambda *_, **__: times[::-1])
    assert not run(*flags, '--resume')
    assert checkpoint.newest(tmp_path / 'out' / 'tuning').state['rewritten'] == (times[0] < times[1])
    resumed = epoch_records(tmp_path / 'out' / 'tuning')[-1]
    assert (resumed['epoch'], resumed['loss']) == (expected['epoch'], expected['loss'])


def tuning_flags(folder, records):
    return [folder / 'trained', '--exclude', '*dsc[6-9]*', '*dsc1[0-2]*', '--calibrate', records, '--rec-train',
            records, '--tune-epochs', '1', '--lr', '1e-3', '--out', folder / 'out']


def test_a_tuning_that_was_stopped_before_its_first_checkpoint_leaves_nothing(trained, records, tmp_path, monkeypatch):
    flags, best = tuning_flags(tmp_path, records), tmp_path / 'out' / 'tuning' / 'best.params'

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        context.setattr(command, 'fit', stop)
        run(*flags, '--rank', '3/8', '--held-out', records)
    assert best.exists()
    # Nothing is measured that could be best.
    assert not run(*flags, '--rank', '1/8', '--rec-val', records)
    assert not best.exists()


def test_a_tuning_goes_on_with_the_same_photos(trained, records, tmp_path):
    """Of whatever name, prepared as before."""
    flags = [*tuning_flags(tmp_path, records), '--held-out', records]
    assert not run(*flags)
    other, moved = (tmp_path / name for name in ('other', 'moved'))
    write_records(other, [(label, image) for label, image in read_records(records)][::-1])
    shutil.copytree(Path(records).parent, moved)
    with pytest.raises(InputError, match=r'was trained on other records: .*tiny.rec .*, not .*other.rec'):
        run(*flags, '--resume', '--rec-train', f'{other}.rec')
    for given, message in ((('--rgb-mean', '1', '2', '3'), r'rgb_mean. .was None, is \[1.0, 2.0, 3.0\]'),
                           (('--rgb-std', '1', '2', '3'), 'rgb_std'), (('--input-size', '32'), 'input_size'),
                           (('--crop-ratio', '0.5'), 'crop_ratio')):
        with pytest.raises(InputError, match=message):
            run(*flags, '--resume', *given)
    assert not run(*flags, '--resume', '--rec-train', moved / 'tiny.rec')
    # Another network at the same place.
    state = next((tmp_path / 'trained' / 'checkpoints').iterdir()) / 'state.json'
    state.write_text(state.read_text() + ' ')
    crc32 = state.with_name('crc32.json')
    crc32.write_text(json.dumps({**json.loads(crc32.read_text()), 'state.json': zlib.crc32(state.read_bytes())}))
    with pytest.raises(InputError, match='state.json is not what the tuning began with'):
        run(*flags, '--resume')


def test_the_last_of_repeated_ranks_counts():
    args = argparse.Namespace(rank=[('*a*', 1 / 4), ('*', 1 / 8), ('*a*', 1 / 2)], energy=None, budget=None,
                              latency=None, milliseconds=None)
    assert list(command._ranks_of(args).ranks.items()) == [('*', 1 / 8), ('*a*', 1 / 2)]


def test_an_input_size_that_the_network_does_not_take_is_named(trained, records, tmp_path):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(3, 3), nn.Flatten(), nn.Dense(3))
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(str(tmp_path / 'fixed'))
    with pytest.raises(InputError, match='fixed-symbol.json does not take images of 64 pixels a side'):
        run(tmp_path / 'fixed-symbol.json', '--input-size', '64', '--calibrate', records, '--out', tmp_path / 'out')


def test_a_tuning_that_does_harm_is_not_kept(trained, records, tmp_path, capsys):
    assert not run(trained, '--exclude', '*dsc[6-9]*', '*dsc1[0-2]*', '--rank', '1/4', '--calibrate', records,
                   '--rec-train', records, '--held-out', records, '--tune-epochs', '1', '--lr', '1', '--out', tmp_path)
    assert 'No epoch of the tuning is nearer to the teacher' in capsys.readouterr().out
    accuracy = json.loads(next(tmp_path.glob('*-report.json')).read_text())['accuracy']
    assert accuracy['tuned'] == accuracy['compressed']


def test_a_teacher_in_onnx_teaches_as_in_mxnet(trained, records, tmp_path):
    net, description = load_network(trained)
    write_onnx(*trace(net), (3, 16, 16), tmp_path / 'teacher.onnx')
    (tmp_path / 'teacher.json').write_text(json.dumps(description))
    losses = []
    for out, teacher in (('mxnet', ()), ('onnx', ('--teacher', tmp_path / 'teacher.onnx'))):
        assert not run(trained, '--exclude', '*dsc[6-9]*', '*dsc1[0-2]*', '--rank', '1/4', '--calibrate', records,
                       '--rec-train', records, '--held-out', records, '--tune-epochs', '1', *teacher,
                       '--out', tmp_path / out)
        losses.append(json.loads((tmp_path / out / 'tuning' / 'metrics.jsonl').read_text().splitlines()[0])['loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[0] > 0


def test_what_is_kept_agrees_with_the_teacher_and_not_with_the_original(trained, records, tmp_path):
    net, description = load_network(trained)
    symbol, params = trace(net)
    # It names the class that the original thinks least of.
    write_onnx(symbol, {name: -value if 'dense' in name else value for name, value in params.items()}, (3, 16, 16),
               tmp_path / 'teacher.onnx')
    (tmp_path / 'teacher.json').write_text(json.dumps(description))
    assert not run(trained, '--exclude', '*dsc[6-9]*', '*dsc1[0-2]*', '--rank', '1/4', '--calibrate', records,
                   '--rec-train', records, '--held-out', records, '--tune-epochs', '1', '--teacher',
                   tmp_path / 'teacher.onnx', '--out', tmp_path / 'out')
    assert json.loads(next((tmp_path / 'out').glob('*-report.json')).read_text())['accuracy']['original'] == {
        'agreement': 0}


def test_records_that_two_flags_name_are_read_once_and_those_to_calibrate_on_by_the_sample(records, monkeypatch):
    read = []

    def note(path, **how):
        read.append((path, how))
        return path
    monkeypatch.setattr(tasks, 'check_records', note)

    def found(**flags):
        read.clear()
        none = dict.fromkeys(('calibrate', 'rec_train', 'held_out', 'rec_val'))
        args = argparse.Namespace(**{**none, 'labels': False, 'data_check': 'stamp', **flags})
        return tasks.Classification._checked(argparse.Namespace(_args=args, outputs=3))

    assert found(calibrate=records) == [None] * 3 and not read
    assert found(calibrate=records, rec_train=records) == [records, None, None]
    assert read == [(records, {'num_classes': None, 'data_check': 'stamp'})]
    found(rec_train=records, held_out=records, rec_val=records)
    assert read == [(records, {'num_classes': 3, 'data_check': 'stamp'})]
    found(calibrate=records, data_check='full')
    assert read == [(records, {'num_classes': None, 'data_check': 'full'})]


def test_command_refuses(trained, records, tmp_path):
    out = ('--out', tmp_path / 'out')
    with pytest.raises(InputError, match='needs --rec-train'):
        run(trained, *out, '--tune-epochs', '1')
    with pytest.raises(InputError, match='--teacher is for tuning'):
        run(trained, *out, '--teacher', trained)
    with pytest.raises(InputError, match='cifar10 does not know all classes'):
        run(trained, *out, '--tune-epochs', '1', '--rec-train', records, '--rec-val', records, '--teacher',
            'lprnet_mobilenet_x0.5.cifar10')
    with pytest.raises(InputError, match='channels: give at least'):
        run(trained, *out, '--calibrate', records, '--images', '16')
    with pytest.raises(InputError, match='no layer was replaced'):
        run(trained, *out, '--energy', '1')
    with pytest.raises(InputError, match='.resume.: there is no whole checkpoint'):
        run(trained, *out, '--tune-epochs', '1', '--rec-train', records, '--rec-val', records, '--resume')
    assert not (tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-symbol.json').exists()
    for flags in (('--budget', '2.5'), ('--rank', '*dsc2_*=one'), ('--rank', '1/4', '--latency', '0.5')):
        with pytest.raises(SystemExit):
            run(trained, *out, *flags)


@pytest.mark.parametrize('flags, expected', [
    ([], {2: 4, 12: 32}), (['--rank', '5'], {2: 5, 12: 5}), (['--rank', '*dsc2_*=1/4'], {2: 8}),
    (['--rank', '1/8', '--rank', '*dsc2_*=7'], {2: 7, 12: 32}), (['--latency', '0.9'], {2: 8, 12: 32})])
def test_ranks_of_the_command(trained, tmp_path, monkeypatch, capsys, flags, expected):
    clock(monkeypatch, lambda network: network.multiply_adds / 1e6)
    assert not run(trained, '--layers', '*dsc2_*', '*dsc12_*', '--out', tmp_path / 'out', *flags)
    report = json.loads((tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-report.json').read_text())
    assert {int(layer['name'].split('_')[1][len('dsc'):]): layer['rank'] for layer in report['layers']
            if layer['rank']} == expected
    warned = capsys.readouterr().err
    assert ('not multiples of 8' in warned) == any(rank % 8 for rank in expected.values())
    assert 'fewer multiply-adds alone are not faster' not in warned


def test_a_network_that_did_not_get_faster_is_named(trained, tmp_path, monkeypatch, capsys):
    clock(monkeypatch, lambda network: 5.0)
    assert not run(trained, '--layers', '*dsc12_*', '--out', tmp_path / 'out')
    assert 'the compressed network takes 5.00 ms for an image and the original 5.00 ms' in capsys.readouterr().err
