"""The check of RecordIO files, against files that MXNet wrote and faults made by hand."""
import io
import json
import os
import struct
import tracemalloc
import zlib

import mxnet as mx
import numpy as np
import pytest
from PIL import Image, ImageFile

import gluon_lprnet  # noqa: F401  makes MXNet importable
from gluon_lprnet.__main__ import main
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.images import AUTO, center_crop, read_image
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.recordio import MANIFEST_FORMAT, MANIFEST_VERSION, read_records, write_records
from gluon_lprnet.data.repair import repair_records
from gluon_lprnet.utils.errors import InputError

MAGIC = struct.pack('<I', 0xced7230a)


def jpeg(seed=0, size=(40, 32)):
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, 'JPEG', quality=90)
    return file.getvalue()


def write(folder, samples, name='set'):
    """Write (label, image) pairs with MXNet's own writer; returns the path of the .rec."""
    path = str(folder / f'{name}.rec')
    writer = mx.recordio.MXIndexedRecordIO(str(folder / f'{name}.idx'), path, 'w')
    for key, (label, image) in enumerate(samples):
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, label, key, 0), image))
    writer.close()
    return path


def ten(folder):
    return write(folder, [(i % 3, jpeg(i)) for i in range(10)])


def offsets_of(rec_path):
    with open(os.path.splitext(rec_path)[0] + '.idx') as file:
        return [int(line.split('\t')[1]) for line in file]


def patch(path, offset, new):
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(new)


def with_manifest(rec_path):
    def facts(path):
        with open(path, 'rb') as file:
            content = file.read()
        return {'bytes': len(content), 'crc32': f'{zlib.crc32(content):08x}'}

    stem = os.path.splitext(rec_path)[0]
    with open(f'{stem}.json', 'w') as file:
        json.dump({'format': MANIFEST_FORMAT, 'version': MANIFEST_VERSION,
                   'rec': facts(rec_path), 'idx': facts(f'{stem}.idx')}, file)
    return rec_path


