"""Several real workers on this machine, by MXNet's parameter servers and, where it is installed, by Horovod."""
import contextlib
import functools
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records
from reference.landmark_networks import write_faces
from reference.worker import parameters_of

from gluon_lprnet import checkpoint
from gluon_lprnet.__main__ import main
from gluon_lprnet.data.batches import ImageBatches, Normalization, parts
from gluon_lprnet.data.faces.batches import AUGMENTATIONS, FaceBatches
from gluon_lprnet.data.faces.records import read_face_records
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.train import command, distributed, face, imagenet, launch
from gluon_lprnet.train.face import LandmarkConfig
from gluon_lprnet.train.fine_tuning import fix_statistics
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).resolve().parents[1] / 'reference' / 'worker.py'
WORKERS = 3
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
HOROVODRUN = [str(Path(sys.executable).with_name('horovodrun')), '--gloo', '-np']
START = {
    'dist_sync': [sys.executable, '-m', 'gluon_lprnet', 'launch', '--workers', str(WORKERS), '--', str(WORKER)],
    'horovod': [*HOROVODRUN, str(WORKERS), sys.executable, str(WORKER)],
}
# Two workers add up a number.
HOROVOD_RUNS = """
import gluon_lprnet, mxnet as mx, horovod.mxnet as hvd
hvd.init()
assert hvd.allreduce(mx.nd.ones((2,)), average=False, name='trial').sum().asscalar() == 4
"""


@functools.cache
def why_no_horovod():
    """None where Horovod trains."""
    if importlib.util.find_spec('horovod') is None:
        return os.environ.get('GLUON_LPRNET_NO_HOROVOD') or 'Horovod is not installed: `make horovod` builds it'
    # Into a file: a pipe would stay open, and be waited for, while a worker that hangs outlives horovodrun.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile('w+') as output:
        try:
            done = subprocess.run([*HOROVODRUN, '2', sys.executable, '-c', HOROVOD_RUNS], cwd=folder, timeout=120,
                                  env=horovod_environment(Path(folder)), stdout=output, stderr=subprocess.STDOUT)
            error = f'exit status {done.returncode}' if done.returncode else None
        except (OSError, subprocess.TimeoutExpired) as raised:
            error = str(raised)
        output.seek(0)
        return error and f'Horovod is installed and does not run: {error}: {output.read().strip()[-300:]}'


def horovod_environment(folder):
    # horovodrun imports MXNet on its own, which needs the alias that NumPy has removed.
    (folder / 'sitecustomize.py').write_text('import numpy; numpy.bool = bool')
    return dict(ENVIRONMENT, PYTHONPATH=f'{folder}:{ROOT}')


@pytest.fixture
def horovod():
    if why_no_horovod():
        pytest.skip(why_no_horovod())


@pytest.fixture(params=['dist_sync', 'horovod'])
def engine(request):
    if request.param == 'horovod':
        request.getfixturevalue('horovod')
    return request.param


def settings(tiny_records, run, **changes):
    rec = f'{tiny_records[0]}.rec'
    return {**dict(model='lprnet_mobilenet_x0.25', input_size=16, small_image=True, crop_ratio=1.0, num_classes=3,
                   batch_size=12, num_epochs=3, tuning_epochs=1, lr=0.05, momentum=0.9, num_data_workers=1,
                   no_mirror=True, min_random_scale=1.0, rec_train=rec, rec_val=rec, save_dir=str(run)), **changes}


