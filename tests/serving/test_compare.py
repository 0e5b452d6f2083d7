"""Evaluate, predict and the server side by side."""
import re

import numpy as np
import pytest
from PIL import Image
from reference.artifacts import expected_probabilities
from reference.pictures import every_kind, pen_drawing

from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.pack import convert_file
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.serving import compare as compare_module
from gluon_lprnet.serving.compare import compare
from gluon_lprnet.utils.errors import InputError


def without_java():
    raise InputError('the server needs Java: install it.')


@pytest.fixture
def folder(tmp_path):
    for number, (name, (data, extension)) in enumerate(every_kind().items()):
        (tmp_path / f'{number:02} {name}.{extension}').write_bytes(data)
    return tmp_path


def test_evaluate_sees_what_predict_sees_of_every_kind_of_picture(artifacts, folder):
    """Records hold JPEGs: what is none loses a little, and nothing else differs."""
    _, description = load_network(artifacts[0])
    std = np.array(description['rgb_std']).reshape(3, 1, 1)
    paths = sorted(folder.iterdir())
    write_records(folder / 'set', [(0, convert_file(path, 0, 95)) for path in paths])
    batch = next(validation_batches(check_records(folder / 'set.rec'), description, len(paths), 1).epoch(0))
    for path, found in zip(paths, batch.data.asnumpy()):
        difference = np.abs(found - preprocess(path, description).asnumpy()[0]) * std
        is_kept = path.suffix in ('.jpg', '.jpeg') and not any(name in path.name for name in (
            'turned', 'progressive', 'CMYK', 'gray', 'orientation6'))
        assert difference.mean() < (0.1 if is_kept else 4), path.name


def test_predict_has_its_own_answers_and_evaluate_those_to_a_jpegs_loss(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, 'find_java', without_java)
    paths = [tmp_path / name for name in ('kept.jpg', 'turned.jpg')]
    for path, kind in zip(paths, ('JPEG', 'turned JPEG')):
        path.write_bytes(every_kind()[kind][0])
    compared = compare(artifacts[0], paths)
    assert compared.paths == [str(path) for path in paths] and compared.server is None
    np.testing.assert_allclose(compared.predict, [expected_probabilities(artifacts[0], path) for path in paths],
                               atol=1e-6)
    np.testing.assert_allclose(compared.evaluate[0], compared.predict[0], atol=1e-3)
    assert np.abs(compared.predict[0] - compared.predict[1]).max() > 1e-3


def test_the_command_prints_the_largest_difference_first(artifacts, folder, monkeypatch, capsys):
    monkeypatch.setattr(compare_module, 'find_java', without_java)
    (folder / 'half.jpg').write_bytes(every_kind()['JPEG'][0][:500])
    assert main(['compare', str(folder), '--network', str(artifacts[0])]) == 1
    output = capsys.readouterr()
    differences = [float(each) for each in re.findall(r'(\d\.\de-\d\d)$', output.out, re.MULTILINE)]
    assert len(differences) >= 22 and differences == sorted(differences, reverse=True)
    assert re.search(f'evaluate and predict: another class for [0-9]+ of {len(differences)} pictures', output.out)
    assert 'Without the server: the server needs Java' in output.out
    assert 'half.jpg does not decode' in output.err


def test_shrinking_before_packing_is_seen(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, 'find_java', without_java)
    path = tmp_path / 'drawing.png'
    Image.fromarray(pen_drawing()).save(path)
    whole, shrunk = compare(artifacts[0], [path]), compare(artifacts[0], [path], resize=100)
    assert np.abs(whole.evaluate - whole.predict).max() < np.abs(shrunk.evaluate - shrunk.predict).max()


def test_networks_of_landmarks_are_refused(artifacts, tmp_path):
    with pytest.raises(InputError, match='is a landmark network'):
        compare(artifacts[1], [tmp_path])


def test_the_server_is_not_asked_with_an_onnx_file(tmp_path):
    with pytest.raises(compare_module._NoServer, match='does not take ONNX files'):
        compare_module._ask_server(tmp_path / 'net.onnx', tmp_path, [], 3)
