import dataclasses
import itertools
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import encode, epoch_records
from mxnet import gluon
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gluon_lprnet import checkpoint
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.batches import ImageBatches
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.paper import figure2
from gluon_lprnet.train import fast_form, imagenet
from gluon_lprnet.train.config import TrainingConfig, make_parser, parse
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.train.loop import Run, Schedule, TrainingTask

ROOT = Path(__file__).resolve().parents[2]


def settings(**changes):
    return TrainingConfig(**{**dict(num_epochs=3, wd=0.0, log_interval=2), **changes})


def classification(argv):
    return parse(make_parser(ClassificationConfig, None), ClassificationConfig, argv)[0]


# --- the loop, against NumPy

def linear_task(x, y, contexts, batch_size):
    net = gluon.nn.Dense(1, in_units=x.shape[1])
    net.initialize(mx.init.Constant(0.5), ctx=contexts)

    def batches(epoch, start):
        for begin in range(start * batch_size, len(x), batch_size):
            yield mx.nd.array(x[begin:begin + batch_size]), mx.nd.array(y[begin:begin + batch_size])

    return TrainingTask(net=net, contexts=contexts, batches=batches, batches_per_epoch=math.ceil(len(x) / batch_size),
                      loss=gluon.loss.L2Loss(),
                      count=lambda output, label: {'error': float(abs(output[:, 0] - label).sum())},
                      evaluate=lambda: {'weight': float(net.weight.data(contexts[0]).asnumpy()[0, 0])})


