"""The benchmarks of inference run and print what they promise; times are not looked at."""
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from reference.landmark_networks import ANSWER, expected_points, loop_errors, make_network, write_faces
from reference.networks import random_network

from gluon_lprnet.complexity import count
from gluon_lprnet.deployment.export import export
from gluon_lprnet.deployment.reparametrize import reparametrize
from gluon_lprnet.graph import trace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
import layer_limits

BENCHMARKS = Path(layer_limits.__file__).parent
RUNTIMES = ['fused', 'operators'] if shutil.which('g++') else ['fused']


def run(script, *arguments):
    return subprocess.run([sys.executable, str(BENCHMARKS / script), *arguments], check=True, stdout=subprocess.PIPE,
                          text=True, env=dict(os.environ, OMP_NUM_THREADS='1')).stdout


def test_inference(tmp_path):
    pytest.importorskip('onnxruntime')
    output = run('inference.py', '--widths', '0.25', '--batch-sizes', '1', '2', '--threads', '1', '--input-size', '32',
                 '--networks', 'mobilenetv1', 'shufflenetv2', 'deployed', '--rounds', '3', '--minutes', '0.01',
                 '--runtimes', *RUNTIMES, 'onnxruntime', '--csv', str(tmp_path / 'times'))
    assert '1 thread, batch 1, 32x32' in output and '1 thread, batch 2, 32x32' in output
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in output.splitlines() if line.startswith('| ')]
    measured = {tuple(row[:2]) for row in rows if len(row) == 3 and row[0] and row[2] not in ('', '-')}
    for runtime in ('MXNet fused', 'ONNX Runtime'):
        assert {(runtime, 'MobileNetV1'), (runtime, 'LPRNet deployed')} <= measured
        assert (runtime, 'ShuffleNetV2') not in measured, 'there is no ShuffleNetV2 x0.25'
    aims = [row for row in rows if row[-1] in ('met', 'missed')]
    # Speed over MobileNetV1 at batch 1, and time over ONNX Runtime's at both.
    wanted = [['x0.25', '1'], ['x0.25', '1'], ['x0.25', '2']] if 'operators' in RUNTIMES else []
    assert [row[1:3] for row in aims] == wanted
    found = {}
    for name in ('', '_ratios', '_aims'):
        with (tmp_path / f'times{name}.csv').open(newline='') as file:
            found[name] = list(csv.DictReader(file))
    assert {(row['batch'], row['runtime'], row['network']) for row in found['']} == {
        (batch, runtime, network) for batch in '12' for runtime, network in measured if '/' not in network}
    assert all(float(row['lower_quartile_ms']) <= float(row['median_ms']) for row in found[''])
    assert Counter(row['runtime'] for row in found['_ratios']) == dict.fromkeys((runtime for runtime, _ in measured), 2)
    assert [row['verdict'] for row in found['_aims']] == [row[-1] for row in aims]


def test_int8():
    pytest.importorskip('onnxruntime')
    output = run('int8.py', '--widths', '0.25', '--input-size', '32', '--networks', 'lprnet_mobilenet', '--rounds', '3')
    row, = ([cell.strip() for cell in line.split('|')[1:-1]] for line in output.splitlines() if ' x0.25' in line)
    assert row[0] == 'lprnet_mobilenet x0.25' and all(float(cell) > 0 for cell in row[1:6])
    # Without MobileNetV1 there is nothing to be faster than.
    assert row[6] == '-'
    assert set(row[7].split(', ')) <= {'none', 'convolution', 'depthwise', 'pointwise', 'low-rank', 'dense'}


