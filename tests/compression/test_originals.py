"""Imported arrays against the network in NumPy, and on photos."""
import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import get_model as get_gluoncv_model
from mxnet import autograd
from mxnet.gluon import nn
from reference.modules import conv

from gluon_lprnet import blocks, get_model
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network, model_arguments
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import compress, import_gluoncv_mobilenet, import_mobilenetv1
from gluon_lprnet.deployment import deploy
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.utils.errors import InputError

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
SIZE = 32


def random_arrays(classes=5, seed=0):
    """A network of width x0.25 whose activations reach 6 now and then."""
    random = np.random.default_rng(seed)
    arrays = {}

    def add(name, *shape):
        fan_in = np.prod(shape[1:])
        arrays[f'{name}_weight'] = random.integers(0, 256, shape, dtype='uint8')
        arrays[f'{name}_zero'] = np.int32(random.integers(120, 136))
        # Uniform numbers from -128 to 127 have a deviation of 74.
        arrays[f'{name}_scale'] = np.float32(np.sqrt(3 / fan_in) / 74)
        arrays[f'{name}_bias'] = random.normal(0.3, 0.5, shape[0]).astype('float32')

    widths = [width // 4 for width in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
    add('conv0', widths[0], 3, 3, 3)
    for number, (before, after) in enumerate(zip(widths, widths[1:]), 1):
        add(f'block{number}_dw', before, 1, 3, 3)
        add(f'block{number}_pw', after, before, 1, 1)
    add('output', classes + 1, widths[-1])
    return arrays


def in_numpy(arrays, x):
    """The README's words: TensorFlow's padding, ReLU6 behind every convolution, the mean, the layer of outputs."""
    def layer(name):
        weight = (arrays[f'{name}_weight'].astype('float64') - arrays[f'{name}_zero']) * arrays[f'{name}_scale']
        return weight, arrays[f'{name}_bias'].astype('float64')

    def convolution(x, name, stride, groups=1):
        weight, bias = layer(name)
        if stride == 2:
            # One row and column of zeros at the end in place of both sides: those of the start are cut off again.
            y = conv(np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1))), weight, 1, groups)[:, :, 1:-1, 1:-1][:, :, ::2, ::2]
        elif weight.shape[2] == 1:
            y = np.einsum('oi,nihw->nohw', weight[:, :, 0, 0], x)
        else:
            y = conv(x, weight, 1, groups)
        return np.clip(y + bias[:, None, None], 0, 6)

    x = convolution(x, 'conv0', 2)
    for number, stride in enumerate(STRIDES, 1):
        x = convolution(x, f'block{number}_dw', stride, x.shape[1])
        x = convolution(x, f'block{number}_pw', 1)
    weight, bias = layer('output')
    return (x.mean(axis=(2, 3)) @ weight.T + bias)[:, 1:]


@pytest.fixture(scope='module')
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp('arrays') / 'original.npz'
    np.savez(path, **random_arrays())
    return path


X = np.random.default_rng(1).uniform(-1, 1, (2, 3, SIZE, SIZE))


def test_it_is_the_network_of_the_arrays(arrays):
    net, description = import_mobilenetv1(arrays, SIZE)
    expected = in_numpy(random_arrays(), X)
    assert expected.std(axis=0).min() > 1e-3, 'outputs that do not vary show nothing'
    found = net(mx.nd.array(X)).asnumpy()
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
    with autograd.train_mode():
        np.testing.assert_allclose(net(mx.nd.array(X)).asnumpy(), found, atol=1e-5)
    deployed = deploy(net)
    np.testing.assert_allclose(deployed(mx.nd.array(X)).asnumpy(), found, atol=1e-4)
    assert not count(net, X.shape).unknown and not count(deployed, X.shape).auxiliary
    assert description['rgb_mean'] == [128] * 3 and description['crop_ratio'] == 0.875
    assert description['num_classes'] == 5


