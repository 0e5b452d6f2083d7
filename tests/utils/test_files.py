"""Files that are whole or not there: against a disk that is full at the worst moment, and what else stands there."""
import errno
import os
import stat
import subprocess
import sys

import pytest

from gluon_lprnet.utils import files
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.files import folder_aside, lock, put_in_place, whole, write_file


@pytest.mark.parametrize('content', ['text', b'text', lambda path: path.write_text('text')])
def test_a_file_and_its_folders_are_made(tmp_path, content):
    path = tmp_path / 'a' / 'b' / 'c.txt'
    for _ in range(2):
        write_file(path, content)
        assert path.read_text() == 'text' and [each.name for each in path.parent.iterdir()] == ['c.txt']


def test_a_function_gets_a_path_of_the_same_extension(tmp_path):
    seen = []
    write_file(tmp_path / 'figure.svg', lambda path: (seen.append(path), path.write_text('')))
    assert seen[0].suffix == '.svg' and seen[0] != tmp_path / 'figure.svg'


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('moment', ['fsync', 'replace', 'content'])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / 'report.json'
    path.write_text('old')

    def content(scratch):
        scratch.write_text('half of')
        full()

    if moment != 'content':
        monkeypatch.setattr(files.os, moment, full)
    with pytest.raises(InputError, match=r'report.json cannot be written: No space left|cannot be written: No space'):
        write_file(path, content if moment == 'content' else 'new')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['report.json']


def test_a_folder_appears_whole(tmp_path):
    def interrupted():
        with whole(tmp_path / 'faces') as scratch:
            scratch.mkdir()
            (scratch / 'one').touch()
            raise KeyError
    with pytest.raises(KeyError):
        interrupted()
    assert os.listdir(tmp_path) == []
    with whole(tmp_path / 'faces') as scratch:
        scratch.mkdir()
        (scratch / 'one').touch()
    assert os.listdir(tmp_path) == ['faces'] and os.listdir(tmp_path / 'faces') == ['one']


def test_several_files_go_to_their_place_together(tmp_path):
    with folder_aside(tmp_path / 'out', 'net') as scratch:
        for name in ('b', 'a'):
            (scratch / name).write_text(name)
        moved = put_in_place(sorted(scratch.iterdir()), tmp_path / 'out')
    assert moved == [tmp_path / 'out' / 'a', tmp_path / 'out' / 'b']
    assert sorted(os.listdir(tmp_path / 'out')) == ['a', 'b']


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / 'target').write_text('old')
    (tmp_path / 'link').symlink_to(tmp_path / 'target')
    write_file(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'target').read_text() == 'new'
    os.mkfifo(tmp_path / 'pipe')
    reader = subprocess.Popen(['cat', str(tmp_path / 'pipe')], stdout=subprocess.PIPE)
    write_file(tmp_path / 'pipe', 'through')
    assert reader.communicate()[0] == b'through' and stat.S_ISFIFO(os.stat(tmp_path / 'pipe').st_mode)


def test_a_device_that_is_full_is_named_and_stays():
    with pytest.raises(InputError, match='/dev/full cannot be written: No space left on device'):
        write_file('/dev/full', 'x' * 100_000)
    assert stat.S_ISCHR(os.stat('/dev/full').st_mode)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file' / 'x', tmp_path / 'file' / 'y' / 'x'):
        with pytest.raises(InputError, match='file.* is not a folder'):
            write_file(path, '')
    with pytest.raises(InputError, match='cannot be written: Is a directory'):
        write_file(tmp_path, '')


def test_a_lock_keeps_other_processes_out(tmp_path):
    program = ('import sys\nfrom gluon_lprnet.utils.files import lock\nwith lock(sys.argv[1], "in use"):\n    pass')
    (tmp_path / 'lock').write_text("somebody's notes")
    with lock(tmp_path / 'lock', 'in use'):
        found = subprocess.run([sys.executable, '-c', program, str(tmp_path / 'lock')], stderr=subprocess.PIPE,
                               text=True)
        assert 'InputError: in use' in found.stderr
    with lock(tmp_path / 'lock', 'in use'):
        pass
    assert (tmp_path / 'lock').read_text() == "somebody's notes"
