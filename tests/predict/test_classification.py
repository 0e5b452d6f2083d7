"""Classes of pictures: by the API from files, bytes and pixels, and by the command in its forms."""
import csv
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from reference.artifacts import CLASSES, expected_probabilities
from reference.commands import command

import gluon_lprnet
from gluon_lprnet.data.imagenet_names import in_words
from gluon_lprnet.predict import classification
from gluon_lprnet.predict.classification import Classifier, read_names
from gluon_lprnet.utils.errors import InputError


@pytest.fixture(scope='module')
def folder(photos, tmp_path_factory):
    """Forty pictures, more than pass at once, in two folders, with a text beside them."""
    folder = tmp_path_factory.mktemp('pictures')
    (folder / 'inner').mkdir()
    for number in range(40):
        pixels = np.asarray(Image.open(io.BytesIO(photos[number % len(photos)])).convert('RGB'))
        Image.fromarray(np.roll(pixels, number * 5, axis=1)).save(folder / ('inner' if number % 2 else '.')
                                                                   / f'{number:02}.png')
    (folder / 'notes.txt').write_text('no picture')
    return folder


@pytest.fixture(scope='module')
def files(folder):
    return sorted(folder.rglob('*.png'))


@pytest.fixture(scope='module')
def expected(artifacts, files):
    """By NumPy's own sorting from the network alone, a picture at a time."""
    return {file: expected_probabilities(artifacts[0], file) for file in files}


def assert_same(results, expected):
    for result, probabilities in zip(results, expected):
        order = np.argsort(-probabilities)[:len(result)]
        assert [each.index for each in result] == order.tolist()
        assert [each.label for each in result] == [CLASSES[index] for index in order]
        assert np.allclose([each.probability for each in result], probabilities[order], atol=1e-6)


def test_files_bytes_and_pixels_give_the_same(artifacts, files, expected):
    classifier = gluon_lprnet.load(artifacts[0])
    wanted = [expected[file] for file in files]
    assert np.ptp(wanted, axis=0).max() > 0.01
    assert_same(classifier.predict(files), wanted)
    assert_same(classifier.predict([file.read_bytes() for file in files], top_k=1), wanted)
    assert_same(classifier.predict([np.asarray(Image.open(file)) for file in files], top_k=99), wanted)
    assert [len(result) for result in classifier.predict(files[0], top_k=99)] == [3]
    content = files[0].read_bytes()
    for same in (bytearray(content), memoryview(content), iter([bytearray(content)])):
        assert_same(classifier.predict(same), wanted[:1])
    with pytest.raises(InputError, match='picture 1 is empty'):
        classifier.predict([files[0].read_bytes(), b''])
    for other, message in ((None, 'is neither a path, nor bytes, nor an array: it is a NoneType'),
                           (Image.open(files[0]), 'it is a PngImageFile'), ('a\0b', 'cannot be read: .* null')):
        with pytest.raises(InputError, match=message):
            classifier.predict(other)
    with pytest.raises(InputError, match='`top_k` -1: give 1 or more'):
        classifier.predict(files[0], top_k=-1)


@pytest.mark.parametrize('pixels', [
    np.zeros((60, 80), 'uint8'), np.zeros((60, 80, 1), 'uint8'), np.zeros((60, 80, 4), 'uint8'),
    np.zeros((60, 80, 3), 'float32'), np.zeros((2, 60, 80, 3), 'uint8'), np.zeros((0, 80, 3), 'uint8')])
def test_arrays_that_are_not_rgb_pixels_are_named(artifacts, pixels):
    good = np.zeros((60, 80, 3), 'uint8')
    for network in artifacts:
        with pytest.raises(InputError, match=r'picture 1 is not RGB pixels \(height, width, 3\) uint8: it is an array'):
            gluon_lprnet.load(network).predict([good, pixels])


