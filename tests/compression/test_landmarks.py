"""compress on networks for facial landmarks: the whole command, and what a tuning learns and reports."""
import argparse
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn
from reference.landmark_networks import make_face
from reference.networks import relative_error

from gluon_lprnet import get_model
from gluon_lprnet.artifact import export_network, load_network
from gluon_lprnet.compression import command
from gluon_lprnet.compression.tuning import Distance, distill_landmarks
from gluon_lprnet.data.faces.landmarks import crop_matrix, from_outputs, transform, warp_crop
from gluon_lprnet.data.faces.records import encode_record, read_face_records
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.train.loop import TrainingTask
from gluon_lprnet.utils.errors import InputError

SIZE, SCALE, MEAN, STD = 32, 1.4, [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]


def exported(folder, outputs=136, scale=SCALE):
    net = get_model('mobilenetv1_x0.25', classes=outputs, small_image=True)
    mx.random.seed(3)
    # What reaches the output is about as large as the input, depthwise convolutions included.
    net.initialize(mx.init.MSRAPrelu(factor_type='in', slope=0))
    # Points from all over the crop, that move with the picture.
    net.output.weight.set_data(0.02 * net.output.weight.data())
    net.output.bias.set_data(mx.nd.array(np.random.default_rng(0).uniform(-0.4, 0.4, outputs)))
    return export_network(net, dict(task='landmarks', model='mobilenetv1_x0.25', num_classes=outputs, input_size=SIZE,
                                    small_image=True, crop_scale=scale, rgb_mean=MEAN, rgb_std=STD), folder)


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    return exported(tmp_path_factory.mktemp('original'))


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    prefix, rng = tmp_path_factory.mktemp('faces') / 'faces', np.random.default_rng(1)
    write_records(prefix, [encode_record(make_face(rng, number)) for number in range(40)])
    return f'{prefix}.rec'


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_commands(parser.add_subparsers())
    args = parser.parse_args(['compress', '--network', *map(str, arguments), '-j', '1', '--batch-size', '8'])
    return args.run(args)


def outputs_for(net, faces, size=SIZE, scale=SCALE, mean=MEAN, std=STD):
    """Of each face the outputs, from its crop as the package's aligner makes it."""
    crops = np.stack([warp_crop(face.pixels(), crop_matrix(face.box, size, scale), size) for face in faces])
    return net(mx.nd.array(((crops - mean) / std).transpose(0, 3, 1, 2))).asnumpy()


def nme_by_hand(outputs, faces):
    found = []
    for row, face in zip(outputs, faces):
        matrix = crop_matrix(face.box, SIZE, SCALE)
        truth, points = transform(matrix, face.landmarks), from_outputs(row, SIZE)
        width, height = truth.max(axis=0) - truth.min(axis=0)
        found.append(np.hypot(*(points - truth).T).mean() / np.sqrt(width * height))
    return np.mean(found)


