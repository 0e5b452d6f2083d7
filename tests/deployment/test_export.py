"""Exported files against the network in the checkpoint, in stock MXNet and in ONNX Runtime."""
import json
import sys

import mxnet as mx
import numpy as np
import pytest
from conftest import outputs_in_stock_mxnet

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.complexity import count
from gluon_lprnet.deployment import export as export_module
from gluon_lprnet.deployment import onnx as onnx_module
from gluon_lprnet.deployment.export import export
from gluon_lprnet.deployment.reparametrize import reparametrize
from gluon_lprnet.utils.errors import InputError

MODEL = 'lprnet_mobilenet_x0.25'
SIZE = 32
MEAN, STD = [120.0, 115.0, 100.0], [60.0, 58.0, 57.0]
CONFIG = {'model': MODEL, 'num_classes': 3, 'input_size': SIZE, 'small_image': True, 'rank': 0.25, 'no_residual': False,
          'no_l2_norm': False, 'crop_ratio': 1.0, 'rgb_mean': MEAN, 'rgb_std': STD, 'class_names': ['a', 'b', 'c']}


def write_checkpoint(folder, **config):
    """A checkpoint of random weights whose normalized outputs are often as small as the epsilon."""
    config = {**CONFIG, **config}
    mx.random.seed(1)
    net = get_model(config['model'], classes=3, small_image=config['small_image'],
                    **({'rank': config['rank']} if config['rank'] else {}))
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, SIZE, SIZE)))
    for parameter in net.collect_params('.*lpr.*conv0_weight').values():
        if parameter.shape[2:] == (3, 3):
            parameter.set_data(parameter.data() * 1e-4)
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd', kvstore=None)
    return checkpoint.save(folder, net, trainer, {'step': 1, 'config': config})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp('exported')
    assert not main(['export', str(trained), '--out', str(out)])
    return out


@pytest.fixture
def onnx():
    return pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')


PIXELS = np.random.default_rng(5).integers(0, 256, (4, 3, SIZE, SIZE)).astype('float32')
NORMALIZED = (PIXELS - np.reshape(MEAN, (3, 1, 1)).astype('float32')) / np.reshape(STD, (3, 1, 1)).astype('float32')


def outputs_of(path, x=NORMALIZED):
    return load_network(path)[0](mx.nd.array(x)).asnumpy()


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


def test_files_and_what_they_say(exported):
    names = [f'{prefix}{end}' for prefix in (MODEL, f'{MODEL}-deployed')
             for end in ('-0000.params', '-symbol.json', '.json')]
    assert sorted(path.name for path in exported.iterdir()) == sorted(names)
    for form, prefix in (('training', MODEL), ('deployed', f'{MODEL}-deployed')):
        description = json.loads((exported / f'{prefix}.json').read_text())
        assert description['form'] == form
        assert description['rgb_mean'] == MEAN and description['class_names'] == ['a', 'b', 'c']
        assert description['input']['name'] == 'data'
        assert description['input']['shape'] == ['batch', 3, SIZE, SIZE]


@pytest.mark.parametrize('prefix', [MODEL, f'{MODEL}-deployed'])
def test_stock_mxnet_loads_it(trained, exported, prefix, tmp_path):
    block, *modules = outputs_in_stock_mxnet(exported / prefix, NORMALIZED, (4, 2), tmp_path)
    expected = outputs_of(trained)
    assert_close(block, expected)
    for module, size in zip(modules, (4, 2)):
        assert_close(module, expected[:size])


def test_forms_and_their_sizes(trained, tmp_path, capsys):
    assert not main(['export', str(trained), '--out', str(tmp_path), '--form', 'deployed'])
    assert not (tmp_path / f'{MODEL}-symbol.json').exists()
    found = count(tmp_path / f'{MODEL}-deployed-symbol.json', (1, 3, SIZE, SIZE))
    assert f'deployed: {found.params:,} parameters, {found.multiply_adds:,} multiply-adds' in capsys.readouterr().out


def test_pixels_in(trained, tmp_path):
    """The graph normalizes, and the description tells readers of the artifact not to."""
    export(trained, tmp_path, normalize_input=True)
    expected = outputs_of(trained)
    for prefix in (MODEL, f'{MODEL}-deployed'):
        net, description = load_network(tmp_path / f'{prefix}-symbol.json')
        assert_close(net(mx.nd.array(PIXELS)).asnumpy(), expected)
        assert description['rgb_mean'] == [0] * 3 and description['rgb_std'] == [1] * 3
        assert description['normalized_inside'] == {'rgb_mean': MEAN, 'rgb_std': STD}


