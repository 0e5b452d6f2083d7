import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import encode, epoch_records

from gluon_lprnet import checkpoint
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.batches import ImageBatches, Normalization, validation_batches
from gluon_lprnet.data.images import AUTO, BILINEAR, encode_jpeg
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.evaluate import classification
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.train import imagenet
from gluon_lprnet.utils.errors import InputError


def test_correct_in_top_counts_labels_among_the_largest():
    rng = np.random.default_rng(1)
    outputs, labels = rng.normal(size=(200, 9)), rng.integers(0, 9, 200)
    for k in (1, 5, 9):
        expected = sum(label in sorted(range(9), key=lambda c: -row[c])[:k] for row, label in zip(outputs, labels))
        assert classification.correct_in_top(outputs, labels.astype('float32'), k) == expected
    outputs[3, 3] = np.nan
    with pytest.raises(ArithmeticError, match='NaN'):
        classification.correct_in_top(outputs, labels, 1)


def test_accuracy_counts_each_record_once(tiny_records):
    prefix, images, labels = tiny_records

    class Brightest(mx.gluon.HybridBlock):
        """Right for red and green, wrong for blue."""
        def hybrid_forward(self, F, x):
            means = F.mean(x, axis=(2, 3))
            red_and_green = means.slice_axis(axis=1, begin=0, end=2)
            return F.concat(red_and_green, F.zeros_like(means).slice_axis(axis=1, begin=0, end=1))

    batches = ImageBatches(check_records(f'{prefix}.rec'), 16, 16, Normalization((0,) * 3, (1,) * 3), threads=1)
    metrics = classification.evaluate_classification(Brightest(), batches, mx.cpu())
    assert metrics == {'top1': (labels < 2).sum() / 50}


@pytest.fixture(scope='module')
def run(tiny_records, tmp_path_factory):
    prefix, _, _ = tiny_records
    folder = tmp_path_factory.mktemp('evaluate') / 'run'
    assert imagenet.main(['--preset', 'cifar10', '--model', 'lprnet_mobilenet_x0.25', '--num-classes', '3',
                          '--rank', '1/4', '--input-size', '16', '--batch-size', '8', '--num-epochs', '15',
                          '--tuning-epochs', '1', '--lr', '0.05', '--rec-train', f'{prefix}.rec', '--rec-val',
                          f'{prefix}.rec', '--save-dir', str(folder)]) == 0
    return folder


def artifacts(run):
    return [run, checkpoint.newest(run).path, run / 'export' / 'lprnet_mobilenet_x0.25-symbol.json']


def test_labels_without_names_are_taken_for_numbers_and_that_is_said(run, tiny_records, tmp_path, capsys):
    prefix, images, labels = tiny_records
    assert not main(['evaluate', f'{prefix}.rec', '--network', str(run)])
    with_names = capsys.readouterr()
    assert 'names no classes' not in with_names.err
    write_records(tmp_path / 'nameless', [(int(label), encode(image)) for label, image in zip(labels, images)])
    assert not main(['evaluate', str(tmp_path / 'nameless.rec'), '--network', str(run)])
    without = capsys.readouterr()
    assert "nameless.rec names no classes: its labels are taken for numbers of the network's, where 0 is red" in \
        without.err
    assert without.out.split(': ')[1] == with_names.out.split(': ')[1]


def test_sets_of_other_classes_than_the_networks_are_refused(run, tiny_records, tmp_path, capsys):
    """A network that does not say which class is which answers more classes than the set has."""
    _, images, labels = tiny_records
    shutil.copytree(run / 'export', tmp_path / 'export')
    described = tmp_path / 'export' / 'lprnet_mobilenet_x0.25.json'
    description = json.loads(described.read_text())
    described.write_text(json.dumps({**description, 'class_names': None}))
    chosen = [(int(label), encode(image)) for label, image in zip(labels, images) if label < 2]
    write_records(tmp_path / 'two', chosen, classes=['red', 'green'])
    network = tmp_path / 'export' / 'lprnet_mobilenet_x0.25-symbol.json'
    assert main(['evaluate', str(tmp_path / 'two.rec'), '--network', str(network)]) == 2
    assert 'two.rec has 2 classes, and the network answers 3 without names' in capsys.readouterr().err
    write_records(tmp_path / 'far', [(7, chosen[0][1])])
    assert main(['evaluate', str(tmp_path / 'far.rec'), '--network', str(network)]) == 2
    assert 'far.rec has the label 7, and the network answers 3 classes, 0 to 2' in capsys.readouterr().err


def test_evaluate_gives_the_same_from_run_checkpoint_and_symbol(run, tiny_records, capsys):
    validated = epoch_records(run)[-1]['val_top1']
    for artifact in artifacts(run):
        assert not main(['evaluate', f'{tiny_records[0]}.rec', '--network', str(artifact), '--batch-size', '7'])
        assert f'50 images, 3 classes, top1 {validated:.4f}' in capsys.readouterr().out
    # As it was written once.
    assert not main(['evaluate', str(run), '--rec-val', f'{tiny_records[0]}.rec'])
    output = capsys.readouterr()
    assert f'top1 {validated:.4f}' in output.out and f'evaluate {tiny_records[0]}.rec --network {run}' in output.err


