"""What version 0.1 wrote still loads and answers as it did then; ``fixtures/v0.1/make.sh`` says how it was made."""
import json
import shutil
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.faces.records import check_face_records, read_face_records
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.recordio import read_records
from gluon_lprnet.train import face, imagenet

FOLDER = Path(__file__).parent / 'fixtures' / 'v0.1'
OUTPUTS = np.load(FOLDER / 'outputs.npz')
LABELS = np.load(FOLDER / 'labels.npz')
NOISE = np.random.default_rng(0).normal(0, 1, (2, 3, 32, 32)).astype('float32')


def assert_close(found, expected):
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize('path', OUTPUTS.files)
def test_networks(path):
    """Checkpoints, the exports of a training and of ``export``, and what ``compress`` wrote."""
    net, description = load_network(FOLDER / path)
    assert_close(net(mx.nd.array(NOISE)).asnumpy(), OUTPUTS[path])
    assert description['input_size'] == 32 and description['rgb_mean'] == [123.68, 116.779, 103.939]
    if 'landmarks' not in path:
        assert description['class_names'] == ['disc', 'square']


@pytest.mark.parametrize('task', ['classification', 'landmarks'])
def test_a_run_is_found_by_its_folder(task):
    checkpoint, = (path for path in OUTPUTS.files if path.startswith(f'{task}/checkpoints'))
    assert_close(load_network(FOLDER / task)[0](mx.nd.array(NOISE)).asnumpy(), OUTPUTS[checkpoint])


@pytest.mark.parametrize('task', ['classification', 'landmarks'])
def test_onnx(task):
    onnxruntime = pytest.importorskip('onnxruntime')
    file, = (FOLDER / 'exported' / task).glob('*.onnx')
    found, = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider']).run(None, {'data': NOISE})
    assert_close(found, OUTPUTS[f'exported/{task}/{file.stem}-symbol.json'])


def test_records():
    summary = check_records(FOLDER / 'records' / 'shapes.rec', num_classes=2)
    assert (summary.count, summary.class_counts) == (16, {0: 8, 1: 8}) and 'CRC-32' in summary.verified
    assert [label for label, _ in read_records(summary.path)] == LABELS['shapes'].tolist()


def test_records_of_faces():
    path = FOLDER / 'records' / 'faces.rec'
    assert check_face_records(path).count == 6
    faces = list(read_face_records(path))
    np.testing.assert_array_equal([each.landmarks.ravel() for each in faces], LABELS['faces'][:, :136])
    np.testing.assert_array_equal([each.pose for each in faces], LABELS['faces'][:, 140:143])
    assert [each.pixels().shape for each in faces] == [(64, 64, 3)] * 6
    assert sorted(each.name for each in faces)[0] == 'OTHER/drawn_000000.jpg'


@pytest.mark.parametrize('task, training, records', [('classification', imagenet, 'shapes'),
                                                     ('landmarks', face, 'faces')])
def test_a_training_goes_on(task, training, records, tmp_path, capsys):
    """Its last epoch is missing; resumed, it ends with the network that version 0.1 ended with."""
    run, rec = tmp_path / 'run', str(FOLDER / 'records' / f'{records}.rec')
    shutil.copytree(FOLDER / task, run)
    shutil.rmtree(run / 'export')
    resume = ['--save-dir', str(run), '--resume', '--rec-train', rec, '--rec-val', rec]
    assert training.main(resume) == 2
    assert 'trainer.states is a pickle' in capsys.readouterr().err
    assert not training.main([*resume, '--allow-pickle'])
    symbol, = (run / 'export').glob('*-symbol.json')
    expected = OUTPUTS[f'{task}/export/{symbol.name}']
    # One epoch in float32, on a processor that may add up in another order.
    np.testing.assert_allclose(load_network(symbol)[0](mx.nd.array(NOISE)).asnumpy(), expected, rtol=0,
                               atol=1e-3 * abs(expected).max())
    written = json.loads((FOLDER / task / 'metrics.jsonl').read_text().splitlines()[-1])
    found = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    assert (found['epoch'], found['step']) == (written['epoch'], written['step'])
    assert found['loss'] == pytest.approx(written['loss'], rel=1e-3)