def train_by_workers(start, values, recipe='classes'):
    run = Path(values['save_dir'])
    done = subprocess.run([*start, recipe, json.dumps(values)], cwd=ROOT, env=horovod_environment(run.parent),
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = [np.load(run / f'worker-{rank}.npz') for rank in range(WORKERS)]
    answers = [json.loads(line) for line in re.findall(r'\[\d, {.*?}\]', done.stdout)]
    assert sorted(rank for rank, _ in answers) == list(range(WORKERS))
    return saved, [metrics for _, metrics in answers]


def train_alone(values):
    """One process, whose batches are the workers' put together."""
    config = ClassificationConfig(**values)
    mx.random.seed(0)
    task = imagenet.build_task(config)
    fix_statistics(task.net)
    before = parameters_of(task.net)
    records = check_records(values['rec_train'], data_check='structure')
    readers = [ImageBatches(records, 16, 12 // WORKERS, Normalization(config.rgb_mean, config.rgb_std), shuffle=True,
                            threads=1, part=(rank, WORKERS), augmentation=imagenet.paper_augmentation(
                                max_random_illumination=config.max_random_illumination, mirror=False))
               for rank in range(WORKERS)]
    plain = [imagenet.validation_batches(records, config.to_dict(), 12 // WORKERS, 1, shuffle=True, seed=0,
                                         part=(rank, WORKERS)) for rank in range(WORKERS)]

    def batches(epoch, start):
        of_parts = [[[array.asnumpy() for array in batch] for batch in reader.epoch(epoch)]
                    for reader in (readers if epoch < config.num_epochs else plain)]
        for step in range(start, task.batches_per_epoch):
            rows = [part[step] for part in of_parts if step < len(part)]
            yield tuple(mx.nd.array(np.concatenate(arrays)) for arrays in zip(*rows))

    task.batches = batches
    metrics = command.fit(task, config)
    return before, parameters_of(task.net), metrics


def test_workers_train_as_one_process_on_their_batches_together(tiny_records, tmp_path, engine):
    # 50 records are 17, 17 and 16, or 5, 5 and 4 batches.
    saved, answers = train_by_workers(START[engine], settings(tiny_records, tmp_path / 'run', kvstore=engine))
    before, expected, metrics = train_alone(settings(tiny_records, tmp_path / 'alone'))
    for name, value in expected.items():
        for of_worker in saved:
            np.testing.assert_array_equal(of_worker[name], saved[0][name], name)
        np.testing.assert_allclose(saved[0][name], value, rtol=1e-3, atol=2e-5, err_msg=name)
    moved = max(abs(expected[name] - before[name]).max() for name in expected)
    assert moved > 0.05, 'the comparison would see nothing'
    assert answers[0] == answers[1] == answers[2] == pytest.approx(metrics, abs=1e-6)
    found, wanted = epoch_records(tmp_path / 'run'), epoch_records(tmp_path / 'alone')
    assert [record['epoch'] for record in found] == [0, 1, 2, 3]
    for key in ('loss', 'top1', 'learning_rate', 'step'):
        np.testing.assert_allclose([each[key] for each in found], [each[key] for each in wanted], rtol=1e-4,
                                   err_msg=key)
    kept = mx.nd.load(checkpoint.newest(tmp_path / 'run').params)
    for name, value in saved[0].items():
        np.testing.assert_array_equal(kept[name].asnumpy(), value, name)


def test_workers_learn_landmarks_as_one_process_does(tmp_path, engine):
    # 40 faces are 14, 13 and 13, or 4 batches of 4, 4 and 4 and a last one of 2, 1 and 1.
    rec, _ = write_faces(tmp_path / 'faces', np.linspace(-60, 60, 40))
    values = dict(model='lprnet_mobilenet_x0.25', input_size=32, small_image=True, batch_size=12, num_epochs=3,
                  tuning_epochs=1, optimizer='sgd', lr=2e-3, momentum=0.9, num_data_workers=1, rec_train=[rec],
                  rec_val=[rec])
    saved, answers = train_by_workers(START[engine], {**values, 'kvstore': engine, 'save_dir': str(tmp_path / 'run')},
                                      'landmarks')
    config = LandmarkConfig(**{**values, 'rec_train': (rec,), 'rec_val': (rec,), 'save_dir': str(tmp_path / 'alone')})
    mx.random.seed(0)
    task = face.build_task(config)
    fix_statistics(task.net)
    before = parameters_of(task.net)
    metrics = command.fit(task, config)
    expected = parameters_of(task.net)
    for name, value in expected.items():
        for of_worker in saved:
            np.testing.assert_array_equal(of_worker[name], saved[0][name], name)
        np.testing.assert_allclose(saved[0][name], value, rtol=1e-3, atol=2e-5, err_msg=name)
    assert max(abs(expected[name] - before[name]).max() for name in expected) > 0.05, 'the comparison sees nothing'
    assert answers[0] == answers[1] == answers[2] == pytest.approx(metrics, abs=1e-6)
    found, wanted = epoch_records(tmp_path / 'run'), epoch_records(tmp_path / 'alone')
    for key in ('loss', 'nme', 'val_nme', 'learning_rate', 'step'):
        np.testing.assert_allclose([each[key] for each in found], [each[key] for each in wanted], rtol=1e-4,
                                   err_msg=key)


def test_gradients_in_2_bits_leave_workers_the_same_and_sums_exact(tiny_records, tmp_path):
    values = settings(tiny_records, tmp_path / 'run', kvstore='dist_sync', compress_gradients=0.1, num_epochs=2)
    saved, answers = train_by_workers(START['dist_sync'], values)
    before, exact, _ = train_alone(settings(tiny_records, tmp_path / 'alone', num_epochs=2))
    for name in exact:
        for of_worker in saved:
            np.testing.assert_array_equal(of_worker[name], saved[0][name], name)
    assert any(abs(saved[0][name] - exact[name]).max() > 1e-3 for name in exact), 'nothing was compressed'
    record = epoch_records(tmp_path / 'run')[0]
    # A count of 50 images.
    assert record['top1'] * 50 == pytest.approx(round(record['top1'] * 50), abs=1e-6)
    assert answers[0] == answers[1] == answers[2]


def test_numbers_survive_compression_bit_by_bit():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, scale, (3, 50)) for scale in (1e-3, 1, 1e6)], axis=1)
    bits = [distributed._to_bits(each) for each in values]
    assert all(set(np.unique(each)) == {0, 1} for each in bits)
    np.testing.assert_allclose(distributed._from_bit_counts(np.sum(bits, axis=0)), values.sum(0), rtol=0, atol=3e-9)


