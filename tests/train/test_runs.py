"""The list of runs, over folders as a training leaves them."""
import csv
import io
import json
import platform
import subprocess

import mxnet as mx
import numpy as np
import pytest

from gluon_lprnet.__main__ import main
from gluon_lprnet.train.environment import _commit, write_environment
from gluon_lprnet.train.runs import compare_runs, find_runs
from gluon_lprnet.utils.errors import InputError


def write_run(folder, epochs, **config):
    folder.mkdir(parents=True)
    config = {'num_epochs': 3, 'tuning_epochs': 1, 'model': 'lprnet_mobilenet_x0.5', 'save_dir': str(folder),
              'rec_train': 'train.rec', **config}
    (folder / 'config.json').write_text(json.dumps(config))
    lines = [{'kind': 'interval', 'step': 1, 'epoch': 0, 'loss': 9.0}]
    lines += [{'kind': 'epoch', 'step': 10 * number, 'epoch': number, 'learning_rate': 0.1, **record}
              for number, record in enumerate(epochs)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / 'runs' / 'a', [
        {'loss': 2.0, 'val_top1': 0.5, 'images_per_second': 100.0},
        {'loss': 1.0, 'val_top1': 0.75, 'images_per_second': 300.0},
        {'loss': 0.9, 'val_top1': 0.625, 'images_per_second': 110.0}], lr=0.5)
    write_run(tmp_path / 'runs' / 'deep' / 'b', [
        {'loss': 2.0, 'val_nme': 0.05, 'images_per_second': 50.4},
        {'loss': 1.0, 'val_nme': 0.06, 'images_per_second': 50.4}], lr=0.25, model='lprnet_mobilenet_x0.25')
    write_run(tmp_path / 'runs' / 'begun', [], lr=0.5)
    return tmp_path / 'runs'


def test_runs_side_by_side(folder):
    titles, rows = compare_runs(find_runs([folder]))
    assert titles == ['run', 'lr', 'model', 'epochs', 'top1', 'best (epoch)', 'nme', 'best (epoch)', 'images/s']
    assert rows == [
        ['a', '0.5', 'lprnet_mobilenet_x0.5', '3/4', '0.6250', '0.7500 (2)', None, None, 110],
        ['begun', '0.5', 'lprnet_mobilenet_x0.5', '0/4', None, None, None, None, None],
        ['deep/b', '0.25', 'lprnet_mobilenet_x0.25', '2/4', None, None, '0.0600', '0.0500 (1)', 50]]


def test_one_run_by_its_own_folder(folder):
    titles, ((name, *_),) = compare_runs(find_runs([folder / 'a']))
    assert name == 'a' and titles == ['run', 'epochs', 'top1', 'best (epoch)', 'images/s']


def test_command(folder, capsys, tmp_path):
    assert not main(['runs', str(folder), '--curves', str(tmp_path / 'curves.png')])
    assert not main(['curves', str(folder / 'a'), str(folder / 'deep' / 'b'), '--out', str(tmp_path / 'two.svg')])
    text = (tmp_path / 'two.svg').read_text()
    assert text.count('top1') and text.count('nme')
    text = capsys.readouterr().out
    assert 'deep/b' in text and '0.7500 (2)' in text
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert not main(['runs', str(folder), '--format', 'csv'])
    first, *others = csv.reader(io.StringIO(capsys.readouterr().out))
    assert first[0] == 'run' and [row[0] for row in others] == ['a', 'begun', 'deep/b']
    assert not main(['runs', str(folder), '--format', 'markdown'])
    assert capsys.readouterr().out.startswith('| run')


def test_pictures_that_cannot_be_drawn_are_named(folder, tmp_path, capsys):
    for argv in (['runs', folder, '--curves', tmp_path / 'a.bmp'], ['curves', folder / 'a', '--out', tmp_path / 'a']):
        assert main([str(each) for each in argv]) == 2
        assert 'give a name that ends in .png, .svg, .pdf' in capsys.readouterr().err


def test_environment_of_a_run(tmp_path):
    for _ in range(2):
        write_environment(tmp_path, {'train.rec': {'records': 5, 'crc32': '0123abcd'}})
    (found,) = json.loads((tmp_path / 'environment.json').read_text())
    assert found['mxnet'] == mx.__version__
    assert found['numpy'] == np.__version__ and found['python'] == platform.python_version()
    # A resumed run is of two environments where they differ.
    (tmp_path / 'environment.json').write_text(json.dumps([{**found, 'mxnet': '1.8.0'}]))
    write_environment(tmp_path)
    assert [each['mxnet'] for each in json.loads((tmp_path / 'environment.json').read_text())] == [
        '1.8.0', mx.__version__]


def test_damaged_environment_is_named(tmp_path):
    (tmp_path / 'environment.json').write_text('[{"mxnet": ')
    with pytest.raises(InputError, match='environment.json is damaged: .* Remove it'):
        write_environment(tmp_path)


def test_a_folder_of_another_program_is_not_a_run(folder):
    other = folder / 'other'
    other.mkdir()
    (other / 'config.json').write_text('{"model": "a"}')
    (other / 'metrics.jsonl').write_text('{"loss": 1}\n[1]\n2\n')
    _, rows = compare_runs(find_runs([folder]))
    assert {row[0] for row in rows} >= {'a', 'begun', 'deep/b'}


def test_state_of_the_code(tmp_path):
    def git(*arguments):
        return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments], cwd=tmp_path,
                              check=True, capture_output=True, text=True).stdout.strip()
    git('init')
    (tmp_path / 'file').write_text('1')
    git('add', 'file')
    git('commit', '-m', 'first')
    assert _commit(tmp_path) == {'commit': git('rev-parse', 'HEAD'), 'modified': False}
    (tmp_path / 'file').write_text('2')
    assert _commit(tmp_path)['modified'] is True
    installed = tmp_path / '.venv' / 'package'
    installed.mkdir(parents=True)
    (installed / 'module.py').write_text('')
    assert _commit(installed) == {'commit': None, 'modified': None}


def test_what_is_not_a_run(folder, tmp_path):
    with pytest.raises(InputError, match='nowhere is not a folder'):
        find_runs([tmp_path / 'nowhere'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='empty holds no run'):
        find_runs([tmp_path / 'empty'])
    (folder / 'a' / 'config.json').write_text('{"lr": ')
    with pytest.raises(InputError, match='config.json cannot be read'):
        find_runs([folder])
    (folder / 'a' / 'config.json').write_text('[1]')
    with pytest.raises(InputError, match='is not the configuration of a run'):
        find_runs([folder])
