"""The configuration of a training: its flags by range, from Python, and from the folders of runs."""
import dataclasses
import math
import runpy
import sys
import typing

import numpy as np
import pytest
from conftest import encode

from gluon_lprnet.__main__ import main
from gluon_lprnet.__main__ import make_parser as make_command_parser
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.train import command, face, imagenet
from gluon_lprnet.train.config import TrainingConfig, make_parser, parse
from gluon_lprnet.train.face import LandmarkConfig
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.train.loop import Run
from gluon_lprnet.utils.errors import InputError

TRAINERS = {ClassificationConfig: imagenet, LandmarkConfig: face}
NUMBERS = ['0', '-1', '1', '1e-300', '1e30', 'nan', 'inf', '-inf', 'x', '']
TEXTS = ['', '/', 'nowhere/at/all', 'x']
RANKS = ['0', '-1', '1', '0.0', '1.0', '2.5', 'nan', '1/0', '1/1000000', '1000000', '']


def values_of(setting, hint):
    """Texts for a flag, each a list: the ends of its range, what lies beyond, and what is no value at all."""
    name, meta = setting.name, setting.metadata
    if name == 'condensing':
        return [['--condensing', '--model', 'condensenet_x1.0']]
    if name == 'relaxed':
        return [['--relaxed', '--model', 'irregular_densenet40_x1.0']]
    if hint is bool:
        return [[]]
    if meta['choices']:
        return [[text] for text in (*meta['choices'], '', 'x')]
    if name == 'rank':
        return [[text] for text in RANKS]
    if meta['low'] is None:
        return [[text] for text in TEXTS if text != '/' or name != 'save_dir']
    beyond = (meta['low'] - 1, meta['high'] + 1) if isinstance(meta['high'], int) else (
        meta['low'] - 1e-9, meta['high'] * 1.001)
    texts = [*NUMBERS, *map(str, (meta['low'], meta['high'], *beyond))]
    if name == 'lr_decay_epoch':
        lists = [['60', '30'], ['1', '1'], ['1', '2'], ['2', '1', '3'], ['100000']]
        return [['--lr-mode', 'step', '--lr-decay-epoch', *part] for part in [*lists, *([text] for text in texts)]]
    return [[text] * (3 if typing.get_origin(hint) is tuple else 1) for text in dict.fromkeys(texts)]


CASES = [pytest.param(config_class, setting.name, id=f'{config_class.__name__}-{setting.name}')
         for config_class in TRAINERS for setting in dataclasses.fields(config_class) if setting.metadata]


@pytest.fixture(scope='module')
def few_images(tmp_path_factory):
    """Flags of a training on 6 images of 3 classes, and on 6 faces."""
    from test_train_face import ellipse_face

    from gluon_lprnet.data.faces.records import encode_record
    folder, rng = tmp_path_factory.mktemp('few'), np.random.default_rng(0)
    write_records(folder / 'images', [(number % 3, encode(rng.integers(0, 256, (16, 16, 3), 'uint8')))
                                      for number in range(6)])
    write_records(folder / 'faces', [encode_record(ellipse_face(rng)._replace(jaw='3d')) for _ in range(6)])

    def flags(name):
        return ['--model', 'lprnet_mobilenet_x0.03125', '--small-image', '--input-size', '16', '--batch-size', '3',
                '--num-epochs', '4', '-j', '1', '--rec-train', f'{folder / name}.rec', '--rec-val',
                f'{folder / name}.rec']
    return {ClassificationConfig: [*flags('images'), '--num-classes', '3', '--mixup', '--crop-ratio', '1'],
            LandmarkConfig: flags('faces')}


