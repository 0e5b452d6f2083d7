"""What a training that is killed or spoiled loses: no more than --save-interval, and no whole checkpoint."""
import logging
import re
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import encode, epoch_records
from test_train import linear_task, settings

from gluon_lprnet import checkpoint
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.train import imagenet, loop
from gluon_lprnet.train.journal import LOGGER, Journal, read_metrics, start_log, stop_log
from gluon_lprnet.train.loop import NonFiniteLoss, Run
from gluon_lprnet.utils.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
STEPS = 5


class Killed(BaseException):
    """Ends a process at once: nothing is saved because of it."""


@pytest.fixture
def linear(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4 * STEPS, 3)).astype('float32'), rng.normal(size=4 * STEPS).astype('float32')

    def start(resume=False, data=None, **changes):
        config = settings(save_dir=str(tmp_path), ema_decay=0.5, **changes)
        task = linear_task(x, y, [mx.cpu()], batch_size=4)
        task.data = data or {}
        return Run(task, config, logging.getLogger('test'), checkpoint.newest(tmp_path) if resume else None)
    return start


def kill_after(run, updates):
    update, done = run.update, []

    def dying(batches):
        if len(done) == updates:
            raise Killed
        done.append(update(batches))
        return done[-1]
    run.update = dying
    with pytest.raises(Killed):
        run.fit()


def weights(run):
    return run.task.net.weight.data().asnumpy()


@pytest.mark.parametrize('killed_after', [2, STEPS + 3])
def test_a_kill_within_an_epoch_costs_what_came_after_the_interval(linear, tmp_path, killed_after):
    straight = linear()
    straight.fit()
    for path in (tmp_path / 'checkpoints').iterdir():
        path.rename(tmp_path / path.name)
    # Any time has passed after a step.
    kill_after(linear(save_interval=1e-9), killed_after)
    resumed = linear(resume=True, save_interval=0.0)
    assert resumed.state['step'] == killed_after
    resumed.fit()
    np.testing.assert_array_equal(weights(resumed), weights(straight))


def test_without_an_interval_a_kill_costs_the_epoch(linear):
    kill_after(linear(save_interval=0.0), STEPS + 3)
    assert linear(resume=True).state['step'] == STEPS