def test_threads_do_not_disturb_each_other(artifacts, files, expected):
    classifier = Classifier(artifacts[0])
    found = {}

    def predict(number):
        part = files[number::4] * 3
        found[number] = part, classifier.predict(part)

    threads = [threading.Thread(target=predict, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for part, results in found.values():
        assert_same(results, [expected[file] for file in part])


def test_a_bad_picture_does_not_end_the_command(artifacts, folder, files, expected, tmp_path, capsys):
    bad = tmp_path / 'half.jpg'
    buffer = io.BytesIO()
    Image.open(files[0]).save(buffer, 'JPEG')
    bad.write_bytes(buffer.getvalue()[:len(buffer.getvalue()) // 2])
    arguments = ('predict', bad, folder, tmp_path / 'none.png', '--network', artifacts[0], '--top-k', 2)
    assert command(classification, *arguments, '--json') == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert 'cut off' in lines[0]['error'] and 'does not exist' in lines[-1]['error']
    assert [line['image'] for line in lines[1:-1]] == list(map(str, files))
    for line, file in zip(lines[1:-1], files):
        assert_same([[classification.Prediction(**each) for each in line['classes']]], [expected[file]])
    assert '42 images in' in err and '2 could not be read' in err

    assert command(classification, *arguments, '--csv') == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row['image'], row['rank']) for row in rows] == [(str(file), rank) for file in files for rank in '12']
    assert float(rows[0]['probability']) == pytest.approx(expected[files[0]].max(), abs=1e-6)

    assert command(classification, 'predict', files[0], '--network', artifacts[0], '--top-k', 1) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(files[0]), f'  {expected[files[0]].max():.4f}  {CLASSES[expected[files[0]].argmax()]}']


def test_a_network_in_the_first_place_still_works(artifacts, files, capsys):
    assert command(classification, 'predict', artifacts[0], files[0]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(str(files[0])) and f'predict {files[0]} --network {artifacts[0]}' in err


def test_a_photo_without_a_network_named(shared_data, capsys):
    photo = shared_data / 'imagenet_samples' / 'n02099601' / 'golden_retriever.JPEG'
    assert command(classification, 'predict', photo, '--top-k', 1) == 0
    assert capsys.readouterr().out.split(maxsplit=2)[2].strip() == 'golden retriever'


def test_names_by_order_and_by_wnid(artifacts, files, tmp_path, capsys):
    (tmp_path / 'plain.txt').write_text('red\ngreen\n\nblue\n')
    (tmp_path / 'synsets.txt').write_text('n00000002 second, two\nn00000001 first\n')
    assert read_names(tmp_path / 'plain.txt') == ['red', 'green', 'blue']
    assert read_names(tmp_path / 'synsets.txt', ['n00000001', 'n00000002']) == ['first', 'second']
    with pytest.raises(InputError, match='has no n00000003'):
        read_names(tmp_path / 'synsets.txt', ['n00000003'])
    with pytest.raises(InputError, match='none.txt cannot be read'):
        read_names(tmp_path / 'none.txt')
    command(classification, 'predict', files[0], '--network', artifacts[0], '--names', tmp_path / 'plain.txt')
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]} == {'red', 'green', 'blue'}
    for text, message in (('red\ngreen\n', 'has 3 classes, and there are 2 names'),
                          ('n00000001 first\n', 'has no a, ')):
        (tmp_path / 'other.txt').write_text(text)
        with pytest.raises(InputError, match=message):
            command(classification, 'predict', files[0], '--network', artifacts[0], '--names', tmp_path / 'other.txt')


def test_names_of_imagenet_by_the_ids_of_the_network(folder, files, tmp_path, capsys):
    """Its names are words already."""
    network = 'lprnet_mobilenet_x0.5.imagenette'
    description = gluon_lprnet.load(network).description
    assert command(classification, 'predict', files[0], '--network', network, '--names', 'imagenet', '--top-k', 10) == 0
    named = {line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert named == set(in_words(description['class_names']))
    (tmp_path / 'mapping.txt').write_text(''.join(f'{wnid} {wnid[::-1]}\n' for wnid in description['class_ids']))
    command(classification, 'predict', files[0], '--network', network, '--names', tmp_path / 'mapping.txt')
    assert capsys.readouterr().out.splitlines()[1].split()[1][::-1] in description['class_ids']


@pytest.mark.parametrize('network, message', [
    ('lprnet_mobilenet_x0.5.nothing', 'no trained weights for lprnet_mobilenet_x0.5 on nothing'),
    ('nowhere', 'does not exist')])
def test_what_is_no_network_is_named(files, network, message):
    with pytest.raises(InputError, match=message):
        gluon_lprnet.load(network)


def test_a_landmark_network_names_no_classes(artifacts):
    with pytest.raises(InputError, match='is a landmark network'):
        Classifier(artifacts[1])


@pytest.mark.parametrize('flag, value, message', [
    ('--crop-ratio', 1.143, 'a number from 0.1 to 1'), ('--input-size', 1, 'does not take images of 1 pixels a side')])
def test_sizes_that_cannot_be_are_named(files, flag, value, message):
    with pytest.raises(InputError, match=message):
        command(classification, 'predict', files[0], flag, value)


def test_a_folder_without_pictures_is_named(artifacts, tmp_path):
    with pytest.raises(InputError, match='holds no pictures'):
        command(classification, 'predict', tmp_path, '--network', artifacts[0])
