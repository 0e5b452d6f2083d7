"""Records that have not changed since they were checked are not read again."""
import json
import os
import shutil
import zlib

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
    read_record, crc32, whole = recordio.read_record, recordio.file_crc32, recordio.InOrder.crc32

    def note_record(pread, size, offset, wanted=None):
        seen.append(('record', offset))
        return read_record(pread, size, offset, wanted)

    def note_file(path):
        seen.append(('whole', os.path.basename(path)))
        return crc32(path)

    def note_whole(reader):
        seen.append(('whole', os.path.basename(reader._file.name)))
        return whole(reader)
    monkeypatch.setattr(integrity, 'read_record', note_record)
    monkeypatch.setattr(integrity, 'file_crc32', note_file)
    monkeypatch.setattr(recordio.InOrder, 'crc32', note_whole)
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
    change_index(records, reversed)


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

    def change_then_check(path, *found):
        check(path, *found)
        touch(records)
    monkeypatch.setattr(integrity, '_check_checksum', change_then_check)
    check_records(records)
    assert not records.with_name('set.checked.json').exists()


def test_the_structure_of_packed_records_is_that_of_their_index(records, reads, monkeypatch):
    monkeypatch.setattr(integrity, '_HEADERS_READ', 5)
    found = check_records(records, data_check='structure')
    offsets = integrity.read_index(str(records.with_suffix('.idx')))[1]
    assert [offset for kind, offset in reads if kind == 'record'] == [offsets[number] for number in (0, 12, 24, 37, 49)]
    assert ('whole', 'set.rec') not in reads
    assert not records.with_name('set.checked.json').exists()
    assert found._replace(verified='') == check_records(records)._replace(verified='')


@pytest.mark.parametrize('change, said', [
    (lambda rec: os.truncate(rec, rec.stat().st_size - 4), 'record 49 .*truncated'),
    (lambda rec: change_index(rec, lambda lines: lines[:4] + lines[5:]), 'does not list record 4 '),
    (lambda rec: rec.with_suffix('.json').write_text('{'), 'is not JSON'),
    (lambda rec: overwrite(rec, integrity.read_index(str(rec.with_suffix('.idx')))[1][24], b'gone'), 'record 24 ')])
def test_what_the_index_does_not_explain_is_looked_for_in_the_records(records, monkeypatch, change, said):
    monkeypatch.setattr(integrity, '_HEADERS_READ', 5)
    change(records)
    with pytest.raises(InputError, match=said):
        check_records(records, data_check='structure')


@pytest.mark.parametrize('damage', [{'class_counts': 5}, {'label_max': None}, {'label_width': 'one'}, {'count': 49}])
def test_a_manifest_that_says_too_little_of_labels_leaves_them_to_the_records(records, reads, damage):
    sound = check_records(records, data_check='structure')
    manifest = json.loads(records.with_suffix('.json').read_text())
    records.with_suffix('.json').write_text(json.dumps({**manifest, **damage}))
    reads.clear()
    assert check_records(records, data_check='structure') == sound
    assert len({offset for kind, offset in reads if kind == 'record'}) == 50


def change_index(records, change):
    index = records.with_suffix('.idx')
    index.write_text(''.join(change(index.read_text().splitlines(keepends=True))))


def overwrite(path, offset, content):
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(content)


def test_packed_records_are_read_in_order_and_once(records, monkeypatch):
    # A manifest that says so spares the images a second look.
    manifest = json.loads(records.with_suffix('.json').read_text())
    records.with_suffix('.json').write_text(json.dumps({**manifest, 'max_side': 1000}))
    monkeypatch.setattr(integrity, 'reader_of', None)
    monkeypatch.setattr(recordio, '_BLOCK', 1000)
    blocks = []
    read_on = recordio.InOrder._read_on

    def note(reader, offset):
        blocks.append(read_on(reader, offset))
        return blocks[-1]
    monkeypatch.setattr(recordio.InOrder, '_read_on', note)
    assert 'CRC-32' in check_records(records).verified
    assert sum(blocks) == records.stat().st_size and len(blocks) > 10


def test_records_of_others_have_their_headers_read_once(records, reads):
    records.with_suffix('.json').unlink()
    first = check_records(records, data_check='structure')
    reads.clear()
    again = check_records(records, data_check='structure')
    assert reads == [] and again._replace(verified='') == first._replace(verified='')
    assert again.verified.endswith('not verified')
    # Of their content that says nothing.
    assert 'decoded' in check_records(records, data_check='stamp').verified and reads


def test_a_stamp_vouches_for_no_other_labels(records):
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
    trained_on = json.loads((tmp_path / 'run' / 'environment.json').read_text())[-1]['records']
    assert trained_on == {'set.rec': {'records': 50, 'crc32': f'{zlib.crc32(records.read_bytes()):08x}'}}
    reads.clear()
    assert not main(['evaluate', str(records), '--network', str(tmp_path / 'run')])
    assert reads == []
    assert not main(['evaluate', str(records), '--network', str(tmp_path / 'run'), '--data-check', 'full'])
    assert ('whole', 'set.rec') in reads
