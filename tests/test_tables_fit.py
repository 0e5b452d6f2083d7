"""Tables that are printed as text fit into 100 columns, whatever is in them, and lose nothing."""
import json
import re

import mxnet as mx
import numpy as np
import pytest

from gluon_lprnet import compress, get_model
from gluon_lprnet.complexity import count
from gluon_lprnet.deployment.export import _int8_lines
from gluon_lprnet.evaluate.command import _in_text
from gluon_lprnet.evaluate.landmarks import FaceErrors, summarize
from gluon_lprnet.evaluate.nme import nme_table
from gluon_lprnet.paper import table6
from gluon_lprnet.paper.cifar10 import EXPERIMENTS, accuracy_table
from gluon_lprnet.paper.grid import Result
from gluon_lprnet.paper.tables import TABLE_NUMBERS, complexity_table
from gluon_lprnet.serving.compare import Compared, _report
from gluon_lprnet.train.runs import find_runs, render_runs
from gluon_lprnet.utils.text import WIDTH, render_table

LONG = 'a network in a folder of a long name/lprnet_mobilenet_x0.5-deployed'


def assert_fits(text):
    lines = text.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= WIDTH == 100, max(lines, key=len)


@pytest.mark.parametrize('seed', range(40))
def test_any_table_fits_and_keeps_its_words(seed):
    rng = np.random.default_rng(seed)
    columns, rows = rng.integers(1, 20), rng.integers(0, 5)

    def words():
        return ' '.join('x' * rng.integers(1, 30) + str(rng.integers(0, 1000)) for _ in range(rng.integers(1, 4)))
    headings = [words() for _ in range(columns)]
    cells = [[int(rng.integers(0, 10 ** 9)) if column % 3 == 2 else words() if rng.random() < 0.8 else None
              for column in range(columns)] for _ in range(rows)]
    text = render_table(headings, cells, 'text')
    assert max(map(len, text.splitlines())) <= WIDTH
    # Nothing but blanks, lines and the repeated first column comes to what was given.
    given = ''.join(str(cell) for row in [headings, *cells] for cell in row if cell is not None)
    kept = re.sub(r'[\s,-]', '', text)
    assert all(kept.count(letter) >= given.count(letter) for letter in set(given) - {' '})


def test_a_table_that_fits_is_one_with_a_line_for_each_row():
    assert render_table(('name', 'number'), [('a b', 1234), (None, 5)], 'text') == (
        'name  number\n----  ------\na b    1,234\n           5')


def test_a_table_without_place_for_its_columns_goes_on_below():
    text = render_table([f'column{number}' for number in range(12)], [['value' * 2] * 12], 'text')
    first, second = text.split('\n\n')
    assert first.splitlines()[0].split() == [f'column{number}' for number in range(8)]
    assert second.splitlines()[0].split() == ['column0', *(f'column{number}' for number in range(8, 12))]


@pytest.mark.parametrize('number', TABLE_NUMBERS)
def test_the_tables_of_the_paper(number):
    assert_fits(complexity_table(number))


def test_table_6():
    errors, yaw = np.linspace(0.01, 0.2, 30), np.linspace(0, 90, 30)
    row = dict(network=LONG, model='lprnet_mobilenet_x0.25', input_size=112, fps=123.4, params_bytes=12_345_678,
               zipped_bytes=12_345_678, **summarize(errors, yaw))
    assert_fits(table6.alignment_table([row, dict(row, model=None)]))


def test_errors_of_landmarks():
    found = FaceErrors(['a'] * 30, np.linspace(0.01, 0.2, 30), np.linspace(0, 90, 30), None, None)
    assert_fits(nme_table({'aflw2000_3d': {'lprnet_mobilenet_x0.5.faces': found, LONG: found},
                           'a set of a long name': {'mean face': found}}))


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_experiments(name):
    experiment = EXPERIMENTS[name](1.0)
    result = Result({0: 78.91, 1: 79.32, 2: 79.0}, 12_345_678, 1_234_567_890, 1234.5)
    text = accuracy_table(experiment, {row.name: result for row in experiment.rows})
    assert_fits(text)
    # In one table.
    assert text.count('top-1') == 1


def test_accuracy_by_class():
    by_class = [{'class': LONG, 'index': 999, 'images': 1300, 'top1': 1.0, 'taken_for': LONG, 'times': 123}]
    assert_fits(_in_text({'set': 'val.rec', 'images': 50_000, 'classes': 1000, 'top1': 0.7, 'top5': 0.9,
                          'by_class': by_class}, 'text'))


def test_a_compression():
    mx.random.seed(0)
    net = get_model('mobilenetv1_x0.25', classes=10)
    net.initialize(mx.init.Xavier())
    _, report = compress(net, 1 / 8, input_shape=(1, 3, 64, 64))
    assert_fits(str(report))
    assert 'As before, because' in str(report)


def test_layers_of_a_network():
    assert_fits(count(get_model('lprnet_shufflenetv2_x0.5')).table())


def test_8_bits():
    layers = [{'name': LONG, 'noise': 0.00123, 'left_out': None},
              {'name': 'lprnet0_dense0_fwd', 'noise': None, 'left_out': 'its noise is above the tolerance'}]
    assert_fits(_int8_lines('onnx', {'calibration': 'entropy', 'images': 512, 'tolerance': 0.01,
                                     'float': {'top1': 0.8, 'top5': 0.9}, 'onnx': {
                                         'noise': 0.004, 'layers': layers, 'bytes': 1_234_567, 'agreement': 0.99,
                                         'milliseconds': {'float': 1.2, 'int8': 1.1}, 'top1': 0.79, 'top5': 0.89}}))


def test_pictures_by_three_ways():
    probabilities = np.array([[0.25, 0.75]])
    compared = Compared([f'{LONG}/n01440764_10026.JPEG'], *[probabilities] * 3, None, [])
    assert_fits(_report(compared, ['tench', 'Old English sheepdog, bobtail of a long name']))


def test_runs_that_differ_in_much(tmp_path):
    for number in range(3):
        run = tmp_path / f'a-run-of-a-long-name-seed{number}'
        run.mkdir()
        (run / 'config.json').write_text(json.dumps({f'setting_{key}': [number, key, LONG] for key in range(9)}))
        (run / 'metrics.jsonl').write_text(json.dumps(
            {'kind': 'epoch', 'epoch': 0, 'val_top1': 0.5, 'val_top5': 0.9, 'images_per_second': 123.0}) + '\n')
    assert_fits(render_runs(find_runs([tmp_path])))
