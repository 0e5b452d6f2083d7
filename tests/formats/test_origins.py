"""Networks that stock MXNet and GluonCV wrote, against MXNet's own outputs of them, through the one loader."""
import json
import re
import shutil
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import encode
from mxnet import gluon
from mxnet.gluon import nn
from reference.networks import relative_error

import gluon_lprnet
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.compression import compress
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.deployment import deploy
from gluon_lprnet.deployment.export import export
from gluon_lprnet.evaluate.classification import described
from gluon_lprnet.serving import handler
from gluon_lprnet.serving.archive import archive
from gluon_lprnet.utils.errors import InputError

SIZE = 32
CLASSES = 4
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
# RGB from 0 to 255, NHWC.
PIXELS = np.stack([cv2.resize(noise, (SIZE, SIZE)) for noise in np.random.default_rng(1).integers(
    0, 256, (6, 5, 5, 3)).astype('uint8')])
NORMALIZED = ((PIXELS - MEAN) / STD).transpose(0, 3, 1, 2)


def softmax(x):
    exponents = np.exp(x.astype('float64') - x.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def body(data):
    """Features (N, 8) of a small network with a depthwise separable module."""
    for number, (filters, groups, kernel) in enumerate([(16, 1, 3), (16, 16, 3), (16, 1, 1)]):
        data = mx.sym.Convolution(data, name=f'conv{number}', kernel=(kernel, kernel), num_filter=filters,
                                  num_group=groups, pad=(kernel // 2,) * 2, stride=(2, 2) if number == 0 else (1, 1),
                                  no_bias=True)
        data = mx.sym.Activation(mx.sym.BatchNorm(data, name=f'norm{number}'), act_type='relu')
    return mx.sym.Flatten(mx.sym.Pooling(data, pool_type='avg', global_pool=True, kernel=(1, 1)))


def logits(data):
    return mx.sym.FullyConnected(body(data), num_hidden=CLASSES, name='fc')


def with_features(data):
    features = body(data)
    return mx.sym.Group([mx.sym.softmax(mx.sym.FullyConnected(features, num_hidden=CLASSES), name='classes'),
                         mx.sym.BlockGrad(features, name='features')])


def softmax_by_hand(data):
    exponents = mx.sym.exp(logits(data))
    return mx.sym.broadcast_div(exponents, mx.sym.sum(exponents, axis=1, keepdims=True))


def module_of(symbol, data='data', shape=(3, SIZE, SIZE), gamma=None):
    """A Module with random parameters, and statistics that are not 0 and 1."""
    labels = [name for name in symbol.list_arguments() if name.endswith('_label')]
    module = mx.mod.Module(symbol, data_names=[data], label_names=labels or None)
    batch = len(PIXELS)
    module.bind([(data, (batch, *shape))], [(name, (batch, CLASSES) if name == 'lro_label' else (batch,))
                                               for name in labels] or None, for_training=False)
    mx.random.seed(1)
    module.init_params(mx.init.Xavier())
    random = np.random.default_rng(2)
    arguments, auxiliary = module.get_params()
    for name, value in auxiliary.items():
        value[:] = random.uniform(0.5, 2, value.shape) if name.endswith('var') else random.normal(0, 0.3, value.shape)
    for name, value in arguments.items():
        if name.endswith('gamma') and gamma is not None:
            value[:] = random.uniform(*gamma, value.shape)
        if name.startswith('fc') and name.endswith('weight'):
            value[:] = random.normal(0, 2.5, value.shape)
    module.set_params(arguments, auxiliary)
    return module


def outputs_of_module(module, images):
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    return module.get_outputs()[0].asnumpy()


def probabilities(net, images):
    return net(mx.nd.array(images)).softmax().asnumpy()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """What ``mx.callback.do_checkpoint`` leaves: SoftmaxOutput, gammas that fix_gamma hides; and its outputs."""
    prefix = tmp_path_factory.mktemp('module') / 'net'
    module = module_of(mx.sym.SoftmaxOutput(logits(mx.sym.var('data')), name='softmax'), gamma=(0.2, 3))
    module.save_checkpoint(str(prefix), 3)
    return f'{prefix}-symbol.json', outputs_of_module(module, NORMALIZED)


def test_module_checkpoint(checkpoint):
    path, expected = checkpoint
    net, description = load_network(path)
    assert expected.std(axis=0).max() > 0.005
    np.testing.assert_allclose(probabilities(net, NORMALIZED), expected, atol=1e-6)
    assert description == {'num_classes': CLASSES}
    assert 'softmax_label' not in net.collect_params()


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for number, pixels in enumerate(PIXELS):
        (folder / f'{number}.png').write_bytes(encode(pixels))
    return folder


FLAGS = ['--input-size', str(SIZE), '--crop-ratio', '1', '--rgb-mean', *map(str, MEAN), '--rgb-std', *map(str, STD)]


def predicted(pictures, network, capsys, flags=FLAGS):
    capsys.readouterr()
    assert not main(['predict', str(pictures), '--network', str(network), '--top-k', str(CLASSES), '--json', *flags])
    found = np.zeros((len(PIXELS), CLASSES))
    for row, line in zip(found, capsys.readouterr().out.splitlines()):
        for each in json.loads(line)['classes']:
            row[each['index']] = each['probability']
    return found


def test_every_command_takes_a_module_checkpoint(checkpoint, pictures, tmp_path, capsys):
    path, expected = checkpoint
    np.testing.assert_allclose(predicted(pictures, path, capsys), expected, atol=1e-5)
    labels = expected.argmax(axis=1)
    labels[0] = (labels[0] + 1) % CLASSES
    write_records(tmp_path / 'set', [(int(label), encode(pixels)) for label, pixels in zip(labels, PIXELS)])
    assert not main(['evaluate', str(tmp_path / 'set.rec'), '--network', str(path), *FLAGS])
    assert f'{len(PIXELS)} images, {CLASSES} classes, top1 {5 / 6:.4f}' in capsys.readouterr().out

    pytest.importorskip('onnxruntime')
    assert not main(['export', path, '--out', str(tmp_path / 'out'), '--format', 'mxnet', 'onnx', '--mar', *FLAGS])
    for name in ('net', 'net-deployed'):
        for end in ('-symbol.json', '.onnx'):
            # By their description, without flags.
            found = predicted(pictures, tmp_path / 'out' / (name + end), capsys, flags=[])
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not main(['compress', path, '--out', str(tmp_path / 'small'), *FLAGS, '--rank', '1/4'])
    assert load_network(tmp_path / 'small' / 'net-compressed-symbol.json')[1]['num_classes'] == CLASSES


def test_an_archive_of_it_answers_the_same(checkpoint, tmp_path):
    """What the server's worker runs; without a description, images are seen as is usual for ImageNet."""
    path, _ = checkpoint
    mar = archive(path, tmp_path)
    shutil.unpack_archive(mar, tmp_path / 'unpacked', 'zip')
    service = handler.load(tmp_path / 'unpacked')
    (status, answer), = service.answer([{'data': encode(PIXELS[0])}], [{'data': 'image/png'}])
    assert status == 200
    expected, = gluon_lprnet.load(path).predict([encode(PIXELS[0])])
    assert [each['index'] for each in answer['classes']] == [each.index for each in expected]
    np.testing.assert_allclose([each['probability'] for each in answer['classes']],
                               [each.probability for each in expected], atol=1e-5)


def test_a_description_that_says_little_is_completed_in_an_archive(checkpoint, tmp_path):
    path, _ = checkpoint
    for file in Path(path).parent.glob('net-*'):
        shutil.copy(file, tmp_path)
    (tmp_path / 'net.json').write_text(json.dumps({'class_names': list('abcd')}))
    shutil.unpack_archive(archive(tmp_path / 'net-symbol.json', tmp_path), tmp_path / 'unpacked', 'zip')
    told = json.loads((tmp_path / 'unpacked' / 'description.json').read_text())
    assert (told['task'], told['input_size'], told['class_names']) == ('classification', 224, list('abcd'))


@pytest.mark.parametrize('end', [
    lambda x: mx.sym.softmax(x), lambda x: mx.sym.softmax(x, temperature=2.5), lambda x: mx.sym.log_softmax(x),
    lambda x: mx.sym.SoftmaxActivation(x), lambda x: mx.sym.identity(mx.sym.softmax(x, axis=1)),
    lambda x: mx.sym.BlockGrad(mx.sym.softmax(x)), lambda x: mx.sym.Flatten(mx.sym.softmax(mx.sym.reshape(
        x, shape=(0, 0, 1, 1)), axis=1))],
    ids=['softmax', 'temperature', 'log_softmax', 'SoftmaxActivation', 'identity', 'BlockGrad', 'Flatten'])
def test_a_softmax_at_the_end_is_not_applied_twice(end, tmp_path):
    symbol = end(logits(mx.sym.var('data0')))
    module = module_of(symbol, data='data0')
    module.save_checkpoint(str(tmp_path / 'net'), 0)
    expected = outputs_of_module(module, NORMALIZED)
    expected = np.exp(expected) if (expected < 0).any() else expected
    assert abs(expected.sum(axis=1) - 1).max() < 1e-5 and expected.std(axis=0).max() > 0.02
    net, _ = load_network(tmp_path / 'net-symbol.json')
    np.testing.assert_allclose(probabilities(net, NORMALIZED), expected, atol=5e-6)
    np.testing.assert_allclose(probabilities(deploy(net), NORMALIZED), expected, atol=1e-5)


def test_other_losses_and_names(tmp_path):
    """A regression's loss layer goes; the output stays what it is."""
    symbol = mx.sym.LinearRegressionOutput(logits(mx.sym.var('input_image')), name='lro')
    module = module_of(symbol, data='input_image')
    module.save_checkpoint(str(tmp_path / 'net'), 0)
    net, _ = load_network(tmp_path / 'net-symbol.json')
    assert relative_error(net(mx.nd.array(NORMALIZED)).asnumpy(), outputs_of_module(module, NORMALIZED)) < 1e-6


@pytest.mark.parametrize('symbol, message', [
    (with_features, 'has 2 outputs, classes_output, features_output'),
    (lambda x: mx.sym.split(logits(x), num_outputs=2, name='halves'), 'has 2 outputs, halves_output0, halves_output1'),
    (lambda x: mx.sym.sigmoid(logits(x), name='each'), "ends in 'each', a sigmoid"),
    (lambda x: mx.sym.LogisticRegressionOutput(logits(x), name='each'), "ends in 'each', a sigmoid"),
    (softmax_by_hand, 'gives probabilities'),
    (lambda x: mx.sym.Convolution(x, kernel=(3, 3), num_filter=2, name='map'), 'an output of the shape'),
    (lambda x: logits(x + mx.sym.var('other')), 'net-0000.params has no values for data, other, variables of'),
    (lambda x: logits(mx.sym.broadcast_mul(x, mx.sym.var('scale', shape=(1, 3, 1, 1)))), 'no values for data, scale'),
])
def test_what_is_refused_is_named(symbol, message, tmp_path):
    symbol = symbol(mx.sym.var('data'))
    symbol.save(str(tmp_path / 'net-symbol.json'))
    others = {'other': (1, 3, SIZE, SIZE)} if 'other' in symbol.list_inputs() else {}
    found = symbol.infer_shape(data=(1, 3, SIZE, SIZE), **others)
    shapes = dict(zip(symbol.list_arguments() + symbol.list_auxiliary_states(), found[0] + found[2]))
    mx.nd.save(str(tmp_path / 'net-0000.params'), {
        name: mx.nd.random.normal(0, 0.1, shape) ** 2 for name, shape in shapes.items()
        if name not in ('data', 'other', 'scale') and not name.endswith('_label')})
    with pytest.raises(InputError, match=message) as error:
        load_network(tmp_path / 'net-symbol.json')
    assert str(tmp_path / 'net-symbol.json') in str(error.value) and '\n' not in str(error.value)


def test_the_highest_epoch_by_number(checkpoint, tmp_path):
    path, expected = checkpoint
    shutil.copy(path, tmp_path)
    params = mx.nd.load(path.replace('-symbol.json', '-0003.params'))
    mx.nd.save(str(tmp_path / 'net-10000.params'), params)
    mx.nd.save(str(tmp_path / 'net-9999.params'), {name: value * 0 + 0.5 for name, value in params.items()})
    np.testing.assert_allclose(probabilities(load_network(tmp_path / 'net-symbol.json')[0], NORMALIZED), expected,
                               atol=1e-6)


def gluon_network(seed=3):
    from gluoncv import model_zoo
    mx.random.seed(seed)
    net = model_zoo.get_model('mobilenet0.25', classes=CLASSES)
    net.initialize(mx.init.Xavier(magnitude=3))
    net(mx.nd.array(NORMALIZED))
    outputs = net(mx.nd.array(NORMALIZED)).asnumpy()
    weight = net.output.weight
    weight.set_data(weight.data() * (2 / outputs.std(axis=0).mean()))
    return net


def test_gluoncv_export_block(tmp_path, pictures, capsys):
    """As it is by default: pixels from 0 to 255, HWC, normalized by the graph."""
    from gluoncv.utils import export_block
    net = gluon_network()
    export_block(str(tmp_path / 'cv'), net, data_shape=(SIZE, SIZE, 3))
    original = gluon.SymbolBlock.imports(str(tmp_path / 'cv-symbol.json'), ['data'], str(tmp_path / 'cv-0000.params'))
    expected = original(mx.nd.array(PIXELS)).asnumpy()
    assert relative_error(net(mx.nd.array(NORMALIZED)).asnumpy(), expected) < 1e-5

    found, description = load_network(tmp_path / 'cv-symbol.json')
    pixels = mx.nd.array(PIXELS.transpose(0, 3, 1, 2))
    assert relative_error(found(pixels).asnumpy(), expected) < 1e-6
    inside = description.pop('normalized_inside')
    assert description == {'num_classes': CLASSES, 'rgb_mean': [0] * 3, 'rgb_std': [1] * 3}
    np.testing.assert_allclose(inside['rgb_mean'], MEAN, atol=2e-3)
    np.testing.assert_allclose(inside['rgb_std'], STD, atol=2e-3)

    size = ['--input-size', str(SIZE), '--crop-ratio', '1']
    np.testing.assert_allclose(predicted(pictures, tmp_path / 'cv-symbol.json', capsys, size), softmax(expected),
                               atol=1e-5)
    assert main(['predict', str(pictures), '--network', str(tmp_path / 'cv-symbol.json'), *FLAGS]) == 2
    assert 'normalizes pixels itself' in capsys.readouterr().err

    small, _ = compress(found, 1 / 2, input_shape=(1, 3, SIZE, SIZE))
    assert small(pixels).shape == (len(PIXELS), CLASSES)
    pytest.importorskip('onnxruntime')
    export(tmp_path / 'cv-symbol.json', tmp_path / 'out', formats=('mxnet', 'onnx'), description={'input_size': SIZE,
                                                                                              'crop_ratio': 1.0})
    for end in ('-symbol.json', '.onnx', '-deployed-symbol.json', '-deployed.onnx'):
        again, told = load_network(tmp_path / 'out' / f'cv{end}')
        assert relative_error(again(pixels).asnumpy(), expected) < 1e-5
        assert told['rgb_mean'] == [0] * 3 and told['normalized_inside'] == inside


@pytest.mark.parametrize('layout, preprocessing, factor', [
    ('NHWC', lambda x: mx.sym.image.normalize(mx.sym.image.to_tensor(x), mean=tuple(MEAN / 255),
                                              std=tuple(STD / 255)), 1),
    ('NHWC', lambda x: mx.sym.transpose(x, axes=(0, 3, 1, 2)), None),
    ('NCHW', lambda x: (x - 127.5) / 127.5, 1),
    ('NCHW', lambda x: mx.sym.broadcast_div(x - 0.5, mx.sym.var('std', shape=(1, 3, 1, 1), init=mx.init.One())), 255),
    ('NCHW', lambda x: mx.sym.broadcast_mul(mx.sym.var('scale', shape=(1, 3, 1, 1), init=mx.init.One()), x - 0.5),
     255),
    ('NCHW', lambda x: mx.sym.Cast(x, dtype='float32') / 255, 1),
    # As Gluon's resnet*_v2 begin, on images that are normalized.
    ('NCHW', lambda x: mx.sym.BatchNorm(x, name='norm_data'), None),
    ('NCHW', lambda x: mx.sym.BatchNorm(x, name='norm_data'), 1),
    ('NCHW', lambda x: mx.sym.BatchNorm(x, name='norm_data'), 255),
], ids=['transforms', 'transposed', 'scalars', 'of fractions', 'constant first', 'divided', 'BatchNorm',
        'BatchNorm of pixels', 'BatchNorm of fractions'])
def test_preprocessing_in_the_graph(layout, preprocessing, factor, tmp_path):
    """``factor``: what pixels are divided by before they come to the graph; None if it does not normalize."""
    shape = (3, SIZE, SIZE) if layout == 'NCHW' else (SIZE, SIZE, 3)
    module = module_of(logits(preprocessing(mx.sym.var('data'))), shape=shape)
    arguments, auxiliary = module.get_params()
    if 'std' in arguments:
        arguments['std'][:] = np.reshape([0.2, 0.3, 0.25], (1, 3, 1, 1))
    if 'scale' in arguments:
        arguments['scale'][:] = np.reshape([5, 3, 4], (1, 3, 1, 1))
    if 'norm_data_moving_mean' in auxiliary and factor:
        auxiliary['norm_data_moving_mean'][:], auxiliary['norm_data_moving_var'][:] = MEAN / factor, (STD / factor) ** 2
    module.set_params(arguments, auxiliary)
    module.save_checkpoint(str(tmp_path / 'net'), 0)
    images = PIXELS.astype('float32') / (factor or 1)
    expected = outputs_of_module(module, images if layout == 'NHWC' else images.transpose(0, 3, 1, 2))
    net, description = load_network(tmp_path / 'net-symbol.json')
    assert relative_error(net(mx.nd.array(images.transpose(0, 3, 1, 2))).asnumpy(), expected) < 1e-6
    if factor is None:
        assert 'rgb_std' not in description
        assert described('net', description, {'rgb_mean': [1, 2, 3]})['rgb_mean'] == [1, 2, 3]
    else:
        assert description['rgb_std'] == [factor] * 3 and description['rgb_mean'] == [0] * 3
        assert described('net', description, {})['crop_ratio'] == 0.875


@pytest.mark.parametrize('end', ['-symbol.json', '.onnx'])
def test_gammas_that_are_fixed(checkpoint, end, tmp_path):
    """MXNet takes them as 1 whatever the file says; ONNX does not know of that."""
    pytest.importorskip('onnxruntime')
    path, expected = checkpoint
    assert abs(mx.nd.load(path.replace('-symbol.json', '-0003.params'))['arg:norm0_gamma'].asnumpy() - 1).max() > 0.5
    export(path, tmp_path, ('training', 'deployed'), ('mxnet', 'onnx'), description={'input_size': SIZE})
    for form in ('net', 'net-deployed'):
        np.testing.assert_allclose(probabilities(load_network(tmp_path / f'{form}{end}')[0], NORMALIZED), expected,
                                   atol=1e-6)


def test_a_network_of_one_size_only(tmp_path):
    """Its fully connected layer takes maps: the size follows from the parameters."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3, strides=2), nn.Flatten(), nn.Dense(CLASSES))
    net.initialize()
    net.hybridize()
    x = mx.nd.random.normal(shape=(2, 3, 96, 96))
    expected = net(x).asnumpy()
    net.export(str(tmp_path / 'net'))
    found, description = load_network(tmp_path / 'net-symbol.json')
    assert description == {'num_classes': CLASSES, 'input_size': 96}
    np.testing.assert_allclose(found(x).asnumpy(), expected, rtol=1e-5, atol=1e-6)
    (tmp_path / 'net.json').write_text('{"input_size": 32}')
    with pytest.raises(InputError, match='no RGB image of 32 pixels'):
        load_network(tmp_path / 'net-symbol.json')
    (tmp_path / 'net.json').unlink()
    x = mx.nd.random.normal(shape=(2, 3, 160, 160))
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3, strides=2), nn.Flatten(), nn.Dense(CLASSES))
    net.initialize()
    net.hybridize()
    expected = net(x).asnumpy()
    net.export(str(tmp_path / 'net'))
    with pytest.raises(InputError, match=r'write ."input_size": SIZE. to .*net.json'):
        load_network(tmp_path / 'net-symbol.json')
    (tmp_path / 'net.json').write_text('{"input_size": 160}')
    np.testing.assert_allclose(load_network(tmp_path / 'net-symbol.json')[0](x).asnumpy(), expected, rtol=1e-5,
                               atol=1e-6)


@pytest.mark.parametrize('channels', [32, 256])
def test_a_side_of_the_image_is_not_taken_for_channels(tmp_path, channels):
    """The shapes fit an image whose side is as many pixels as the first layer has channels, with the axes turned."""
    net = nn.HybridSequential()
    net.add(nn.BatchNorm(in_channels=channels), nn.Conv2D(4, 3, padding=1, in_channels=channels),
            nn.GlobalAvgPool2D(), nn.Dense(CLASSES))
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, channels, 8, 8)))
    net.export(str(tmp_path / 'net'))
    message = 'net-symbol.json with net-0000.params takes no RGB image .* conv.*_fwd: Shape inconsistent'
    with pytest.raises(InputError, match=message) as error:
        load_network(tmp_path / 'net-symbol.json')
    assert '\n' not in str(error.value)


def test_an_input_of_a_shape_and_a_type(tmp_path):
    """As converters save it; it is used in other batches."""
    module = module_of(logits(mx.sym.var('data')))
    module.save_checkpoint(str(tmp_path / 'net'), 0)
    path = tmp_path / 'net-symbol.json'
    graph = json.loads(path.read_text())
    graph['nodes'][0]['attrs'] = {'__shape__': f'(1, 3, {SIZE}, {SIZE})', '__dtype__': '3'}
    path.write_text(json.dumps(graph))
    assert relative_error(load_network(path)[0](mx.nd.array(NORMALIZED)).asnumpy(),
                          outputs_of_module(module, NORMALIZED)) < 1e-6


def test_save_parameters_is_not_export(tmp_path):
    net = gluon_network()
    net.hybridize()
    net(mx.nd.array(NORMALIZED))
    net.export(str(tmp_path / 'net'))
    net.save_parameters(str(tmp_path / 'net-0001.params'))
    with pytest.raises(InputError, match=r'net-0001.params has no values for .* and \d+ more, .*net.export'):
        load_network(tmp_path / 'net-symbol.json')


def test_float16_of_gluon(tmp_path):
    """Trained on a GPU; MXNet's CPU operators have no float16, so that it is compared with the same in float32."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 3, strides=2), nn.BatchNorm(), nn.Activation('relu'), nn.GlobalAvgPool2D(), nn.Dense(CLASSES))
    net.initialize(mx.init.Xavier())
    assert net(mx.nd.array(NORMALIZED)).asnumpy().std(axis=0).max() > 0.05
    for parameter in net.collect_params().values():
        parameter.set_data(parameter.data().astype('float16').astype('float32'))
    expected = net(mx.nd.array(NORMALIZED)).asnumpy()
    symbol = net(mx.sym.var('data'))
    text = symbol.tojson().replace('"__dtype__": "0"', '"__dtype__": "2"')
    (tmp_path / 'net-symbol.json').write_text(text)
    auxiliary = symbol.list_auxiliary_states()
    mx.nd.save(str(tmp_path / 'net-0000.params'), {
        ('aux:' if name in auxiliary else 'arg:') + name: value.data().astype('float16')
        for name, value in net.collect_params().items()})
    found, _ = load_network(tmp_path / 'net-symbol.json')
    assert relative_error(found(mx.nd.array(NORMALIZED)).asnumpy(), expected) < 1e-5


@pytest.mark.parametrize('flags, message', [
    (['--rgb-std', '0', '1', '1'], '--rgb-std [0.0, 1.0, 1.0] is not three numbers above 0'),
    (['--rgb-std', '1', '1', '-1'], '--rgb-std'), (['--rgb-mean', 'inf', '1', '1'], 'inf'),
    (['--rgb-mean', 'nan', '1', '1'], 'nan'), (['--input-size', '100000'], '--input-size 100000 is not'),
])
def test_flags_that_cannot_be_are_refused(checkpoint, pictures, flags, message, capsys):
    def status():
        try:
            return main(['predict', str(pictures), '--network', checkpoint[0], *flags])
        except SystemExit as error:
            # By the parser.
            return error.code
    assert status() == 2
    assert message in capsys.readouterr().err


def test_a_description_that_does_not_fit_is_refused(checkpoint, tmp_path):
    path, _ = checkpoint
    shutil.copy(path, tmp_path)
    shutil.copy(path.replace('-symbol.json', '-0003.params'), tmp_path)
    for text, message in [
            ('{"class_names": ["a", "b", "c"]}', '4 outputs, and its description 3 class names'),
            ('{"num_classes": 1000}', '4 outputs, and its description 1000 classes'),
            ('{"rgb_std": [0, 1, 1]}', '"rgb_std" is not three numbers above 0'),
            ('{"rgb_mean": [NaN, 1, 1]}', '"rgb_mean" is not three numbers'),
            ('{"rgb_mean": 3}', '"rgb_mean" is not three numbers'),
            ('{"task": "other"}', '"task" is not'), ('{"input_size": 0}', '"input_size" is not'),
            ('{"input_size": 1e9}', '"input_size" is not'), ('{"class_names": "abcd"}', '"class_names" is not a list'),
            ('{"crop_ratio": "1"}', '"crop_ratio" is not'), ('[]', 'is not a JSON object'),
            ('{"a": ' * 100000, 'is not valid JSON'), ('{"inter_method": 77}', '"inter_method" is not'),
            ('{"sha256": {"net-0003.params": "0"}}', r'net-0003.params is damaged .* SHA-256')]:
        (tmp_path / 'net.json').write_text(text)
        with pytest.raises(InputError, match=message) as error:
            load_network(tmp_path / 'net-symbol.json')
        assert re.search(r'net(\.json|-symbol\.json|-0003\.params)', str(error.value))
    (tmp_path / 'net.json').write_text('{"class_names": ["a", "b", "c", "d"]}')
    assert gluon_lprnet.load(tmp_path / 'net-symbol.json').names == ['a', 'b', 'c', 'd']
