"""Commands whose output ends, is full or has no place: a sentence or nothing, and never a traceback."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from reference.landmark_networks import make_network, write_faces

from gluon_lprnet.__main__ import main
from gluon_lprnet.utils.errors import in_flags

ROOT = Path(__file__).resolve().parents[1]


def run(*argv, stdout, **keywords):
    return subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', *map(str, argv)], cwd=ROOT, stdout=stdout,
                            stderr=subprocess.PIPE, text=True, **keywords)


def test_output_that_nobody_reads():
    """As ``| head`` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    process = run('tables', stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == '' and process.returncode == 128 + signal.SIGPIPE


def test_output_to_a_full_disk():
    with open('/dev/full', 'w') as full:
        process = run('tables', stdout=full)
        error = process.communicate()[1]
    assert process.returncode == 2
    assert error == 'python -m gluon_lprnet: the standard output cannot be written: No space left on device.\n'


def test_a_place_that_is_a_file(tmp_path, capsys):
    """Of every command that writes and is quick: the sentence names it."""
    network = make_network(tmp_path / 'net')
    rec, _ = write_faces(tmp_path / 'faces', [0, 40, 70])
    (tmp_path / 'file').touch()
    for argv in (['nme', network, '--rec', rec, '--out'], ['digits'], ['symbols', '--out'],
                 ['draw-faces', '--count', '5', '--workers', '1'], ['archive', network, '--out'],
                 ['align', network, ROOT / 'docs', '--out']):
        assert main([*map(str, argv), str(tmp_path / 'file' / 'x')]) == 2, argv
        error = capsys.readouterr().err
        assert 'file' in error and 'Traceback' not in error, argv


def test_the_digits_do_not_replace_records_of_that_name(tmp_path, capsys):
    (tmp_path / 'val.rec').write_text('of the user')
    assert main(['digits', str(tmp_path)]) == 2
    assert 'val.rec exist(s) already: give --overwrite, or another FOLDER' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['val.rec'] and (tmp_path / 'val.rec').read_text() == 'of the user'
    assert not main(['digits', str(tmp_path), '--overwrite'])
    assert (tmp_path / 'val.rec').stat().st_size > 10_000


@pytest.mark.parametrize('message, shown', [
    ('`quality` is 200', '--quality is 200'), ('give `skip_bad`', 'give --skip-bad'), ('`prefix` x', '--out x'),
    ('a name with a ` in it', 'a name with a ` in it')])
def test_parameters_are_shown_as_flags(message, shown):
    assert in_flags(message, {'prefix': '--out'}) == shown


def test_an_error_of_a_function_speaks_of_flags_on_the_command_line_alone(tmp_path, capsys):
    assert main(['pack', 'images', str(tmp_path), '--out', str(tmp_path / 'set.rec')]) == 2
    assert f'--out {tmp_path / "set.rec"} is the beginning' in capsys.readouterr().err
    assert main(['pack', 'images', str(tmp_path), '--out', str(tmp_path / 'set'), '--quality', '200']) == 2
    assert '--quality is 200: it must be from 1 to 100' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['pack', 'images', str(tmp_path), '--out', str(tmp_path / 'set'), '--quality', '9_0'])
    assert "invalid integer value: '9_0'" in capsys.readouterr().err
