"""What a network gets wrong, against counts in plain loops: by class, as a matrix, and the pictures themselves."""
import csv
import io
import json

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_lprnet import get_model
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import export_network
from gluon_lprnet.data.imagenet_names import imagenet_names
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import read_records
from gluon_lprnet.evaluate.classification import Answers
from gluon_lprnet.evaluate.report import by_class, confusion_matrix, draw_confusion
from gluon_lprnet.predict.classification import Classifier

NAMES = ['red', 'green', 'blue']


@pytest.fixture(scope='module')
def network(tiny_records, tmp_path_factory):
    """Of random weights, with answers that vary."""
    mx.random.seed(1)
    net = get_model('lprnet_mobilenet_x0.25', classes=3)
    net.initialize(mx.init.Xavier())
    outputs = net(mx.nd.array((tiny_records[1].transpose(0, 3, 1, 2) - 120.0) / 60)).asnumpy()
    # Untrained, it would answer nearly the same to every picture.
    scale = 2 / outputs.std(axis=0).mean()
    net.output.weight.set_data(net.output.weight.data() * scale)
    net.output.bias.set_data(mx.nd.array(-outputs.mean(axis=0) * scale))
    return export_network(net, dict(task='classification', model='lprnet_mobilenet_x0.25', num_classes=3, input_size=16,
                                    crop_ratio=1.0, rgb_mean=[120.0] * 3, rgb_std=[60.0] * 3, class_names=NAMES),
                          tmp_path_factory.mktemp('network'))


@pytest.fixture(scope='module')
def folder(tiny_records, tmp_path_factory):
    """The pictures of the records, as JPEGs in a folder for each class."""
    _, images, labels = tiny_records
    folder = tmp_path_factory.mktemp('folders')
    for number, (image, label) in enumerate(zip(images, labels)):
        path = folder / NAMES[label] / f'{number:02}.jpg'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_jpeg(image))
    return folder


@pytest.fixture(scope='module')
def expected(network, tiny_records):
    """The answers of ``predict`` to the records' own pictures: (class, probability) of each."""
    found = Classifier(network).predict([image for _, image in read_records(f'{tiny_records[0]}.rec')], top_k=1)
    said = [(best.index, best.probability) for best, in found]
    assert len({index for index, _ in said}) == 3
    return said


def test_by_class_and_matrix_count_as_loops_do():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 7, 300), rng.integers(0, 9, 300)
    answers = Answers(labels, predicted, rng.random(300), labels == predicted, 9)
    matrix = [[sum(label == row and said == column for label, said in zip(labels, predicted)) for column in range(9)]
              for row in range(9)]
    assert confusion_matrix(answers).tolist() == matrix
    rows = by_class(answers, list('abcdefghi'))
    assert sorted(row['index'] for row in rows) == list(range(7))
    assert [row['top1'] for row in rows] == sorted(row['top1'] for row in rows)
    for row in rows:
        counts = matrix[row['index']]
        others = [count for index, count in enumerate(counts) if index != row['index']]
        assert row['images'] == sum(counts) and row['top1'] == counts[row['index']] / sum(counts)
        assert row['times'] == max(others) == counts['abcdefghi'.index(row['taken_for'])]


