import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import encode

from gluon_lprnet.data import batches as batches_module
from gluon_lprnet.data.batches import ImageBatches, Normalization, paper_augmentation, validation_batches
from gluon_lprnet.data.integrity import check_records, class_names
from gluon_lprnet.data.recordio import write_records

RAW = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def batches_of(tiny_records, batch_size=16, normalization=RAW, **kwargs):
    prefix, _, _ = tiny_records
    return ImageBatches(check_records(f'{prefix}.rec'), 16, batch_size, normalization, threads=1, **kwargs)


def read(batches, epoch=0, start=0):
    data, label = zip(*[(d.asnumpy(), y.asnumpy()) for d, y in batches.epoch(epoch, start)])
    return np.concatenate(data), np.concatenate(label)


@pytest.mark.parametrize('batch_size', [16, 25, 50, 64, 200])
def test_plain_epoch_is_every_record_once_in_order(tiny_records, batch_size):
    _, images, labels = tiny_records
    batches = batches_of(tiny_records, batch_size)
    data, label = read(batches)
    np.testing.assert_array_equal(data.transpose(0, 2, 3, 1), images)
    np.testing.assert_array_equal(label, labels)
    assert len(batches) == len(list(batches.epoch(0)))


def test_normalization_is_by_channel(tiny_records):
    _, images, _ = tiny_records
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    data, _ = read(batches_of(tiny_records, normalization=Normalization(mean, std)))
    np.testing.assert_allclose(data.transpose(0, 2, 3, 1), (images - np.array(mean)) / std, rtol=1e-5)


@pytest.mark.parametrize('shuffle', [False, True])
def test_three_epochs_hold_every_record_once_each(tiny_records, shuffle):
    _, images, labels = tiny_records
    # 50 records in batches of 16: the last one is short.
    batches = batches_of(tiny_records, shuffle=shuffle)
    numbers = {image.tobytes(): number for number, image in enumerate(images)}
    for epoch in range(3):
        data, label = read(batches, epoch)
        found = [numbers[one.tobytes()] for one in data.transpose(0, 2, 3, 1).astype('uint8')]
        assert sorted(found) == list(range(50))
        np.testing.assert_array_equal(label, labels[found])


@pytest.mark.parametrize('epoch, start', [(2, 0), (3, 0), (2, 2), (3, 3)])
def test_a_resume_reads_the_bytes_of_the_uninterrupted_training(tiny_records, epoch, start):
    def batches():
        return batches_of(tiny_records, shuffle=True, seed=4, augmentation=paper_augmentation(
            pad=2, min_random_scale=0.8, max_random_illumination=20))
    uninterrupted = batches()
    whole = [read(uninterrupted, number) for number in range(4)][epoch]
    for resumed, expected in zip(read(batches(), epoch, start), whole):
        np.testing.assert_array_equal(resumed, expected[16 * start:])


_EPOCHS = '''
import os, resource, sys
import gluon_lprnet
from gluon_lprnet.data.batches import ImageBatches, Normalization, paper_augmentation
from gluon_lprnet.data.integrity import check_records
records = check_records(sys.argv[1])
raw = Normalization((0, 0, 0), (1, 1, 1))
sets = [ImageBatches(records, 96, 32, raw, shuffle=True, augmentation=paper_augmentation(pad=4)),
        ImageBatches(records, 96, 32, raw, resize=96)]
for epoch in range(65):
    for batches in sets:
        for data, label in batches.epoch(epoch):
            data.wait_to_read()
    print(int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 1e6)
'''


def test_a_resume_says_how_many_images_it_decodes_and_how_long_that_takes(tiny_records, monkeypatch):
    said = []
    monkeypatch.setattr(batches_module._LOGGER, 'info', lambda text, *values: said.append(text % values))
    next(batches_of(tiny_records, 8).epoch(0))
    assert not said
    next(batches_of(tiny_records, 8).epoch(0, 3))
    assert said[0].startswith('24 images of the epoch are decoded once more')
    assert re.fullmatch(r'8 of 24 decoded, ETA \d:\d\d:\d\d', said[1])


def test_memory_does_not_grow_by_epochs(tmp_path):
    rng = np.random.default_rng(0)
    write_records(tmp_path / 'flat', [(0, encode(np.full((96, 96, 3), rng.integers(0, 256, 3), 'uint8')))
                                      for _ in range(200)])
    output = subprocess.run([sys.executable, '-c', _EPOCHS, str(tmp_path / 'flat.rec')], check=True,
                            capture_output=True, text=True).stdout
    megabytes = list(map(float, output.split()))
    # A batch has 3.5 MB: an iterator that lost one would make it 7 MB an epoch, of training and validation. The
    # allocator may take 32 MB at once.
    assert (megabytes[-1] - megabytes[4]) / 60 < 1


NAMES = ['caf\udce9', 'next\x85line', 'vertical\x0btab', 'carriage\rreturn', 'line\u2028separator', 'µ']


