"""What compress leaves as a network of the zoo: the same function, which all commands of the package take."""
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from reference.networks import relative_error
from test_originals import SIZE, X, random_arrays

from gluon_lprnet import get_model, list_models
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import ByLayer, compress
from gluon_lprnet.compression.norms import with_batch_norms
from gluon_lprnet.compression.shipping import as_zoo_network, publish_compressed
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.deployment import deploy
from gluon_lprnet.deployment.export import Int8, export
from gluon_lprnet.deployment.onnx import run_onnx
from gluon_lprnet.predict.classification import Classifier
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo import pretrained, symbols

RANKS = [None, 8, 8, 16, 8, 24, None, 64]


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """An original of random weights, exported."""
    folder = tmp_path_factory.mktemp('original')
    np.savez(folder / 'original.npz', **random_arrays())
    assert not main(['import', str(folder / 'original.npz'), '--input-size', str(SIZE), '--out', str(folder)])
    return folder / 'mobilenetv1_x0.25-symbol.json'


def compressed(original, residual=True):
    net, description = load_network(original)
    names = ['dsc2_', 'dsc4_', 'dsc6_', 'dsc7_', 'dsc8_', 'dsc9_', 'dsc10_', 'dsc12_']
    ranks = ByLayer({f'*{name}*': rank for name, rank in zip(names, RANKS) if rank})
    images = mx.nd.array(np.random.default_rng(2).uniform(-1, 1, (280, 3, SIZE, SIZE)))
    return compress(net, ranks, residual=residual, calibration=images)[0], description


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('with_norms', [False, True])
def test_the_family_is_what_compress_made(original, residual, with_norms):
    net, description = compressed(original, residual)
    if with_norms:
        net = with_batch_norms(net, [mx.nd.array(np.random.default_rng(3).uniform(-1, 1, (32, 3, SIZE, SIZE)))])
    found, name, keywords = as_zoo_network(net, description, RANKS, residual)
    x = mx.nd.array(X)
    expected = net(x).asnumpy()
    assert name == 'compressed_mobilenet_x0.25' and expected.std(axis=0).min() > 1e-3
    assert relative_error(found(x).asnumpy(), expected) < 1e-5
    again = get_model(name, **keywords)
    assert not any('batchnorm' in key for key in again.collect_params())
    assert count(again, X.shape).multiply_adds == count(net, X.shape).multiply_adds
    # In training too, where statistics of a batch would make it another function.
    with autograd.train_mode():
        assert relative_error(found(x).asnumpy(), expected) < 1e-5
    assert relative_error(deploy(found)(x).asnumpy(), expected) < 1e-5
    found.reset_class(3)
    trainer = gluon.Trainer(found.collect_params(), 'sgd', {'learning_rate': 0.01})
    with autograd.record():
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(found(x), mx.nd.array([0, 1]))
    loss.backward()
    trainer.step(2)
    assert found(x).shape == (2, 3) and np.isfinite(found(x).asnumpy()).all()


def test_other_networks_are_refused(original):
    net, description = compressed(original)
    with pytest.raises(InputError, match='is not compressed_mobilenet_x0.25 with the ranks'):
        as_zoo_network(net, description, [None, 8, 8, 16, 8, 24, 8, 64], True)
    with pytest.raises(InputError, match='mobilenetv2_x1.0 is not a compressed mobilenetv1'):
        as_zoo_network(net, {**description, 'model': 'mobilenetv2_x1.0'}, RANKS, True)
    with pytest.raises(InputError, match='give 8, one for each'):
        get_model('compressed_mobilenet_x0.25')
    with pytest.raises(InputError, match='rank 65 is not valid for a module of 64'):
        get_model('compressed_mobilenet_x0.25', ranks=[None, 65] + [None] * 6)


@pytest.fixture
def photos(tmp_path):
    """Sixteen pictures of noise, each with a label."""
    random = np.random.default_rng(0)
    pictures = [encode_jpeg(random.integers(0, 256, (40, 40, 3), dtype='uint8')) for _ in range(280)]
    return write_records(tmp_path / 'photos', [(number % 5, picture) for number, picture in enumerate(pictures)])[0]


def test_it_is_shipped_and_used(original, photos, tmp_path, monkeypatch, capsys):
    """From compress to weights in the package, in float16, and all that takes a network of the package."""
    flags = [f for name in ('dsc7', 'dsc12') for f in ('--rank', f'*{name}_*=16')]
    assert not main(['compress', str(original), *flags, '--calibrate', photos, '--images', '280', '-j', '1',
                     '--out', str(tmp_path / 'out')])
    symbol = tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-symbol.json'
    monkeypatch.setattr('gluon_lprnet.compression.shipping.FOLDER', tmp_path / 'weights')
    monkeypatch.setattr(pretrained, 'FOLDER', tmp_path / 'weights')
    facts = dict(data='noise', command='none', license='none')
    card = json.loads(publish_compressed(symbol, 'noise', [photos], facts, tmp_path / 'weights').read_text())
    name = 'compressed_mobilenet_x0.25.noise'
    assert list_models(pretrained=True) == [name] and card['accuracy']['photos']['images'] == 280
    assert card['keywords']['ranks'] == [None, None, None, 16, None, None, None, 16]
    file = tmp_path / 'weights' / f'{name}.params'
    assert {value.dtype for value in mx.nd.load(str(file)).values()} == {np.float16}

    x = mx.nd.array(X)
    expected = load_network(symbol)[0](x).asnumpy()
    net = get_model(name)
    assert {np.dtype(parameter.dtype) for parameter in net.collect_params().values()} == {np.dtype('float32')}
    assert 0 < relative_error(net(x).asnumpy(), expected) < 5e-3
    loaded, description = load_network(name)
    np.testing.assert_allclose(loaded(x).asnumpy(), net(x).asnumpy(), atol=1e-5)
    assert description['activation'] == 'relu6' and description['input_size'] == SIZE

    written = export(name, tmp_path / 'export', forms=('deployed',), formats=('onnx',),
                     int8=Int8(photos, images=64, tolerance=1.0))
    files = {path.name: path for path in written}
    deployed = files['compressed_mobilenet_x0.25-deployed.onnx']
    np.testing.assert_allclose(run_onnx(deployed, X.astype('float32')), net(x).asnumpy(), atol=1e-4)
    in_8_bits = run_onnx(files['compressed_mobilenet_x0.25-int8.onnx'], X.astype('float32'))
    assert relative_error(in_8_bits, net(x).asnumpy()) < 0.2
    _, symbol = symbols.build(name)
    assert 'lowrank0_conv0_weight' in symbol.tojson() and symbol.list_inputs()[0] == 'data'
    prediction, = Classifier(name).predict(np.zeros((40, 40, 3), 'uint8'))
    assert len(prediction) == 5