def test_the_command_reports_what_predict_answers(network, tiny_records, expected, tmp_path, capsys):
    prefix, _, labels = tiny_records
    arguments = ['evaluate', f'{prefix}.rec', '--network', str(network), '--per-class']
    assert not main([*arguments, '--format', 'json', '--confusion', str(tmp_path / 'matrix.png'), '--worst',
                     str(tmp_path / 'worst')])
    row, = json.loads(capsys.readouterr().out)['sets']
    correct = [said == label for (said, _), label in zip(expected, labels)]
    assert (row['images'], row['top1']) == (50, pytest.approx(np.mean(correct)))
    for each in row['by_class']:
        of_class = [right for right, label in zip(correct, labels) if label == each['index']]
        assert (each['class'], each['images'], each['top1']) == (NAMES[each['index']], len(of_class),
                                                                 pytest.approx(np.mean(of_class)))
    with open(tmp_path / 'matrix.csv', newline='') as file:
        written = list(csv.reader(file))
    assert written[0] == ['true class', *NAMES]
    assert [list(map(int, cells)) for _, *cells in written[1:]] == [
        [sum(label == true and said == answer for (said, _), label in zip(expected, labels)) for answer in range(3)]
        for true in range(3)]
    assert Image.open(tmp_path / 'matrix.png').width > 300

    images = [image for _, image in read_records(f'{prefix}.rec')]
    wrong = sorted(((-probability, number) for number, (said, probability) in enumerate(expected)
                    if said != labels[number]))
    with open(tmp_path / 'worst' / 'worst.csv', newline='') as file:
        worst = list(csv.DictReader(file))
    assert row['worst'] == len(worst) == len(wrong) > 5
    assert [float(each['probability']) for each in worst] == pytest.approx([-minus for minus, _ in wrong], abs=1e-4)
    for each in worst:
        number = int(each['picture'].removeprefix('record '))
        assert (each['true class'], each['answered']) == (NAMES[labels[number]], NAMES[expected[number][0]])
        assert (tmp_path / 'worst' / each['file']).read_bytes() == images[number]
        assert each['file'].startswith(f'{int(each["rank"]):02}-{each["true class"]}-as-{each["answered"]}-')

    assert not main(arguments)
    printed = capsys.readouterr().out
    assert f'50 images, 3 classes, top1 {np.mean(correct):.4f}' in printed
    assert all(f'{100 * each["top1"]:.1f}' in printed for each in row['by_class'])


def test_a_folder_of_class_folders(network, folder, tmp_path, capsys):
    """Its classes are in the order of their names, and so not in that of the network's."""
    files = sorted(folder.rglob('*.jpg'))
    said = [best.label for best, in Classifier(network).predict(files, top_k=1)]
    bad = folder / 'red' / 'bad.jpg'
    bad.write_bytes(files[0].read_bytes()[:100])
    try:
        assert main(['evaluate', str(folder), '--network', str(network), '--format', 'json', '--worst',
                     str(tmp_path / 'worst')]) == 1
    finally:
        bad.unlink()
    out, err = capsys.readouterr()
    assert f'{bad} does not decode' in err
    row, = json.loads(out)['sets']
    with open(tmp_path / 'worst' / 'worst.csv', newline='') as file:
        worst = list(csv.DictReader(file))
    wrong = {f'{file.parent.name}/{file.name}': name for file, name in zip(files, said) if name != file.parent.name}
    assert row['images'] == 50 and row['top1'] == pytest.approx(1 - len(wrong) / 50)
    assert {each['picture']: each['answered'] for each in worst} == wrong and len(wrong) > 5


def test_what_would_fail_at_the_end_is_refused_at_once(network, tiny_records, tmp_path, capsys):
    rec = f'{tiny_records[0]}.rec'
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'of the user').touch()
    for arguments, message in (([rec, '--worst', tmp_path / 'full'], 'full is not an empty folder'),
                               ([rec, '--confusion', tmp_path / 'matrix.xyz'], 'ends in .png, .svg, .pdf'),
                               ([rec, rec, '--worst', tmp_path / 'new'], 'for one set, and 2 are given'),
                               ([], 'see evaluate --help')):
        assert main(['evaluate', *map(str, arguments), '--network', str(network)]) == 2
        output = capsys.readouterr()
        assert message in output.err and not output.out


def test_matrices_of_any_number_of_classes(tmp_path):
    """With numbers, with names, and with cells of several classes, the last of them cut off."""
    rng = np.random.default_rng(0)
    for classes in (1, 10, 60, 203):
        labels, predicted = rng.integers(0, classes, (2, 500))
        answers = Answers(labels, predicted, rng.random(500), labels == predicted, classes)
        names = list(imagenet_names().values())[:classes]
        draw_confusion(answers, names, tmp_path / f'{classes}.svg', 'a network on a set')
        text = (tmp_path / f'{classes}.svg').read_text()
        assert ('most frequent confusions' in text) == (classes > 25)
        assert ('a cell is 3 classes' in text) == (classes == 203)
        rows = list(csv.reader(io.StringIO((tmp_path / f'{classes}.csv').read_text())))
        assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 500 and len(rows) == classes + 1
