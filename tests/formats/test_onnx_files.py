"""ONNX files as networks, against ONNX Runtime and MXNet; made by onnx's own helpers and by ``export``."""
import json

import mxnet as mx
import numpy as np
import pytest
from conftest import encode
from reference.networks import relative_error

import gluon_lprnet
from gluon_lprnet import get_model
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import contents_of, export_network, load_network
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.deployment import deploy
from gluon_lprnet.deployment.export import export
from gluon_lprnet.utils.errors import InputError

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SIZE, CLASSES = 16, 5
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, SIZE, SIZE, 3)).astype('uint8')
IMAGES = ((PIXELS.astype('float32') - 120) / 60).transpose(0, 3, 1, 2).copy()
WEIGHT = RANDOM.normal(0, 1, (8, 3, 3, 3)).astype('float32')
DENSE = RANDOM.normal(0, 2, (8, CLASSES)).astype('float32')


def reference(images):
    """Probabilities of the network that :func:`write` writes, in NumPy, for normalized images."""
    windows = np.lib.stride_tricks.sliding_window_view(images.astype('float64'), (3, 3), axis=(2, 3))
    maps = np.einsum('nchwij,fcij->nfhw', windows, WEIGHT)
    exponents = np.exp(np.maximum(maps, 0).mean(axis=(2, 3)) @ DENSE)
    return exponents / exponents.sum(axis=1, keepdims=True)


def write(path, first=(), last=(('Softmax', {}),), shape=('batch', 3, SIZE, SIZE), kind=None, outputs=(), damage=None):
    """A small network; ``first`` and ``last`` are its first and last nodes: operator, attributes, constants."""
    make = onnx.helper
    nodes, constants, current = [], [('weight', WEIGHT), ('dense', DENSE)], 'image'

    def add(operator, attributes, values=(), constant_first=False):
        nonlocal current
        names = [f'{operator}{len(nodes)}_{number}' for number in range(len(values))]
        constants.extend(zip(names, values))
        inputs = [*names, current] if constant_first else [current, *names]
        nodes.append(make.make_node(operator, inputs, [f'{operator}{len(nodes)}'], **attributes))
        current = nodes[-1].output[0]

    for node in first:
        add(*node)
    nodes.append(make.make_node('Conv', [current, 'weight'], ['maps'], kernel_shape=(3, 3)))
    current = 'maps'
    add('Relu', {})
    add('GlobalAveragePool', {})
    add('Flatten', {})
    nodes.append(make.make_node('MatMul', [current, 'dense'], ['logits']))
    current = 'logits'
    for node in last:
        add(*node)
    graph = make.make_graph(
        nodes, 'net', [make.make_tensor_value_info('image', kind or onnx.TensorProto.FLOAT, shape)],
        [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None, None)) for name in (current, *outputs)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants])
    model = make.make_model(graph, opset_imports=[make.make_opsetid('', 13)], ir_version=7)
    if damage:
        damage(model.graph)
    path.write_bytes(model.SerializeToString())
    return path


SUB, DIV = ('Sub', {}, [np.full((1, 1, 1, 3), 120, 'float32')]), ('Div', {}, [np.full((1, 1, 1, 3), 60, 'float32')])
TRANSPOSE = ('Transpose', {'perm': (0, 3, 1, 2)})
HWC = ('batch', SIZE, SIZE, 3)


@pytest.mark.parametrize('keywords, facts', [
    ({}, {}),
    ({'last': ()}, {}),
    ({'last': [('LogSoftmax', {'axis': 1})]}, {}),
    ({'last': [('Softmax', {}), ('Identity', {})]}, {}),
    ({'last': [('Unsqueeze', {}, [np.int64([2, 3])])]}, {}),
    ({'shape': (1, 3, SIZE, SIZE)}, {}),
    ({'shape': (4, 3, SIZE, SIZE)}, {}),
    ({'shape': ('n', 3, 'h', 'w')}, {'input_size': None}),
    ({'first': [TRANSPOSE], 'shape': HWC}, {}),
    ({'first': [SUB, DIV, TRANSPOSE], 'shape': HWC}, {'rgb_std': [1.0] * 3}),
    ({'first': [SUB, DIV, TRANSPOSE], 'shape': (4, SIZE, SIZE, 3)}, {'rgb_std': [1.0] * 3}),
    ({'first': [('Cast', {'to': 1}), SUB, DIV, TRANSPOSE], 'shape': HWC, 'kind': 2}, {'rgb_std': [1.0] * 3}),
    ({'first': [('Sub', {}, [np.float32(120 / 255)]), ('Div', {}, [np.float32(60 / 255)])]}, {'rgb_std': [255.0] * 3}),
    ({'first': [('Add', {}, [np.float32(-120)], True), ('Mul', {}, [np.float32(1 / 60)], True)]},
     {'rgb_std': [1.0] * 3}),
], ids=['softmax', 'logits', 'log_softmax', 'identity', 'maps of 1x1', 'batch of 1', 'batch of 4', 'any size', 'HWC',
        'pixels', 'pixels in batches of 4', 'bytes', 'fractions', 'constants first'])