def test_layers_of_the_limits_are_those_that_are_counted():
    net = random_network('lprnet_mobilenet_x0.5')
    symbol, _ = reparametrize(*trace(net))
    found = layer_limits.layers(symbol, 96)
    counted = count(symbol, (1, 3, 96, 96))
    weighted = [layer for layer in found if layer.kind not in ('normalization', 'average')]
    assert [layer.multiply_adds for layer in weighted] == [
        layer.multiply_adds for layer in counted.layers if layer.operator in ('Convolution', 'FullyConnected')]
    assert Counter(layer.kind for layer in found) == {
        'first': 1, 'depthwise': 13, 'P1': 8, 'normalization': 8, 'P2': 8, 'pointwise': 5, 'average': 1, 'dense': 1}
    # Image and first feature map; the whole of what the sums read and write; weights alone.
    weights = 4 * 27 * 16
    assert found[0].bytes == 4 * (3 * 96 * 96 + 16 * 48 * 48) + weights
    wide = next(layer for layer in found if layer.kind == 'P2')
    assert wide.bytes == 4 * (2 * wide.outputs * wide.height * wide.width + wide.inputs * wide.outputs)
    assert found[-1].bytes == 4 * 512 * 10


@pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')
def test_layer_limits():
    output = run('layer_limits.py', '--width', '0.25', '--input-size', '64', '--rounds', '2')
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in output.splitlines() if line.startswith('| ')]
    assert [row[1] for row in rows[1:]] == ['1', '13', '8', '8', '8', '5', '1', '1', '45', '45']
    assert re.search(r'\d+G multiply-adds a second, \d+ GB/s', output)


def test_onnx_runtimes(tmp_path):
    pytest.importorskip('onnxruntime')
    files = export('lprnet_mobilenet_x0.5.cifar10', tmp_path, ('deployed',), ('onnx',))
    output = run('onnx_runtimes.py', next(str(file) for file in files if file.suffix == '.onnx'), '--batch-sizes', '1',
                 '3')
    opencv, = (line for line in output.splitlines() if line.startswith('cv2.dnn'))
    differences = [float(each) for each in re.findall(r'\d\.\de[+-]\d\d', opencv)]
    assert len(differences) == 2 and 0 < max(differences) < 1e-4


def test_faces(tmp_path):
    network = make_network(tmp_path / 'network')
    rec, faces = write_faces(tmp_path / 'faces', [0, 20, -40, 70])
    results = json.loads(run('faces.py', str(network), '--rec', rec, '--turn', rec, '--faces', '3', '--format', 'json'))
    (label, found), = results.items()
    truth = [face.to_original(face.landmarks.astype('float64')) for face in faces]
    errors = loop_errors(expected_points(faces), truth)
    row, = found['sets']
    assert (label, row['set'], row['own'], row['bin_faces']) == ('lprnet_mobilenet_x0.25', 'faces', True, [2, 1, 1])
    assert row['mean'] == pytest.approx(np.mean(errors), rel=1e-4)
    roll = found['turned']['roll']
    # The network answers the same whatever it sees: in the dark too, and in the box of the turned landmarks.
    assert found['turned']['dark'] == pytest.approx(roll['0'], rel=1e-4)
    assert roll['0'] == pytest.approx(np.mean(errors[:3]), rel=1e-4)
    expected = []
    for sign in (1, -1):
        # x to the right and y down: counterclockwise as it is seen takes (x, y) to (y, -x).
        points = [np.stack([face.landmarks[:, 1], -face.landmarks[:, 0]], axis=1) * sign for face in faces[:3]]
        answers = []
        for each in points:
            low, high = each.min(axis=0), each.max(axis=0)
            answers.append((low + high) / 2 + ANSWER * (high - low).max())
        expected += loop_errors(answers, points)
    assert roll['90'] == pytest.approx(np.mean(expected), rel=1e-4)
    table = run('faces.py', str(network), '--rec', rec)
    assert f'{100 * np.mean(errors):.2f}' in table and 'turned' not in table.split('set', 1)[1]


FAKE_DLIB = """
import numpy as np
print('words on standard output')
class rectangle:
    def __init__(self, left, top, right, bottom):
        self.edges = left, top, right, bottom
class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y
class shape_predictor:
    def __init__(self, path):
        assert path.endswith('models/shape_predictor_68_face_landmarks.dat'), path
    def __call__(self, picture, box):
        # A pixel's color, and the box.
        left, top, right, bottom = box.edges
        points = [Point(left + number, int(picture[3, 5, number % 3])) for number in range(67)] + [Point(right, bottom)]
        return type('Shape', (), {'parts': lambda self: points})()
"""


