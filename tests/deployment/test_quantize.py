"""INT8 files against the float network, ONNX Runtime's own quantize_static, and integer arithmetic in NumPy."""
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from conftest import outputs_in_stock_mxnet
from mxnet import gluon
from reference.networks import operators

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.faces.landmarks import landmark_box
from gluon_lprnet.data.faces.records import FaceRecord, encode_record, pack_faces
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.deployment.export import Int8, export
from gluon_lprnet.deployment.operators import load_library
from gluon_lprnet.deployment.quantize import (
    LibraryQuantizer,
    MXNetQuantizer,
    OnnxQuantizer,
    mxnet_function,
    noise_of,
    onnx_function,
    outputs_of,
    quantize,
    slow_layers,
)
from gluon_lprnet.deployment.reparametrize import reparametrize
from gluon_lprnet.graph import as_block, trace
from gluon_lprnet.train import imagenet
from gluon_lprnet.utils.errors import InputError

MODEL = 'lprnet_mobilenet_x0.25'
MEAN, STD = [120.0, 115.0, 100.0], [60.0, 58.0, 57.0]


@pytest.fixture(scope='module')
def onnx():
    return pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module', autouse=True)
def first_convolution_is_slow():
    """What is slow depends on the machine; here it is always the first layer, but where a test measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('gluon_lprnet.deployment.export.slow_layers',
                      lambda quantizer, image: [next(iter(quantizer.layers))])
        yield


@pytest.fixture(scope='module')
def trained(tiny_records, tmp_path_factory):
    """A run of seconds on images of 16x16, and the prefix of these."""
    run, rec = tmp_path_factory.mktemp('trained') / 'run', f'{tiny_records[0]}.rec'
    assert not imagenet.main([
        '--preset', 'cifar10', '--model', MODEL, '--num-classes', '3', '--input-size', '16', '--batch-size', '10',
        '--num-epochs', '12', '--tuning-epochs', '1', '--lr', '0.05', '-j', '1', '--pad', '2', '--rec-train', rec,
        '--rec-val', rec, '--save-dir', str(run)])
    return run, rec


# MXNet's search for the range of least divergence takes most of a minute.
@pytest.fixture(scope='module', params=['naive', 'naive but for one module',
                                        pytest.param('entropy', marks=pytest.mark.slow)])
def written(request, trained, onnx, tmp_path_factory):
    run, rec = trained
    out = tmp_path_factory.mktemp('written')
    calibration, *rest = request.param.split()
    assert not main(['export', str(run), '--out', str(out), '--form', 'deployed', '--format', 'mxnet', 'onnx',
                     '--int8', '--calibrate', rec, '--images', '40', '--calibration', calibration, '--rec-val', rec,
                     '--tolerance', '0.02', *(['--exclude', '*dsc3*', '*dense0'] if rest else [])])
    return out, calibration


def pictures(tiny_records):
    images = (tiny_records[1].astype('float32') - np.float32([125.3, 123.0, 113.9])) / np.float32([51.6, 50.8, 51.3])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def test_files_agree_with_the_float_network(written, trained, tiny_records):
    out, calibration = written
    description = json.loads((out / f'{MODEL}-int8.json').read_text())
    facts = description['int8']
    assert description['form'] == 'int8' and description['input']['shape'] == ['batch', 3, 16, 16]
    assert (facts['calibration'], facts['images'], facts['tolerance']) == (calibration, 40, 0.02)
    images = (pictures(tiny_records) if description['rgb_mean'] == [125.3, 123.0, 113.9] else None)
    net, _ = load_network(trained[0])
    expected = net(mx.nd.array(images)).asnumpy()
    quantized, _ = load_network(out / f'{MODEL}-int8-symbol.json')
    for format, outputs in (('mxnet', quantized(mx.nd.array(images)).asnumpy()),
                            ('onnx', onnx_function(str(out / f'{MODEL}-int8.onnx'))(images))):
        assert 0 < facts[format]['noise'] <= 0.02
        # The images are not all the calibration's.
        noise = ((outputs - expected) ** 2).sum() / ((expected - expected.mean(axis=0)) ** 2).sum()
        assert 0 < noise < 0.04
        labels = tiny_records[2]
        assert facts['float']['top1'] == pytest.approx((expected.argmax(axis=1) == labels).mean())
        assert facts[format]['top1'] == pytest.approx((outputs.argmax(axis=1) == labels).mean())
        names = [layer['name'] for layer in facts[format]['layers']]
        assert (facts[format]['layers'][0]['left_out'] == 'time') == (format == 'onnx')
        assert len(names) == 36 and any(name.endswith('dense0') for name in names)
        assert names == [layer['name'] for layer in facts['mxnet']['layers']]


@pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')
def test_files_for_the_library(trained, tiny_records, tmp_path, capsys):
    """They hold int8 weights, and run as one operator, as MXNet alone loads them, with what was measured."""
    run, rec = trained
    assert not main(['export', str(run), '--out', str(tmp_path), '--format', 'library', '--int8', '--calibrate', rec,
                     '--images', '40', '--rec-val', rec, '--tolerance', '0.2'])
    assert 'int8 (library): 36 of 36 layers' in capsys.readouterr().out
    prefix = tmp_path / f'{MODEL}-int8-library'
    assert {file.name for file in tmp_path.iterdir()} == {f'{prefix.name}{end}' for end in (
        '-symbol.json', '-0000.params', '.json')}
    symbol = mx.sym.load(f'{prefix}-symbol.json')
    assert operators(symbol) == {'lprnet_network': 1}
    params = {name.split(':')[1]: value for name, value in mx.nd.load(f'{prefix}-0000.params').items()}
    weights = [name for name in params if name.endswith('_weight')]
    assert len(weights) == 36 and all(params[name].dtype == np.int8 for name in weights)
    images = pictures(tiny_records)
    load_library()
    net = gluon.SymbolBlock.imports(f'{prefix}-symbol.json', ['data'], f'{prefix}-0000.params')
    outputs = net(mx.nd.array(images)).asnumpy()
    loaded, description = load_network(f'{prefix}-symbol.json')
    np.testing.assert_array_equal(loaded(mx.nd.array(images)).asnumpy(), outputs)
    expected = load_network(run)[0](mx.nd.array(images)).asnumpy()
    facts, labels = description['int8'], tiny_records[2]
    assert 0 < facts['library']['noise'] <= 0.2 and 0 < noise_of(outputs, expected) < 0.4
    assert facts['library']['top1'] == pytest.approx((outputs.argmax(axis=1) == labels).mean())
    assert facts['float']['top1'] == pytest.approx((expected.argmax(axis=1) == labels).mean())
    # Another export of the name knows them.
    assert main(['export', str(run), '--out', str(tmp_path)]) == 2
    assert f'{prefix.name}-0000.params' in capsys.readouterr().err


def test_weights_and_operators_are_of_8_bits(written, onnx):
    out, _ = written
    graph = onnx[0].load(str(out / f'{MODEL}-int8.onnx')).graph
    facts = json.loads((out / f'{MODEL}-int8.json').read_text())['int8']
    types = {constant.name: constant.data_type for constant in graph.initializer}
    for layer in facts['onnx']['layers']:
        assert (types.get(f'{layer["name"]}_weight_quantized') == onnx[0].TensorProto.INT8) == (not layer['left_out'])
    # The sum of squares and the epsilon of each normalization are not rounded.
    rounded = {node.input[0] for node in graph.node if node.op_type == 'QuantizeLinear'}
    assert not [name for name in rounded if name.endswith(('_squares', '_shifted', '_norm'))]
    nodes = json.loads((out / f'{MODEL}-int8-symbol.json').read_text())['nodes']
    convolutions = [node for node in nodes if node['op'] == '_sg_mkldnn_conv']
    quantized = [node for node in convolutions if node.get('attrs', {}).get('quantized', 'False').lower() == 'true']
    left_out = [layer for layer in facts['mxnet']['layers'] if layer['left_out'] and 'dense' not in layer['name']]
    assert len(convolutions) - len(quantized) == len(left_out)


def test_stock_mxnet_loads_it(written, tiny_records, tmp_path):
    images = pictures(tiny_records)[:8]
    prefix = written[0] / f'{MODEL}-int8'
    expected = load_network(f'{prefix}-symbol.json')[0](mx.nd.array(images)).asnumpy()
    for outputs in outputs_in_stock_mxnet(prefix, images, (8,), tmp_path):
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('float32, int8, expected', [
    # Seconds of each kind.
    ({'convolution': 2, 'depthwise': 3, 'pointwise': 9}, {'convolution': 4, 'depthwise': 8, 'pointwise': 3}, 'abc'),
    ({'convolution': 2, 'depthwise': 3, 'pointwise': 9}, {'convolution': 1, 'depthwise': 3.01, 'pointwise': 3}, ''),
    ({'convolution': 2, 'depthwise': 3, 'pointwise': 9}, {'convolution': 5, 'depthwise': 5, 'pointwise': 10}, 'abcde'),
])
def test_layers_that_lose_time_are_left_out(float32, int8, expected):
    """By a clock that goes on with each call by what the layers take."""
    kinds = {'a': 'convolution', 'b': 'depthwise', 'c': 'depthwise', 'd': 'pointwise', 'e': 'pointwise', 'f': 'dense'}
    seconds = 0.0

    def run(layers):
        def pass_(_):
            nonlocal seconds
            seconds += sum((int8 if layer in layers else float32).get(kind, 1) for layer, kind in kinds.items())
        return pass_

    quantizer = SimpleNamespace(kinds=kinds, quantize=list, function=run)
    assert slow_layers(quantizer, None, clock=lambda: seconds) == list(expected)


def test_kinds(deployed, tiny_records, onnx):
    quantizer = OnnxQuantizer(*deployed, pictures(tiny_records)[:8], 'naive')
    assert list(quantizer.kinds) == list(quantizer.layers)
    assert Counter(quantizer.kinds.values()) == {'convolution': 1, 'depthwise': 13, 'pointwise': 5, 'low-rank': 16,
                                                 'dense': 1}


def dense_network():
    """8 inputs of mean 0 to 5 outputs: symbol, parameters and 64 inputs (64, 8, 1, 1)."""
    rng = np.random.default_rng(0)
    params = {'dense_weight': mx.nd.array(rng.normal(0, 1, (5, 8))), 'dense_bias': mx.nd.array(rng.normal(0, 1, 5))}
    symbol = mx.sym.FullyConnected(mx.sym.var('data', shape=(0, 0, 0, 0)), mx.sym.var('dense_weight'),
                                   mx.sym.var('dense_bias'), num_hidden=5, name='dense')
    return symbol, params, rng.normal(0, 1, (64, 8, 1, 1)).astype('float32')


def test_mxnet_against_integer_arithmetic():
    """One layer, in int8 of symmetric ranges: the rounding of input, weights, bias and output, and nothing more."""
    symbol, params, images = dense_network()
    quantizer = MXNetQuantizer(symbol, params, images, 'naive')
    assert list(quantizer.layers) == ['dense']
    found = outputs_of(quantizer.function(quantizer.quantize(['dense'])), images)

    def rounded(x):
        scale = 127 / abs(x).max()
        return np.round(x * scale) / scale

    weight, bias = (params[f'dense_{part}'].asnumpy() for part in ('weight', 'bias'))
    expected = rounded(images[:, :, 0, 0]) @ rounded(weight).T + rounded(bias)
    step = abs(images[:, :, 0, 0] @ weight.T + bias).max() / 127
    assert abs(found - expected).max() <= 2 * step
    # And it is coarser than float32.
    assert abs(found - outputs_of(mxnet_function(as_block(symbol, params)), images)).max() > step / 10


@pytest.fixture(scope='module')
def deployed(trained):
    return reparametrize(*trace(load_network(trained[0])[0]))


def test_onnx_against_quantize_static(deployed, tiny_records, onnx, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_static

    from gluon_lprnet.deployment.onnx import write_onnx
    images = pictures(tiny_records)
    quantizer = OnnxQuantizer(*deployed, images, 'naive')
    found = outputs_of(quantizer.function(quantizer.quantize(list(quantizer.layers))), images)
    write_onnx(*deployed, images.shape[1:], tmp_path / 'float.onnx')
    reader = iter([{'data': images}])
    nodes = onnx[0].load(str(tmp_path / 'float.onnx')).graph.node
    quantize_static(str(tmp_path / 'float.onnx'), str(tmp_path / 'static.onnx'),
                    SimpleNamespace(get_next=lambda: next(reader, None)), per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    op_types_to_quantize=['Conv', 'Gemm', 'Add', 'Relu', 'GlobalAveragePool'],
                    nodes_to_exclude=[node.name for node in nodes if node.name.endswith('_shifted')])
    expected = outputs_of(onnx_function(str(tmp_path / 'static.onnx')), images)
    assert noise_of(found, expected) < 1e-4


@pytest.mark.parametrize('quantizer_of', [MXNetQuantizer, OnnxQuantizer, LibraryQuantizer])
def test_a_bad_layer_is_left_out(deployed, tiny_records, onnx, quantizer_of):
    """A channel that is far larger than the others takes all 8 bits of its tensor; what reads it undoes that."""
    symbol, params = deployed
    params = dict(params)
    images = pictures(tiny_records)
    names = [name for name in quantizer_of(symbol, params, images[:2], 'naive').layers if 'dsc3' in name]
    first, second = (f'{name}_weight' for name in names)
    gain = np.ones(params[first].shape[0], 'float32')
    gain[0] = 3000
    bias = next(name for name in params if 'dsc3_convbnrelu0' in name and name.endswith('beta'))
    params[first] = params[first] * mx.nd.array(gain.reshape(-1, 1, 1, 1))
    params[bias] = mx.nd.abs(params[bias] * mx.nd.array(gain)) + 0.1 * mx.nd.array(gain)
    params[second] = params[second] / mx.nd.array(gain.reshape(1, -1, 1, 1))
    expected = outputs_of(mxnet_function(as_block(symbol, params)), images)
    found = quantize(quantizer_of(symbol, params, images, 'naive'), images, expected, tolerance=0.02)
    left_out = [layer.name for layer in found.layers if layer.left_out]
    # The library rounds what a layer takes; to it the layer that gives the channel is as any other.
    bad = names[1:] if quantizer_of is LibraryQuantizer else names
    assert set(left_out) >= set(bad) and len(left_out) < len(found.layers) / 2
    assert found.noise <= 0.02


class Fake:
    """Layers that add to the noise; independent of each other."""
    layers = {'a': ['a'], 'b1': ['b1'], 'b2': ['b2'], 'c': ['c']}
    cost = {'a': 0.01, 'b1': 0.2, 'b2': 0.05, 'c': 0.001}

    def quantize(self, layers):
        return sum(self.cost[layer] for layer in layers)

    def function(self, model):
        return lambda images: images[:, :, 0, 0] * (1 + np.sqrt(model))


IMAGES = np.random.default_rng(0).normal(0, 1, (200, 3, 1, 1))
IMAGES[:100] = -IMAGES[100:]


@pytest.mark.parametrize('tolerance, exclude, left_out', [
    (0.3, (), {}), (0.07, (), {'b1': 'noise'}), (0.02, (), {'b1': 'noise', 'b2': 'noise'}),
    (0.02, ('b*',), {'b1': '--exclude', 'b2': '--exclude'}), (0.3, ('c',), {'c': '--exclude'}),
    (0.005, ('b2',), {'a': 'noise', 'b1': 'noise', 'b2': '--exclude'})])
def test_the_rule(tolerance, exclude, left_out):
    found = quantize(Fake(), IMAGES, IMAGES[:, :, 0, 0], exclude, tolerance)
    assert {layer.name: layer.left_out for layer in found.layers if layer.left_out} == left_out
    assert found.noise == pytest.approx(sum(cost for name, cost in Fake.cost.items() if name not in left_out))
    assert [layer.name for layer in found.layers] == list(Fake.layers)
    for layer in found.layers:
        assert (layer.noise is None) == (layer.left_out == '--exclude')


@pytest.mark.parametrize('slow, exclude, left_out', [
    (['b1', 'c'], (), {'b1': 'time', 'c': 'time'}),
    (['b1', 'c'], ('b*',), {'b1': '--exclude', 'b2': '--exclude', 'c': 'time'}),
    # Nothing would remain.
    (['b1', 'c'], ('a', 'b2'), {'a': '--exclude', 'b2': '--exclude'}),
])
def test_slow_layers_are_left_out(slow, exclude, left_out):
    found = quantize(Fake(), IMAGES, IMAGES[:, :, 0, 0], exclude, 1, slow)
    assert {layer.name: layer.left_out for layer in found.layers if layer.left_out} == left_out


def test_the_rule_refuses(monkeypatch):
    expected = IMAGES[:, :, 0, 0]
    with pytest.raises(InputError, match="'d' matches no layer; the layers are a, b1, b2, c"):
        quantize(Fake(), IMAGES, expected, ['d'])
    with pytest.raises(InputError, match='no layer is left'):
        quantize(Fake(), IMAGES, expected, tolerance=1e-4)
    with pytest.raises(InputError, match='no layer is left'):
        quantize(Fake(), IMAGES, expected, ['*'])
    with pytest.raises(InputError, match='--images'):
        quantize(Fake(), IMAGES[:1], expected[:1])
    monkeypatch.setitem(Fake.cost, 'a', float('nan'))
    with pytest.raises(InputError, match='NaN'):
        quantize(Fake(), IMAGES, expected)


@pytest.mark.parametrize('model, layers', [('lprnet_shufflenetv2_x0.5', 57), ('mobilenetv2_x0.5', 53),
                                           ('shufflenetv1_x0.25', 50)])
def test_layers_have_one_name_in_both_runtimes(model, layers, onnx):
    net = get_model(model, classes=3)
    net.initialize(mx.init.Xavier())
    images = np.random.default_rng(0).normal(0, 1, (8, 3, 64, 64)).astype('float32')
    net(mx.nd.array(images))
    form = reparametrize(*trace(net))
    found = [quantizer_of(*form, images, 'naive')
             for quantizer_of in (MXNetQuantizer, OnnxQuantizer, LibraryQuantizer)]
    assert list(found[0].layers) == list(found[1].layers) == list(found[2].layers)
    assert len(found[0].layers) == layers
    for quantizer in found:
        assert np.isfinite(quantizer.function(quantizer.quantize(list(quantizer.layers)))(images)).all()


def test_no_compiler_for_the_library(trained, tmp_path, monkeypatch, capsys):
    run, rec = trained
    monkeypatch.setenv('CXX', str(tmp_path / 'missing-g++'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delattr(mx.sym, 'lprnet_network', raising=False)
    assert main(['export', str(run), '--out', str(tmp_path / 'out'), '--format', 'library', '--int8', '--calibrate',
                 rec]) == 2
    assert 'missing-g++' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_pixels_in(trained, tiny_records, onnx, tmp_path):
    run, rec = trained
    export(run, tmp_path, ('deployed',), ('mxnet', 'onnx'), normalize_input=True,
           int8=Int8(rec, images=50, tolerance=0.1, exclude=['*dense0'], rec_val=rec))
    facts = json.loads((tmp_path / f'{MODEL}-int8.json').read_text())
    assert facts['rgb_mean'] == [0, 0, 0] and facts['int8']['float']['top1'] == facts['int8']['mxnet']['top1']
    assert facts['int8']['mxnet']['layers'][-1] == {'name': facts['int8']['mxnet']['layers'][-1]['name'],
                                                    'noise': None, 'left_out': '--exclude'}
    expected = load_network(run)[0](mx.nd.array(pictures(tiny_records))).asnumpy()
    pixels = tiny_records[1].transpose(0, 3, 1, 2).astype('float32')
    assert noise_of(onnx_function(str(tmp_path / f'{MODEL}-int8.onnx'))(pixels), expected) <= 0.1


@pytest.fixture
def faces(tmp_path):
    """40 drawn discs with 68 points each: the .rec."""
    rng = np.random.default_rng(3)
    samples = []
    for number in range(40):
        points = rng.uniform(20, 76, (68, 2)).astype('float32')
        picture = np.full((96, 96, 3), rng.integers(0, 256, 3), 'uint8')
        picture[rng.integers(10, 50):80, 20:rng.integers(40, 90)] = rng.integers(0, 256, 3)
        samples.append(encode_record(FaceRecord(f'{number}.jpg', None, encode_jpeg(picture, 95), points,
                                                landmark_box(points), None, 1.0, np.zeros(2, 'float32'))))
    write_records(tmp_path / 'faces', samples)
    return str(tmp_path / 'faces.rec')


def test_landmarks(faces, tiny_records, tmp_path, capsys):
    net = get_model(MODEL, classes=136)
    net.initialize(mx.init.Xavier(magnitude=4))
    net(mx.nd.zeros((1, 3, 64, 64)))
    config = {'task': 'landmarks', 'model': MODEL, 'num_classes': 136, 'input_size': 64, 'small_image': False,
              'rank': None, 'no_residual': False, 'no_l2_norm': False, 'crop_scale': 1.25, 'rgb_mean': MEAN,
              'rgb_std': STD}
    path = checkpoint.save(tmp_path / 'run', net, gluon.Trainer(net.collect_params(), 'sgd', kvstore=None),
                           {'step': 1, 'config': config})
    arguments = ['export', str(path), '--out', str(tmp_path / 'out'), '--form', 'deployed', '--int8', '--tolerance',
                 '0.5', '--images', '30', '--rec-val', faces]
    assert not main([*arguments, '--calibrate', faces])
    facts = json.loads((tmp_path / 'out' / f'{MODEL}-int8.json').read_text())['int8']
    assert 0 < facts['mxnet']['nme'] != facts['float']['nme'] and 'agreement' not in facts['mxnet']
    assert f'NME: {100 * facts["float"]["nme"]:.2f}% in float32' in capsys.readouterr().out
    assert main([*arguments, '--overwrite', '--calibrate', f'{tiny_records[0]}.rec']) == 2
    assert 'pack faces' in capsys.readouterr().err


def test_bad_arguments(trained, tmp_path, capsys):
    run, rec = trained

    def error(*arguments):
        assert main(['export', str(run), '--out', str(tmp_path / 'out'), '--form', 'deployed', *arguments]) == 2
        return capsys.readouterr().err

    assert '--int8 needs --calibrate' in error('--int8')
    assert '--calibrate needs --int8' in error('--calibrate', rec)
    assert '--rec-val needs --int8' in error('--rec-val', rec)
    assert "'library' is of 8 bits only: give --int8 too" in error('--format', 'library')
    assert 'nothing.rec' in error('--int8', '--calibrate', str(tmp_path / 'nothing.rec'))
    assert not (tmp_path / 'out').exists()
    assert "--exclude: 'x' matches no layer" in error('--int8', '--calibrate', rec, '--exclude', 'x')
    assert not list((tmp_path / 'out').glob('*int8*')) and not list((tmp_path / 'out').glob('.export-*'))
    for flags in (['--images', '0'], ['--tolerance', '0'], ['--calibration', 'other']):
        with pytest.raises(SystemExit):
            error('--int8', '--calibrate', rec, *flags)


@pytest.mark.slow
def test_real_images(shared_data, onnx):
    """A network that has seen 3,200 images of CIFAR-10 keeps its accuracy on 2,000 others, in both runtimes."""
    folder = Path(shared_data) / 'cifar10'
    config = SimpleNamespace(rgb_mean=[125.3, 123.0, 113.9], rgb_std=[51.6, 50.8, 51.3])

    def batches(name, count):
        iterator = mx.io.ImageRecordIter(
            path_imgrec=str(folder / f'{name}.rec'), data_shape=(3, 32, 32), batch_size=64, preprocess_threads=1,
            **{f'mean_{c}': m for c, m in zip('rgb', config.rgb_mean)},
            **{f'std_{c}': s for c, s in zip('rgb', config.rgb_std)})
        return [(batch.data[0].copyto(mx.cpu()), batch.label[0].copyto(mx.cpu()))
                for _, batch in zip(range(count // 64), iterator)]

    mx.random.seed(0)
    net = get_model(MODEL, classes=10, small_image=True)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': 2e-3}, kvstore=None)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    training = batches('train', 3200)
    for data, label in training * 2:
        with mx.autograd.record():
            value = loss(net(data), label)
        value.backward()
        trainer.step(len(data))
    test = batches('test', 2000)
    images, labels = (np.concatenate([part[index].asnumpy() for part in test]) for index in (0, 1))
    calibration = np.concatenate([data.asnumpy() for data, _ in training[:4]])
    form = reparametrize(*trace(net))
    network = mxnet_function(as_block(*form))
    accuracy = (outputs_of(network, images).argmax(axis=1) == labels).mean()
    assert accuracy > 0.25
    for quantizer_of in (MXNetQuantizer, OnnxQuantizer):
        quantizer = quantizer_of(*form, calibration, 'naive')
        found = quantize(quantizer, calibration, outputs_of(network, calibration), tolerance=0.01)
        outputs = outputs_of(quantizer.function(found.model), images)
        assert (outputs.argmax(axis=1) == labels).mean() == pytest.approx(accuracy, abs=0.02)
        assert noise_of(outputs, outputs_of(network, images)) < 0.03


@pytest.mark.slow
def test_real_faces(shared_data, onnx, tmp_path):
    """The network of the package on faces held out of its training: at most 3% more NME, in every runtime."""
    for part in ('rest', 'held-out'):
        pack_faces(shared_data / '300w' / 'train', 'pts', tmp_path / part, part=part)
    name = 'lprnet_mobilenet_x0.5.faces'
    export(name, tmp_path / 'out', ('deployed',), ('mxnet', 'onnx', 'library'), name='faces',
           int8=Int8(str(tmp_path / 'rest.rec'), images=256, rec_val=str(tmp_path / 'held-out.rec')))
    facts = {key: value for form in ('int8', 'int8-library')
             for key, value in json.loads((tmp_path / 'out' / f'faces-{form}.json').read_text())['int8'].items()}
    assert 0.02 < facts['float']['nme'] < 0.04
    for runtime in ('mxnet', 'onnx', 'library'):
        assert facts[runtime]['nme'] < 1.03 * facts['float']['nme']
        # And half of the network or more is in 8 bits.
        assert sum(not layer['left_out'] for layer in facts[runtime]['layers']) >= 0.5 * len(facts[runtime]['layers'])
