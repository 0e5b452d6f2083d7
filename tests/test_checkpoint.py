import errno
import os
import resource
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_lprnet import checkpoint
from gluon_lprnet.train.average import WeightAverage
from gluon_lprnet.utils.errors import InputError


@pytest.fixture
def trained():
    net = gluon.nn.Dense(2, in_units=3)
    net.initialize(mx.init.Xavier())
    trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': 0.1})

    def step():
        with autograd.record():
            loss = net(mx.nd.ones((4, 3))).square().sum()
        loss.backward()
        trainer.step(4)
    step()
    return net, trainer, step


def test_parameters_and_optimizer_come_back(tmp_path, trained):
    net, trainer, step = trained
    path = checkpoint.save(tmp_path, net, trainer, {'step': 1, 'note': 'x'})
    step()
    expected = net.weight.data().asnumpy()
    checkpoint.newest(tmp_path).load(net, trainer, [mx.cpu()])
    assert not np.array_equal(net.weight.data().asnumpy(), expected)
    step()
    np.testing.assert_array_equal(net.weight.data().asnumpy(), expected)
    assert checkpoint.Checkpoint(path).state == {'step': 1, 'note': 'x'}


def test_an_average_is_what_is_kept_and_the_weights_go_on(tmp_path, trained):
    net, trainer, step = trained
    average = WeightAverage(net, decay=0.75)
    weights, expected = [net.weight.data().asnumpy()], net.weight.data().asnumpy()
    average.start()
    for number in range(1, 6):
        step()
        average.update(number)
        weights.append(net.weight.data().asnumpy())
        decay = min(0.75, number / (number + 9))
        expected = decay * expected + (1 - decay) * weights[-1]
    path = checkpoint.save(tmp_path, net, trainer, {'step': 5}, average=average)
    np.testing.assert_array_equal(net.weight.data().asnumpy(), weights[-1])
    kept = mx.nd.load(str(path / 'net.params'))['weight'].asnumpy()
    np.testing.assert_allclose(kept, expected, rtol=1e-5)
    assert not np.allclose(kept, weights[-1])
    step()
    checkpoint.newest(tmp_path).load(net, trainer, [mx.cpu()])
    np.testing.assert_array_equal(net.weight.data().asnumpy(), weights[-1])
    average.take()
    np.testing.assert_array_equal(net.weight.data().asnumpy(), kept)


def test_damage_of_the_weights_beside_an_average_is_found(tmp_path, trained):
    net, trainer, _ = trained
    average = WeightAverage(net, decay=0.5)
    average.start()
    file = checkpoint.save(tmp_path, net, trainer, {'step': 1}, average=average) / 'trained.params'
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(InputError, match='trained.params is damaged'):
        checkpoint.find(file.parent)


def test_newest_goes_by_number_and_older_ones_are_removed(tmp_path, trained):
    net, trainer, _ = trained
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, net, trainer, {'step': step})
    assert checkpoint.newest(tmp_path).state['step'] == 100
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['step-00000010', 'step-00000100']


def test_damaged_ones_of_later_steps_do_not_cost_a_new_training_its_own(tmp_path, trained):
    net, trainer, _ = trained
    for step in (200, 210):
        (checkpoint.save(tmp_path, net, trainer, {'step': step}) / 'net.params').write_bytes(b'')
    assert checkpoint.newest(tmp_path) is None
    for step in (10, 20, 30):
        assert checkpoint.save(tmp_path, net, trainer, {'step': step}).is_dir()
        assert checkpoint.newest(tmp_path).state['step'] == step
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == [
        f'step-{step:08d}' for step in (20, 30, 200, 210)]


