"""Records that have not changed since they were checked are not read again."""
import os
import shutil

import pytest

from gluon_lprnet.__main__ import main
from gluon_lprnet.data import integrity, recordio
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.utils.errors import InputError


@pytest.fixture
def records(tiny_records, tmp_path):
    prefix, _, _ = tiny_records
    for extension in ('.rec', '.idx', '.json', '.classes.txt'):
        shutil.copy(f'{prefix}{extension}', tmp_path / f'set{extension}')
    return tmp_path / 'set.rec'


@pytest.fixture
def reads(monkeypatch):
    """What was read of records: ('record', offset) for each, ('whole', name) for each file."""
    seen = []
    read_record, crc32 = recordio.read_record, recordio.file_crc32

    def note_record(fd, size, offset, wanted=None):
        seen.append(('record', offset))
        return read_record(fd, size, offset, wanted)

    def note_file(path):
        seen.append(('whole', os.path.basename(path)))
        return crc32(path)
    monkeypatch.setattr(integrity, 'read_record', note_record)
    monkeypatch.setattr(integrity, 'file_crc32', note_file)
    return seen


def test_unchanged_records_are_read_once(records, reads):
    first = check_records(records, data_check='stamp')
    assert ('whole', 'set.rec') in reads and len({offset for kind, offset in reads if kind == 'record'}) == 50
    for data_check in ('stamp', 'structure'):
        reads.clear()
        again = check_records(records, num_classes=3, data_check=data_check)
        assert reads == []
        assert again._replace(verified='') == first._replace(verified='')
        assert first.verified in again.verified and 'unchanged since 20' in again.verified
    check_records(records, data_check='full')
    assert ('whole', 'set.rec') in reads


def touch(records):
    os.utime(records, ns=(1, 1))


def change_a_byte(records):
    content = bytearray(records.read_bytes())
    content[-9] ^= 1
    status = records.stat()
    with open(records, 'r+b') as file:
        file.write(content)
    os.utime(records, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(records):
    other, status = records.with_name('other'), records.stat()
    shutil.copy(records, other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, records)


def replace_the_index(records):
    index = records.with_suffix('.idx')
    index.write_text(''.join(reversed(index.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize('change, is_sound', [(touch, True), (change_a_byte, False), (replace, True),
                                              (replace_the_index, False)])
def test_changed_records_are_read_again(records, reads, change, is_sound):
    check_records(records)
    change(records)
    reads.clear()
    if is_sound:
        check_records(records, data_check='stamp')
    else:
        with pytest.raises(InputError, match='CRC-32'):
            check_records(records, data_check='stamp')
    assert ('whole', 'set.rec') in reads
    # A file at fault is never vouched for.
    if not is_sound:
        with pytest.raises(InputError, match='CRC-32'):
            check_records(records, data_check='stamp')


def test_a_file_that_changes_while_it_is_read_gets_no_stamp(records, monkeypatch):
    check = integrity._check_checksum

    def change_then_check(path, expected):
        check(path, expected)
        touch(records)
    monkeypatch.setattr(integrity, '_check_checksum', change_then_check)
    check_records(records)
    assert not records.with_name('set.checked.json').exists()


def test_a_stamp_vouches_for_no_other_labels_and_no_structure_alone(records):
    check_records(records, data_check='structure')
    assert not records.with_name('set.checked.json').exists()
    check_records(records)
    with pytest.raises(InputError, match='`num_classes` is 2'):
        check_records(records, num_classes=2, data_check='stamp')
    with pytest.raises(InputError, match='has 1 label'):
        check_records(records, label_width=2, data_check='stamp')


@pytest.mark.parametrize('content', ['', '{', '[]', '{"version": 1}', '{"version": 2, "files": {}}'])
def test_a_damaged_stamp_is_none(records, reads, content):
    check_records(records)
    records.with_name('set.checked.json').write_text(content)
    reads.clear()
    check_records(records, data_check='stamp')
    assert ('whole', 'set.rec') in reads


def test_records_of_a_folder_that_cannot_be_written_are_checked(records, monkeypatch):
    def refuse(path, content):
        raise InputError(f'{path} cannot be written')
    monkeypatch.setattr('gluon_lprnet.data.stamp.write_file', refuse)
    assert check_records(records, data_check='stamp').count == 50


def test_a_training_and_an_evaluation_after_it_read_records_once(records, reads, training_flags, tmp_path, capsys):
    flags = [*training_flags, '--num-epochs', '2', '--rec-train', str(records), '--rec-val', str(records)]
    assert not main(['train-imagenet', *flags])
    assert [name for kind, name in reads if kind == 'whole' and name == 'set.rec'] == ['set.rec']
    log = (tmp_path / 'run' / 'train.log').read_text().splitlines()
    assert str(records) in log[0] and 'check: stamp' in log[0]
    reads.clear()
    assert not main(['evaluate', str(records), '--network', str(tmp_path / 'run')])
    assert reads == []
    assert not main(['evaluate', str(records), '--network', str(tmp_path / 'run'), '--data-check', 'full'])
    assert ('whole', 'set.rec') in reads