def test_what_was_trained_is_saved_before_the_validation(linear, tmp_path, monkeypatch):
    straight = linear()
    straight.fit()
    for path in (tmp_path / 'checkpoints').iterdir():
        path.rename(tmp_path / path.name)
    monkeypatch.setattr(loop, '_WORTH_SAVING', 0)
    run = linear()

    def evaluate():
        raise Killed
    run.task.evaluate = evaluate
    with pytest.raises(Killed):
        run.fit()
    resumed = linear(resume=True)
    assert (resumed.state['epoch'], resumed.state['step_in_epoch']) == (0, STEPS)
    resumed.fit()
    np.testing.assert_array_equal(weights(resumed), weights(straight))
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 3 * (1 + STEPS // 2)


@pytest.mark.parametrize('accumulate', [1, 3])
def test_a_resume_at_the_end_of_an_epoch_decodes_nothing(training_flags, tmp_path, monkeypatch, capsys, accumulate):
    """Of 4 batches, which 2 updates of 3 each need not fill."""
    flags = [*training_flags, '--num-epochs', '2', '--tuning-epochs', '0', '--accumulate', str(accumulate)]
    with monkeypatch.context() as context:
        context.setattr(loop, '_WORTH_SAVING', 0)
        context.setattr(imagenet, 'evaluate_classification', lambda *_: exec('raise Killed', globals()))
        with pytest.raises(Killed):
            imagenet.main(flags)
    assert imagenet.main(['--save-dir', str(tmp_path / 'run'), '--resume']) == 0
    assert 'decoded' not in capsys.readouterr().err
    assert [record['epoch'] for record in epoch_records(tmp_path / 'run')] == [0, 1]


def journal_of(folder):
    return [{name: value for name, value in record.items() if name != 'images_per_second'}
            for record in read_metrics(folder / 'metrics.jsonl')]


@pytest.mark.parametrize('killed_after, in_validation', [(3, False), (4, False), (STEPS + 1, False), (None, True)])
def test_the_journal_of_a_resumed_training_is_that_of_the_undisturbed_one(linear, tmp_path, killed_after,
                                                                          in_validation):
    """With a kill within an interval of two steps; and at the end of a validation, before its checkpoint."""
    linear().fit()
    expected = journal_of(tmp_path)
    (tmp_path / 'checkpoints').rename(tmp_path / 'undisturbed')
    (tmp_path / 'metrics.jsonl').unlink()
    run = linear(save_interval=1e-9)
    if in_validation:
        def reached(metrics):
            raise Killed
        run.task.reached = reached
        with pytest.raises(Killed):
            run.fit()
        assert [record['kind'] for record in journal_of(tmp_path)][-1] == 'epoch'
    else:
        kill_after(run, killed_after)
    linear(resume=True).fit()
    assert journal_of(tmp_path) == expected


def test_a_full_disk_ends_the_log_and_the_journal_with_a_sentence(tmp_path, capsys):
    (tmp_path / 'train.log').symlink_to('/dev/full')
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    start_log(tmp_path)
    try:
        with pytest.raises(InputError, match=r'train.log cannot be written: No space left'):
            LOGGER.info('a line')
    finally:
        stop_log(LOGGER)
    (tmp_path / 'metrics.jsonl').unlink()
    with Journal(tmp_path) as journal:
        (tmp_path / 'metrics.jsonl').unlink()
        (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
        with pytest.raises(InputError, match=r'metrics.jsonl cannot be written: No space left'):
            journal.add('interval', 1, 0, loss=1.0)
        (tmp_path / 'metrics.jsonl').unlink()
    assert 'Traceback' not in capsys.readouterr().err


@pytest.fixture
def kill_training(monkeypatch):
    """``benchmarks/kill_training.py``, which sets variables for processes of its own when it is imported."""
    for name, value in ('MXNET_ENGINE_TYPE', 'NaiveEngine'), ('OMP_NUM_THREADS', '1'):
        monkeypatch.setenv(name, value)
    import kill_training
    return kill_training


def test_kills_and_full_disks_change_nothing():
    """A part of what the command does."""
    script = Path(loop.__file__).parents[2] / 'benchmarks' / 'kill_training.py'
    done = subprocess.run([sys.executable, str(script), '--kills', '10', '--disks', '4', '--seed', '1'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r'^10 kills, 5 at a random time and 5 at 5 of the \d+ steps of a save; [1-4] full disks; \d+ '
                     r'trainings compared with undisturbed ones; 0 findings$', done.stdout, re.MULTILINE)


def test_the_kill_command_finds_what_there_is(kill_training, linear, tmp_path):
    linear().fit()
    newest = checkpoint.newest(tmp_path).path
    assert kill_training.lost(tmp_path, [newest.name]) is None
    assert 'step-99999999 was complete' in kill_training.lost(tmp_path, ['step-99999999'])
    (tmp_path / 'export').mkdir()
    expected = kill_training.end_of(tmp_path)
    assert {'state', 'journal', 'net.params weight', 'optimizer.npz weight'} <= set(expected)
    assert kill_training.differences(kill_training.end_of(tmp_path), expected) == []
    mx.nd.save(str(newest / 'net.params'), {'weight': mx.nd.ones(3)})
    assert 'a damaged checkpoint' in kill_training.lost(tmp_path, [])
    assert kill_training.messages('2026-01-01 00:00:00 a line\n\nOSError\n') == ['OSError']


def test_a_weight_that_is_nan_is_named_at_the_next_report(linear):
    run = linear()
    update = run.update

    def spoiling(batches):
        sums = update(batches)
        run.task.net.weight.set_data(mx.nd.array([[1, np.nan, 1]]))
        return sums
    run.update = spoiling
    # As MXNet's convolution does with a ReLU behind it, which makes 0 of NaN.
    run.task.loss = lambda output, label: mx.nd.where(output == output, output, mx.nd.zeros_like(output))[:, 0]
    with pytest.raises(NonFiniteLoss, match='weight is NaN or infinite at step 2 '):
        run.fit()
    assert run.last_saved is None


def test_other_records_are_refused_by_name(linear, tmp_path):
    linear(data={'a.rec': {'records': 20, 'crc32': '1234'}}).fit()
    with pytest.raises(InputError, match=r'was trained on other records: a.rec \(20 records, CRC-32 1234\), not b.rec'):
        linear(resume=True, data={'b.rec': {'records': 20, 'crc32': '4321'}})
    assert linear(resume=True, data={'moved.rec': {'records': 20, 'crc32': '1234'}}).state['epoch'] == 3


def test_a_training_does_not_go_on_with_records_of_other_pictures(training_flags, tmp_path, capsys):
    assert imagenet.main([*training_flags, '--num-epochs', '2', '--tuning-epochs', '0']) == 0
    write_records(tmp_path / 'other', [(number % 3, encode(np.full((16, 16, 3), number, 'uint8')))
                                       for number in range(50)], classes=['red', 'green', 'blue'])
    before = {name: (tmp_path / 'run' / name).read_text() for name in ('config.json', 'environment.json')}
    assert imagenet.main(['--save-dir', str(tmp_path / 'run'), '--resume', '--rec-train',
                          str(tmp_path / 'other.rec')]) == 2
    assert 'was trained on other records: tiny.rec (50 records' in capsys.readouterr().err
    assert before == {name: (tmp_path / 'run' / name).read_text() for name in before}