@pytest.mark.parametrize('count, number', [(50, 3), (50, 8), (49, 7), (64, 4), (5, 1)])
def test_every_record_is_in_one_part(tiny_records, count, number):
    if count > 50:
        assert parts(count, number) == [16] * 4
        return
    records = check_records(f'{tiny_records[0]}.rec')
    seen = []
    for rank in range(number):
        batches = ImageBatches(records, 16, 4, Normalization((0,) * 3, (1,) * 3), part=(rank, number))
        images = [image for data, _ in batches.epoch(0) for image in data.asnumpy()]
        assert len(images) == batches.count == parts(50, number)[rank]
        assert math.ceil(len(images) / 4) == len(batches)
        seen += images
    np.testing.assert_array_equal(np.array(seen).transpose(0, 2, 3, 1), tiny_records[1])


def test_an_epoch_of_faces_goes_on_with_any_number_of_workers(tmp_path):
    rec, _ = write_faces(tmp_path / 'faces', np.linspace(-60, 60, 20))
    faces = list(read_face_records(rec))

    def rows(number, start):
        """Images of each step of all workers together, in an order of their own."""
        readers = [FaceBatches(faces, 16, 1.5, 12 // number, Normalization((0,) * 3, (1,) * 3), AUGMENTATIONS['mild'],
                               1, part=(rank, number), shuffle=True).epoch(1, start) for rank in range(number)]
        return [sorted(image.tobytes() for batch in step if batch for image in batch.data.asnumpy())
                for step in itertools.zip_longest(*readers)]

    whole = rows(1, 0)
    assert [len(step) for step in whole] == [12, 8] and len({*whole[0], *whole[1]}) == 20
    for number in (2, 3, 4):
        assert rows(number, 0) == whole and rows(number, 1) == whole[1:]


def test_records_that_leave_a_worker_without_any_are_refused():
    with pytest.raises(InputError, match='5 records cannot be divided among 4 workers'):
        parts(5, 4)
    assert parts(5, 3) == [2, 2, 1]


@pytest.mark.parametrize('value, threads', [('2,1', 2), ('', None), ('1', 1), ('many', None)])
def test_threads_that_openmp_was_given(monkeypatch, value, threads):
    monkeypatch.setenv('OMP_NUM_THREADS', value)
    assert launch._asked_for() == threads