def test_networks_of_other_programs(keywords, facts, tmp_path):
    net, description = load_network(write(tmp_path / 'net.onnx', **keywords))
    pixels = PIXELS.transpose(0, 3, 1, 2).astype('float32')
    images = pixels / facts['rgb_std'][0] if 'rgb_std' in facts else IMAGES
    found = net(mx.nd.array(images)).softmax().asnumpy()
    assert reference(IMAGES).std(axis=0).max() > 0.05
    np.testing.assert_allclose(found, reference(IMAGES), atol=1e-5)
    assert description['num_classes'] == CLASSES
    assert description.get('input_size') == facts.get('input_size', SIZE)
    if 'rgb_std' in facts:
        assert description['rgb_std'] == facts['rgb_std']
        np.testing.assert_allclose(description['normalized_inside']['rgb_std'], [60] * 3, atol=0.1)
    else:
        assert 'rgb_std' not in description


@pytest.mark.parametrize('factor', [None, 1, 255])
def test_a_batch_norm_in_front(factor, tmp_path):
    """``factor``: what pixels are divided by before it; None for one of images that are normalized."""
    mean, std = (120 / factor, 60 / factor) if factor else (0.02, 0.98)
    values = [np.full(3, value, 'float32') for value in (1, 0, mean, std ** 2)]
    net, description = load_network(write(tmp_path / 'net.onnx', [('BatchNormalization', {'epsilon': 0.0}, values)]))
    images = PIXELS.transpose(0, 3, 1, 2) / np.float32(factor) if factor else IMAGES
    np.testing.assert_allclose(net(mx.nd.array(images)).softmax().asnumpy(), reference((images - mean) / std),
                               atol=1e-5)
    assert description.get('rgb_std') == (factor and [factor] * 3)
    assert ('normalized_inside' in description) == (factor is not None)


def test_weights_in_another_file(tmp_path, monkeypatch):
    model = onnx.load(str(write(tmp_path / 'whole.onnx')))
    expected = load_network(tmp_path / 'whole.onnx')[0](mx.nd.array(IMAGES)).asnumpy()
    onnx.save(model, str(tmp_path / 'net.onnx'), save_as_external_data=True, location='net.data', size_threshold=0)
    monkeypatch.chdir('/')
    assert load_network(tmp_path / 'net.onnx')[0](mx.nd.array(IMAGES)).asnumpy().tolist() == expected.tolist()
    before = contents_of(tmp_path / 'net.onnx')
    data = bytearray((tmp_path / 'net.data').read_bytes())
    data[3] ^= 0x40
    (tmp_path / 'net.data').write_bytes(data)
    changed = {name for name, digest in contents_of(tmp_path / 'net.onnx').items() if before[name] != digest}
    assert changed == {str(tmp_path / 'net.data')}
    (tmp_path / 'net.data').unlink()
    with pytest.raises(InputError, match='net.onnx .*net.data'):
        load_network(tmp_path / 'net.onnx')


def test_evaluate_predict_and_load(tmp_path, capsys):
    path, expected = write(tmp_path / 'net.onnx'), reference(IMAGES)
    labels = expected.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % CLASSES
    write_records(tmp_path / 'set', [(int(label), encode(image)) for label, image in zip(labels, PIXELS)])
    flags = ['--rgb-mean', '120', '120', '120', '--rgb-std', '60', '60', '60', '--crop-ratio', '1']
    assert not main(['evaluate', str(tmp_path / 'set.rec'), '--network', str(path), *flags])
    assert f'6 images, {CLASSES} classes, top1 {4 / 6:.4f}' in capsys.readouterr().out
    (tmp_path / 'picture.png').write_bytes(encode(PIXELS[0]))
    assert not main(['predict', str(tmp_path / 'picture.png'), '--network', str(path), '--json', *flags])
    first = json.loads(capsys.readouterr().out)['classes'][0]
    assert first['index'] == expected[0].argmax()
    assert first['probability'] == pytest.approx(expected[0].max(), abs=1e-5)
    (tmp_path / 'net.json').write_text(json.dumps({'rgb_mean': [120] * 3, 'rgb_std': [60] * 3, 'crop_ratio': 1,
                                                   'class_names': list('abcde')}))
    found, = gluon_lprnet.load(path).predict(PIXELS[0])
    assert found[0].label == 'abcde'[expected[0].argmax()]
    assert found[0].probability == pytest.approx(expected[0].max(), abs=1e-5)