@pytest.mark.parametrize('config_class, name', CASES)
def test_a_value_of_any_flag_trains_or_is_refused_by_name(config_class, name, few_images, tmp_path, monkeypatch,
                                                          capsys):
    def one_update(run):
        sums = run.update([next(iter(run.task.batches(0, 0)))])
        last = run.schedule.epochs * run.schedule.steps_per_epoch - 1
        assert all(math.isfinite(run.schedule.learning_rate(step)) for step in (0, last))
        assert math.isfinite(sums['loss'])
        return run.task.evaluate()
    monkeypatch.setattr(Run, 'fit', one_update)
    monkeypatch.setattr(command, 'export_network', lambda *args: None)
    # It changes MXNet's operators for the whole process.
    monkeypatch.setattr(command.amp, 'init', lambda **_: None)
    flag = '--' + name.replace('_', '-')
    outcomes = []
    hint = typing.get_type_hints(config_class)[name]
    for number, values in enumerate(values_of(config_class.__dataclass_fields__[name], hint)):
        values = values if flag in values else [flag, *values]
        save_dir = [] if name == 'save_dir' else ['--save-dir', str(tmp_path / str(number))]
        monkeypatch.chdir(tmp_path)
        try:
            status = TRAINERS[config_class].main([*few_images[config_class], *save_dir, *values])
        except SystemExit as stop:
            status = stop.code
        outcomes.append(status)
        error = capsys.readouterr().err
        assert status in (0, 2), values
        if status:
            assert flag in error or values[-1] and values[-1] in error, (values, error)
            assert 'Traceback' not in error
    # Numbers and choices are seen to do both.
    assert set(outcomes) == {0} if hint is bool else 2 in outcomes and (0 in outcomes or 'x' in values)


