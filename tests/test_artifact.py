"""A network as files: what writing leaves behind, in the folder and in the network."""
import shutil
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from reference.networks import operators, random_images

import gluon_lprnet
from gluon_lprnet import artifact, blocks, get_model
from gluon_lprnet.artifact import export_network, load_network
from gluon_lprnet.complexity import count
from gluon_lprnet.deployment import deploy
from gluon_lprnet.graph import trace
from gluon_lprnet.paper.table6 import exported_sizes
from gluon_lprnet.utils.errors import InputError

SIZE = 32
MODEL = 'lprnet_mobilenet_x0.25'
CONFIG = {'model': MODEL, 'num_classes': 3, 'input_size': SIZE, 'small_image': True, 'rank': None, 'crop_ratio': 1.0,
          'no_residual': False, 'no_l2_norm': False, 'l2_norm_scale': 'one', 'rgb_mean': [0.0] * 3,
          'rgb_std': [1.0] * 3, 'class_names': None, 'task': 'classification'}


def network(seed=1):
    mx.random.seed(seed)
    net = get_model(MODEL, classes=3, small_image=True, l2_norm_scale='one')
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, SIZE, SIZE)))
    return net


def modules(net):
    found = []
    net.apply(lambda block: found.append(block) if isinstance(block, blocks.LPR) else None)
    return found


@pytest.mark.parametrize('function', [deploy, lambda net: export_network(net, CONFIG, 'out'), exported_sizes, trace,
                                      lambda net: count(net, (1, 3, SIZE, SIZE))],
                         ids=['deploy', 'export_network', 'exported_sizes', 'trace', 'count'])
@pytest.mark.parametrize('hybrid', [True, False])
def test_the_network_stays_as_it_was(function, hybrid, tmp_path, monkeypatch):
    """In the training form, hybridized or not, with its gradients: the next step is the one it would have been."""
    monkeypatch.chdir(tmp_path)
    x, label = random_images(4, SIZE), mx.nd.array([0, 1, 2, 0])

    def after_a_step(interrupt):
        net = network()
        blocks.normalize_in_rank_space(net, True)
        if hybrid:
            net.hybridize(static_alloc=True)
        trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1, 'momentum': 0.9}, kvstore=None)
        for step in range(2):
            with autograd.record():
                loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(x), label)
            loss.backward()
            trainer.step(4)
            if step == 0:
                interrupt(net)
        return net

    untouched, found = after_a_step(lambda net: None), after_a_step(function)
    assert all(module._rank_space for module in modules(found)) and len(modules(found)) == 8
    assert found._active == hybrid
    if hybrid:
        graph = operators(found._cached_graph[1])
        assert graph['L2Normalization'] == 0 and graph['rsqrt'] == 8
    for mine, other in zip(found.collect_params().values(), untouched.collect_params().values()):
        np.testing.assert_array_equal(mine.data().asnumpy(), other.data().asnumpy())


def test_export_of_another_precision_leaves_it(tmp_path):
    net = network()
    x = random_images(2, SIZE)
    expected = net(x).asnumpy()
    net.cast('float64')
    symbol = export_network(net, CONFIG, tmp_path)
    assert {np.dtype(parameter.dtype) for parameter in net.collect_params().values()} == {np.dtype('float64')}
    written, description = load_network(symbol)
    assert abs(written(x).asnumpy() - expected).max() <= 1e-5 * abs(expected).max()
    assert {value.dtype for value in mx.nd.load(str(tmp_path / f'{MODEL}-0000.params')).values()} == {np.float32}
    assert description['l2_norm_scale'] == 'one'


def test_float16_is_written_in_float32():
    """What a GPU trains; the graph alone, since MXNet's CPU operators have no float16."""
    net = network()
    net.cast('float16')
    symbol, params = trace(net, cast=True)
    assert {value.dtype for value in params.values()} == {np.float32}
    assert not {'Cast', 'cast'} & set(operators(symbol)) and '"__dtype__": "2"' not in symbol.tojson()
    assert all(module._half for module in modules(net))
    with pytest.raises(InputError, match='call net.cast'):
        trace(net)