def numpy_sgd(x, y, batch_size, config):
    """Momentum SGD on 0.5 (w x + b - y)^2, weight decay on w alone, cosine rate: another way to the same numbers."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    w, b = np.full(x.shape[1], 0.5), 0.0
    velocity_w, velocity_b = np.zeros_like(w), 0.0
    per_epoch = math.ceil(len(x) / batch_size)
    total = config.num_epochs * per_epoch
    losses = []
    for step in range(total):
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * step / total))
        begin = step % per_epoch * batch_size
        xs, ys = x[begin:begin + batch_size], y[begin:begin + batch_size]
        error = xs @ w + b - ys
        losses.append(0.5 * (error ** 2).sum())
        velocity_w = config.momentum * velocity_w - rate * (xs.T @ error / len(xs) + config.wd * w)
        velocity_b = config.momentum * velocity_b - rate * error.mean()
        w, b = w + velocity_w, b + velocity_b
    return w, b, np.array(losses).reshape(config.num_epochs, -1).sum(1) / len(x)


@pytest.mark.parametrize('batch_size, accumulate, devices', [(8, 1, 1), (4, 2, 1), (8, 1, 2), (3, 3, 2)])
def test_updates_are_those_of_momentum_sgd(tmp_path, batch_size, accumulate, devices):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 3)).astype('float32'), rng.normal(size=21).astype('float32')
    config = settings(accumulate=accumulate, wd=0.1, save_dir=str(tmp_path))
    task = linear_task(x, y, [mx.cpu(number) for number in range(devices)], batch_size)
    Run(task, config, logging.getLogger('test')).fit()
    w, b, losses = numpy_sgd(x, y, batch_size * accumulate, config)
    for context in task.contexts:
        np.testing.assert_allclose(task.net.weight.data(context).asnumpy()[0], w, rtol=1e-4)
        np.testing.assert_allclose(task.net.bias.data(context).asnumpy()[0], b, rtol=1e-4)
    np.testing.assert_allclose([record['loss'] for record in epoch_records(tmp_path)], losses, rtol=1e-4)


def test_schedule_is_warmup_cosine_then_tuning():
    schedule = Schedule(settings(num_epochs=10, warmup_epochs=2, warmup_lr=0.1, lr=0.5, tuning_epochs=2,
                              tuning_lr=0.01), 7)
    rates = [schedule.learning_rate(step) for step in range(12 * 7)]
    np.testing.assert_allclose(rates[:14], 0.1 + 0.4 * np.arange(14) / 14, rtol=1e-6)
    np.testing.assert_allclose(rates[14:70], 0.25 * (1 + np.cos(np.pi * np.arange(56) / 56)), atol=1e-9)
    np.testing.assert_allclose(rates[70:], 0.005 * (1 + np.cos(np.pi * np.arange(14) / 14)), atol=1e-9)
    assert [schedule.phase(epoch) for epoch in (0, 9, 10, 11)] == ['train', 'train', 'tuning', 'tuning']


def test_updates_are_those_of_adam_with_a_rate_that_falls_in_steps(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 1)).astype('float32'), rng.normal(size=21).astype('float32')
    config = settings(optimizer='adam', lr=0.02, lr_mode='step', lr_decay=0.5, lr_decay_epoch=[1, 2],
                   save_dir=str(tmp_path))
    task = linear_task(x, y, [mx.cpu()], batch_size=4)
    Run(task, config, logging.getLogger('test')).fit()
    parameters, first, second = np.array([0.5, 0.0]), np.zeros(2), np.zeros(2)
    inputs = np.column_stack([x.astype('float64'), np.ones(21)])
    for step in range(18):
        batch = slice(step % 6 * 4, step % 6 * 4 + 4)
        gradient = inputs[batch].T @ (inputs[batch] @ parameters - y[batch]) / len(y[batch])
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient ** 2
        rate = 0.02 * 0.5 ** (step // 6)
        corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        parameters = parameters - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    net = task.net
    np.testing.assert_allclose([parameter.data().asnumpy().item() for parameter in (net.weight, net.bias)],
                               parameters, rtol=1e-4)


def test_accumulated_batches_of_the_record_iterator_are_one_large_batch(training_flags, tmp_path, monkeypatch):
    # The iterator alone, which uses its buffers again.
    monkeypatch.setattr(ImageBatches, 'epoch', ImageBatches.epoch.__wrapped__)

    def run(name, *argv):
        config = classification([*training_flags, *argv, '--save-dir', str(tmp_path / name)])
        Path(config.save_dir).mkdir()
        mx.random.seed(0)
        task = imagenet.build_task(config)
        # Statistics of a batch would be those of 3 images or of 48.
        figure2.fix_statistics(task.net)
        return task, Run(task, config, logging.getLogger('test'))

    def with_pauses(batches):
        for batch in batches:
            # The iterator's threads have time to read ahead.
            time.sleep(0.02)
            yield batch

    task, small = run('small', '--accumulate', '16', '--batch-size', '3')
    copies = [[array.asnumpy() for array in batch] for batch in itertools.islice(task.batches(0, 0), 16)]
    small.update(with_pauses(itertools.islice(task.batches(0, 0), 16)))
    large_task, large = run('large', '--batch-size', '48')
    large.update([[mx.nd.array(np.concatenate(arrays)) for arrays in zip(*copies)]])
    pairs = list(zip(*(one.net.collect_params().values() for one in (task, large_task))))
    for accumulated, expected in pairs:
        np.testing.assert_allclose(accumulated.data().asnumpy(), expected.data().asnumpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('bn_wd', [False, True])
def test_weight_decay_spares_batchnorm_and_biases(tiny_records, training_flags, bn_wd):
    argv = training_flags + (['--bn-wd'] if bn_wd else [])
    config = classification(argv)
    task = imagenet.build_task(config)
    Path(config.save_dir).mkdir()
    Run(task, config, logging.getLogger('test'))
    decays = {name: parameter.wd_mult for name, parameter in task.net.collect_params().items()}
    spared = {name for name, decay in decays.items() if decay == 0}
    expected = {name for name in decays if name.rsplit('_', 1)[1] in ('gamma', 'beta', 'bias')}
    assert spared == (set() if bn_wd else expected) and expected


# --- presets and flags

@pytest.mark.parametrize('model, epochs, batch', [('lprnet_mobilenet_x1.0', 210, 256), ('mobilenetv1_x0.5', 210, 256),
                                                  ('lprnet_shufflenetv2_x1.0', 400, 400)])
def test_the_papers_recipe_is_the_default(tmp_path, model, epochs, batch):
    config = classification(['--model', model, '--save-dir', str(tmp_path)])
    assert (config.num_epochs, config.batch_size, config.lr) == (epochs, batch, 0.5)
    assert (config.num_classes, config.input_size) == (None, 224)
    config = classification(['--model', model, '--lr', '0.1', '--save-dir', str(tmp_path)])
    assert (config.num_epochs, config.lr) == (epochs, 0.1)


@pytest.mark.parametrize('change, message', [
    (['--rec-train', 'nowhere.rec'], 'nowhere.rec'),
    (['--rec-train', ''], '--rec-train'),
    (['--num-classes', '2'], '--num-classes'),
    (['--model', 'lprnet_mobilnet_x0.5'], 'lprnet_mobilenet'),
    (['--model', 'mobilenetv1_x0.5', '--rank', '1/8'], 'rank'),
    (['--rank', '0.0'], 'rank'),
    (['--warmup-epochs', '3'], '--warmup-epochs'),
    (['--dtype', 'float16'], 'bfloat16'),
    (['--num-gpus', '99'], '--num-gpus'),
    (['--resume'], '--resume'),
    (['--min-random-scale', '2'], '--max-random-scale'),
])
def test_bad_input_ends_with_status_2_and_a_name(training_flags, tmp_path, capsys, change, message):
    assert imagenet.main(training_flags + change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_truncated_records_and_a_strange_index_are_found_before_the_first_step(tiny_records, training_flags, tmp_path,
                                                                               capsys):
    prefix, _, _ = tiny_records
    rec, idx = Path(f'{prefix}.rec').read_bytes(), Path(f'{prefix}.idx').read_text().splitlines()
    cut = tmp_path / 'cut.rec'
    cut.write_bytes(rec[:len(rec) - 100])
    cut.with_suffix('.idx').write_text('\n'.join(idx) + '\n')
    assert imagenet.main(training_flags + ['--rec-train', str(cut)]) == 2
    assert 'cut.rec' in capsys.readouterr().err
    strange = tmp_path / 'strange.idx'
    strange.write_text('\n'.join(idx[:-1]) + '\n')
    assert imagenet.main(training_flags + ['--rec-train-idx', str(strange)]) == 2
    assert 'strange.idx' in capsys.readouterr().err


# --- whole trainings

def test_training_learns_records_and_exports(training_flags, tmp_path):
    assert imagenet.main(training_flags + ['--num-epochs', '15', '--batch-size', '8', '--tensorboard']) == 0
    run = tmp_path / 'run'
    records = epoch_records(run)
    assert [record['phase'] for record in records] == ['train'] * 15 + ['tuning']
    assert records[-1]['loss'] < records[0]['loss']
    # Three colors: chance is 1/3.
    assert records[-1]['val_top1'] > 0.8
    assert 'val_top5' not in records[-1]
    assert json.loads((run / 'config.json').read_text())['lr'] == 0.05
    log = (run / 'train.log').read_text()
    assert 'ETA' in log and 'OpenMP' in log and 'images/s' in log
    import cv2
    assert cv2.imread(str(run / 'curves.png')).std() > 5
    shown = shown_in_tensorboard(run / 'tensorboard', 'epoch/val_top1')
    np.testing.assert_allclose([value for _, value in shown], [record['val_top1'] for record in records], rtol=1e-6)
    symbol = (run / 'export' / 'lprnet_mobilenet_x0.25-symbol.json').read_text()
    assert symbol.count('"op": "L2Normalization"') == 8, 'the plain form is exported'


def shown_in_tensorboard(folder, tag):
    """The (step, value) pairs of a scalar that TensorBoard shows of a folder's event files.

    At a start of a session it drops what older events have from that session's step on
    (EventAccumulator._CheckForRestartAndMaybePurge).
    """
    shown = []
    for path in sorted(folder.iterdir()):
        for event in map(Event.FromString, _tfrecords(path)):
            if event.session_log.status == SessionLog.START:
                shown = [pair for pair in shown if pair[0] < event.step]
            shown += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return shown


def _tfrecords(path):
    content = path.read_bytes()
    while content:
        length = int.from_bytes(content[:8], 'little')
        yield content[12:12 + length]
        content = content[16 + length:]


def test_tensorboard_shows_each_step_once_after_a_kill_and_a_resume(training_flags, tmp_path):
    run = tmp_path / 'run'
    assert imagenet.main([*training_flags, '--tensorboard', '--log-interval', '1', '--save-frequency', '3']) == 0
    # As a kill in the last epoch leaves it: events after the newest checkpoint.
    shutil.rmtree(sorted((run / 'checkpoints').iterdir())[-1])
    time.sleep(1.1)    # The names of event files have whole seconds.
    assert imagenet.main(['--save-dir', str(run), '--resume']) == 0
    assert len(list((run / 'tensorboard').iterdir())) == 2
    assert [step for step, _ in shown_in_tensorboard(run / 'tensorboard', 'interval/loss')] == list(range(1, 17))
    assert [step for step, _ in shown_in_tensorboard(run / 'tensorboard', 'epoch/val_top1')] == [4, 8, 12, 16]


def test_class_names_that_are_not_utf8_go_into_the_export(tiny_records, training_flags, tmp_path):
    _, images, labels = tiny_records
    write_records(tmp_path / 'names', [(int(label), encode(image)) for label, image in zip(labels, images)],
                  classes=['caf\udce9', 'next\x85line', 'vertical\x0btab'])
    named = str(tmp_path / 'names.rec')
    assert imagenet.main([*training_flags, '--num-epochs', '2', '--rec-train', named, '--rec-val', named]) == 0
    for trained in ('', 'export/lprnet_mobilenet_x0.25-symbol.json'):
        description = load_network(tmp_path / 'run' / trained)[1]
        assert description['class_names'] == ['caf\ufffd', 'next\x85line', 'vertical\x0btab']


@pytest.mark.parametrize('number, extra', [(signal.SIGTERM, []),
                                           (signal.SIGINT, ['--mixup', '--label-smoothing', '--accumulate', '2'])])
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_was_not(training_flags, tmp_path, number, extra):
    def start(*argv):
        # All by the script, since sums depend on how many threads add them up.
        return subprocess.Popen([sys.executable, 'train_imagenet.py', *argv], cwd=ROOT, stderr=subprocess.PIPE,
                                text=True)

    straight = training_flags + extra + ['--log-interval', '1', '--batch-size', '4']
    process = start(*straight)
    _, output = process.communicate()
    assert process.returncode == 0, output
    stopped = straight[:]
    stopped[stopped.index('--save-dir') + 1] = str(tmp_path / 'stopped')
    process = start(*stopped)
    metrics = tmp_path / 'stopped' / 'metrics.jsonl'
    deadline = time.time() + 120
    # In the middle of the second epoch.
    while not (metrics.exists() and '"epoch": 1' in metrics.read_text()) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert '--resume' in output
    state = checkpoint.newest(tmp_path / 'stopped').state
    assert state['epoch'] >= 1 and state['step'] < 4 * math.ceil(50 / 4)
    process = start('--save-dir', str(tmp_path / 'stopped'), '--resume')
    _, output = process.communicate()
    assert process.returncode == 0, output

    ends = [checkpoint.newest(tmp_path / name) for name in ('run', 'stopped')]
    parameters = [mx.nd.load(end.params) for end in ends]
    for name in parameters[0]:
        np.testing.assert_array_equal(parameters[0][name].asnumpy(), parameters[1][name].asnumpy(), name)
    curves = [[{key: value for key, value in record.items() if key != 'images_per_second'}
               for record in epoch_records(tmp_path / name)] for name in ('run', 'stopped')]
    assert curves[0] == curves[1]


@pytest.mark.parametrize('times', [([1], [2]), ([2], [1])])
def test_a_resumed_training_goes_on_in_its_form(training_flags, tmp_path, monkeypatch, times):
    """Of ReLU6, of which another measurement might choose the other one: outputs differ by rounding then."""
    monkeypatch.setattr(fast_form, 'interleaved_milliseconds', lambda *_, **__: times)
    flags = [*training_flags, '--model', 'mobilenetv2_x0.5', '--small-image', '--num-epochs', '2']
    assert imagenet.main(flags) == 0
    expected = epoch_records(tmp_path / 'run')[-1]
    shutil.rmtree(sorted((tmp_path / 'run' / 'checkpoints').iterdir())[-1])
    monkeypatch.setattr(fast_form, 'interleaved_milliseconds', lambda *_, **__: times[::-1])
    assert imagenet.main(['--save-dir', str(tmp_path / 'run'), '--resume']) == 0
    assert checkpoint.newest(tmp_path / 'run').state['rewritten'] == (times[0] < times[1])
    resumed = epoch_records(tmp_path / 'run')[-1]
    assert (resumed['epoch'], resumed['loss']) == (expected['epoch'], expected['loss'])


def test_resume_refuses_what_would_bend_the_curve(training_flags, tmp_path, capsys):
    assert imagenet.main(training_flags) == 0
    assert imagenet.main(training_flags) == 2
    assert '--resume' in capsys.readouterr().err
    assert imagenet.main(training_flags + ['--resume', '--lr', '0.2']) == 2
    assert '--lr (was 0.05, is 0.2)' in capsys.readouterr().err
    assert imagenet.main(training_flags + ['--resume', '--log-interval', '7']) == 0


def test_a_run_that_was_moved_goes_on_where_it_is(training_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = training_flags.index('--save-dir')
    assert imagenet.main([*training_flags[:at], *training_flags[at + 2:], '--save-dir', 'runs/first']) == 0
    (tmp_path / 'runs' / 'first').rename(tmp_path / 'runs' / 'latest')
    (tmp_path / 'runs' / 'latest' / 'export').rename(tmp_path / 'before')
    assert imagenet.main(['--resume']) == 0
    assert (tmp_path / 'runs' / 'latest' / 'export').is_dir() and not (tmp_path / 'runs' / 'first').exists()


def test_a_second_training_in_a_folder_is_refused(training_flags, tmp_path, capsys):
    with checkpoint.only_user(tmp_path / 'run'):
        assert imagenet.main(training_flags) == 2
    assert f'{tmp_path / "run"} is in use by another training' in capsys.readouterr().err
    assert checkpoint.newest(tmp_path / 'run') is None
    (tmp_path / 'file').touch()
    assert imagenet.main([*training_flags, '--save-dir', str(tmp_path / 'file' / 'run')]) == 2
    assert f'{tmp_path / "file"} is not a folder: give another path' in capsys.readouterr().err
    assert imagenet.main([*training_flags, '--num-epochs', '2']) == 0


@pytest.mark.parametrize('step, spoil, what', [
    (5, lambda loss: loss / 0, 'the loss is inf'),
    # The root has no slope at 0: the loss is finite, the update is not.
    (7, lambda loss: loss + (0 * loss).sqrt(), 'is NaN or infinite')])
def test_non_finite_loss_stops_with_step_rate_and_checkpoint(training_flags, tmp_path, monkeypatch, step, spoil, what):
    build_task, steps = imagenet.build_task, itertools.count()

    def build_spoiled(config):
        task = build_task(config)
        return dataclasses.replace(task, loss=lambda output, label: (
            spoil if next(steps) == step else lambda loss: loss)(task.loss(output, label)))
    monkeypatch.setattr(imagenet, 'build_task', build_spoiled)
    assert imagenet.main(training_flags) == 1
    message = (tmp_path / 'run' / 'train.log').read_text().splitlines()[-1]
    found = re.search(r'at step (\d+) \(epoch (\d)\), learning rate (\S+); last good checkpoint: (\S+\d)', message)
    assert what in message
    # Four steps an epoch; the parameters are looked at when the last was done.
    assert (int(found[1]), int(found[2])) == (step if step < 7 else step + 1, 2)
    rate = Schedule(classification([*training_flags, '--save-dir', '/nowhere']), 4).learning_rate(step)
    assert float(found[3]) == pytest.approx(rate, rel=1e-5)
    good = checkpoint.newest(tmp_path / 'run')
    assert found[4] == str(good.path) and good.state['step'] == 4
    assert all(np.isfinite(value.asnumpy()).all() for value in mx.nd.load(good.params).values())


def test_mixup_and_smoothing_mix_images_with_their_labels():
    config = ClassificationConfig(num_epochs=3, mixup=True, mixup_off_epoch=1, label_smoothing=True, num_classes=4,
                                  seed=5)
    data, label = mx.nd.arange(3).reshape((3, 1, 1, 1)), mx.nd.array([0, 1, 3])
    def mixed(epoch, number=0):
        return next(imagenet._with_soft_labels([imagenet.Batch(data, label)], epoch, number, config))
    images, labels = (array.asnumpy() for array in mixed(0))
    smooth = np.eye(4)[[0, 1, 3]] * 0.9 + 0.1 / 4
    weight = 1 - images[0, 0, 0, 0] / 2
    np.testing.assert_allclose(labels, weight * smooth + (1 - weight) * smooth[::-1], rtol=1e-5)
    np.testing.assert_array_equal(images, mixed(0)[0].asnumpy())
    assert (images != mixed(0, 1)[0].asnumpy()).any() and (images != mixed(1)[0].asnumpy()).any()
    # The last epoch of the training is without mixup, and keeps its smoothing.
    images, labels = (array.asnumpy() for array in mixed(2))
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2])
    np.testing.assert_allclose(labels, smooth, rtol=1e-5)


def test_two_devices_validate_what_they_save(training_flags, tiny_records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet, 'contexts_of', lambda config: [mx.cpu(0), mx.cpu(1)])
    assert imagenet.main(training_flags + ['--num-epochs', '8']) == 0
    record = epoch_records(tmp_path / 'run')[-1]
    capsys.readouterr()
    assert not main(['evaluate', str(tmp_path / 'run'), '--rec-val', f'{tiny_records[0]}.rec'])
    assert f'top1 {record["val_top1"]:.4f}' in capsys.readouterr().out
    assert imagenet.main(training_flags + ['--batch-size', '7', '--save-dir', str(tmp_path / 'other')]) == 2
    assert '--batch-size 7' in capsys.readouterr().err


def test_bfloat16_trains_and_exports_a_float32_graph(training_flags, tmp_path):
    # In a process of its own, since AMP changes MXNet's operators for good: no training in float32 can follow in it.
    code = """
import sys
from gluon_lprnet.train import imagenet
other, *flags = sys.argv[1:]
status = imagenet.main(flags)
again = imagenet.main([*flags, '--dtype', 'float32', '--save-dir', other])
sys.exit(status if again == 2 else 99)
"""
    result = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'other'), *training_flags, '--num-epochs', '15',
                             '--batch-size', '8', '--dtype', 'bfloat16'], cwd=ROOT, capture_output=True, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS='1'))
    if 'avx512' not in Path('/proc/cpuinfo').read_text():
        assert result.returncode == 2 and '--dtype bfloat16 needs a processor with AVX-512' in result.stderr
        pytest.skip('this processor has no AVX-512, which is said')
    assert result.returncode == 0, result.stderr
    assert '--dtype float32: a training in bfloat16 was begun in this process' in result.stderr
    assert epoch_records(tmp_path / 'run')[-1]['val_top1'] > 0.8
    assert 'amp_cast' not in (tmp_path / 'run' / 'export' / 'lprnet_mobilenet_x0.25-symbol.json').read_text()
