"""The trained networks of the package: each file against its card, and what is refused."""
import hashlib
import json

import mxnet as mx
import numpy as np
import pytest

from gluon_lprnet import get_model, list_models
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo import pretrained

MODEL = 'lprnet_mobilenet_x0.25'


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of weights in place of the package's: one network of three classes on two data sets, another on one."""
    monkeypatch.setattr(pretrained, 'FOLDER', tmp_path)
    for name, seed in ((f'{MODEL}.red', 1), (f'{MODEL}.green', 2), ('mobilenetv1_x0.25.red', 3)):
        mx.random.seed(seed)
        net = get_model(pretrained.split_tag(name)[0], classes=3)
        net.initialize(mx.init.Xavier())
        net.save_parameters(str(tmp_path / f'{name}.params'))
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(
            keywords={'classes': 3}, description={'input_size': 32},
            sha256=hashlib.sha256((tmp_path / f'{name}.params').read_bytes()).hexdigest())))
    return tmp_path


@pytest.mark.parametrize('name, expected', [
    ('lprnet_mobilenet_x0.5', ('lprnet_mobilenet_x0.5', None)), ('lprnet_mobilenet', ('lprnet_mobilenet', None)),
    ('lprnet_mobilenet_x0.5.cifar10', ('lprnet_mobilenet_x0.5', 'cifar10'))])
def test_a_tag_is_no_width(name, expected):
    assert pretrained.split_tag(name) == expected


def test_weights_are_those_of_the_file(shelf):
    assert list_models(pretrained=True) == [f'{MODEL}.green', f'{MODEL}.red', 'mobilenetv1_x0.25.red']
    assert list_models(pretrained=True)[0] not in list_models()
    for net, name in ((get_model(f'{MODEL}.green'), f'{MODEL}.green'),
                      (get_model(MODEL, pretrained='red', classes=3), f'{MODEL}.red'),
                      (get_model('mobilenetv1_x0.25', pretrained=True), 'mobilenetv1_x0.25.red')):
        saved = mx.nd.load(str(shelf / f'{name}.params'))
        assert np.array_equal(net.output.weight.data().asnumpy(), saved['output.weight'].asnumpy())
        assert net(mx.nd.ones((2, 3, 32, 32))).shape == (2, 3)


@pytest.mark.parametrize('arguments, message', [
    (dict(name=MODEL, pretrained=True), "several data sets.*pretrained='green'"),
    (dict(name=MODEL, pretrained='blue'), f'no trained weights for {MODEL} on blue; available: {MODEL}.green'),
    (dict(name='mobilenetv2_x1.0', pretrained=True), 'no trained weights .*mobilenetv1_x0.25.red.*load_parameters'),
    (dict(name=f'{MODEL}.red', small_image=True), r'not with small_image=True'),
    (dict(name=f'{MODEL}.blue'), 'on blue')])
def test_what_is_not_there_is_said(shelf, arguments, message):
    with pytest.raises(InputError, match=message):
        get_model(**arguments)


def test_other_classes_get_a_new_output_layer_alone(shelf):
    net = get_model(f'{MODEL}.red', classes=10)
    saved = mx.nd.load(str(shelf / f'{MODEL}.red.params'))
    assert net(mx.nd.ones((2, 3, 32, 32))).shape == (2, 10)
    for name, parameter in net._collect_params_with_prefix().items():
        if not name.startswith('output.'):
            np.testing.assert_array_equal(parameter.data().asnumpy(), saved[name].asnumpy(), err_msg=name)


def test_a_changed_bit_is_found(shelf):
    path = shelf / f'{MODEL}.red.params'
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match='damaged: its SHA-256'):
        get_model(f'{MODEL}.red')
    path.unlink()
    with pytest.raises(InputError, match='cannot be read'):
        get_model(f'{MODEL}.red')


@pytest.mark.parametrize('model', [MODEL, 'mobilenetv2_x0.5', 'shufflenetv1_x0.25', 'shufflenetv2_x0.5'])
def test_reset_class_keeps_the_features(model):
    net = get_model(model, classes=7)
    with pytest.raises(InputError, match='initialize it'):
        net.reset_class(3)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    images = mx.nd.random.uniform(shape=(2, 3, 32, 32))
    net(images)
    features = net.features(images).asnumpy()
    net.reset_class(3)
    outputs = net(images).asnumpy()
    weight, bias = (parameter.data().asnumpy() for parameter in (net.output.weight, net.output.bias))
    assert np.array_equal(net.features(images).asnumpy(), features)
    assert outputs.shape == (2, 3) and not bias.any()
    assert np.abs(outputs - features @ weight.T).max() < 1e-5 * np.abs(outputs).max()
    for classes in (0, 2.5, 'a'):
        with pytest.raises(InputError, match='positive whole number'):
            net.reset_class(classes)