def test_rates_of_a_recipe_grow_with_the_batch_and_are_warmed_up():
    scaled = ClassificationConfig.from_preset(kvstore='dist_sync', batch_size=1024)
    assert (scaled.lr, scaled.tuning_lr, scaled.warmup_epochs) == (2.0, 4e-3, 5)
    # What is given stays; so does a recipe of its own batch, and one process.
    assert ClassificationConfig.from_preset(kvstore='dist_sync', batch_size=1024, lr=0.7, warmup_epochs=2).lr == 0.7
    assert ClassificationConfig.from_preset(kvstore='dist_sync').warmup_epochs == 0
    assert ClassificationConfig.from_preset(batch_size=1024).lr == 0.5
    adam = LandmarkConfig.from_preset(kvstore='horovod', batch_size=400)
    assert (adam.lr, adam.warmup_epochs) == (1e-3, 5)


def test_what_cannot_be_is_refused(training_flags, capsys):
    assert imagenet.main([*training_flags, '--kvstore', 'dist_sync']) == 2
    assert 'gluon-lprnet launch' in capsys.readouterr().err
    assert imagenet.main([*training_flags, '--compress-gradients', '0.5']) == 2
    assert '--compress-gradients' in capsys.readouterr().err
    if importlib.util.find_spec('horovod') is None:
        assert imagenet.main([*training_flags, '--horovod']) == 2
        assert 'Horovod' in capsys.readouterr().err


# Horovod's own broadcast_ ends in a crash or a hang after some thousands.
BROADCASTS = """
import gluon_lprnet, mxnet as mx
from gluon_lprnet.train import distributed
engine = distributed._Horovod()
arrays = [mx.nd.full((8,), number) for number in range(100)]
for _ in range(400):
    for number, array in enumerate(arrays):
        engine.broadcast(number, array, [array])
    mx.nd.waitall()
assert [array.sum().asscalar() for array in arrays] == [8 * number for number in range(100)]
"""