@pytest.mark.parametrize('switch', [{'activation': 'relu'}, {'padding': 'symmetric'}])
def test_each_switch_shows(arrays, switch):
    """Without ReLU6 or without TensorFlow's padding it is another function."""
    net, description = import_mobilenetv1(arrays, SIZE)
    other = get_model(description['model'], **model_arguments({**description, **switch}))
    other.initialize()
    for mine, value in zip(other.collect_params().values(), net.collect_params().values()):
        mine.set_data(value.data())
    expected, found = net(mx.nd.array(X)).asnumpy(), other(mx.nd.array(X)).asnumpy()
    assert abs(found - expected).max() > 1e-2 * abs(expected).max()


def test_switches_of_the_zoo():
    for wrong, message in (({'activation': 'tanh'}, "'relu' or 'relu6'"), ({'padding': 'same'}, "or 'tensorflow'")):
        with pytest.raises(InputError, match=message):
            get_model('mobilenetv1_x0.25', **wrong)
    convolution = blocks.ConvBNReLU(1, 3, 2, in_channels=1, activation=None, padding='tensorflow')
    convolution.initialize(mx.init.One())
    # Of the 4x4 picture 0 .. 15: whole windows, and those that reach over the right and the lower edge.
    x = mx.nd.arange(16).reshape((1, 1, 4, 4))
    np.testing.assert_allclose(convolution[0](x).asnumpy()[0, 0], [[45, 39], [66, 50]])


def test_command_and_compression(arrays, tmp_path, capsys):
    assert not main(['import', str(arrays), '--input-size', '32', '--out', str(tmp_path / 'original')])
    symbol = tmp_path / 'original' / 'mobilenetv1_x0.25-symbol.json'
    assert str(symbol) in capsys.readouterr().out
    net, description = load_network(symbol)
    expected = import_mobilenetv1(arrays, SIZE)[0](mx.nd.array(X)).asnumpy()
    np.testing.assert_allclose(net(mx.nd.array(X)).asnumpy(), expected, atol=1e-5)
    assert (description['activation'], description['padding']) == ('relu6', 'tensorflow')
    images = mx.nd.array(np.random.default_rng(2).uniform(-1, 1, (280, 3, SIZE, SIZE)))
    compressed, report = compress(net, 0.49, calibration=images)
    assert sum(layer.rank is not None for layer in report.layers) == 8
    errors = np.square(compressed(images).asnumpy() - net(images).asnumpy()).mean()
    assert errors < 0.25 * net(images).asnumpy().var(axis=0).mean()


@pytest.mark.parametrize('change, message', [
    ({'block3_pw_weight': None}, 'no array block3_pw_weight'),
    ({'block3_dw_bias': np.zeros(7, 'float32')}, r'block3_dw_bias has shape \(7,\).*\(32\)'),
    ({'output_scale': np.float32('nan')}, 'output has NaN'),
    ({'conv0_weight': np.array(['a'])}, 'conv0_weight has shape')])
