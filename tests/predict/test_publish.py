"""A run becomes weights with a card, and these a network that answers as the run's own."""
import json

import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records
from reference.landmark_networks import ANSWER, CROP_SCALE, expected_points, loop_errors, write_faces

from gluon_lprnet import checkpoint, get_model, list_models
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.train import imagenet
from gluon_lprnet.zoo import pretrained

WORDS = ('--data', 'fifty pictures in three colors', '--command', 'python train_imagenet.py', '--license', 'free')


def test_a_run_is_published(training_flags, tiny_records, tmp_path, monkeypatch, capsys):
    assert imagenet.main(training_flags) == 0
    run, shelf, rec = tmp_path / 'run', tmp_path / 'shelf', f'{tiny_records[0]}.rec'
    (tmp_path / 'names.txt').write_text('rot\ngrün\nblau\n', encoding='utf-8')
    command = ['publish', str(run), '--tag', 'colors', '--rec-test', rec, *WORDS, '--names',
               str(tmp_path / 'names.txt'), '--out', str(shelf)]
    assert not main(command)
    monkeypatch.setattr(pretrained, 'FOLDER', shelf)
    assert list_models(pretrained=True) == ['lprnet_mobilenet_x0.25.colors']
    card, = pretrained.cards()
    assert card.facts['accuracy']['tiny']['top1'] == pytest.approx(epoch_records(run)[-1]['val_top1'])
    assert card.facts['accuracy']['tiny']['images'] == 50 and card.facts['license'] == 'free'
    assert card.facts['recipe']['num_epochs'] == 3 and str(tmp_path) not in json.dumps(card.facts)
    assert all(card.facts[key] for key in ('data', 'command', 'machine', 'date', 'sha256'))
    assert not list(shelf.glob('.*'))
    # Of several for a name, the data set's name tells.
    assert not main([*command[:3], 'tones', *command[4:]])
    assert list_models(pretrained=True) == ['lprnet_mobilenet_x0.25.colors', 'lprnet_mobilenet_x0.25.tones']
    images = mx.nd.random.normal(shape=(2, 3, 16, 16))
    own = load_network(run)[0](images).asnumpy()
    net, description = load_network('lprnet_mobilenet_x0.25.colors')
    assert np.ptp(own, axis=0).max() > 0
    for published in (net, get_model('lprnet_mobilenet_x0.25', pretrained='colors')):
        assert np.abs(published(images).asnumpy() - own).max() < 1e-5
    assert description['class_names'] == ['rot', 'grün', 'blau'] and description['input_size'] == 16


def test_nothing_is_left_of_what_fails(training_flags, tiny_records, tmp_path, capsys):
    assert imagenet.main([*training_flags, '--num-epochs', '1', '--tuning-epochs', '0', '--warmup-epochs', '0']) == 0
    command = ['publish', str(tmp_path / 'run'), '--tag', 'colors', *WORDS, '--out', str(tmp_path / 'shelf'),
               '--rec-test']
    (tmp_path / 'shelf').mkdir()
    for rec, names, message in ((tmp_path / 'none.rec', None, 'none.rec does not exist'),
                                (f'{tiny_records[0]}.rec', 'a\nb\n', 'has 3 classes, and 2 have names')):
        (tmp_path / 'names.txt').write_text(names or '')
        assert main([*command, str(rec), *(['--names', str(tmp_path / 'names.txt')] if names else [])]) == 2
        assert message in capsys.readouterr().err and not list((tmp_path / 'shelf').iterdir())


@pytest.mark.parametrize('run, tag, message', [('nothing', 'colors', 'neither a checkpoint nor a run'),
                                               ('nothing', '3d', '--tag')])
def test_what_cannot_be_published_is_named(run, tag, message, tmp_path, capsys):
    assert main(['publish', str(tmp_path / run), '--tag', tag, '--rec-test', 'none.rec', *WORDS]) == 2
    assert message in capsys.readouterr().err


def test_a_landmark_network_is_published(tmp_path, monkeypatch, capsys):
    """Its answer is the same whatever it sees, so that the NME on the card is that of plain loops."""
    net = get_model('lprnet_mobilenet_x0.25', classes=136, l2_norm_scale='one')
    net.initialize(mx.init.Xavier())
    net.output.weight.set_data(mx.nd.zeros(net.output.weight.shape))
    net.output.bias.set_data(mx.nd.array(ANSWER.ravel() / CROP_SCALE))
    config = dict(task='landmarks', model='lprnet_mobilenet_x0.25', num_classes=136, small_image=False, rank=None,
                  no_residual=False, no_l2_norm=False, l2_norm_scale='one', input_size=32, crop_scale=CROP_SCALE,
                  rgb_mean=[124.0, 117.0, 104.0], rgb_std=[58.0, 57.0, 57.0])
    checkpoint.save(tmp_path / 'run', net, mx.gluon.Trainer(net.collect_params(), 'adam', kvstore=None),
                    {'step': 1, 'config': config})
    rec, faces = write_faces(tmp_path / 'faces', [0, 20, -40, 70])
    (tmp_path / 'facts.json').write_text('{"chosen by": "nothing", "license": "another"}')
    command = ['publish', str(tmp_path / 'run'), '--tag', 'faces', '--rec-test', rec, *WORDS, '--out',
               str(tmp_path / 'shelf')]
    assert not main([*command, '--facts', str(tmp_path / 'facts.json')])
    monkeypatch.setattr(pretrained, 'FOLDER', tmp_path / 'shelf')
    card, = pretrained.cards()
    assert card.keywords == {'classes': 136, 'l2_norm_scale': 'one'} and card.facts['task'] == 'landmarks'
    assert card.facts['chosen by'] == 'nothing' and card.facts['license'] == 'free'
    found = card.facts['accuracy']['faces']
    errors = 100 * np.array(loop_errors(expected_points(faces),
                                        [face.to_original(face.landmarks.astype('float64')) for face in faces]))
    assert found['faces'] == 4 and found['jaw of the network']['nme_percent'] == pytest.approx(errors.mean(), abs=0.006)
    assert found['jaw of the network']['nme_percent_by_yaw'] == pytest.approx(
        [errors[:2].mean(), errors[2], errors[3]], abs=0.006)
    assert load_network('lprnet_mobilenet_x0.25.faces')[1]['crop_scale'] == CROP_SCALE
    (tmp_path / 'facts.json').write_text(json.dumps(card.facts))
    assert main([*command, '--facts', str(tmp_path / 'facts.json')]) == 2
    assert 'has accuracy, date, description, keywords, name, recipe, sha256, task, which' in capsys.readouterr().err
    assert main([*command, '--names', str(tmp_path / 'facts.json')]) == 2
    assert '--names is for classes' in capsys.readouterr().err