def fault_of(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        check_records(*args, **kwargs)
    return str(caught.value)


def test_a_sound_file_passes_and_is_summed_up(tmp_path):
    path = ten(tmp_path)
    summary = check_records(path, num_classes=3)
    assert summary.path == path
    assert summary.count == 10
    assert summary.size == os.path.getsize(path)
    assert summary.class_counts == {0: 4, 1: 3, 2: 3}
    assert (summary.label_min, summary.label_max) == (0, 2)
    assert 'decoded' in summary.verified


def test_read_records_gives_what_mxnet_wrote(tmp_path):
    samples = [(i % 3, jpeg(i)) for i in range(5)]
    assert list(read_records(write(tmp_path, samples))) == samples


def test_landmark_records_are_read_and_checked(tmp_path):
    points = np.random.RandomState(0).randn(4, 6).astype(np.float32)
    path = write(tmp_path, [(row, jpeg(i)) for i, row in enumerate(points)])
    assert np.array_equal([label for label, _ in read_records(path)], points)
    assert [image for _, image in read_records(path)] == [jpeg(i) for i in range(4)]
    summary = check_records(path, label_width=6)
    assert (summary.label_min, summary.label_max) == (points.min(), points.max())
    assert '`label_width` 6' in fault_of(path)
    assert '`label_width` 6' in fault_of(path, label_width=4)


def test_a_landmark_that_is_not_finite_is_found(tmp_path):
    points = np.ones((4, 6), np.float32)
    points[2, 5] = np.inf
    path = write(tmp_path, [(row, jpeg(i)) for i, row in enumerate(points)])
    assert 'record 2 ' in fault_of(path, label_width=6)


def test_a_record_that_mxnet_split_is_one_record(tmp_path):
    plain = jpeg(1)
    comment = b'..' + MAGIC + b'text' + MAGIC + MAGIC + b'odd'
    # A JPEG comment in front of the rest; the magic numbers fall on multiples of 4 bytes.
    image = plain[:2] + b'\xff\xfe' + struct.pack('>H', len(comment) + 2) + comment + plain[2:]
    samples = [(0, jpeg(0)), (1, image), (2, jpeg(2))]
    path = write(tmp_path, samples)
    kinds = []
    with open(path, 'rb') as file:
        content = file.read()
    at = 0
    while at < len(content):
        word, = struct.unpack_from('<I', content, at + 4)
        kinds.append(word >> 29)
        at += 8 + ((word & 0x1fffffff) + 3) // 4 * 4
    assert kinds == [0, 1, 2, 2, 3, 0]  # else this test shows nothing
    assert list(read_records(path)) == samples
    assert check_records(path).count == 3
    # The third part claims to be a whole record.
    at = content.index(MAGIC, content.index(b'text') + 4)
    word, = struct.unpack_from('<I', content, at + 4)
    patch(path, at + 4, struct.pack('<I', word & 0x1fffffff))
    assert 'record 1 ' in fault_of(path)


@pytest.mark.parametrize('cut', ['padding', 'image', 'header', 'length', 'magic'])
def test_a_truncated_file_is_refused(tmp_path, cut):
    path = write(tmp_path, [(0, jpeg(0)), (1, jpeg(1) + b'.' * (-len(jpeg(1)) % 4) + b'.')])
    last, end = offsets_of(path)[1], os.path.getsize(path)
    os.truncate(path, {'padding': end - 1, 'image': last + 500, 'header': last + 20, 'length': last + 6,
                       'magic': last + 2}[cut])
    message = fault_of(path)
    assert path in message and 'record 1 ' in message and f'byte {last}' in message and 'truncated' in message


def test_a_file_cut_between_two_records_is_refused(tmp_path):
    path = ten(tmp_path)
    os.truncate(path, offsets_of(path)[9])
    message = fault_of(path)
    assert 'line 10 ' in message and '9 records' in message


def test_a_wrong_magic_number_is_refused(tmp_path):
    path = ten(tmp_path)
    patch(path, offsets_of(path)[4], b'\x0b')
    message = fault_of(path)
    assert 'record 4 ' in message and f'byte {offsets_of(path)[4]}' in message


def test_a_wrong_length_is_refused(tmp_path):
    path = ten(tmp_path)
    patch(path, offsets_of(path)[4] + 4, struct.pack('<I', 400))
    message = fault_of(path)
    assert 'record 5 ' in message and 'the length of the previous record' in message


def test_a_header_that_announces_too_many_labels_is_refused(tmp_path):
    path = ten(tmp_path)
    patch(path, offsets_of(path)[6] + 8, struct.pack('<I', 1 << 30))
    assert 'record 6 ' in fault_of(path)


def test_a_record_without_image_or_header_is_refused(tmp_path):
    assert 'record 1 ' in fault_of(write(tmp_path, [(0, jpeg()), (0, b'')]))
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / 'short.idx'), str(tmp_path / 'short.rec'), 'w')
    writer.write_idx(0, b'short')
    writer.close()
    assert 'record 0 ' in fault_of(tmp_path / 'short.rec')
    with pytest.raises(InputError, match='record 0 '):
        list(read_records(tmp_path / 'short.rec'))


def test_a_file_that_is_no_recordio_is_refused(tmp_path):
    path = ten(tmp_path)
    with open(path, 'wb') as file:
        file.write(jpeg())
    assert 'not a RecordIO file' in fault_of(path)


def test_missing_empty_and_folder_are_refused(tmp_path):
    assert 'does not exist' in fault_of(tmp_path / 'no.rec')
    assert 'is a folder' in fault_of(tmp_path)
    (tmp_path / 'empty.rec').touch()
    assert 'is empty' in fault_of(tmp_path / 'empty.rec')
    path = ten(tmp_path)
    os.remove(tmp_path / 'set.idx')
    assert str(tmp_path / 'set.idx') in fault_of(path)


def change_index(path, change):
    with open(path) as file:
        lines = file.readlines()
    with open(path, 'w') as file:
        file.writelines(change(lines))