@pytest.mark.parametrize('changes, named', [
    (['--warmup-lr', '0.6'], '--warmup-lr 0.6'),
    (['--warmup-epochs', '4'], '--warmup-epochs 4'),
    (['--lr-mode', 'step'], '--lr-decay-epoch'),
    (['--lr-decay-epoch', '2'], '--lr-mode step'),
    (['--lr-mode', 'step', '--lr-decay-epoch', '4'], '--lr-decay-epoch 4'),
    (['--lr-mode', 'step', '--lr-decay-epoch', '1', '--warmup-epochs', '2'], '--lr-decay-epoch 1: the rate rises'),
    (['--pad', '16'], '--pad 16'),
    (['--mixup-off-epoch', '4'], '--mixup-off-epoch 4'),
    (['--min-random-scale', '2'], '--max-random-scale'),
    (['--accumulate', '3'], '--accumulate 3'),
    (['--rgb-std', '0.229', '0.224', '0.225'], '--rgb-std 0.229 0.224 0.225'),
])
def test_values_that_do_not_fit_each_other_are_refused(changes, named, few_images, tmp_path, capsys):
    assert imagenet.main([*few_images[ClassificationConfig], '--save-dir', str(tmp_path / 'run'), *changes]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize('values, message', [
    (dict(num_epochs=2.5), '`num_epochs` 2.5: it must be a whole number from 1'),
    (dict(num_epochs=True), '`num_epochs` True'),
    (dict(lr='0.1'), '`lr` 0.1: it must be a number'),
    (dict(lr=math.nan), '`lr` nan'),
    (dict(optimizer='rmsprop'), '`optimizer` rmsprop: it must be one of sgd, adam'),
    (dict(lr_decay_epoch=3), '`lr_decay_epoch` 3: it must be a sequence'),
    (dict(rgb_std=(1.0, 1.0)), '`rgb_std` 1.0 1.0: it must be 3 numbers'),
    (dict(mixup=1), '`mixup` 1: it must be True or False'),
])
def test_python_gets_errors_in_its_own_terms(values, message):
    with pytest.raises(InputError, match=message):
        ClassificationConfig(**values)


def test_a_configuration_is_frozen_and_comes_back_from_its_json():
    config = LandmarkConfig.from_preset('paper-half', rec_train=['a.rec'], rec_val=('b.rec', 'c.rec'), rank=0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert config.rec_train == ('a.rec',) and config.lr_decay_epoch == (15,) and config.preset == 'paper-half'
    assert LandmarkConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match='LandmarkConfig has no mixup'):
        LandmarkConfig.from_preset(mixup=True)
    with pytest.raises(InputError, match='`preset` half: there are paper, paper-half'):
        LandmarkConfig.from_preset('half')


def test_flags_and_python_give_the_same_configuration():
    argv = ['--model', 'lprnet_shufflenetv2_x1.0', '--rank', '1/16', '--lr-mode', 'step', '--lr-decay-epoch', '30',
            '60', '--rgb-mean', '1', '2', '3', '--mixup', '--save-dir', '/nowhere']
    config, found = parse(make_parser(ClassificationConfig, None), ClassificationConfig, argv)
    assert found is None
    assert config == ClassificationConfig.from_preset(
        model='lprnet_shufflenetv2_x1.0', rank=1 / 16, lr_mode='step', lr_decay_epoch=(30, 60), rgb_mean=(1, 2, 3),
        mixup=True, save_dir='/nowhere')
    assert (config.preset, config.num_epochs) == ('shufflenet', 400)


def test_a_training_from_python(few_images, tmp_path):
    given, _ = parse(make_parser(ClassificationConfig, None), ClassificationConfig,
                     [*few_images[ClassificationConfig], '--save-dir', str(tmp_path / 'run')])
    metrics = imagenet.train(dataclasses.replace(given, num_epochs=2, tuning_epochs=0))
    assert 0 <= metrics['top1'] <= 1
    assert (tmp_path / 'run' / 'export' / 'lprnet_mobilenet_x0.03125-symbol.json').exists()
    assert ClassificationConfig.from_run(tmp_path / 'run') == dataclasses.replace(given, num_epochs=2, tuning_epochs=0)
    with pytest.raises(InputError, match='give `resume` to go on'):
        imagenet.train(dataclasses.replace(given, num_epochs=2, tuning_epochs=0))
    with pytest.raises(InputError, match=r'`num_epochs` \(was 2, is 3\)'):
        imagenet.train(dataclasses.replace(given, num_epochs=3, tuning_epochs=0), resume=True)
    assert imagenet.train(dataclasses.replace(given, num_epochs=2, tuning_epochs=0), resume=True) == metrics


def test_no_configuration_of_a_run(tmp_path):
    with pytest.raises(InputError, match='config.json is not the configuration of a run'):
        TrainingConfig.from_run(tmp_path)


# --- as commands

COMMANDS = {'train-imagenet': imagenet, 'train-face': face}


@pytest.mark.parametrize('name', COMMANDS)
def test_every_option_has_a_word_and_the_command_an_example(name):
    parser = make_command_parser()._subparsers._group_actions[0].choices[name]
    assert [action.dest for action in parser._actions if not action.help] == []
    assert f'gluon-lprnet {name} ' in parser.epilog
    assert all(len(line) <= 100 for line in parser.format_help().splitlines())


@pytest.mark.parametrize('config_class, name', zip(TRAINERS, COMMANDS))
def test_the_command_is_the_script(config_class, name, few_images, tmp_path, monkeypatch):
    seen = []

    def note(config, build_task, resume):
        seen.append((config, resume))
    monkeypatch.setattr(command, 'train', note)
    argv = [*few_images[config_class], '--save-dir', str(tmp_path / 'run')]
    assert TRAINERS[config_class].main(argv) == 0
    assert not main([name, *argv])
    assert seen[0] == seen[1] and not seen[0][1]
    assert main([name, *argv, '--resume']) == 2


@pytest.mark.parametrize('module', ['imagenet', 'face'])
def test_a_module_run_by_name_is_the_script(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['-m', '--help'])
    monkeypatch.delitem(sys.modules, f'gluon_lprnet.train.{module}')
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f'gluon_lprnet.train.{module}', run_name='__main__')
    assert stop.value.code == 0 and '--init-from' in capsys.readouterr().out


def test_one_command_begins_and_goes_on(few_images, tmp_path, capsys):
    argv = ['train-imagenet', *few_images[ClassificationConfig], '--preset', 'cifar10', '--num-epochs', '2',
            '--tuning-epochs', '0', '--save-dir', str(tmp_path / 'run'), '--resume', 'auto']
    assert not main(argv)
    assert 'resumed' not in capsys.readouterr().err
    # As a scheduler starts it again.
    assert not main(argv)
    assert 'resumed from' in capsys.readouterr().err
    assert len((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()) == 2