def test_horovod_outlives_many_starts(tmp_path, horovod):
    done = subprocess.run([sys.executable, '-c', BROADCASTS], cwd=tmp_path, env=ENVIRONMENT, timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Alone(distributed._Engine):
    """The only worker, to whom nobody else answers."""

    num_workers = 2

    def total(self, values):
        return values


def test_only_a_training_is_watched_for_answers(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(distributed.os, '_exit', lambda status: ended.set())
    workers = distributed.Workers(Alone(), 3)
    assert not ended.wait(4)
    with workers.watched():
        workers.barrier()
        with workers.own_work():
            workers.barrier()
            assert not ended.wait(7)
    assert not ended.wait(4)
    with workers.watched():
        assert ended.wait(60)


# --- whole trainings by the launcher

def start_launch(*argv, workers=2):
    return subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', 'launch', '--workers', str(workers), '--',
                             'train-imagenet', *argv], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def children(process):
    return [int(number) for number in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]


def worker_processes(process):
    return [number for number in children(process)
            if b'DMLC_ROLE=worker\0' in Path(f'/proc/{number}/environ').read_bytes()]


def wait_for_epoch(run, epoch, process):
    deadline = time.monotonic() + 300
    while not ((run / 'metrics.jsonl').exists() and f'"epoch": {epoch}' in (run / 'metrics.jsonl').read_text()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_and_is_named_and_others_resume(training_flags, tmp_path):
    run = tmp_path / 'run'
    flags = [*training_flags, '--kvstore', 'dist_sync', '--log-interval', '1', '--batch-size', '6', '--num-epochs',
             '20', '--tuning-epochs', '0']
    process = start_launch(*flags)
    wait_for_epoch(run, 1, process)
    started = children(process)
    victim = worker_processes(process)[1]
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert re.search(rf'worker 2 on 127\.0\.0\.1 \(process {victim}\) was killed by SIGKILL', output)
    assert not any(Path(f'/proc/{number}').exists() for number in started)
    state = checkpoint.newest(run).state
    assert 1 <= state['epoch'] < 20

    # Three workers go on, until a signal comes.
    process = start_launch('--save-dir', str(run), '--resume', workers=3)
    wait_for_epoch(run, state['epoch'] + 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert 'stopped by SIGTERM; saved' in output
    stopped = checkpoint.newest(run).state
    assert stopped['step'] > state['step'] and stopped['workers'] == 3

    # And one, to the end.
    done = subprocess.run([sys.executable, '-m', 'gluon_lprnet', 'train-imagenet', '--save-dir', str(run), '--resume',
                           '--kvstore', 'device'], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = epoch_records(run)
    assert [record['epoch'] for record in records] == list(range(20))
    # How many workers trained for how long, and so the accuracy, depends on when they were killed.
    assert records[-1]['val_top1'] > 0.5, 'three colors: chance is 1/3'
    assert (run / 'export' / 'lprnet_mobilenet_x0.25-symbol.json').exists()
    assert (run / 'train.log').read_text().count('epoch 1/20 (train) done') == 1


def horovod_workers(run):
    """The processes of a training in the folder ``run``, by their ranks."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            rank = re.search(rb'(?:^|\0)HOROVOD_RANK=(\d+)\0', (folder / 'environ').read_bytes())
            arguments = (folder / 'cmdline').read_bytes().split(b'\0')
            if rank and arguments[0] == sys.executable.encode() and str(run).encode() in arguments:
                found[int(rank[1])] = int(folder.name)
    return found


def start_horovod(tmp_path, workers, *argv):
    return subprocess.Popen([*HOROVODRUN, str(workers), sys.executable, '-m', 'gluon_lprnet', 'train-imagenet', *argv],
                            cwd=ROOT, env=horovod_environment(tmp_path), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_horovod_ends_when_a_worker_is_killed_and_others_resume(training_flags, tmp_path, horovod):
    run = tmp_path / 'run'
    flags = [*training_flags, '--log-interval', '1', '--batch-size', '6', '--num-epochs', '12', '--tuning-epochs', '0']
    process = start_horovod(tmp_path, 2, *flags, '--horovod')
    wait_for_epoch(run, 1, process)
    workers = horovod_workers(run)
    assert sorted(workers) == [0, 1]
    os.kill(workers[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode, output
    assert re.search(r'Process name: 1\n.*Exit code: 137', output, re.DOTALL), output
    assert not any(Path(f'/proc/{number}').exists() for number in workers.values())
    state = checkpoint.newest(run).state
    assert 1 <= state['epoch'] < 12 and state['workers'] == 2

    process = start_horovod(tmp_path, 3, '--save-dir', str(run), '--resume')
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [record['epoch'] for record in epoch_records(run)] == list(range(12))
    assert checkpoint.newest(run).state['workers'] == 3


def test_running_statistics_are_averaged_in_what_is_saved(training_flags, tiny_records, tmp_path, capsys):
    # The statistics of the workers differ; what is saved is what was validated.
    flags = [*training_flags, '--kvstore', 'dist_sync', '--num-epochs', '8', '--batch-size', '16', '--ema-decay', '0.5']
    process = start_launch(*flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    saved = checkpoint.newest(tmp_path / 'run')
    assert not main(['evaluate', f'{tiny_records[0]}.rec', '--network', str(tmp_path / 'run')])
    assert f'top1 {epoch_records(tmp_path / "run")[-1]["val_top1"]:.4f}' in capsys.readouterr().out
    assert saved.state['workers'] == 2


def test_a_worker_that_fails_is_named_with_its_status(training_flags, tmp_path):
    (tmp_path / 'run').write_text('no folder')
    process = start_launch(*training_flags, '--kvstore', 'dist_sync')
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert re.search(r'worker \d on 127\.0\.0\.1 \(process \d+\) ended with exit status 2', output)
    assert 'is not a folder' in output


@pytest.fixture
def ssh_hosts(tmp_path, monkeypatch):
    """A file with two names of this machine, which `ssh` reaches; a port for the scheduler; the calls of `ssh`."""
    server, client = (shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin') for name in ('sshd', 'ssh'))
    if not (server and client):
        pytest.skip('no sshd here: the way by ssh is not tested')
    with socket.socket() as free, socket.socket() as other:
        free.bind(('127.0.0.2', 0))
        other.bind(('127.0.0.2', 0))
        port, scheduler = free.getsockname()[1], other.getsockname()[1]
    folder = tmp_path / 'ssh'
    folder.mkdir()
    for key in 'host', 'user':
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', folder / key], check=True)
    if os.getuid() == 0:
        Path('/run/sshd').mkdir(exist_ok=True)
    (folder / 'sshd_config').write_text(
        f'Port {port}\nListenAddress 127.0.0.2\nListenAddress 127.0.0.3\nHostKey {folder}/host\nPidFile none\n'
        f'AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n')
    (folder / 'ssh_config').write_text(
        f'Port {port}\nIdentityFile {folder}/user\nStrictHostKeyChecking no\nUserKnownHostsFile {folder}/known\n')
    wrapper = folder / 'bin' / 'ssh'
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {folder}/calls\nexec {client} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv('PATH', f'{wrapper.parent}:{os.environ["PATH"]}')
    hosts = tmp_path / 'hosts'
    hosts.write_text('# two names of this machine\n127.0.0.2\n127.0.0.3 slots=1\n')
    with subprocess.Popen([server, '-D', '-f', folder / 'sshd_config']) as process:
        for host in '127.0.0.2', '127.0.0.3':
            until = time.monotonic() + 30
            while (tried := subprocess.run([wrapper, '-o', 'BatchMode=yes', host, 'true'], capture_output=True,
                                           text=True)).returncode:
                if process.poll() is not None or time.monotonic() > until:
                    process.kill()
                    pytest.skip(f'ssh does not let this user in: {tried.stderr}')
                time.sleep(0.1)
        (folder / 'calls').unlink()
        yield hosts, scheduler, folder / 'calls'
        process.terminate()


@pytest.mark.slow
def test_a_training_on_hosts_by_ssh_is_stopped_with_a_checkpoint_and_goes_on(training_flags, tmp_path, ssh_hosts):
    hosts, port, calls = ssh_hosts
    flags = ['launch', '--workers', '2', '--hosts', str(hosts), '--port', str(port), '--', 'train-imagenet',
             '--kvstore', 'dist_sync', '--save-dir', str(tmp_path / 'run')]
    with open(tmp_path / 'output', 'w+') as output:
        process = subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', *flags, *training_flags, '--num-epochs',
                                    '20', '--tuning-epochs', '0'], cwd=ROOT, env={**ENVIRONMENT, 'PATH': os.environ[
                                        'PATH']}, stdout=output, stderr=subprocess.STDOUT)
        wait_for_epoch(tmp_path / 'run', 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(150) == 128 + signal.SIGTERM
        output.seek(0)
        assert 'stopped by SIGINT; saved' in output.read()
    told = [re.search(r'(127\.0\.0\.\d) .*DMLC_ROLE=(\w+) DMLC_NODE_HOST=(\S+)', call).groups()
            for call in calls.read_text().splitlines()]
    assert sorted(told) == sorted((host, role, host) for host, role in [
        ('127.0.0.2', 'scheduler'), ('127.0.0.2', 'server'), ('127.0.0.3', 'server'), ('127.0.0.2', 'worker'),
        ('127.0.0.3', 'worker')])
    assert 1 <= checkpoint.newest(tmp_path / 'run').state['epoch'] < 20
    assert main([*flags, '--resume']) == 0
    assert [record['epoch'] for record in epoch_records(tmp_path / 'run')] == list(range(20))


@pytest.mark.slow
def test_a_worker_without_answers_ends_and_says_so(training_flags, tmp_path):
    process = start_launch(*training_flags, '--kvstore', 'dist_sync', '--log-interval', '1', '--num-epochs', '2000',
                           '--worker-timeout', '0.5')
    try:
        wait_for_epoch(tmp_path / 'run', 1, process)
        frozen = worker_processes(process)[0]
        os.kill(frozen, signal.SIGSTOP)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == distributed.EX_TEMPFAIL, output
    assert 'the others have not answered for 0.5 minutes' in output
    assert not Path(f'/proc/{frozen}').exists()
