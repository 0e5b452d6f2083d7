"""The benchmarks of compression: what they choose and compute, in small."""
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import encode
from reference.networks import random_network
from test_originals import SIZE, random_arrays

from gluon_lprnet import get_model
from gluon_lprnet.artifact import export_network
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import import_mobilenetv1
from gluon_lprnet.data.recordio import write_records

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import compressed_beside_originals
import fine_tuning
import paper_form
import prune_shifts
import rank_sensitivity


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp('arrays') / 'original.npz'
    np.savez(path, **random_arrays())
    return import_mobilenetv1(path, SIZE)[0]


def test_the_originals_line():
    """Through those that no cheaper one beats, straight between them; none left of the first."""
    originals = [dict(cost=cost, top1=top1) for cost, top1 in ((4, 0.7), (1, 0.5), (3, 0.45), (2, 0.6))]
    for cost, top1, points in ((3, 0.66, 1), (1.5, 0.5, -5), (5, 0.7, 0), (0.9, 0.9, None)):
        found = compressed_beside_originals.above(dict(cost=cost, top1=top1), originals, 'cost')
        assert found is points if points is None else found == pytest.approx(points)


def test_errors_and_ranks(original):
    images = [mx.nd.array(np.random.default_rng(2).uniform(-1, 1, (280, 3, SIZE, SIZE)))]
    spectra = rank_sensitivity.spectra_of(original, images)
    assert len(spectra) == 8
    # The share that the spectrum leaves is the error that compress reports for a layer that is replaced alone.
    name = list(spectra)[3]
    rank = len(spectra[name]) // 4
    measured = rank_sensitivity.Measured(original, images, images, residual=False)
    error, agreement, report = measured.of(rank_sensitivity.ByLayer({name: rank}))
    layer, = (layer for layer in report.layers if layer.rank)
    assert layer.error == pytest.approx(spectra[name][rank:].sum(), rel=1e-2)
    assert 0 < error < 1 and 0 < agreement <= 1
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = rank_sensitivity.random_ranks(spectra, rng)
        assert len(ranks) >= 2
        assert all(rank / len(spectra[name]) in (1 / 8, 1 / 4, 3 / 8) for name, rank in ranks.items())


def test_a_module_of_the_papers_form_is_matched():
    """Of targets that one puts out it is found again, and what it puts out is the paper's arithmetic."""
    rng = np.random.default_rng(0)
    width, rank = 16, 4
    # Of signs, what P2 P1 gives has the same length everywhere if P2's columns are orthonormal.
    images = rng.choice([-1.0, 1.0], (5, width, 20, 20))
    z = images.transpose(1, 0, 2, 3).reshape(width, -1)
    low_rank = np.linalg.qr(rng.normal(size=(width, rank)))[0] @ z[:rank] / np.sqrt(rank)
    residual, level = rng.choice([-1, 1], width) * rng.uniform(0.5, 1, width), rng.normal(size=width)
    level[:rank] = 0
    targets = 3 * low_rank + residual[:, None] * z + level[:, None]
    matched = paper_form.match(z, targets, rank)
    # Half of it is the low-rank part.
    assert matched.error < 0.01
    assert matched.norm == pytest.approx(3, rel=0.1)
    identity = np.zeros((width, 1, 3, 3))
    identity[:, :, 1, 1] = 1
    found = paper_form.lpr_of(matched, mx.nd.array(identity))(mx.nd.array(images)).asnumpy()
    d = (matched.gamma / matched.deviation)[:, None] * (z - matched.mean[:, None]) + matched.beta[:, None]
    product = matched.p2 @ (matched.p1 @ d)
    expected = product / np.linalg.norm(product, axis=0) + d
    np.testing.assert_allclose(found.transpose(1, 0, 2, 3).reshape(width, -1), np.maximum(expected, 0), atol=1e-4)
    variation = np.square(targets - targets.mean(axis=1, keepdims=True)).sum()
    assert matched.error == pytest.approx(np.square(targets - matched.norm * expected).sum() / variation, rel=1e-3)