@pytest.mark.parametrize('change, expected', [
    (lambda lines: lines[:4] + lines[5:], 'does not list record 4 '),
    (lambda lines: lines[:4] + ['4\t8\n'] + lines[5:], 'line 5 (key 4) points at byte 8'),
    (lambda lines: lines[:4] + ['4\n'] + lines[5:], 'line 5 is not'),
    (lambda lines: lines[:4] + ['four' + lines[4][1:]] + lines[5:], 'line 5 is not'),
    (lambda lines: lines[:4] + [f'4\t{10**20}\n'] + lines[5:], 'beyond 64 bits'),
    (lambda lines: lines[:4] + ['2' + lines[4][1:]] + lines[5:], 'lines 3 and 5 have the same key, 2'),
    (lambda lines: lines + ['10' + lines[4][1:]], 'lines 5 and 11 have the same byte offset'),
])
def test_a_faulty_index_is_refused(tmp_path, change, expected):
    path = ten(tmp_path)
    change_index(tmp_path / 'set.idx', change)
    message = fault_of(path)
    assert expected in message and str(tmp_path / 'set.idx') in message


def test_the_index_of_another_file_is_refused(tmp_path):
    path = ten(tmp_path)
    write(tmp_path, [(0, jpeg(50 + i)) for i in range(10)], 'other')
    message = fault_of(path, tmp_path / 'other.idx')
    assert 'belongs to another file' in message and str(tmp_path / 'other.idx') in message


def test_an_index_may_be_in_any_order_and_its_keys_name_the_records(tmp_path):
    path = ten(tmp_path)
    change_index(tmp_path / 'set.idx', lambda lines: [f'9{line}' for line in reversed(lines)])
    assert check_records(path).count == 10
    assert 'record 2 (counted from 0, key 92) has the label 2' in fault_of(path, num_classes=2)


@pytest.mark.parametrize('label', [float('nan'), float('inf'), -1.0, 1.5])
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
    path = write(tmp_path, [(0, jpeg()), (label, jpeg()), (label, jpeg())])
    message = fault_of(path)
    assert f'record 1 (counted from 0, key 1) has the label {label:g}' in message and '2 of 3' in message


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    message = fault_of(ten(tmp_path), num_classes=2)
    assert 'record 2 ' in message and 'label 2' in message and '`num_classes` 3' in message
    assert '`num_classes` is 0' in fault_of(ten(tmp_path), num_classes=0)