def test_exports_the_artifact_of_a_training(trained, exported, tmp_path):
    """A -symbol.json in the training form, with a description; not what was exported already."""
    for path in exported.glob(f'{MODEL}[-.]*'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    description = json.loads((tmp_path / f'{MODEL}.json').read_text())
    del description['form']
    (tmp_path / f'{MODEL}.json').write_text(json.dumps(description))
    export(tmp_path / f'{MODEL}-symbol.json', tmp_path / 'out')
    assert_close(outputs_of(tmp_path / 'out' / f'{MODEL}-deployed-symbol.json'), outputs_of(trained))
    with pytest.raises(InputError, match='written by this command'):
        export(exported / f'{MODEL}-symbol.json', tmp_path / 'out')
    (tmp_path / f'{MODEL}.json').unlink()
    lines = []
    export(tmp_path / f'{MODEL}-symbol.json', tmp_path / 'without', report=lines.append,
           description={'input_size': SIZE, 'rgb_mean': MEAN})
    assert 'does not say how it sees images; taken as usual for ImageNet: crop_ratio 0.875, rgb_std' in lines[0]
    found, description = load_network(tmp_path / 'without' / f'{MODEL}-deployed-symbol.json')
    assert_close(found(mx.nd.array(NORMALIZED)).asnumpy(), outputs_of(trained))
    assert (description['input_size'], description['rgb_mean']) == (SIZE, MEAN)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('flags, message', [
    (('--rgb-std', '0', '0', '0'), '--rgb-std [0.0, 0.0, 0.0] is not three numbers above 0'),
    (('--input-size', '224'), 'lprnet_mobilenet_x0.5.faces does not take images of 224 pixels a side')])
def test_a_description_that_a_landmark_network_cannot_have(flags, message, tmp_path, capsys):
    assert main(['export', '--network', 'lprnet_mobilenet_x0.5.faces', '--out', str(tmp_path / 'out'), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_another_network_in_the_folder(trained, tmp_path, capsys):
    """It is not mixed with: refused, or its files of this name, and no others, are replaced."""
    out = tmp_path / 'out'
    other = write_checkpoint(tmp_path / 'other', rank=0.5)
    assert not main(['export', str(other), '--out', str(out)])
    # What a training, an export in 8 bits and --mar leave too.
    stale = [f'{MODEL}-0012.params', f'{MODEL}-int8-symbol.json', f'{MODEL}-int8-0000.params', f'{MODEL}-int8.json',
             f'{MODEL}.onnx', f'{MODEL}-deployed.mar']
    kept = [f'{MODEL}-report.json', 'notes.json', f'{MODEL}-deployed2-symbol.json', f'{MODEL[:-1]}-0000.params']
    for name in stale + kept:
        (out / name).write_text(name)
    before = {name: (out / name).read_bytes() for name in names(out)}
    arguments = ['export', str(trained), '--out', str(out), '--form', 'deployed']
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f'{out} has files of a network {MODEL} already: {MODEL}-' in error and '--name, or --overwrite' in error
    assert {name: (out / name).read_bytes() for name in names(out)} == before

    assert not main([*arguments, '--name', 'mine'])
    assert names(out) == sorted([*before, 'mine-deployed-symbol.json', 'mine-deployed-0000.params',
                                 'mine-deployed.json'])
    assert_close(outputs_of(out / 'mine-deployed-symbol.json'), outputs_of(trained))
    assert load_network(out / 'mine-deployed-symbol.json')[1]['model'] == MODEL

    assert not main([*arguments, '--overwrite'])
    mine = [name for name in names(out) if name.startswith('mine')]
    assert names(out) == sorted([*kept, *mine, f'{MODEL}-deployed-symbol.json', f'{MODEL}-deployed-0000.params',
                                 f'{MODEL}-deployed.json'])
    assert all((out / name).read_bytes() == before[name] for name in kept)
    assert_close(outputs_of(out / f'{MODEL}-deployed-symbol.json'), outputs_of(trained))


def test_a_name_of_more_than_a_name(trained, tmp_path, capsys):
    for name in ('../mine', 'a/b', '', '-a', '.a', 'a b'):
        assert main(['export', str(trained), '--out', str(tmp_path / 'out'), f'--name={name}']) == 2
        assert f'--name {name!r}: give one of letters, digits' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_an_export_that_fails_leaves_the_old_one(trained, tmp_path, monkeypatch):
    """All forms or none: here the second one is spoiled."""
    export(write_checkpoint(tmp_path / 'other', rank=0.5), tmp_path / 'out')
    before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}

    def spoiled(symbol, params):
        symbol, params = reparametrize(symbol, params)
        return symbol, {name: value * 1.01 for name, value in params.items()}

    monkeypatch.setattr(export_module, 'reparametrize', spoiled)
    with pytest.raises(InputError, match='deployed form as mxnet differs .* nothing was written'):
        export(trained, tmp_path / 'out', overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == before


@pytest.mark.parametrize('factor', [1.001, float('nan')])
def test_a_form_that_differs_is_not_written(trained, tmp_path, monkeypatch, factor):
    def spoiled(symbol, params):
        symbol, params = reparametrize(symbol, params)
        name = next(name for name in params if name.endswith('dense0_weight'))
        return symbol, {**params, name: params[name] * factor}

    monkeypatch.setattr(export_module, 'reparametrize', spoiled)
    with pytest.raises(InputError, match='deployed form as mxnet differs|NaN or infinite'):
        export(trained, tmp_path, forms=('deployed',))
    assert not list(tmp_path.iterdir())


def test_network_with_nan_is_refused(trained, tmp_path, monkeypatch):
    def spoiled(path):
        net, description = load_network(path)
        net.output.bias.set_data(mx.nd.full(3, float('nan')))
        return net, description

    monkeypatch.setattr(export_module, 'load_network', spoiled)
    with pytest.raises(InputError, match='NaN'):
        export(trained, tmp_path / 'out')


def test_bad_arguments(trained, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert main(['export', str(trained), '--out', str(tmp_path / 'file')]) == 2
    assert 'is not a folder' in capsys.readouterr().err
    assert main(['export', str(tmp_path / 'nothing'), '--out', str(tmp_path / 'out')]) == 2
    assert 'nothing' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_without_onnx(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InputError, match='pip install "onnx<'):
        export(trained, tmp_path / 'out', formats=('mxnet', 'onnx'))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('model', [MODEL, 'lprnet_shufflenetv2_x0.5', 'mobilenetv1_x0.25', 'mobilenetv2_x0.5',
                                   'shufflenetv1_x0.25', 'shufflenetv2_x0.5'])
def test_onnx(model, tmp_path, onnx):
    path = write_checkpoint(tmp_path / 'run', model=model, small_image=False,
                            rank=0.25 if model.startswith('lprnet') else None)
    expected = outputs_of(path)
    # export() itself compares at a batch of three.
    export(path, tmp_path / 'out', formats=('onnx',))
    assert not list((tmp_path / 'out').glob('*.params'))
    for prefix in (model, f'{model}-deployed'):
        file = tmp_path / 'out' / f'{prefix}.onnx'
        for images in (1, 4):
            assert_close(onnx_module.run_onnx(file, NORMALIZED[:images]), expected[:images])
        graph = onnx[0].load(str(file)).graph
        assert [entry.name for entry in graph.input] == ['data']
        for entry in (*graph.input, *graph.output):
            assert entry.type.tensor_type.shape.dim[0].dim_param == 'batch'
        assert {constant.name for constant in graph.initializer} <= {name for node in graph.node for name in node.input}
        assert 'LpNormalization' not in {node.op_type for node in graph.node}


class Mean(mx.gluon.HybridBlock):
    """A network that ends in an operator, of the mean of its maps."""

    def __init__(self, operator):
        super().__init__()
        self._operator = operator
        with self.name_scope():
            self.first = mx.gluon.nn.Conv2D(4, 3)

    def hybrid_forward(self, F, x):
        return self._operator(F, F.mean(self.first(x), axis=(2, 3)))


def write_network(folder, net):
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.array(NORMALIZED))
    net.export(str(folder / 'net'))
    return folder / 'net-symbol.json'


def test_means_as_onnx(tmp_path, onnx):
    path = write_network(tmp_path, Mean(lambda F, x: 2 * x))
    export(path, tmp_path / 'out', formats=('onnx',), description={'input_size': SIZE})
    assert_close(onnx_module.run_onnx(tmp_path / 'out' / 'net.onnx', NORMALIZED), outputs_of(path))


@pytest.mark.parametrize('operator', [lambda F, x: F.reverse(x, axis=1),
                                      lambda F, x: F.L2Normalization(x, mode='instance')])
def test_what_cannot_be_written_as_onnx_is_named(operator, tmp_path, onnx):
    path = write_network(tmp_path, Mean(operator))
    with pytest.raises(InputError, match='ONNX'):
        export(path, tmp_path / 'out', formats=('onnx',), description={'input_size': SIZE})


def test_onnx_from_pixels(trained, tmp_path, onnx):
    export(trained, tmp_path, formats=('mxnet', 'onnx'), normalize_input=True)
    for prefix in (MODEL, f'{MODEL}-deployed'):
        assert_close(onnx_module.run_onnx(tmp_path / f'{prefix}.onnx', PIXELS), outputs_of(trained))


def test_the_epsilon_shows(trained, onnx, tmp_path, monkeypatch):
    """Without the epsilon these activations give another answer, which export() refuses to write."""
    monkeypatch.setattr(onnx_module, '_normalization', lambda onnx, graph, node, eps: [node])
    with pytest.raises(InputError, match='as onnx differs'):
        export(trained, tmp_path, formats=('onnx',))


@pytest.mark.parametrize('prefix', [MODEL, f'{MODEL}-deployed'])
def test_fused_backend_takes_the_files(trained, exported, prefix):
    """Without an input: the file says how many dimensions it has, which L2Normalization asks for."""
    symbol, arguments, auxiliary = mx.model.load_checkpoint(str(exported / prefix), 0)
    fused = symbol.optimize_for('MKLDNN', args=arguments, aux=auxiliary)
    assert '_sg_mkldnn_conv' in fused.tojson()
    executor = fused.bind(mx.cpu(), {**arguments, 'data': mx.nd.array(NORMALIZED)}, aux_states=auxiliary,
                          grad_req='null')
    assert_close(executor.forward(is_train=False)[0].asnumpy(), outputs_of(trained))