def test_a_peer_beside_ours(tmp_path):
    """A stand-in for dlib in an environment of its own: what it is asked, and the NME of what it answers."""
    packages = tmp_path / 'packages'
    for name, version in (('dlib_bin', '20.0'), ('face_recognition_models', '0.3')):
        (packages / f'{name}-{version}.dist-info').mkdir(parents=True)
        (packages / f'{name}-{version}.dist-info' / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
    (packages / 'dlib.py').write_text(FAKE_DLIB)
    (packages / 'face_recognition_models').mkdir()
    (packages / 'face_recognition_models' / '__init__.py').touch()
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    network = make_network(tmp_path / 'network')
    rec, faces = write_faces(tmp_path / 'faces', [0, 20, -40, None])
    arguments = ['faces.py', str(network), '--rec', rec, '--faces', '3', '--peer', 'dlib', str(python)]
    label, flipped, peer = rows = json.loads(run(*arguments, '--format', 'json'))
    name = 'lprnet_mobilenet_x0.25'
    assert [row['aligner'] for row in rows] == [name, f'{name}, flip', 'dlib-bin 20.0']
    answers = []
    for face in faces[:3]:
        left, top, right, bottom = face.box
        side = max(right - left, bottom - top)
        x, y = (left + right) / 2, (top + bottom) / 2 - 0.05 * side
        left, top, right, bottom = (round(edge) for edge in (
            x - 0.55 * side, y - 0.55 * side, x + 0.55 * side, y + 0.55 * side))
        answers.append([[left + number, face.pixels()[3, 5, number % 3]] for number in range(67)] + [[right, bottom]])
    errors = loop_errors(answers, [face.landmarks for face in faces[:3]])
    assert peer['mean'] == pytest.approx(np.mean(errors), rel=1e-5)
    assert peer['bin_nme'] == [pytest.approx(np.mean(errors[:2]), rel=1e-5), pytest.approx(errors[2], rel=1e-5), None]
    truth = [face.to_original(face.landmarks) for face in faces[:3]]
    assert label['mean'] == pytest.approx(np.mean(loop_errors(expected_points(faces[:3]), truth)), rel=1e-4)
    assert flipped['answered'] == peer['answered'] == 1 and min(row['milliseconds'] for row in rows) > 0
    table = run(*arguments)
    assert 'dlib-bin 20.0' in table and f'{100 * np.mean(errors):.2f}' in table


def test_a_peer_that_is_not_installed_is_left_out(tmp_path):
    rec, _ = write_faces(tmp_path / 'faces', [0])
    network = make_network(tmp_path / 'network')
    done = subprocess.run([sys.executable, str(BENCHMARKS / 'faces.py'), str(network), '--rec', rec, '--peer', 'dlib',
                           str(tmp_path / 'none'), '--peer', 'mediapipe', '/bin/false'],
                          check=True, capture_output=True, text=True)
    assert 'dlib is left out' in done.stderr and 'cannot be run' in done.stderr
    assert 'mediapipe is left out: it ended with status 1.' in done.stderr
    assert 'lprnet_mobilenet_x0.25' in done.stdout and 'dlib' not in done.stdout


def test_video(shared_data):
    faces = shared_data / '300w' / 'test'
    if not faces.is_dir():
        pytest.skip(f'no photos at {faces}')
    results = json.loads(run('video.py', str(faces), '--faces', '1', '--seconds', '1', '--format', 'json'))
    smoothed, found = results['smoothed'], results['as found']
    assert smoothed['jitter'] < 0.8 * found['jitter'] and 0 < found['still_nme'] < found['moving_nme'] * 1.5 < 0.15
    # A frame is 33 ms.
    assert abs(found['lag']) < smoothed['lag'] < 0.033
    for way in results.values():
        assert way['followed'] == way['numbers_per_video'] == 1
    (row,) = json.loads(run('video.py', str(faces), '--memory', '0.05', '--format', 'json'))
    assert row['frames'] == row['frames_with_face'] == 15 and row['peak_mb'] > 50


def test_aligning(tmp_path):
    """Faces of noise: a network that answers the same in every box is right about none of them."""
    rec, faces = write_faces(tmp_path / 'faces', [0, 20])
    results = json.loads(run('aligning.py', '--network', str(make_network(tmp_path / 'network')), '--rec', rec,
                             '--faces', '2', '--angles', '0', '90', '--format', 'json'))
    rows = {(row['way'], row['angle']): row for row in results['turned']}
    assert len(rows) == 6 and all(row['right'] == 0 and row['faces'] == 2 for row in rows.values())
    # In boxes that are given a face is always found.
    assert rows['true boxes', 0]['found'] == rows['true boxes', 90]['found'] == 1
    assert results['confidence']['faces'] == 2 and results['confidence']['right'] == 0
    assert sum(part['faces'] for part in results['confidence']['parts']) == 2


def test_profile():
    pytest.importorskip('onnxruntime')
    output = run('profile_inference.py', '--width', '0.25', '--input-size', '32', '--networks', 'deployed',
                 '--runtimes', *RUNTIMES, 'onnxruntime')
    rows = [[cell.strip() for cell in line.split('|')[1:3]] for line in output.splitlines() if line.startswith('| ')]
    assert ['L2Normalization', '8'] in rows
    assert rows.count(['low-rank P1, P2', '16']) == 2
    assert (['whole network', '1'] in rows) == ('operators' in RUNTIMES)


@pytest.mark.parametrize('script, network', [('huge_pages.py', 'lprnet_mobilenet_x0.25'),
                                             ('training_forms.py', 'mnasnet_x0.5')])
def test_two_speeds_of_training(script, network):
    output = run(script, network, '--batch-size', '4', '--rounds', '1')
    (row,) = [line for line in output.splitlines() if network in line]
    usual, other, ratio = map(float, row.split('|')[2:5])
    assert usual > 0 and ratio == pytest.approx(other / usual, rel=0.2)


@pytest.mark.slow
def test_distributed():
    alone = ['unshare', '--map-root-user', '--net', 'ip', 'link', 'set', 'lo', 'up']
    if not shutil.which('unshare') or subprocess.run(alone, capture_output=True).returncode:
        pytest.skip('a network of its own for the workers cannot be had by unshare and ip')
    output = run('distributed.py', '--models', 'lprnet_mobilenet_x0.25', '--input-size', '32', '--batch-size', '2',
                 '--steps', '2', '--gigabits', '1', '--stated', '100', '50')
    measured, paper = ([[cell.strip().replace(',', '') for cell in line.split('|')[1:-1]]
                        for line in table.splitlines()[2:]] for table in output.split('\n\n'))
    alone, plain, in_2_bits = ([float(cell) for cell in row[3:]] for row in measured)
    assert alone[2] == 0 and 1e5 < alone[1] == plain[1] == in_2_bits[1]
    # A gradient and a sum of 4 bytes a parameter each; 2 of 32 bits of the first. The rest is of the messages.
    assert 2 <= plain[2] / (4 * plain[1]) < 2.1 and 1 + 1 / 16 <= in_2_bits[2] / (4 * in_2_bits[1]) < 1.2
    stated = {(row[1], int(row[2])): [float(cell) for cell in row[5:]] for row in paper}
    assert len(paper) == 12 and len(stated) == 12
    for threshold, (_, _, exchanged, _) in (('', plain), ('0.5', in_2_bits)):
        transfer = exchanged * 8 / 1e9
        for workers in (8, 256):
            assert stated[threshold, workers] == pytest.approx(
                [workers * 100 / max(0.05, transfer), workers * 100 / (0.05 + transfer)], abs=1)


@pytest.mark.slow
def test_scale(tmp_path):
    output = run('scale.py', '--counts', '70', '--folder', str(tmp_path))
    jobs = [line.split('|')[1].strip() for line in output.splitlines() if '| 70' in line]
    assert jobs == ['pack', 'im2rec', 'start, by the index', 'start, all read', 'start, by the stamp', 'check',
                    'start, by headers']
    assert not list(tmp_path.iterdir())
