"""Figures of a landmark evaluation: whole files, and CSV files whose numbers are those of the evaluation."""
import csv
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from reference.commands import command
from reference.landmark_networks import make_network, write_faces

from gluon_lprnet.data.faces.records import read_face_records
from gluon_lprnet.evaluate import figures, landmarks, nme


@pytest.fixture(scope='module')
def evaluation(tmp_path_factory):
    """A folder of figures of two networks and the mean face on a set with poses and one without, and the results."""
    folder = tmp_path_factory.mktemp('figures')
    posed, _ = write_faces(folder / 'posed', [0, 12, -29, 31, -59, 61, 95, None, -5, 40])
    plain, _ = write_faces(folder / 'plain set', [None] * 3, seed=1)
    networks = [make_network(folder / str(number), scale=scale) for number, scale in enumerate((1.5, 1.2))]
    command(nme, 'nme', posed, plain, '--network', *networks, '--mean-face', plain, '--out', folder / 'out')
    results = landmarks.evaluate_sets(landmarks.load_networks(networks), {'posed': posed, 'plain set': plain}, [plain])
    return folder / 'out', results, posed


def rows_of(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def assert_whole(stem):
    picture = cv2.imread(f'{stem}.png')
    assert picture is not None and min(picture.shape[:2]) > 200 and picture.std() > 5
    assert ElementTree.parse(f'{stem}.svg').getroot().tag.endswith('svg')


def test_every_figure_is_there_and_whole(evaluation):
    folder, results, _ = evaluation
    stems = {path.stem for path in folder.glob('*.png')}
    assert len(stems) == 2 + 1 + 2 * 2 * 2     # CED, error by yaw of the set with poses, two grids of each network
    assert {'posed-ced', 'posed-yaw', 'plain_set-ced'} < stems and 'plain_set-yaw' not in stems
    for stem in stems:
        assert_whole(folder / stem)
        assert (folder / f'{stem}.csv').is_file()
    assert len(list(folder.glob('*-faces.csv'))) == 6


def test_the_ced_as_csv(evaluation):
    folder, results, _ = evaluation
    rows = rows_of(folder / 'posed-ced.csv')
    for label, found in results['posed'].items():
        points = [(float(row['nme_percent']), float(row['fraction_of_faces'])) for row in rows
                  if row['network'] == label]
        expected = [(0, 0)] + [(100 * error, (rank + 1) / 10) for rank, error in enumerate(sorted(found.errors))]
        np.testing.assert_allclose(points, expected)


def test_the_error_of_each_face_as_csv(evaluation):
    folder, results, _ = evaluation
    stem = 'posed-mean_face'
    rows = rows_of(folder / f'{stem}-faces.csv')
    found = results['posed']['mean face']
    assert [row['name'] for row in rows] == found.names
    np.testing.assert_allclose([float(row['nme_percent']) for row in rows], 100 * found.errors)
    assert [row['yaw_degrees'] == '' for row in rows] == np.isnan(found.yaw).tolist()


def test_the_worst_faces_come_first(evaluation):
    folder, results, _ = evaluation
    path, = [path for path in folder.glob('posed-*worst.csv') if '_1_' in path.name]
    found = list(results['posed'].values())[1]
    rows = rows_of(path)
    assert [row['name'] for row in rows] == [found.names[index] for index in np.argsort(-found.errors)]
    random, = [rows_of(path) for path in folder.glob('posed-*random.csv') if '_1_' in path.name]
    assert {row['name'] for row in random} == set(found.names) and random != rows


def test_the_means_by_yaw_as_csv(evaluation):
    folder, results, _ = evaluation
    label, found = next(iter(results['posed'].items()))
    rows = [row for row in rows_of(folder / 'posed-yaw.csv') if row['network'] == label]
    assert sum(int(row['faces']) for row in rows) == 9     # one has no yaw
    row, = [row for row in rows if float(row['yaw_from']) == 30]
    assert (float(row['yaw_to']), int(row['faces'])) == (45, 2)
    assert float(row['mean_nme_percent']) == pytest.approx(100 * found.errors[[3, 9]].mean())


def test_a_grid_shows_the_landmarks_where_they_are(evaluation, tmp_path):
    """Green and red dots of a drawn face, found again at their distance."""
    _, results, posed = evaluation
    found = next(iter(results['posed'].values()))
    record = next(read_face_records(posed))
    gray = record._replace(image=cv2.imencode('.png', np.full((96, 96, 3), 128, 'uint8'))[1].tobytes())
    shifted = found._replace(predicted=found.truth + [0, 2.5 * 90])      # 90 pixels of the crop
    figures.draw_grid([gray], shifted, [0], tmp_path / 'one', 'one')
    assert_whole(tmp_path / 'one')
    blue, green, red = np.moveaxis(cv2.imread(str(tmp_path / 'one.png')).astype(int), -1, 0)
    (ys, xs), (red_ys, red_xs) = np.nonzero(green - red > 120), np.nonzero(red - green > 120)
    assert len(xs) > 50 and len(red_xs) > 50
    assert red_xs.min() == pytest.approx(xs.min(), abs=2) and red_ys.min() > ys.max()


def test_every_curve_is_inside_the_axes(tmp_path, monkeypatch):
    """That of the mean face too, whose errors are several times the networks'."""
    errors = np.linspace(0.02, 0.08, 40)
    points = np.zeros((40, 68, 2))
    found = {label: landmarks.FaceErrors(['face'] * 40, factor * errors, np.full(40, np.nan), points, points)
             for label, factor in (('network', 1), ('mean face', 5))}
    drawn = []
    monkeypatch.setattr(figures, '_save', lambda figure, path, legend=False: drawn.append(figure))
    figures.draw_ced(found, tmp_path / 'ced', 'title')
    axis = drawn[0].axes[0]
    for line in axis.lines:
        x, y = line.get_data()
        assert y[x <= axis.get_xlim()[1]].max() >= 50, line.get_label()


def test_equal_numbers_give_equal_files(evaluation, tmp_path):
    _, results, _ = evaluation
    for name in 'ab':
        figures.draw_ced(results['posed'], tmp_path / name, 'title')
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()