def test_bad_arrays(tmp_path, change, message):
    arrays = {name: value for name, value in {**random_arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / 'bad.npz', **arrays)
    with pytest.raises(InputError, match=message):
        import_mobilenetv1(tmp_path / 'bad.npz', SIZE)


def test_bad_files(arrays, tmp_path, capsys):
    (tmp_path / 'half.npz').write_bytes(arrays.read_bytes()[:5000])
    (tmp_path / 'text.npz').write_text('no arrays')
    np.savez(tmp_path / 'pickled.npz', conv0_weight=np.array([{}], dtype=object))
    for name in ('half.npz', 'text.npz', 'pickled.npz', 'nothing.npz'):
        with pytest.raises(InputError, match=name):
            import_mobilenetv1(tmp_path / name, SIZE)
    with pytest.raises(InputError, match='multiple of 32'):
        import_mobilenetv1(arrays, 100)
    assert main(['import', str(arrays), '--input-size', '33', '--out', str(tmp_path / 'out')]) == 2
    assert not (tmp_path / 'out').exists()


def test_real_photos(shared_data):
    """60 photos, each of another of 1,000 classes: an import that is off by a class or a padding names few of them."""
    folder = shared_data / 'imagenet_samples'
    path = shared_data / 'mobilenetv1_imagenet' / 'mobilenetv1_x0.25.npz'
    if not (folder.is_dir() and path.exists()):
        pytest.skip(f'no {folder} or no {path}')
    net, description = import_mobilenetv1(path, 128)
    photos = sorted(folder.glob('*/*'))
    assert len(photos) == 1000
    right = [int(net(preprocess(photo, description)).argmax(axis=1).asscalar()) == label
             for label, photo in list(enumerate(photos))[::17]]
    assert np.mean(right) > 0.4


def gluoncv_file(folder, name='mobilenet0.25', classes=1000):
    """Random weights as GluonCV saves pretrained ones, and the network."""
    mx.random.seed(7)
    net = get_gluoncv_model(name, classes=classes)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, SIZE, SIZE)))
    for key, parameter in net.collect_params().items():
        if key.endswith('gamma'):
            parameter.set_data(mx.nd.random.uniform(0.5, 1.5, parameter.shape))
    # As after a training: statistics that are those of the activations.
    net.apply(lambda block: block._kwargs.update(momentum=0) if isinstance(block, nn.BatchNorm) else None)
    with autograd.record():
        outputs = net(mx.nd.random.uniform(-1, 1, (64, 3, SIZE, SIZE)))
    outputs.backward()
    net.save_parameters(str(folder / f'{name}-9f83e440.params'))
    return folder / f'{name}-9f83e440.params', net


@pytest.mark.parametrize('name, model', [('mobilenet0.25', 'mobilenetv1_x0.25'), ('mobilenet1.0', 'mobilenetv1_x1.0')])
def test_gluoncv_mobilenets(name, model, tmp_path, capsys):
    """The same function; and the files of the command can be compressed as any others."""
    path, original = gluoncv_file(tmp_path, name)
    expected = original(mx.nd.array(X)).asnumpy()
    assert expected.std(axis=0).mean() > 1e-3 * abs(expected).max()
    assert not main(['import', str(path), '--input-size', str(SIZE), '--out', str(tmp_path / 'original')])
    symbol = tmp_path / 'original' / f'{model}-symbol.json'
    assert str(symbol) in capsys.readouterr().out
    net, description = load_network(symbol)
    np.testing.assert_allclose(net(mx.nd.array(X)).asnumpy(), expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    # Those of gluoncv.data.transforms.presets.imagenet, of pixels from 0 to 1.
    np.testing.assert_allclose(np.array(description['rgb_mean']) / 255, [0.485, 0.456, 0.406], rtol=1e-6)
    np.testing.assert_allclose(np.array(description['rgb_std']) / 255, [0.229, 0.224, 0.225], rtol=1e-6)
    assert description['class_names'][1] == 'goldfish' and description['crop_ratio'] == 0.875
    assert not main(['compress', '--network', str(symbol), '--rank', '1/4', '--out', str(tmp_path / 'small')])
    assert count(tmp_path / 'small' / f'{model}-compressed-symbol.json',
                 (1, 3, SIZE, SIZE)).multiply_adds < count(net, (1, 3, SIZE, SIZE)).multiply_adds


def test_other_files_of_parameters(tmp_path):
    path, _ = gluoncv_file(tmp_path, 'mobilenetv2_0.25', 10)
    with pytest.raises(InputError, match="does not have the parameters of GluonCV's MobileNetV1"):
        import_gluoncv_mobilenet(path)
    path, _ = gluoncv_file(tmp_path)
    params = mx.nd.load(str(path))
    for change, message in (({'features.79.gamma': None}, 'features.79.gamma is missing or is one too many'),
                            ({'output.weight': mx.nd.zeros((1000, 3))}, r'output.weight has shape \(1000, 3\)')):
        mx.nd.save(str(tmp_path / 'bad.params'), {key: value for key, value in {**params, **change}.items()
                                                  if value is not None})
        with pytest.raises(InputError, match=message):
            import_gluoncv_mobilenet(tmp_path / 'bad.params')
    (tmp_path / 'half.params').write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match='half.params is damaged'):
        import_gluoncv_mobilenet(tmp_path / 'half.params')
