"""CondenseNet's training: stages in the first half, the lasso in the loss, the form for inference at the end."""
import shutil
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.artifact import load_network, model_arguments
from gluon_lprnet.train import imagenet
from gluon_lprnet.train.condensing import stages_left, with_condensing
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.zoo.condensenet import CondenseNet


@pytest.fixture
def flags(training_flags):
    """Six steps in three epochs, and two of tuning."""
    return [*training_flags, '--model', 'condensenet_x1.0', '--condensing', '--batch-size', '32', '--lr', '0.02']


def task_of(flags):
    config = parse(make_parser(ClassificationConfig, None), ClassificationConfig, flags)[0]
    return config, imagenet.build_task(config)


@pytest.mark.parametrize('steps', [2, 5, 14, 140, 1001])
def test_stages_are_at_equal_distances_in_the_first_half(steps):
    """Stage k of 7 ends with the first k / 14 of the training."""
    for step in range(steps):
        assert stages_left(7, step, steps) == sum(14 * step < k * steps for k in range(1, 8))
    assert stages_left(7, steps, steps) == 0 == stages_left(7, steps + 9, steps)


def test_a_short_training_ends_in_the_form_for_inference(flags, tmp_path):
    assert imagenet.main([*flags, '--group-lasso', '1e-5', '--save-frequency', '2']) == 0
    end = checkpoint.newest(tmp_path / 'run')
    trained = get_model('condensenet_x1.0', **model_arguments(end.state['config']))
    trained.load_parameters(end.params)
    masks = [value.asnumpy() for name, value in mx.nd.load(end.params).items() if name.endswith('pointwise.mask')]
    assert len(masks) == 36 and all(mask.mean() == 1 / 8 for mask in masks)
    x = mx.nd.array(np.random.default_rng(0).normal(0, 1, (4, 3, 16, 16)))
    expected = trained(x).asnumpy()
    assert np.ptp(expected, axis=0).min() > 1e-3
    for path in (tmp_path / 'run', tmp_path / 'run' / 'export' / 'condensenet_x1.0-symbol.json'):
        net, description = load_network(path)
        assert description['condensing'] is False
        assert abs(net(x).asnumpy() - expected).max() < 1e-5 * abs(expected).max()
    assert isinstance(load_network(tmp_path / 'run')[0], CondenseNet)
    exported = Path(tmp_path / 'run' / 'export' / 'condensenet_x1.0-symbol.json').read_text()
    assert exported.count('"op": "take"') == 37

    # From the middle of the stages the same curve.
    newest = sorted((tmp_path / 'run' / 'checkpoints').iterdir())
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    for path in newest[1:]:
        shutil.rmtree(tmp_path / 'again' / 'checkpoints' / path.name)
    begun = checkpoint.newest(tmp_path / 'again')
    assert 0 < begun.state['step'] < 8
    assert imagenet.main(['--save-dir', str(tmp_path / 'again'), '--resume']) == 0
    values, others = (mx.nd.load(checkpoint.newest(tmp_path / name).params) for name in ('run', 'again'))
    for name, value in values.items():
        np.testing.assert_array_equal(value.asnumpy(), others[name].asnumpy(), name)
    assert len(epoch_records(tmp_path / 'again')) == 4


def test_inputs_are_removed_before_the_steps_of_the_first_half(flags):
    config, task = task_of(flags)
    task = with_condensing(task, config)
    left = []
    for step in range(8):
        task.begin_step(step)
        kept = {layer.kept().shape[1] / layer.weight.shape[1] for layer in task.net._learned()}
        assert len(kept) == 1
        left.append(kept.pop())
    # Steps 1 to 5 of 6: after 14/6, 28/6 and 42/6 stages.
    assert left == [1, 6 / 8, 4 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8]


def test_the_lasso_is_in_the_loss(flags):
    plain_config, plain = task_of(flags)
    output, label = mx.nd.array([[1, 2, -1], [0, 3, 0.5]]), mx.nd.array([2, 1])
    assert with_condensing(plain, plain_config).loss is plain.loss
    config, task = task_of([*flags, '--group-lasso', '0.125'])
    difference = (with_condensing(task, config).loss(output, label) - task.loss(output, label)).asnumpy()
    expected = 0
    for layer in task.net._learned():
        weight = layer.weight.data().asnumpy()[:, :, 0, 0].astype('float64')
        expected += sum(np.sqrt((weight[group::8] ** 2).sum(axis=0)).sum() for group in range(8))
    np.testing.assert_allclose(difference, [expected / 8] * 2, rtol=1e-5)


def test_two_devices_are_condensed_alike():
    net = get_model('condensenet_x1.0', classes=3, small_image=True, condensing=True)
    net.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    for _ in range(7):
        net.condense()
    masks = [mask.asnumpy() for mask in net.features[1].pointwise.mask.list_data()]
    np.testing.assert_array_equal(*masks)
    assert masks[0].mean() == 1 / 8
    x = mx.nd.array(np.random.default_rng(0).normal(0, 1, (2, 3, 16, 16)), ctx=mx.cpu(1))
    assert net.group_lasso(mx.cpu(1)).context == mx.cpu(1)
    np.testing.assert_allclose(net.converted()(x.as_in_context(mx.cpu(0))).asnumpy(), net(x).asnumpy(), atol=1e-5)


@pytest.mark.parametrize('changes, message', [
    (['--group-lasso', '1e-5'], '--group-lasso'),
    (['--condensing'], '--condensing is for condensenet'),
    (['--model', 'condensenet_x1.0'], 'give --condensing'),
    (['--model', 'condensenet_x1.0', '--condensing', '--ema-decay', '0.9'], '--ema-decay'),
    (['--model', 'condensenet_x1.0', '--condensing', '--batch-size', '50', '--num-epochs', '1', '--warmup-epochs', '0'],
     'two steps'),
])
def test_what_does_not_fit_is_refused(training_flags, capsys, changes, message):
    assert imagenet.main([*training_flags, *changes]) == 2
    assert message in capsys.readouterr().err


def test_its_recipe_is_its_paper_s():
    config = ClassificationConfig.from_preset(model='condensenet_x1.0')
    assert (config.preset, config.condensing, config.group_lasso) == ('condensenet', True, 1e-5)
    assert (config.num_epochs, config.batch_size, config.lr, config.wd, config.momentum, config.lr_mode) == (
        120, 256, 0.1, 1e-4, 0.9, 'cosine')