def test_command(network, faces, tmp_path, capsys):
    flags = [network, '--calibrate', faces, '--images', '40', '--rank', '*dsc2_*=8', '--rank', '*dsc4_*=8',
             '--rec-val', faces, '--held-out', faces, '--rec-train', faces, '--tune-epochs', '2', '--lr', '1e-3',
             '--out', tmp_path / 'out']
    assert not run(*flags)
    printed = capsys.readouterr().out
    assert 'distance' in printed and 'nme' in printed
    original, _ = load_network(network)
    found, description = load_network(tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-symbol.json')
    assert (description['task'], description['crop_scale']) == ('landmarks', SCALE)
    records = list(read_face_records(faces))
    expected, outputs = outputs_for(original, records), outputs_for(found, records)
    report = json.loads((tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-report.json').read_text())
    numbers = report['accuracy']
    distance = np.hypot(*(outputs - expected).reshape(40, 68, 2).transpose(2, 0, 1)).mean()
    assert numbers['original']['distance'] == 0
    assert numbers['tuned']['distance'] == pytest.approx(distance, rel=1e-3) != 0
    assert numbers['original']['nme'] == pytest.approx(nme_by_hand(expected, records), rel=1e-3)
    assert numbers['tuned']['nme'] == pytest.approx(nme_by_hand(outputs, records), rel=1e-3)
    journal = [json.loads(line) for line in (tmp_path / 'out' / 'tuning' / 'metrics.jsonl').read_text().splitlines()]
    # The nearest is kept, the network before the tuning among them.
    distances = [row['val_distance'] for row in journal if 'val_distance' in row]
    assert len(distances) == 2
    assert numbers['tuned']['distance'] == min(numbers['compressed']['distance'], *distances)
    (tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-symbol.json').unlink()
    assert not run(*flags, '--resume')
    again, _ = load_network(tmp_path / 'out' / 'mobilenetv1_x0.25-compressed-symbol.json')
    np.testing.assert_array_equal(outputs_for(again, records), outputs)


def test_a_tuning_that_does_harm_is_left_out(network, faces, tmp_path):
    """Of the network as it was fitted and after each epoch, the one nearest to the original is kept."""
    assert not run(network, '--calibrate', faces, '--images', '40', '--rank', '*dsc2_*=8', '--held-out', faces,
                   '--rec-train', faces, '--tune-epochs', '1', '--lr', '0.1', '--out', tmp_path)
    numbers = json.loads((tmp_path / 'mobilenetv1_x0.25-compressed-report.json').read_text())['accuracy']
    epoch, = [row['val_distance'] for row in map(json.loads, (tmp_path / 'tuning' / 'metrics.jsonl').open())
              if 'val_distance' in row]
    assert numbers['tuned'] == numbers['compressed']
    assert epoch > numbers['tuned']['distance']


def test_the_shipped_face_network(faces, tmp_path):
    """It has LPR modules already: what is left are the pairs of unequal width, at a rank that loses little."""
    assert not run('lprnet_mobilenet_x0.25.faces', '--any-width', '--rank', '*dsc4_*=64', '--calibrate', faces,
                   '--images', '40', '--held-out', faces, '--rec-val', faces, '--out', tmp_path)
    report = json.loads((tmp_path / 'lprnet_mobilenet_x0.25-compressed-report.json').read_text())
    replaced = [layer for layer in report['layers'] if layer['rank']]
    assert replaced and all(layer['rank'] == 64 for layer in replaced)
    original, description = load_network('lprnet_mobilenet_x0.25.faces')
    found, _ = load_network(tmp_path / 'lprnet_mobilenet_x0.25-compressed-symbol.json')
    records = list(read_face_records(faces))
    form = [description[key] for key in ('input_size', 'crop_scale', 'rgb_mean', 'rgb_std')]
    expected, outputs = (outputs_for(net, records, *form) for net in (original, found))
    assert 0 < relative_error(outputs, expected) < 0.1
    assert report['accuracy']['compressed']['distance'] == pytest.approx(
        np.hypot(*(outputs - expected).reshape(40, -1, 2).transpose(2, 0, 1)).mean(), rel=1e-2)


def test_refused(network, faces, tmp_path):
    out = ('--out', tmp_path / 'out', '--tune-epochs', '1', '--rec-train', faces, '--rec-val', faces)
    with pytest.raises(InputError, match='--labels is for classifiers'):
        run(network, *out, '--labels')
    with pytest.raises(InputError, match='leave out --input-size'):
        run(network, *out, '--input-size', '32')
    with pytest.raises(InputError, match='.outputs. is 170, and 136 of the network to compress'):
        run(network, *out, '--teacher', exported(tmp_path / 'two jaws', outputs=170))
    with pytest.raises(InputError, match='.crop_scale. is 1.5, and 1.4 of the network to compress'):
        run(network, *out, '--teacher', exported(tmp_path / 'wide', scale=1.5))
    with pytest.raises(InputError, match='agreement.rec'):
        run(network, '--calibrate', tmp_path / 'agreement.rec', '--out', tmp_path / 'out')


def test_what_is_learned_and_reported():
    """Smooth L1 toward the teacher's outputs, whatever the labels are; distances by hand."""
    rng = np.random.default_rng(2)
    teacher, net = nn.Dense(6, in_units=4), nn.Dense(6, in_units=4)
    for each in (teacher, net):
        each.initialize(mx.init.Normal(0.01))
    data = mx.nd.array(rng.normal(0, 1, (5, 4)))
    task = distill_landmarks(TrainingTask(
        net=net, contexts=[mx.cpu()], batches=lambda epoch, start: [(data, mx.nd.full((5, 6), np.nan))],
        batches_per_epoch=1, loss=None, count=None, evaluate=None), teacher)
    (seen, taught), = task.batches(0, 0)
    outputs, expected = net(data).asnumpy(), teacher(data).asnumpy()
    np.testing.assert_array_equal(taught.asnumpy(), expected)
    with autograd.record():
        loss = task.loss(net(seen), taught)
    difference = outputs - expected
    smooth = np.where(abs(difference) < 1 / 256, 128 * difference ** 2, abs(difference) - 1 / 512)
    np.testing.assert_allclose(loss.asnumpy(), smooth.sum(axis=1), rtol=1e-4)
    distances = np.array([[np.hypot(*row[2 * point:2 * point + 2]) for point in range(3)] for row in difference])
    assert task.count(outputs, expected)['distance'] == pytest.approx(distances.mean(axis=1).sum(), rel=1e-5)
    distance = Distance(teacher, lambda: [(data[:3], None), (data[3:], None)])
    assert distance.of(net) == pytest.approx(distances.mean(), rel=1e-5) and distance.of(teacher) == 0
    net.bias.set_data(mx.nd.full((6,), np.nan))
    with pytest.raises(ArithmeticError, match='NaN'):
        distance.of(net)
