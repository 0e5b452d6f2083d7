import errno
import json
import os
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


@pytest.mark.parametrize('name', ['net.params', 'trainer.states', 'state.json'])
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
    if name == 'state.json' and damage == 'flip':
        # Text of its own without a checksum: only what is no longer JSON, or another checksum, can be seen.
        file.write_text(json.dumps({'step': 2}))
    reported = []
    assert checkpoint.newest(tmp_path, reported.append).state['step'] == 1
    assert 'step-00000002' in reported[0]
    with pytest.raises(InputError, match='step-00000002'):
        checkpoint.Checkpoint(file.parent)


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
    save_states = save_parameters

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

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(trainer, 'save_states', full)
    with pytest.raises(InputError, match='step-00000002 cannot be written: No space'):
        checkpoint.save(tmp_path, net, trainer, {'step': 2})
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['step-00000001']
    assert checkpoint.newest(tmp_path).state['step'] == 1