@pytest.mark.parametrize('pillow_accepts', [False, True])
def test_half_a_jpeg_is_found_by_decoding(tmp_path, monkeypatch, pillow_accepts):
    # GluonCV switches this on for the whole process.
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', pillow_accepts)
    whole = jpeg(1, (320, 240))
    half = whole[:len(whole) // 2]
    assert mx.image.imdecode(half).shape == (240, 320, 3)  # MXNet accepts it
    message = fault_of(write(tmp_path, [(0, jpeg(0)), (1, half), (2, jpeg(2)), (0, b'no image')]))
    assert '2 of 4 images' in message
    assert 'record 1 (counted from 0, key 1)' in message and 'truncated' in message
    assert 'record 3 (counted from 0, key 3)' in message


def test_no_flipped_bit_of_a_png_gets_through(tmp_path):
    """MXNet's decoder ends the process by SIGFPE on some, and gives other pixels for others; PNG has checksums."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype='uint8')).save(file, 'PNG')
    png = file.getvalue()
    path = write(tmp_path, [(0, jpeg()), (1, png)])
    with open(path, 'rb') as records:
        begin = records.read().index(png)
    check_records(path)
    chance = np.random.default_rng(1)
    # Of the head, and of the rest.
    bits = [*chance.integers(0, 8 * 33, 30), *chance.integers(8 * 33, 8 * len(png), 50)]
    for bit in bits:
        patch(path, begin + bit // 8, bytes([png[bit // 8] ^ 1 << bit % 8]))
        assert 'record 1 ' in fault_of(path), bit
        patch(path, begin, png)
    check_records(path)


def test_an_image_of_a_format_that_mxnet_does_not_decode_is_found(tmp_path):
    def encoded(kind):
        file = io.BytesIO()
        Image.new('RGB', (8, 8)).save(file, kind)
        return file.getvalue()

    assert check_records(write(tmp_path, [(0, encoded('PNG'))])).count == 1
    message = fault_of(write(tmp_path, [(0, encoded('PNG')), (0, encoded('WEBP'))]))
    assert 'record 1 ' in message and 'WEBP' in message and '1 of 2' in message


def picture_of_any_kind(kind, mode='RGB', orientation=None, size=(24, 16)):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture = Image.open(io.BytesIO(jpeg(3, size))).convert(mode)
    if mode in ('RGBA', 'LA'):
        picture.putalpha(Image.linear_gradient('L').resize(size))
    picture.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize('kind, mode, orientation', [('PNG', 'RGBA', None), ('PNG', 'LA', None), ('TIFF', 'RGBA', None),
                                                     ('PNG', 'RGB', 6), ('PNG', 'RGB', 3), ('TIFF', 'RGB', 6)])
def test_an_image_that_mxnet_reads_otherwise_than_prediction_is_found(tmp_path, kind, mode, orientation):
    image = picture_of_any_kind(kind, mode, orientation)
    message = fault_of(write(tmp_path, [(0, jpeg()), (1, image)]))
    assert 'record 1 (counted from 0, key 1) is an image' in message and '1 of 2' in message
    assert 'other pixels than prediction sees' in message and 'pack images' in message


def test_images_that_mxnet_reads_as_prediction_does_are_sound(tmp_path):
    images = [picture_of_any_kind('JPEG', orientation=value) for value in range(1, 9)]
    images += [picture_of_any_kind('JPEG', 'CMYK'), picture_of_any_kind('JPEG', 'L'), picture_of_any_kind('PNG', 'L'),
               picture_of_any_kind('PNG', 'P'), picture_of_any_kind('BMP'), picture_of_any_kind('TIFF')]
    path = write(tmp_path, [(0, image) for image in images])
    assert check_records(path).count == len(images)
    config = dict(input_size=16, crop_ratio=1.0, inter_method=AUTO, rgb_mean=[0.0] * 3, rgb_std=[1.0] * 3)
    batch = next(validation_batches(check_records(path), config, len(images), 1).epoch(0))
    for found, image in zip(batch.data.asnumpy(), images):
        expected = center_crop(read_image(image), config).transpose(2, 0, 1)
        assert np.abs(found - expected).max() <= 16


def test_a_side_that_opencv_does_not_warp_is_found_where_packing_did_not_look(tmp_path):
    """Records of before packing refused it have a manifest that says nothing about sides."""
    path = with_manifest(write(tmp_path, [(0, jpeg()), (1, jpeg(size=(32_768, 8)))]))
    assert 'record 1 (counted from 0, key 1) is 32768x8 pixels: at most' in fault_of(path)


def test_content_false_skips_the_images(tmp_path):
    path = write(tmp_path, [(0, b'no image')])
    assert check_records(path, data_check='structure').verified == 'not verified'
    assert '1 of 1 images' in fault_of(path)


def test_worker_processes_find_the_same_as_one(tmp_path):
    images = [jpeg(i % 7) for i in range(100)]
    images[3] = images[70] = jpeg()[:300]
    path = write(tmp_path, [(0, image) for image in images])
    one, two = (fault_of(path, workers=workers) for workers in (1, 2))
    assert 'record 3 ' in one and 'record 70 ' in one and '2 of 100' in one
    assert two == one
    assert '`workers` is 0' in fault_of(path, workers=0)


def test_any_changed_bit_is_found_by_the_manifest(tmp_path):
    path = with_manifest(ten(tmp_path))
    assert 'CRC-32' in check_records(path).verified
    with open(path, 'rb') as file:
        content = file.read()
    # In the entropy-coded data of a JPEG, where it decodes to other pixels without any complaint.
    at = offsets_of(path)[5] + 32 + len(jpeg(5)) - 200
    patch(path, at, bytes([content[at] ^ 1]))
    message = fault_of(path)
    assert path in message and 'CRC-32' in message
    patch(path, at, content[at:at + 1])
    check_records(path)
    os.rename(tmp_path / 'set.json', tmp_path / 'unused.json')
    patch(path, at, bytes([content[at] ^ 1]))
    check_records(path)  # what the manifest is for: decoding does not see it


def test_a_reordered_index_differs_from_the_manifest(tmp_path):
    path = with_manifest(ten(tmp_path))
    change_index(tmp_path / 'set.idx', reversed)
    assert 'set.idx is damaged' in fault_of(path)


def test_a_file_packed_again_differs_from_an_old_manifest(tmp_path):
    path = with_manifest(ten(tmp_path))
    write(tmp_path, [(0, jpeg(i)) for i in range(12)])
    message = fault_of(path)
    assert 'when it was packed' in message and str(tmp_path / 'set.json') in message


def test_a_damaged_manifest_is_refused_and_a_stranger_is_not_read(tmp_path):
    path = ten(tmp_path)
    manifest = tmp_path / 'set.json'
    manifest.write_text('{"nodes": []}')
    assert 'decoded' in check_records(path).verified
    for text, expected in (('{', 'not JSON'),
                           (json.dumps({'format': MANIFEST_FORMAT, 'version': 99}), 'version 99'),
                           (json.dumps({'format': MANIFEST_FORMAT, 'version': 1}), 'lacks')):
        manifest.write_text(text)
        message = fault_of(path)
        assert expected in message and str(manifest) in message


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every file')
def test_a_file_without_permission_is_refused(tmp_path):
    path = ten(tmp_path)
    os.chmod(path, 0)
    assert 'cannot be read' in fault_of(path)


def test_the_command_prints_the_summary(tmp_path, capsys):
    path = ten(tmp_path)
    assert not main(['check', path, '--num-classes', '3'])
    output = capsys.readouterr().out
    assert path in output and '10 records' in output and '3 classes' in output and 'decoded' in output


def test_a_missing_index_is_written(tmp_path, capsys):
    """The bytes that MXNet's own writer wrote."""
    path = ten(tmp_path)
    index = tmp_path / 'set.idx'
    before = index.read_bytes()
    index.unlink()
    assert main(['check', path]) == 2
    assert 'with --write-index' in capsys.readouterr().err and not index.exists()
    assert not main(['check', path, '--write-index'])
    assert index.read_bytes() == before
    # One that is there, though wrong, may be needed to say what went wrong.
    index.write_text('0\t8\n')
    assert main(['check', path, '--write-index']) == 2 and index.read_text() == '0\t8\n'


def test_no_index_is_written_of_a_damaged_file(tmp_path):
    path = ten(tmp_path)
    (tmp_path / 'set.idx').unlink()
    with open(path, 'rb+') as file:
        file.truncate(os.path.getsize(path) - 4)
    assert main(['check', path, '--write-index']) == 2 and not (tmp_path / 'set.idx').exists()


def test_numbers_of_an_index_are_plain(tmp_path):
    path = ten(tmp_path)
    lines = (tmp_path / 'set.idx').read_text().splitlines()
    (tmp_path / 'set.idx').write_text('\n'.join([lines[0].replace('0', '0_0', 1), *lines[1:]]) + '\n')
    assert 'line 1 is not' in fault_of(path)


def test_the_command_fails_with_the_message_alone(tmp_path, capsys):
    path = ten(tmp_path)
    assert main(['check', path, '--num-classes', '2']) == 2
    output = capsys.readouterr()
    assert 'label 2' in output.err and 'Traceback' not in output.err and not output.out


def test_cifar10_is_sound(shared_data):
    summary = check_records(shared_data / 'cifar10' / 'test.rec', num_classes=10, data_check='structure')
    assert summary.count == 10000
    assert set(summary.class_counts.values()) == {1000}


def test_the_structure_of_a_large_file_takes_little_memory(tmp_path):
    # Sparse: 4 GB that take no room on the disk.
    length, count = 1 << 28, 16
    with open(tmp_path / 'large.rec', 'wb') as rec, open(tmp_path / 'large.idx', 'w') as idx:
        for key in range(count):
            idx.write(f'{key}\t{rec.tell()}\n')
            rec.write(struct.pack('<IIIfQQ', 0xced7230a, length, 0, key, key, 0))
            rec.seek(length - 24, os.SEEK_CUR)
        rec.truncate()

    tracemalloc.start()
    summary = check_records(tmp_path / 'large.rec', data_check='structure')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.count == count and summary.size > 2**32
    assert peak < 10_000_000


def test_repair_keeps_every_sound_record(tmp_path, capsys):
    path = ten(tmp_path)
    offsets = offsets_of(path)
    size = os.path.getsize(path)
    samples = list(read_records(path))
    with open(path, 'rb') as file:
        content = bytearray(file.read())
    content[offsets[2]:offsets[2] + 4] = b'gone'                     # its magic number
    content[offsets[3] + 4:offsets[3] + 8] = struct.pack('<I', 2**28)    # its length
    content[offsets[6] + 8 + 24 + 200] ^= 0xff                       # its image
    content[offsets[7] + 12:offsets[7] + 16] = struct.pack('<f', -1)     # its label
    content = content[:-8]                                           # the last record is cut off
    with open(path, 'wb') as file:
        file.write(content)
    assert main(['check', path]) == 2
    summary = repair_records(path, tmp_path / 'sound')
    (tmp_path / 'set.idx').unlink()
    kept = list(read_records(summary.path))
    image_is_sound = (6, ) if kept[4:5] == samples[6:7] else ()
    assert kept == [samples[number] for number in (0, 1, 4, 5, *image_is_sound, 8)]
    assert summary.kept == check_records(summary.path).count == len(kept)
    places = [(loss.offset, loss.end) for loss in summary.lost]
    assert places[0] == (offsets[2], offsets[4]) and places[-1] == (offsets[9], size - 8)
    assert (offsets[7], offsets[8]) in places
    capsys.readouterr()
    assert not main(['check', path, '--repair', str(tmp_path / 'again')])
    text = capsys.readouterr().out
    assert f'{len(kept)} sound records' in text and f'bytes {offsets[2]} to {offsets[4]}: it does not start' in text
    assert list(read_records(str(tmp_path / 'again.rec'))) == kept


def test_repair_loses_no_record_to_a_length_that_reaches_over_it(tmp_path):
    path = ten(tmp_path)
    samples, offsets = list(read_records(path)), offsets_of(path)
    with open(path, 'rb') as file:
        content = bytearray(file.read())
    # A length that ends where a later record does.
    content[offsets[2] + 4:offsets[2] + 8] = struct.pack('<I', offsets[5] - offsets[2] - 8)
    with open(path, 'wb') as file:
        file.write(content)
    summary = repair_records(path, tmp_path / 'sound')
    assert list(read_records(summary.path)) == samples[:2] + samples[3:]
    (loss,) = summary.lost
    assert loss[:2] == (offsets[2], offsets[3]) and 'its length is damaged' in loss.reason


def test_repair_keeps_records_that_mxnet_splits(tmp_path):
    magic = struct.pack('<I', 0xced7230a)
    # Behind the end of the picture, where decoders do not look; also where MXNet does not split: at no multiple of 4.
    samples = [(number, jpeg(number) + tail) for number, tail in enumerate(
        [4 * magic, b'.' + magic, 5 * magic + b'..', b'.', magic[:3]])]
    samples = [(label, image + b'.' * (-len(image) % 4) + 3 * magic + image[-number:])
               for number, (label, image) in enumerate(samples, 1)]
    write_records(tmp_path / 'set', samples)
    assert any(image.find(magic) % 4 == 0 for _, image in samples)
    summary = repair_records(tmp_path / 'set.rec', tmp_path / 'again')
    assert summary.lost == [] and list(read_records(summary.path)) == samples


def test_repair_takes_what_the_manifest_says(tmp_path):
    samples = [(i % 3, jpeg(i)) for i in range(6)]
    write_records(tmp_path / 'set', samples, ['a', 'b', 'c'], {'layout': 'some', 'part': 'rest'})
    patch(tmp_path / 'set.rec', offsets_of(str(tmp_path / 'set.rec'))[1], b'gone')
    repair_records(tmp_path / 'set.rec', tmp_path / 'sound')
    manifest = json.loads((tmp_path / 'sound.json').read_text())
    assert manifest['count'] == 5 and manifest['classes'] == ['a', 'b', 'c']
    assert (manifest['layout'], manifest['part']) == ('some', 'rest')
    assert check_records(tmp_path / 'sound.rec').verified.startswith('CRC-32')


def test_repair_of_what_cannot_be_repaired(tmp_path, capsys):
    (tmp_path / 'noise.rec').write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match='holds no sound record'):
        repair_records(tmp_path / 'noise.rec', tmp_path / 'out')
    assert not list(tmp_path.glob('out*'))
    assert main(['check', str(tmp_path / 'noise.rec'), '--repair', str(tmp_path / 'out'), '--num-classes', '3']) == 2
    assert '--num-classes cannot go with --repair' in capsys.readouterr().err


def test_record_in_many_parts(tmp_path):
    """A part for every 4 bytes: copied once each, or this takes minutes."""
    image = MAGIC * 500_000
    (_, found), = read_records(write(tmp_path, [(0, image)]))
    assert found == image