def test_what_export_wrote(tmp_path):
    """By the description beside it; the network in MXNet is the reference."""
    mx.random.seed(1)
    net = get_model('lprnet_mobilenet_x0.25', classes=3, small_image=True)
    net.initialize(mx.init.Xavier())
    config = {'model': 'lprnet_mobilenet_x0.25', 'num_classes': 3, 'input_size': 32, 'small_image': True, 'rank': None,
              'no_residual': False, 'no_l2_norm': False, 'crop_ratio': 1.0, 'rgb_mean': [120.0, 110.0, 100.0],
              'rgb_std': [60.0, 61.0, 62.0], 'class_names': ['a', 'b', 'c'], 'task': 'classification'}
    symbol = export_network(net, config, tmp_path / 'trained')
    export(symbol, tmp_path / 'out', formats=('onnx',))
    x = mx.nd.array(np.random.default_rng(1).normal(0, 1, (3, 3, 32, 32)))
    for name in ('lprnet_mobilenet_x0.25.onnx', 'lprnet_mobilenet_x0.25-deployed.onnx'):
        found, description = load_network(tmp_path / 'out' / name)
        assert relative_error(found(x).asnumpy(), net(x).asnumpy()) < 1e-5
        assert description['class_names'] == ['a', 'b', 'c'] and description['rgb_std'] == [60.0, 61.0, 62.0]
    with pytest.raises(InputError, match='ONNX file, can be used and evaluated only'):
        deploy(found)
    # Its SHA-256 is in the description.
    data = bytearray((tmp_path / 'out' / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'out' / name).write_bytes(data)
    with pytest.raises(InputError, match=f'{name} is damaged or of another network'):
        load_network(tmp_path / 'out' / name)


def _nan(graph):
    value = onnx.numpy_helper.to_array(graph.initializer[0]).copy()
    value.flat[3] = np.nan
    graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(value, 'weight'))


@pytest.mark.parametrize('keywords, message', [
    ({'outputs': ['logits']}, 'has 2 outputs: Softmax5, logits'),
    ({'last': [('Sigmoid', {})]}, "ends in 'Sigmoid5', a sigmoid"),
    ({'last': [('Exp', {}), ('ReduceSum', {'keepdims': 0})]}, 'net.onnx'),
    # Feature maps, and detections of a batch of one.
    ({'last': [('Unsqueeze', {}, [np.int64([2, 3])]), ('Tile', {}, [np.int64([1, 1, 4, 4])])]},
     r'an output of the shape \(2, 5, 4, 4\) for two images'),
    ({'last': [('Unsqueeze', {}, [np.int64([2])]), ('Tile', {}, [np.int64([1, 1, 7])])], 'shape': (1, 3, SIZE, SIZE)},
     r'an output of the shape \(2, 5, 7\)'),
    ({'last': [('Reshape', {}, [np.int64([1, CLASSES, -1])])]}, r'an output of the shape \(1, 5, 2\)'),
    ({'first': [('Cast', {'to': 10}), ('Sub', {}, [np.float16(0.5)]), ('Div', {}, [np.float16(0.25)]),
                ('Cast', {'to': 1})]}, 'net.onnx normalizes pixels in another precision than float32'),
    ({'shape': ('n', 1, SIZE, SIZE)}, 'no square RGB images'),
    ({'kind': 7}, 'net.onnx'),
    ({'damage': _nan}, 'weight has NaN or infinite values'),
    ({'damage': lambda graph: graph.node.pop(0)}, 'net.onnx is not an ONNX model'),
])
def test_what_is_refused_is_named(keywords, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        load_network(write(tmp_path / 'net.onnx', **keywords))
    assert 'net.onnx' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'text', b'\x08\x07' + b'\xff' * 50])
def test_damaged_files(content, tmp_path):
    (tmp_path / 'net.onnx').write_bytes(content)
    with pytest.raises(InputError, match='net.onnx'):
        load_network(tmp_path / 'net.onnx')
    with pytest.raises(InputError, match='does not exist'):
        load_network(tmp_path / 'other.onnx')
