"""Table 6: the printed numbers, the measured ones against what they are made of, and the command."""
import json
import os
import subprocess
import sys
import zipfile

import pytest
from reference.commands import command
from reference.landmark_networks import expected_points, loop_errors, make_network, write_faces

from gluon_lprnet.paper import table6
from gluon_lprnet.utils.errors import InputError


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('networks')
    return [make_network(folder, model) for model in ('lprnet_mobilenet_x0.25', 'lprnet_mobilenet_x1.0')]


@pytest.fixture(scope='module')
def aflw(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp('aflw') / 'aflw2000_3d', [0, 12, -31, 61])


@pytest.fixture(scope='module')
def measured(networks, aflw):
    return table6.measure(networks, aflw[0], rounds=2)


def test_the_printed_means_recomputed():
    assert table6.printed_means_that_differ() == pytest.approx({
        'lprnet_mobilenet_x0.25': (2.58 + 3.33 + 5.81) / 3, 'mobilenetv1_x0.5': (2.52 + 3.21 + 5.76) / 3})


def test_rows_hold_what_was_measured(networks, aflw, measured):
    errors = loop_errors(expected_points(aflw[1]), [2.5 * face.landmarks + [30, -12] for face in aflw[1]])
    for row, path in zip(measured, networks):
        params = path.with_name(path.name.replace('-symbol.json', '-0000.params'))
        assert row['bin_nme'] == pytest.approx([(errors[0] + errors[1]) / 2, errors[2], errors[3]], abs=1e-6)
        # 4 bytes a number, and names and shapes.
        assert row['params_bytes'] == params.stat().st_size
        assert 4 * 0.13e6 < row['params_bytes'] < 4 * 3.0e6
        assert 0 < row['zipped_bytes'] < row['params_bytes'] + path.stat().st_size
    assert all(row['fps'] > 0 for row in measured)


def test_zipped_is_a_zip_of_symbol_and_params(networks, tmp_path):
    net, description = table6.load_networks(networks[:1])['lprnet_mobilenet_x0.25']
    size, zipped = table6.exported_sizes(net)
    prefix = tmp_path / 'network'
    net.export(str(prefix))
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in ('network-symbol.json', 'network-0000.params'):
            archive.write(tmp_path / name, name)
    assert (tmp_path / 'network-0000.params').stat().st_size == size
    assert abs((tmp_path / 'all.zip').stat().st_size - zipped) < 64


def test_the_timing_runs_on_one_thread(networks):
    code = 'import os, json, sys; print(json.dumps([os.environ["OMP_NUM_THREADS"]]))'
    environment = {**os.environ, 'OMP_NUM_THREADS': '4'}
    probe = ('import subprocess, sys\n'
             'from gluon_lprnet.paper import table6\n'
             'run = subprocess.run\n'
             f'subprocess.run = lambda argv, **kwargs: run([sys.executable, "-c", {code!r}], **kwargs)\n'
             'print(table6.frames_per_second([]))\n')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', probe], env=environment, capture_output=True,
                          text=True, check=True)
    assert done.stdout.strip() == "['1']"


def test_a_timing_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match='does not exist'):
        table6.frames_per_second([tmp_path / 'none'])


def test_the_table_has_printed_measured_and_deviation(measured):
    row = dict(measured[0], bin_nme=[0.0258, 0.0666, 0.0581], mean_of_bins=0.0501666, fps=190.0, params_bytes=619000,
               zipped_bytes=309500)
    lines = [[cell.strip() for cell in line.split('|')[1:-1]]
             for line in table6.alignment_table([row], 'markdown').splitlines() if line.startswith('|')]
    first = next(index for index, cells in enumerate(lines) if cells[0] == 'LPRNet MobileNet x0.25')
    assert lines[first][1:] == ['printed', '2.58', '3.33', '5.81', '3.89', '', '95', '619K', '']
    assert lines[first + 1][1:6] == ['measured', '2.58', '6.66', '5.81', '5.02']
    assert lines[first + 1][7:] == ['190', '619,000', '309,500']
    assert lines[first + 2][1:] == ['deviation', '+0.0%', '+100.0%', '+0.0%', '+29.0%', '', '+100%', '+0.0%', '-50.0%']


def test_an_empty_bin_is_a_dash(measured):
    row = dict(measured[0], bin_nme=[0.03, 0.04, None], mean_of_bins=None)
    text = table6.alignment_table([row], 'markdown')
    assert '| deviation | +16.3%' in text and 'None' not in text


def test_the_command(networks, aflw, capsys, monkeypatch):
    monkeypatch.setattr(table6, 'frames_per_second', lambda paths, rounds: [100.0, 50.0])
    command(table6, 'table6', aflw[0], '--network', *networks, '--format', 'markdown')
    text = capsys.readouterr().out
    # A network that the paper's table lacks comes without printed numbers, at the end.
    assert text.index('lprnet_mobilenet_x1.0') > text.index('MobileNetv1 x0.5')
    for words in ('4 faces, [0,30] 2, (30,60] 1, >60 1', 'OMP_NUM_THREADS=1', '3.89, bins 3.907', '32x32'):
        assert words in text
    command(table6, 'table6', *networks, '--rec', aflw[0], '--format', 'json')
    rows = json.loads(capsys.readouterr().out)['rows']
    assert [row['fps'] for row in rows] == [100, 50]
    assert rows[0]['printed']['size'] == '619K' and rows[1]['printed'] is None


def test_faces_without_yaw_are_refused(networks, tmp_path):
    rec, _ = write_faces(tmp_path / 'plain', [None] * 3)
    with pytest.raises(InputError, match='plain.rec has no yaw'):
        command(table6, 'table6', *networks, '--rec', rec)