@pytest.mark.parametrize('name', ['net.params', 'optimizer.npz', 'state.json', 'crc32.json'])
@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove'])
def test_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, trained, name, damage):
    net, trainer, _ = trained
    checkpoint.save(tmp_path, net, trainer, {'step': 1})
    file = checkpoint.save(tmp_path, net, trainer, {'step': 2}) / name
    content = bytearray(file.read_bytes())
    if damage == 'flip':
        content[len(content) // 2] ^= 0x10
    file.write_bytes(content[:len(content) // 2] if damage == 'cut' else content)
    if damage == 'remove':
        file.unlink()
    reported = []
    assert checkpoint.newest(tmp_path, reported.append).state['step'] == 1
    assert 'step-00000002' in reported[0]
    with pytest.raises(InputError, match='step-00000002'):
        checkpoint.Checkpoint(file.parent)


def test_files_of_others_in_a_checkpoint_are_nothing_to_it(tmp_path, trained, capsys):
    net, trainer, _ = trained
    checkpoint.save(tmp_path, net, trainer, {'step': 1})
    folder = checkpoint.save(tmp_path, net, trainer, {'step': 2})
    (folder / '.DS_Store').write_bytes(b'a')
    assert checkpoint.newest(tmp_path).path == folder
    # Weights that would be loaded, and that nothing vouches for.
    (folder / 'trained.params').write_bytes((folder / 'net.params').read_bytes())
    assert checkpoint.newest(tmp_path).state['step'] == 1
    out, err = capsys.readouterr()
    assert not out and 'no CRC-32 is known of trained.params' in err


def test_no_flipped_bit_of_the_state_goes_unseen(tmp_path, trained):
    net, trainer, _ = trained
    state = {'step': 3, 'epoch': 1, 'step_in_epoch': 1, 'sums': {'loss': 1.5}, 'reached': False,
             'config': {'rec_train': 'a.rec', 'lr': 0.1}, 'data': {}}
    path = checkpoint.save(tmp_path, net, trainer, state)

    def read():
        try:
            return checkpoint.Checkpoint(path).state
        except InputError:
            return None
    for name in ('state.json', 'crc32.json'):
        content = (path / name).read_bytes()
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (path / name).write_bytes(flipped)
            # A blank between two entries may be another one.
            assert read() in ((None,) if name == 'state.json' else (None, state))
        (path / name).write_bytes(content)
    assert read() == state


@pytest.mark.parametrize('text', ['null', '[]', '7', '{"crc32": null}', '{"crc32": {}}', '[' * 100_000, '{"step": NaN'])
def test_what_is_no_state_is_refused_in_a_sentence(tmp_path, trained, text):
    net, trainer, _ = trained
    path = checkpoint.save(tmp_path, net, trainer, {'step': 1})
    (path / 'state.json').write_text(text)
    with pytest.raises(InputError, match='step-00000001'):
        checkpoint.Checkpoint(path)
    # As versions before wrote it, without a CRC-32 of its own.
    (path / 'crc32.json').unlink()
    with pytest.raises(InputError, match='step-00000001'):
        checkpoint.Checkpoint(path)


@pytest.mark.parametrize('entry', [{'epoch': '1'}, {'step': -1}, {'epoch': True}, {'sums': [1]}, {'reached': 0},
                                   {'sums': {'loss': float('nan')}}, {'config': None}, {'sums': {'loss': '1'}}])
def test_a_state_of_other_types_is_refused(tmp_path, trained, entry):
    net, trainer, _ = trained
    path = checkpoint.save(tmp_path, net, trainer, {'step': 1, **entry})
    with pytest.raises(InputError, match=f'its {"sums are" if "loss" in str(entry) else next(iter(entry))}'):
        checkpoint.Checkpoint(path)


@pytest.mark.parametrize('optimizer, options, dtype', [
    ('sgd', {'momentum': 0.9, 'learning_rate': 0.1}, 'float32'), ('sgd', {'learning_rate': 0.1}, 'float32'),
    ('adam', {'learning_rate': 0.1}, 'float32'), ('sgd', {'momentum': 0.9, 'multi_precision': True}, 'float16'),
    ('adam', {'multi_precision': True}, 'float16')])
@pytest.mark.parametrize('devices', [1, 2])
def test_the_state_of_every_optimizer_comes_back_as_arrays(tmp_path, optimizer, options, dtype, devices):
    contexts = [mx.cpu(number) for number in range(devices)]
    x = mx.nd.random.normal(shape=(4, 3))

    def begin():
        net = gluon.nn.HybridSequential()
        net.add(gluon.nn.Dense(5, in_units=3), gluon.nn.Dense(2, in_units=5))
        mx.random.seed(0)
        net.initialize(mx.init.Xavier(), ctx=contexts)
        net.cast(dtype)
        # One of the parameters is frozen: it has no state.
        net[0].bias.grad_req = 'null'
        return net, gluon.Trainer(net.collect_params(), optimizer, options, update_on_kvstore=False)

    def step(net, trainer):
        parts = [x[index::devices].as_in_context(context).astype('float32') for index, context in enumerate(contexts)]
        with autograd.record():
            losses = [part_loss for part, context in zip(parts, contexts)
                      for part_loss in [_forward(net, part.astype('float32'), context)]]
        autograd.backward(losses)
        trainer.step(4)

    def _forward(net, part, context):
        # MXNet has no float16 on the CPU but in such operators.
        weights = [net[0].weight.data(context).astype('float32'), net[1].weight.data(context).astype('float32')]
        hidden = mx.nd.dot(part, weights[0].T) + net[0].bias.data(context).astype('float32')
        return (mx.nd.dot(hidden, weights[1].T) + net[1].bias.data(context).astype('float32')).square().sum()

    # The full names of layers are sorted as text, 10 before 9.
    with mx.name.NameManager():
        for _ in range(7):
            gluon.nn.Dense(1)
        net, trainer = begin()
    for _ in range(3):
        step(net, trainer)
    found = checkpoint.Checkpoint(checkpoint.save(tmp_path, net, trainer, {'step': 3}))
    with mx.name.NameManager():
        for _ in range(9):
            gluon.nn.Dense(1)
        again, other = begin()
    found.load(again, other, contexts)
    for _ in range(3):
        step(net, trainer)
        step(again, other)
    for context in contexts:
        for one, two in zip(net, again):
            assert abs(one.weight.data(context).asnumpy()).max() > 0
            np.testing.assert_array_equal(one.weight.data(context).asnumpy(), two.weight.data(context).asnumpy())
            np.testing.assert_array_equal(one.bias.data(context).asnumpy(), two.bias.data(context).asnumpy())


def test_what_a_training_cannot_go_on_from_is_named(tmp_path, trained):
    net, trainer, step = trained
    found = checkpoint.Checkpoint(checkpoint.save(tmp_path, net, trainer, {'step': 1}))
    other = gluon.nn.Dense(7, in_units=3)
    other.initialize()
    with pytest.raises(InputError, match='step-00000001 is of another network: '):
        found.load(other, gluon.Trainer(other.collect_params(), 'adam'), [mx.cpu()])
    # SGD with momentum keeps one array of each parameter, Adam two.
    with pytest.raises(InputError, match='optimizer.npz is not the state of this optimizer'):
        found.load(net, gluon.Trainer(net.collect_params(), 'sgd', {'momentum': 0.9}), [mx.cpu()])
    net.weight.set_data(mx.nd.full((2, 3), np.nan))
    broken = checkpoint.Checkpoint(checkpoint.save(tmp_path, net, trainer, {'step': 2}))
    with pytest.raises(InputError, match='step-00000002: the parameter weight is NaN'):
        broken.load(net, trainer, [mx.cpu()])


@pytest.mark.parametrize('missing', [200_000, 100])
def test_parameters_that_a_full_disk_cut_are_not_taken_for_written(tmp_path, missing):
    net = gluon.nn.Dense(300, in_units=300)
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), 'sgd')
    # MXNet says nothing where its last buffer cannot be written.
    size = (checkpoint.save(tmp_path, net, trainer, {'step': 1}) / 'net.params').stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, before[1]))
    try:
        with pytest.raises(InputError, match='step-00000002 cannot be written'):
            checkpoint.save(tmp_path, net, trainer, {'step': 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.newest(tmp_path).state['step'] == 1
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['step-00000001']


def test_unfinished_folder_is_no_checkpoint(tmp_path, trained):
    net, trainer, _ = trained
    path = checkpoint.save(tmp_path, net, trainer, {'step': 1})
    path.rename(path.with_name('.step-00000001.part'))
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / 'nowhere') is None


# Stand-ins for network and trainer, since MXNet does not survive a fork.
_KILLED = '''
import os, sys
from pathlib import Path
from gluon_lprnet import checkpoint

class Written:
    def save_parameters(self, path):
        Path(path).write_bytes(b'parameters')

checkpoint._read_back = lambda path, net: None
checkpoint._optimizer_arrays = lambda net, trainer: {}

def save(folder, step, note):
    checkpoint.save(folder, Written(), Written(), {'step': step, 'note': note})

def kill_at(moment):
    calls = 0
    def killing(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == moment:
                os._exit(9)
            return function(*args, **kwargs)
        return call
    for name in ('fsync', 'replace', 'rename', 'rmdir', 'unlink'):
        setattr(os, name, killing(getattr(os, name)))

moment = status = 1
while status:
    folder = Path(sys.argv[1]) / str(moment)
    save(folder, 1, 'first')
    save(folder, 2, 'old')
    child = os.fork()
    if not child:
        kill_at(moment)
        save(folder, 2, 'new')
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    note = checkpoint.newest(folder).state['note']
    save(folder, 2, 'again')
    save(folder, 3, 'next')
    print(note, checkpoint.newest(folder).state['note'], *sorted(os.listdir(folder / 'checkpoints')))
    moment += 1
'''


def test_a_kill_at_any_moment_of_a_save_loses_no_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, '-c', _KILLED, tmp_path], stdout=subprocess.PIPE, text=True, check=True)
    notes, *others = zip(*(line.split() for line in done.stdout.splitlines()))
    # The save flushes four files and two folders, renames two, and removes one.
    assert len(notes) > 8 and set(notes) == {'old', 'new'} and notes[-1] == 'new'
    assert [set(column) for column in others] == [{'next'}, {'step-00000002'}, {'step-00000003'}]


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, trained, monkeypatch):
    net, trainer, _ = trained
    checkpoint.save(tmp_path, net, trainer, {'step': 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(checkpoint.np, 'savez', full)
    with pytest.raises(InputError, match='step-00000002 cannot be written: No space'):
        checkpoint.save(tmp_path, net, trainer, {'step': 2})
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['step-00000001']
    assert checkpoint.newest(tmp_path).state['step'] == 1