def test_the_symbol_needs_nothing_of_this_package(run, tiny_records, tmp_path):
    # Stock MXNet, in a process where the package cannot be imported.
    for file in (run / 'export').iterdir():
        shutil.copy(file, tmp_path)
    np.save(tmp_path / 'x.npy', np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype('float32'))
    code = ('import numpy as np\n'
            'for name in ("bool", "int", "float", "object"): setattr(np, name, __builtins__.__dict__[name])\n'
            'import mxnet as mx\n'
            'net = mx.gluon.SymbolBlock.imports("lprnet_mobilenet_x0.25-symbol.json", ["data"], '
            '"lprnet_mobilenet_x0.25-0000.params")\n'
            'np.save("y.npy", net(mx.nd.array(np.load("x.npy"))).asnumpy())\n')
    subprocess.run([sys.executable, '-W', 'ignore', '-I', '-c', code], cwd=tmp_path, check=True)
    net, description = load_network(run)
    expected = net(mx.nd.array(np.load(tmp_path / 'x.npy'))).asnumpy()
    np.testing.assert_allclose(np.load(tmp_path / 'y.npy'), expected, rtol=1e-4, atol=1e-5)
    assert description['class_names'] == ['red', 'green', 'blue']


def test_predict_names_the_class_of_pictures(run, tiny_records, tmp_path, capsys):
    _, images, labels = tiny_records
    # Names of any bytes, which OpenCV would end the process on.
    paths = [tmp_path / os.fsdecode(f'{label}'.encode() + b'\xe9.png') for label in range(3)]
    for label, path in enumerate(paths):
        path.write_bytes(encode(images[label]))
    for artifact in artifacts(run):
        assert not main(['predict', str(artifact), *map(str, paths), '--top-k', '1'])
        assert re.findall(r'  ([01]\.\d{4})  (\w+)', capsys.readouterr().out).__len__() == 3
        assert not main(['predict', str(artifact), *map(str, paths), '--top-k', '1'])
        assert re.findall(r'  [01]\.\d{4}  (\w+)', capsys.readouterr().out) == ['red', 'green', 'blue']


@pytest.mark.parametrize('input_size', [32, 96, 224])
@pytest.mark.parametrize('reading', [{}, {'inter_method': BILINEAR}, {'inter_method': AUTO}])
def test_a_picture_is_prepared_as_the_validation_prepares_it(tmp_path, input_size, reading):
    """Shrunk by 6 and by 2, and enlarged; a description without `inter_method` is read bilinearly."""
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype='uint8'), (251, 203))
    jpeg = encode_jpeg(smooth)
    (tmp_path / 'photo.jpg').write_bytes(jpeg)
    write_records(tmp_path / 'one', [(0, jpeg)])
    config = dict(input_size=input_size, crop_ratio=0.875, rgb_mean=[120.0, 110.0, 100.0], rgb_std=[50.0, 60.0, 70.0],
                  **reading)
    batches = validation_batches(check_records(tmp_path / 'one.rec'), config, 1, 1)
    expected = next(iter(batches.epoch(0))).data.asnumpy()
    difference = np.abs(preprocess(tmp_path / 'photo.jpg', config).asnumpy() - expected)
    # One level of 255 where the two builds of OpenCV round apart.
    assert difference.max() < 1.1 / 50 and difference.mean() < 0.1 / 50


def test_the_resizing_of_a_training_is_in_its_description(run):
    """And one of before it was written down keeps its own, bilinear."""
    assert [load_network(artifact)[1]['inter_method'] for artifact in artifacts(run)] == [AUTO] * 3


@pytest.mark.parametrize('make, message', [
    (lambda path: None, 'the path does not exist'),
    (lambda path: path.mkdir(), 'neither a checkpoint nor a run'),
    (lambda path: path.write_text('x'), '-symbol.json'),
])
def test_what_is_no_network_is_named(tmp_path, make, message):
    path = tmp_path / 'thing'
    make(path)
    with pytest.raises(InputError, match=message) as error:
        load_network(path)
    assert str(path) in str(error.value)


def test_broken_symbol_files_are_named(run, tmp_path):
    symbol = tmp_path / 'net-symbol.json'
    with pytest.raises(InputError, match='does not exist'):
        load_network(symbol)
    shutil.copy(artifacts(run)[2], symbol)
    with pytest.raises(InputError, match='net-NNNN.params'):
        load_network(symbol)
    (tmp_path / 'net-0000.params').write_bytes(b'nothing')
    with pytest.raises(InputError, match='net-0000.params'):
        load_network(symbol)
    shutil.copy(next((run / 'export').glob('*.params')), tmp_path / 'net-0000.params')
    (tmp_path / 'net.json').write_text('{"task"')
    with pytest.raises(InputError, match='net.json, the description of the network, is not valid JSON'):
        load_network(symbol)


@pytest.mark.parametrize('content, message', [(None, 'does not exist'), (b'no picture', 'not an image')])
def test_bad_pictures_are_named(run, tmp_path, capsys, content, message):
    path = tmp_path / 'x.jpg'
    if content:
        path.write_bytes(content)
    assert main(['predict', str(run), str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error and 'x.jpg' in error


def test_digits_are_packed_trained_and_recognized(tmp_path, capsys):
    assert not main(['digits', str(tmp_path / 'data')])
    assert imagenet.main(['--preset', 'digits', '--rec-train', str(tmp_path / 'data' / 'train.rec'), '--rec-val',
                          str(tmp_path / 'data' / 'val.rec'), '--save-dir', str(tmp_path / 'run'), '--num-epochs', '4',
                          '--tuning-epochs', '1']) == 0
    pictures = sorted((tmp_path / 'data' / 'held_out').iterdir())
    capsys.readouterr()
    assert not main(['predict', str(tmp_path / 'run'), *map(str, pictures), '--top-k', '1'])
    output = capsys.readouterr().out
    found = re.findall(r'is-a-(\d)\.png\n  \S+  (\d)', output)
    assert len(found) == 10 and sum(is_a == said for is_a, said in found) >= 8, output