@pytest.mark.parametrize('manifest', [True, False])
def test_class_names_of_any_bytes(tmp_path, manifest):
    write_records(tmp_path / 'names', [(label, encode(np.zeros((4, 4, 3), 'uint8'))) for label in range(len(NAMES))],
                  classes=NAMES)
    if not manifest:
        (tmp_path / 'names.json').unlink()
    assert class_names(tmp_path / 'names.rec') == ['caf\ufffd', *NAMES[1:]]


def test_records_without_names(tmp_path):
    write_records(tmp_path / 'plain', [(0, encode(np.zeros((4, 4, 3), 'uint8')))])
    assert class_names(tmp_path / 'plain.rec') is None


def test_shuffled_epochs_differ_and_repeat(tiny_records):
    _, images, _ = tiny_records
    batches = batches_of(tiny_records, shuffle=True, seed=3)
    first, again, second = read(batches, 0)[0], read(batches, 0)[0], read(batches, 1)[0]
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch.reshape(50, -1).sum(1)),
                                      np.sort(images.reshape(50, -1).sum(1, dtype=float)))


def test_augmentation_repeats_and_a_late_start_continues_it(tiny_records):
    batches = batches_of(tiny_records, shuffle=True, augmentation=paper_augmentation(pad=2,
                                                                                    max_random_illumination=20))
    whole, tail = read(batches, 5), read(batches, 5, start=2)
    np.testing.assert_array_equal(whole[0][32:], tail[0])
    np.testing.assert_array_equal(whole[1][32:], tail[1])


def test_mirror_and_nothing_else(tiny_records):
    _, images, _ = tiny_records
    data, _ = read(batches_of(tiny_records, augmentation=paper_augmentation()))
    data = data.transpose(0, 2, 3, 1)
    mirrored = np.array([np.array_equal(d, i[:, ::-1]) for d, i in zip(data, images)])
    kept = np.array([np.array_equal(d, i) for d, i in zip(data, images)])
    assert (mirrored ^ kept).all() and 10 < mirrored.sum() < 40
    data, _ = read(batches_of(tiny_records, augmentation=paper_augmentation(mirror=False)))
    np.testing.assert_array_equal(data.transpose(0, 2, 3, 1), images)


def test_illumination_moves_all_pixels_of_an_image_by_one_number_in_range(tiny_records):
    _, images, _ = tiny_records
    data, _ = read(batches_of(tiny_records, augmentation=paper_augmentation(mirror=False,
                                                                           max_random_illumination=20)))
    shift = data.transpose(0, 2, 3, 1) - images
    assert shift.reshape(50, -1).std(1).max() < 1e-3
    means = shift.reshape(50, -1).mean(1)
    assert np.abs(means).max() <= 20 and means.std() > 5


def test_random_scale_never_leaves_less_than_the_crop(tmp_path):
    y, x = np.mgrid[:64, :64]
    image = np.stack([x * 2 + 60, y * 2 + 60, np.full_like(x, 90)], -1).astype(np.uint8)
    write_records(tmp_path / 'ramp', [(0, encode(image))] * 40)
    batches = ImageBatches(check_records(tmp_path / 'ramp.rec'), 32, 40, RAW, threads=1, shuffle=True,
                           augmentation=paper_augmentation(min_random_scale=0.25, max_random_scale=1.0))
    data = next(iter(batches.epoch(0))).data.asnumpy()
    slopes = (data[:, 0, 16, 24] - data[:, 0, 16, 8]) / 16
    # The ramp rises by 2 a pixel at scale 1, by 4 at the smallest scale that still fills the crop.
    assert np.abs(slopes).min() > 1.9 and np.abs(slopes).max() < 4.3 and np.abs(slopes).std() > 0.2
    assert data.min() > 55, 'no padding shows'


def test_validation_is_the_center_crop_of_the_resized_image(shared_data):
    rec = shared_data / 'cifar10' / 'test.rec'
    import mxnet as mx
    reader = mx.recordio.MXIndexedRecordIO(str(rec.with_suffix('.idx')), str(rec), 'r')
    _, image = mx.recordio.unpack_img(reader.read_idx(0), cv2.IMREAD_COLOR)
    config = dict(input_size=24, crop_ratio=0.5, rgb_mean=RAW.mean, rgb_std=RAW.std)
    batches = validation_batches(check_records(rec, data_check='structure'), config, 4, 1)
    data = next(iter(batches.epoch(0))).data[0].asnumpy().transpose(1, 2, 0)
    expected = cv2.resize(image[..., ::-1], (48, 48), interpolation=cv2.INTER_LINEAR)[12:36, 12:36]
    assert np.abs(data - expected).max() <= 1


@pytest.mark.parametrize('folder', ['a#b', 'a?b', 'a;b'])
def test_a_path_that_would_be_another_address(tmp_path, folder):
    pixels = np.full((16, 16, 3), 90, 'uint8')
    write_records(tmp_path / folder / 'set', [(label, encode(pixels)) for label in (1, 0)], classes=None)
    data, label = read(ImageBatches(check_records(tmp_path / folder / 'set.rec'), 16, 2, RAW, threads=1))
    assert label.tolist() == [1, 0] and (data == 90).all()
