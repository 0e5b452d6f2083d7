"""The commands of the guides do what they say: each guide is walked through, as it stands, on drawn data.

Trainings are cut short by flags at their end. What takes a server or hours is run by the tests that RUN_BY names.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from reference.face_files import points_of, write_aflw2000, write_pts
from test_docs import ROOT, calls, shell_blocks

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.__main__ import main
from gluon_lprnet.data.faces.drawn import draw_face, write_drawn_faces
from gluon_lprnet.data.images import encode_image, encode_jpeg

GUIDES = ['README.md', 'docs/training.md', 'docs/aligning.md', 'docs/compressing.md', 'docs/deploying.md',
          'docs/reproducing.md']
# What is not walked through, and the test that runs it.
RUN_BY = {'serve': 'tests/serving/test_serve.py', 'soak': 'tests/serving/test_serve.py',
          'archive': 'tests/serving/test_handler.py', 'experiment': 'tests/paper/test_experiments.py',
          'figure2': 'tests/paper/test_experiments.py', 'import': 'tests/compression/test_originals.py',
          'benchmarks/fine_tuning.py': 'tests/compression/test_compress_benchmarks.py'}

SHORT = ['--num-epochs', '1', '--warmup-epochs', '0', '--batch-size', '8', '--input-size', '32', '--num-gpus', '0',
         '-j', '1']
SHORTENED = {'train-imagenet': [*SHORT, '--tuning-epochs', '0'], 'train-face': SHORT,
             'pack photos': ['--held-out', '20'],
             'benchmarks/loader.py': ['--batch-size', '8', '--epochs', '2', '--input-size', '32'],
             'benchmarks/scale.py': ['--counts', '70']}

CLASSES = ('cat', 'dog', 'tree')


def command_of(call):
    """The script or command of a call, and the arguments of that program."""
    program, *arguments = call
    if program == 'gluon-lprnet' or arguments[:2] == ['-m', 'gluon_lprnet']:
        arguments = arguments[2:] if program == 'python' else arguments
        return ' '.join(arguments[:2]) if arguments[0] == 'pack' else arguments[0], arguments
    return arguments[0], arguments[1:]


def write_photos(folder, count, rng):
    """Colored noise, smooth as photos are, in a folder for each class."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = cv2.resize(rng.integers(0, 160, (5, 6, 3), dtype='uint8'), (90, 72))
            noise[..., label] += 90
            (folder / name / f'{number}.jpg').write_bytes(encode_jpeg(noise))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that the guides begin with, under the names that they use."""
    rng = np.random.default_rng(0)
    for name in ('imagenet', 'photos'):
        for part in ('train', 'val'):
            write_photos(tmp_path / name / part, 40 if part == 'train' else 4, rng)
    write_photos(tmp_path / 'more_photos', 10, rng)
    write_photos(tmp_path / 'test', 4, rng)
    pictures = [draw_face(rng)[:2] for _ in range(6)]
    (tmp_path / 'folder').mkdir()
    for name, (picture, _) in zip(('photo.jpg', 'other.png', 'folder/a.jpg'), pictures):
        (tmp_path / name).write_bytes(encode_image(picture, Path(name).suffix))
    (tmp_path / '300w' / 'train').mkdir(parents=True)
    for number, (picture, landmarks) in enumerate(pictures):
        (tmp_path / '300w' / 'train' / f'{number}.jpg').write_bytes(encode_jpeg(picture))
        write_pts(tmp_path / '300w' / 'train' / f'{number}.pts', landmarks + 1)
        write_aflw2000(tmp_path / 'AFLW2000-3D', f'image{number:05}', points_of(number))
    write_drawn_faces(tmp_path / 'drawn', 12, workers=1)
    (tmp_path / 'drawn' / 'train').rename(tmp_path / '300W-LP')
    video = cv2.VideoWriter(str(tmp_path / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25, (280, 280))
    for picture, _ in pictures[:3]:
        video.write(cv2.resize(picture, (280, 280)))
    video.release()
    mx.random.seed(0)
    net = get_model('mobilenetv1_x0.25', classes=3)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, 64, 64)))
    config = dict(task='classification', model='mobilenetv1_x0.25', num_classes=3, class_names=list(CLASSES),
                  small_image=False, rank=None, no_residual=False, no_l2_norm=False, input_size=64, crop_ratio=0.875,
                  rgb_mean=[120.0] * 3, rgb_std=[60.0] * 3)
    for run in ('runs/mobilenetv1', 'runs/half', 'RUN'):
        checkpoint.save(tmp_path / run, net, mx.gluon.Trainer(net.collect_params(), 'sgd', kvstore=None),
                        {'step': 1, 'config': config})
    (tmp_path / 'data').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('guide', GUIDES)
def test_every_command_is_run_somewhere(guide, tmp_path):
    for call in calls('\n'.join(shell_blocks((ROOT / guide).read_text())), tmp_path):
        command, _ = command_of(call)
        if command in RUN_BY:
            text = (ROOT / RUN_BY[command]).read_text()
            run = f"'{command}'" if '/' not in command else f'{Path(command).stem}.'
            assert run in text, f'{RUN_BY[command]} does not run {command}'


def run_script(script, arguments):
    return subprocess.run([sys.executable, ROOT / script, *arguments], env={**os.environ, 'PYTHONPATH': str(ROOT)},
                          stdout=subprocess.DEVNULL).returncode


def needs_records(guide):
    """Guides that go on with what another one has packed."""
    return guide in ('docs/compressing.md', 'docs/deploying.md')


def write_network_of_another_program():
    """``resnet-symbol.json`` and ``resnet.onnx`` without a description, and the words of their classes."""
    assert not main(['export', 'RUN', '--out', '.', '--name', 'resnet', '--form', 'training', '--format', 'mxnet',
                     'onnx'])
    Path('resnet.json').unlink()
    Path('LOC_synset_mapping.txt').write_text('n00000001 cat, true cat\nn00000002 dog\nn00000003 tree\n')


@pytest.mark.slow
@pytest.mark.parametrize('guide', [guide for guide in GUIDES if guide != 'docs/reproducing.md'])
def test_a_guide_is_walked_through(guide, place, tmp_path_factory, capsys):
    if needs_records(guide):
        for part in ('train', 'val'):
            assert not main(['pack', 'images', f'imagenet/{part}', '--out', f'data/{part}', '--workers', '1'])
    if guide == 'docs/deploying.md':
        write_network_of_another_program()
    text = (ROOT / guide).read_text()
    done = 0
    for call in calls('\n'.join(shell_blocks(text)), tmp_path_factory.mktemp('calls')):
        command, arguments = command_of(call)
        if command in RUN_BY:
            continue
        arguments = [*arguments, *SHORTENED.get(command, [])]
        status = run_script(command, arguments) if command.endswith('.py') else main(arguments)
        assert not status, f'{" ".join(call)}\n{capsys.readouterr().err[-2000:]}'
        done += 1
    assert done


def test_the_code_of_the_readme(place):
    code, = re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code, 'README.md', 'exec'), {})