def test_nan_is_not_written(tmp_path):
    net = network()
    net.output.bias.set_data(mx.nd.full(3, float('nan')))
    with pytest.raises(InputError, match='was not written'):
        export_network(net, CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nan_that_a_relu_hides_is_not_written(tmp_path):
    net = network()
    gamma = net.features[1][0][1].gamma
    gamma.set_data(mx.nd.full(gamma.shape, np.nan))
    assert np.isfinite(net(random_images(2, SIZE)).asnumpy()).all()
    with pytest.raises(InputError, match=f'the parameter {gamma.name} has NaN'):
        export_network(net, CONFIG, tmp_path)


@pytest.mark.parametrize('call', ['gluon_lprnet.artifact.load_network', 'os.replace 1', 'os.replace 2', 'os.replace 3'])
def test_a_kill_during_export_leaves_a_whole_network_or_none(tmp_path, call):
    """SIGKILL before the files are compared, and before each is moved, in a folder that has an older export."""
    x = random_images(2, SIZE)
    export_network(network(seed=1), CONFIG, tmp_path / 'new')
    export_network(network(seed=2), CONFIG, tmp_path / 'out')
    symbol = tmp_path / 'out' / f'{MODEL}-symbol.json'
    old, new = load_network(symbol)[0](x).asnumpy(), load_network(tmp_path / 'new' / symbol.name)[0](x).asnumpy()
    assert abs(old - new).max() > 1e-3
    script = f'''
import os, signal, sys
import gluon_lprnet
from gluon_lprnet import artifact
net, description = artifact.load_network(sys.argv[1])
name, _, number = {call!r}.partition(' ')
calls = []
def killed(function):
    def replacement(*args):
        calls.append(args)
        if len(calls) == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return replacement
if name == 'os.replace':
    os.replace = killed(os.replace)
else:
    artifact.load_network = killed(artifact.load_network)
artifact.export_network(net, description, sys.argv[2])
'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script, tmp_path / 'new' / symbol.name,
                           tmp_path / 'out'])
    assert done.returncode == -9
    if symbol.exists():
        np.testing.assert_array_equal(load_network(symbol)[0](x).asnumpy(), old)
        assert call == 'gluon_lprnet.artifact.load_network'
    else:
        with pytest.raises(InputError, match='does not exist'):
            load_network(symbol)
    export_network(network(seed=1), CONFIG, tmp_path / 'out')
    np.testing.assert_array_equal(load_network(symbol)[0](x).asnumpy(), new)
    # But for what the killed one was about to write, in a hidden folder.
    assert sorted(path.name for path in (tmp_path / 'out').iterdir() if not path.name.startswith('.')) == sorted(
        f'{MODEL}{end}' for end in ('-0000.params', '-symbol.json', '.json'))


def test_the_task_is_read_without_the_network(artifacts, tmp_path, monkeypatch):
    run = artifacts[0].parents[1] / 'run'
    (tmp_path / 'other.onnx').write_bytes(b'not looked at')
    (tmp_path / 'other.json').write_text('{"task": "landmarks"}')
    monkeypatch.setattr(artifact, 'get_model', None)
    monkeypatch.setattr(artifact, 'read_params', None)
    monkeypatch.setattr(artifact, 'load_onnx', None)
    networks = {artifacts[0]: 'classification', artifacts[1]: 'landmarks', run: 'classification',
                'lprnet_mobilenet_x0.5.faces': 'landmarks', tmp_path / 'other.onnx': 'landmarks'}
    assert {network: artifact.task_of(network) for network in networks} == networks


def test_a_file_that_its_description_names_is_missing(artifacts, tmp_path):
    name = artifacts[0].name
    shutil.copyfile(artifacts[0].with_name(name.replace('-symbol.json', '.json')),
                    tmp_path / name.replace('-symbol.json', '.json'))
    with pytest.raises(InputError, match='does not exist'):
        gluon_lprnet.load(tmp_path / name)
    (tmp_path / 'x.json').write_text('{"sha256": {"x.onnx": "0"}}')
    with pytest.raises(InputError, match='x.onnx'):
        gluon_lprnet.load(tmp_path / 'x.onnx')
