"""The training of irregular kernels: the choice hardens in the middle, the form for inference comes out."""
import shutil

import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.artifact import load_network, model_arguments
from gluon_lprnet.train import imagenet
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.hardening import LAST_SHARPNESS, with_hardening
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.zoo.irregular import IrregularDenseNet40

NAME = 'irregular_densenet40_x1.0'


@pytest.fixture
def flags(training_flags):
    """Six steps in three epochs, and two of tuning."""
    return [*training_flags, '--model', NAME, '--relaxed', '--batch-size', '32', '--lr', '0.02',
            '--input-size', '8', '--pad', '1']


def task_of(flags):
    config = parse(make_parser(ClassificationConfig, None), ClassificationConfig, flags)[0]
    return config, imagenet.build_task(config)


def test_sharpness_rises_until_the_choice_hardens(flags):
    config, task = task_of(flags)
    task = with_hardening(task, config)
    seen = []
    for step in range(8):
        task.begin_step(step)
        layer = task.net.features[1].body[-1]
        seen.append((layer.sharpness.data().asnumpy().item(), layer.mask.data().asnumpy().mean()))
    # Steps 0 to 2 of 6; a segment of the first block has 3 positions of 9.
    np.testing.assert_allclose(seen[:3], [(0, 1), (LAST_SHARPNESS / 3, 1), (LAST_SHARPNESS * 2 / 3, 1)], rtol=1e-6)
    np.testing.assert_allclose(seen[3:], [(0, 1 / 3)] * 5, rtol=1e-6)


def test_a_short_training_ends_in_the_form_for_inference(flags, tmp_path):
    assert imagenet.main([*flags, '--num-epochs', '2', '--tuning-epochs', '0']) == 0
    end = checkpoint.newest(tmp_path / 'run')
    trained = get_model(NAME, **model_arguments(end.state['config']))
    trained.load_parameters(end.params)
    assert trained.chosen
    x = mx.nd.array(np.random.default_rng(0).normal(0, 1, (4, 3, 8, 8)))
    expected = trained(x).asnumpy()
    assert np.ptp(expected, axis=0).min() > 1e-3
    for path in (tmp_path / 'run', tmp_path / 'run' / 'export' / f'{NAME}-symbol.json'):
        net, description = load_network(path)
        assert description['relaxed'] is False
        assert abs(net(x).asnumpy() - expected).max() < 1e-5 * abs(expected).max()
    net = load_network(tmp_path / 'run')[0]
    assert isinstance(net, IrregularDenseNet40) and net.features[1].body[-1].segment.data().dtype == np.uint8

    # From the middle, before the choice hardens, the same curve.
    newest = sorted((tmp_path / 'run' / 'checkpoints').iterdir())
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    for path in newest[1:]:
        shutil.rmtree(tmp_path / 'again' / 'checkpoints' / path.name)
    begun = checkpoint.newest(tmp_path / 'again')
    assert begun.state['step'] == 2
    assert imagenet.main(['--save-dir', str(tmp_path / 'again'), '--resume']) == 0
    values, others = (mx.nd.load(checkpoint.newest(tmp_path / name).params) for name in ('run', 'again'))
    for name, value in values.items():
        np.testing.assert_array_equal(value.asnumpy(), others[name].asnumpy(), name)
    assert len(epoch_records(tmp_path / 'again')) == 2


def test_begins_with_the_weights_of_a_square_network(training_flags, flags, tmp_path):
    short = ['--num-epochs', '1', '--warmup-epochs', '0', '--tuning-epochs', '0']
    square = [*training_flags, *short, '--model', 'densenet40_x1.0', '--input-size', '8',
              '--save-dir', str(tmp_path / 'square')]
    assert imagenet.main(square) == 0
    _, task = task_of([*flags, *short, '--init-from', str(tmp_path / 'square')])
    x = mx.nd.array(np.random.default_rng(0).normal(0, 1, (4, 3, 8, 8)))
    expected = load_network(tmp_path / 'square')[0](x).asnumpy()
    assert abs(task.net(x).asnumpy() - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.parametrize('changes, message', [
    (['--relaxed'], '--relaxed is for networks of irregular kernels'),
    (['--model', NAME], 'give --relaxed'),
    (['--model', NAME, '--relaxed', '--ema-decay', '0.9'], 'Leave it out for --relaxed'),
    (['--model', NAME, '--relaxed', '--dtype', 'float16'], 'too small for --dtype float16'),
    (['--model', NAME, '--relaxed', '--batch-size', '50', '--num-epochs', '1', '--warmup-epochs', '0'], 'two steps'),
])
def test_what_does_not_fit_is_refused(training_flags, capsys, changes, message):
    assert imagenet.main([*training_flags, *changes]) == 2
    assert message in capsys.readouterr().err