def test_a_network_in_the_papers_form(original, tmp_path):
    path = tmp_path / 'original.npz'
    np.savez(path, **random_arrays())
    own, images = import_mobilenetv1(path, SIZE)[0], [
        mx.nd.array(np.random.default_rng(seed).uniform(-1, 1, (40, 3, SIZE, SIZE))) for seed in (0, 1)]
    before = original(images[0]).asnumpy()
    net, errors = paper_form.in_paper_form(original, own, images, lambda width: width // 4)
    assert len(errors) == 8 and all(0 < error < 1 for error in errors)
    assert net(images[0]).shape == before.shape
    np.testing.assert_array_equal(original(images[0]).asnumpy(), before)
    modules = [module for module in net if isinstance(module, paper_form.LPR)]
    assert len(modules) == 8 and all(module._l2_norm and module._residual for module in modules)


def drawn(folder, names, count):
    """Noise of another grain for each class."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        (folder / name / 'inner').mkdir(parents=True)
        for index in range(count):
            grains = rng.integers(0, 256, (3 + 40 * number,) * 2 + (3,)).astype('uint8')
            cv2.imwrite(str(folder / name / 'inner' / f'{index}.png'), cv2.resize(grains, (160, 160)))
    return [str(folder / name) for name in names]


def test_photos_are_trained_on_or_tested_on(tmp_path):
    folders = (drawn(tmp_path / 'train', 'bca', 9) + drawn(tmp_path / 'train', ['few'], 5))
    args = Namespace(train=folders, test=None, classes=3, tests=4, seed=0)
    found = fine_tuning.chosen(args, 5)
    assert list(found) == ['a', 'b', 'c']
    for train, test in found.values():
        assert (len(train), len(test)) == (5, 4) and not set(train) & set(test)
    with pytest.raises(SystemExit, match='3 of the folders have photos enough, not 4'):
        fine_tuning.chosen(Namespace(**{**vars(args), 'classes': 4}), 5)
    args.test = drawn(tmp_path / 'test', 'abc', 4)
    found = fine_tuning.chosen(args, 9)
    assert all(len(train) == 9 and len(test) == 4 and test[0].parents[2] == tmp_path / 'test'
               for train, test in found.values())


def test_fine_tuning_from_few_photos(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['fine_tuning.py', '--train', *drawn(tmp_path, 'ab', 4), '--classes', '2',
                                      '--per-class', '1', '2', '--tests', '2'])
    fine_tuning.main()
    table = capsys.readouterr().out.split('photos of a class')[1].splitlines()[2:]
    rows = [[cell.strip() for cell in row.split('|')[1:4]] for row in table]
    # From the weights fine noise is told from coarse.
    assert [row for row in rows if row[1] != 'nothing'] == [[number, fine_tuning.WEIGHTS, '100.0'] for number in '12']
    assert [row[0] for row in rows if row[1] == 'nothing'] == ['1', '2']


def test_pruned_networks_are_tuned_alike(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    write_records(tmp_path / 'noise', [(number % 2, encode(rng.integers(100 * (number % 2), 256, (32, 32, 3), 'uint8')))
                                       for number in range(24)])
    net = random_network('shiftresnet20_x1.0')
    export_network(net, {'model': 'shiftresnet20_x1.0', 'task': 'classification', 'num_classes': 10, 'input_size': 32,
                         'class_names': None}, tmp_path)
    flags = ['prune_shifts.py', str(tmp_path / 'shiftresnet20_x1.0-symbol.json'), '--shares', '0.25',
             '--preset', 'cifar10', '--model', 'shiftresnet20_x1.0', '--num-classes', '10', '--num-epochs', '1',
             '--warmup-epochs', '0', '--batch-size', '8', '-j', '1', '--save-dir', str(tmp_path / 'pruned'),
             '--rec-train', str(tmp_path / 'noise.rec'), '--rec-val', str(tmp_path / 'noise.rec')]
    tables = []
    for more in ([], ['--resume']):
        monkeypatch.setattr(sys, 'argv', flags + more)
        prune_shifts.main()
        tables.append(capsys.readouterr().out)
    table = [line for line in tables[0].splitlines() if line.startswith('|')]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table[2:]]
    assert [row[:2] for row in rows] == [['whole', '0'], *([each, '0.25'] for each in ('term', 'magnitude', 'random'))]
    whole, *pruned = [count(get_model('shiftresnet20_x1.0', classes=10), (1, 3, 32, 32)),
                      *(count(prune_shifts.prune_shifts(net, 0.25, criterion), (1, 3, 32, 32))
                        for criterion in ('term', 'magnitude', 'random'))]
    for row, complexity in zip(rows, [whole, *pruned]):
        assert [row[2].replace(',', ''), row[3].replace(',', '')] == [
            str(complexity.params), str(complexity.multiply_adds)]
    # Resumed, each is at its end.
    assert tables[1] == tables[0]
    assert sorted(path.name for path in (tmp_path / 'pruned').iterdir()) == [
        'magnitude-0.25', 'random-0.25', 'term-0', 'term-0.25']
