"""Packing, read back by MXNet's own readers and compared with the source images."""
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import gluon_lprnet  # noqa: F401  makes MXNet importable
from gluon_lprnet.__main__ import main
from gluon_lprnet.data import pack
from gluon_lprnet.data.integrity import check_records, class_names
from gluon_lprnet.data.pack import pack_images
from gluon_lprnet.data.recordio import label_fault, read_records, write_records
from gluon_lprnet.utils.errors import InputError

REPOSITORY = str(Path(__file__).resolve().parents[2])
DATA = os.path.join(REPOSITORY, '..', 'shared', 'data')


def picture(seed=0, size=(60, 40)):
    """A smooth picture, so that JPEG changes its pixels little."""
    small = np.random.RandomState(seed).randint(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(path, seed=0, size=(60, 40), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path, **kwargs)


def class_folders(folder, classes=('cat', 'ant', 'bee'), images=4):
    for c, name in enumerate(classes):
        for i in range(images):
            save(folder / name / f'{i}.jpg', seed=10 * c + i)
    return folder


def read_back(prefix):
    """(label, image file) of every record by MXNet's reader, in the order of the keys."""
    reader = mx.recordio.MXIndexedRecordIO(f'{prefix}.idx', f'{prefix}.rec', 'r')
    samples = []
    for number, key in enumerate(reader.keys):
        header, image = mx.recordio.unpack(reader.read_idx(key))
        assert key == header.id == number
        samples.append((header.label, image))
    return samples


def pack_one(tmp_path, image, name='a.png', **kwargs):
    """Pack one image file; returns the record's file and its pixels (RGB) as MXNet decodes them."""
    path = tmp_path / 'in' / 'class' / name
    path.parent.mkdir(parents=True)
    path.write_bytes(image)
    pack_images(tmp_path / 'in', tmp_path / 'one', **kwargs)
    (label, packed), = read_back(tmp_path / 'one')
    assert label == 0
    return packed, mx.image.imdecode(packed).asnumpy()


def encoded(image, kind, **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def assert_like(pixels, expected, tolerance=3):
    assert pixels.shape == np.shape(expected)
    assert np.abs(pixels.astype(int) - np.asarray(expected, dtype=int)).mean() < tolerance


def fault_of(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        pack_images(*args, **kwargs)
    return str(caught.value)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# What is written

def test_class_folders_are_labeled_in_sorted_order(tmp_path):
    source = class_folders(tmp_path / 'in')
    summary = pack_images(source, tmp_path / 'set', shuffle=False)
    assert summary.count == 12
    assert summary.classes == ['ant', 'bee', 'cat']
    assert (tmp_path / 'set.classes.txt').read_text() == 'ant\nbee\ncat\n'
    expected = [(label, (source / name / f'{i}.jpg').read_bytes())
                for label, name in enumerate(['ant', 'bee', 'cat']) for i in range(4)]
    assert read_back(tmp_path / 'set') == expected
    assert names_in(tmp_path) == ['in', 'set.classes.txt', 'set.idx', 'set.json', 'set.rec']


@pytest.mark.parametrize('text, names', [
    ('bee\nowl\n\ncat\nant\n', ['bee', 'owl', 'cat', 'ant']),
    ('\ufeffbee\tBiene\nowl\tEule\ncat\tKatze mit Hut\nant', ['Biene', 'Eule', 'Katze mit Hut', 'ant'])])
def test_a_file_gives_order_and_names_of_the_classes(tmp_path, text, names):
    source = class_folders(tmp_path / 'in')
    (tmp_path / 'names.txt').write_text(text, encoding='utf-8')
    assert not main(['pack', 'images', str(source), '--out', str(tmp_path / 'set'), '--classes',
                     str(tmp_path / 'names.txt'), '--no-shuffle'])
    assert class_names(tmp_path / 'set.rec') == names
    assert read_back(tmp_path / 'set') == [(label, (source / name / f'{i}.jpg').read_bytes())
                                           for label, name in ((3, 'ant'), (0, 'bee'), (2, 'cat')) for i in range(4)]
    # A list has the labels already.
    (tmp_path / 'list.txt').write_text('in/ant/0.jpg 3\nin/bee/0.jpg 0\n')
    pack_images(tmp_path / 'list.txt', tmp_path / 'listed', classes=tmp_path / 'names.txt')
    assert class_names(tmp_path / 'listed.rec') == names
    assert sorted(label for label, _ in read_back(tmp_path / 'listed')) == [0, 3]


def test_wordnet_ids_name_folders_and_classes(tmp_path):
    source = class_folders(tmp_path / 'in', ('n01440764', 'n02102040'))
    (tmp_path / 'synsets.txt').write_text('n02102040 English springer, springer\nn01440764 tench, Tinca tinca\n')
    assert pack_images(source, tmp_path / 'set', classes=tmp_path / 'synsets.txt').classes == ['n02102040', 'n01440764']


@pytest.mark.parametrize('text, message', [
    ('bee\nant\n', 'has 1 class folder.s. that are not in .*names.txt: cat\n'),
    ('bee\nant\ncat\nbee\n', 'names.txt: line 4: bee is on line 1 too'),
    ('bee\tx\nant\tx\ncat', 'names.txt: line 2: x is on line 1 too'), ('\n', 'names.txt names no classes')])
def test_files_of_classes_at_fault(tmp_path, text, message):
    source = class_folders(tmp_path / 'in', images=1)
    (tmp_path / 'names.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        pack_images(source, tmp_path / 'set', classes=tmp_path / 'names.txt')
    with pytest.raises(InputError, match='missing.txt cannot be read'):
        pack_images(source, tmp_path / 'set', classes=tmp_path / 'missing.txt')


def test_a_label_beyond_the_named_classes_names_its_line(tmp_path):
    class_folders(tmp_path / 'in', images=1)
    (tmp_path / 'names.txt').write_text('ant\nbee\n')
    (tmp_path / 'list.txt').write_text('in/ant/0.jpg 0\nin/cat/0.jpg 2\n')
    with pytest.raises(InputError, match='line 2: the label is 2.0, and .*names.txt names the classes 0 to 1'):
        pack_images(tmp_path / 'list.txt', tmp_path / 'set', classes=tmp_path / 'names.txt')


def test_reading_a_source_shows_its_progress_from_the_start(tmp_path, monkeypatch):
    shown = []

    def note(steps, title, **how):
        shown.append((title, len(steps), how['disable']))
        return steps
    monkeypatch.setattr('gluon_lprnet.data.sources.tqdm', note)
    source = class_folders(tmp_path / 'in', images=2)
    pack_images(source, tmp_path / 'set')
    names = sorted(path.relative_to(source) for path in source.glob('*/*.jpg'))
    (tmp_path / 'list.txt').write_text(''.join(f'{name} 0\n' for name in names))
    pack_images(tmp_path / 'list.txt', tmp_path / 'listed', root=source)
    assert shown == [('reading the folders', 3, None), ('reading the list', len(names), None)] and names


def test_the_manifest_describes_the_files(tmp_path):
    source = class_folders(tmp_path / 'in')
    pack_images(source, tmp_path / 'set', resize=32, quality=90, seed=5)
    manifest = json.loads((tmp_path / 'set.json').read_text())
    for kind in ('rec', 'idx'):
        content = (tmp_path / f'set.{kind}').read_bytes()
        assert manifest[kind] == {'bytes': len(content), 'crc32': f'{zlib.crc32(content):08x}'}
    assert manifest['count'] == 12 and manifest['label_width'] == 1
    assert (manifest['label_min'], manifest['label_max']) == (0, 2)
    assert manifest['class_counts'] == {'0': 4, '1': 4, '2': 4}
    assert manifest['classes'] == ['ant', 'bee', 'cat']
    assert [manifest[name] for name in ('resize', 'quality', 'shuffle', 'seed')] == [32, 90, True, 5]
    assert manifest['skipped'] == [] and manifest['ignored'] == []
    assert 'CRC-32' in check_records(tmp_path / 'set.rec', num_classes=3).verified


def test_image_record_iter_reads_the_images_with_their_labels(tmp_path):
    for label, color in enumerate([(250, 10, 10), (10, 250, 10), (10, 10, 250)]):
        for i in range(3):
            path = tmp_path / 'in' / f'class{label}' / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (32, 32), color).save(path)
    pack_images(tmp_path / 'in', tmp_path / 'set')
    batch = next(mx.io.ImageRecordIter(path_imgrec=str(tmp_path / 'set.rec'), data_shape=(3, 32, 32),
                                       path_imgidx=str(tmp_path / 'set.idx'), batch_size=9,
                                       preprocess_threads=1, verbose=False))
    labels = batch.label[0].asnumpy().astype(int)
    assert sorted(labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(labels) != sorted(labels)  # shuffled
    assert np.array_equal(batch.data[0].asnumpy().mean(axis=(2, 3)).argmax(axis=1), labels)


def test_the_bytes_depend_on_the_seed_and_not_on_the_workers(tmp_path):
    source = class_folders(tmp_path / 'in', images=20)

    def digest(name, **kwargs):
        pack_images(source, tmp_path / name, resize=24, **kwargs)
        return [hashlib.sha256((tmp_path / (name + extension)).read_bytes()).hexdigest()
                for extension in ('.rec', '.idx', '.json', '.classes.txt')]

    one = digest('a', workers=1)
    assert digest('b', workers=3) == one
    assert digest('c', workers=1, seed=1)[0] != one[0]
    assert sorted(read_back(tmp_path / 'c')) == sorted(read_back(tmp_path / 'a'))


# What becomes of an image

@pytest.mark.parametrize('size, resize, expected', [
    ((100, 80), 40, (50, 40)),
    ((80, 100), 40, (40, 50)),
    ((100, 80), 0, (100, 80)),
    ((100, 80), 80, (100, 80)),
    ((100, 80), 200, (100, 80)),
    ((333, 100), 50, (166, 50)),
])
def test_the_shorter_side_is_shrunk_and_never_enlarged(tmp_path, size, resize, expected):
    _, pixels = pack_one(tmp_path, encoded(picture(1, size), 'PNG'), resize=resize)
    assert_like(pixels, picture(1, size).resize(expected, Image.Resampling.BOX))


def test_pictures_are_resized_to_480_by_default(tmp_path):
    """As the paper's were."""
    save(tmp_path / 'in' / 'class' / 'a.png', size=(700, 600))
    assert not main(['pack', 'images', str(tmp_path / 'in'), '--out', str(tmp_path / 'set')])
    (_, packed), = read_back(tmp_path / 'set')
    assert mx.image.imdecode(packed).shape == (480, 560, 3)
    assert json.loads((tmp_path / 'set.json').read_text())['resize'] == 480


def test_shrinking_averages(tmp_path):
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    _, pixels = pack_one(tmp_path, encoded(Image.fromarray(checkerboard), 'PNG'), resize=32)
    assert_like(pixels, np.full((32, 32, 3), 127))


def test_a_jpeg_that_needs_nothing_keeps_its_bytes(tmp_path):
    image = encoded(picture(), 'JPEG', quality=40)
    assert pack_one(tmp_path, image)[0] == image


def test_a_jpeg_that_is_shrunk_has_the_quality_asked_for(tmp_path):
    image = encoded(picture(3, (400, 400)), 'JPEG')
    packed, _ = pack_one(tmp_path, image, resize=200, quality=30)
    shrunk = cv2.resize(np.asarray(Image.open(io.BytesIO(image))), (200, 200), interpolation=cv2.INTER_AREA)
    same = encoded(Image.fromarray(shrunk), 'JPEG', quality=30)
    assert Image.open(io.BytesIO(packed)).quantization == Image.open(io.BytesIO(same)).quantization


@pytest.mark.parametrize('kind, options', [('JPEG', {'progressive': True}), ('WEBP', {'lossless': True}),
                                           ('BMP', {}), ('TIFF', {}), ('PNG', {}), ('PPM', {})])
def test_other_formats_become_baseline_jpeg(tmp_path, kind, options):
    # Named .jpg, as some of ImageNet's are: the content decides and not the name.
    packed, pixels = pack_one(tmp_path, encoded(picture(), kind, **options), name='a.jpg')
    header = Image.open(io.BytesIO(packed))
    assert header.format == 'JPEG' and header.mode == 'RGB' and not header.info.get('progressive')
    assert_like(pixels, picture())


def test_gray_becomes_three_channels(tmp_path):
    packed, pixels = pack_one(tmp_path, encoded(picture().convert('L'), 'JPEG', quality=95))
    assert Image.open(io.BytesIO(packed)).mode == 'RGB'
    assert_like(pixels, picture().convert('L').convert('RGB'))


def test_cmyk_becomes_rgb(tmp_path):
    packed, pixels = pack_one(tmp_path, encoded(picture().convert('CMYK'), 'JPEG', quality=95), name='a.jpg')
    assert Image.open(io.BytesIO(packed)).mode == 'RGB'
    assert_like(pixels, picture())


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    gray = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    _, image = cv2.imencode('.png', gray)
    _, pixels = pack_one(tmp_path, image.tobytes())
    assert_like(pixels, np.repeat((gray / 257)[:, :, None], 3, axis=2).astype(int))


def test_transparency_is_laid_on_white(tmp_path):
    image = picture().convert('RGBA')
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, :32] = 255
    image.putalpha(Image.fromarray(alpha))
    _, pixels = pack_one(tmp_path, encoded(image, 'PNG'))
    assert_like(pixels[:, :32], np.asarray(picture())[:, :32])
    assert pixels[:, 40:].min() > 245


def test_a_palette_with_a_transparent_color_and_an_animation(tmp_path):
    frames = [Image.new('P', (32, 32), index) for index in (1, 2)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    frames[0].paste(0, (16, 0, 32, 32))
    image = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:], transparency=0)
    _, pixels = pack_one(tmp_path, image, name='a.gif')
    assert np.abs(pixels[:, :12].astype(int) - (0, 0, 255)).mean() < 5
    assert pixels[:, 20:].min() > 240


@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_image_is_set_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encoded(picture(2), 'JPEG', quality=95, exif=exif)
    packed, pixels = pack_one(tmp_path, image, name='a.jpg')
    upright = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)  # turns by EXIF
    assert_like(pixels, upright[:, :, ::-1])
    assert (packed == image) == (orientation == 1)
    assert orientation == 1 or 0x0112 not in Image.open(io.BytesIO(packed)).getexif()


def test_a_side_that_opencv_does_not_warp_is_refused_by_name(tmp_path):
    save(tmp_path / 'in' / 'class' / 'fine.png')
    save(tmp_path / 'in' / 'class' / 'panorama.png', size=(32_767, 8))
    assert 'panorama.png is 32767x8 pixels: at most' in fault_of(tmp_path / 'in', tmp_path / 'one')
    # What is packed was looked at, so that the check need not.
    pack_images(tmp_path / 'in', tmp_path / 'one', skip_bad=True)
    assert json.loads((tmp_path / 'one.json').read_text())['max_side'] == 32_766


def test_broken_exif_does_not_lose_the_image(tmp_path):
    image = encoded(picture(), 'JPEG', exif=b'Exif\0\0MM\0\x2a\xff\xff\xff\xff')
    assert pack_one(tmp_path, image, name='a.jpg')[0] == image


# Damaged images

def damaged_folder(folder):
    class_folders(folder)
    whole = encoded(picture(1, (200, 200)), 'JPEG')
    (folder / 'ant' / 'half.jpg').write_bytes(whole[:len(whole) // 2])
    (folder / 'ant' / 'zero.jpg').touch()
    (folder / 'bee' / 'text.jpg').write_text('not an image')
    os.symlink('nowhere.jpg', folder / 'cat' / 'gone.jpg')
    return folder


DAMAGED = {os.path.join('ant', 'half.jpg'): 'truncated', os.path.join('ant', 'zero.jpg'): 'empty',
           os.path.join('bee', 'text.jpg'): 'not an image', os.path.join('cat', 'gone.jpg'): 'does not exist'}


def test_damaged_images_fail_the_packing_and_are_all_named(tmp_path):
    message = fault_of(damaged_folder(tmp_path / 'in'), tmp_path / 'set')
    assert '4 of 16 images' in message and '`skip_bad`' in message
    for path, reason in DAMAGED.items():
        line, = (line for line in message.splitlines() if path in line)
        assert reason in line
    assert names_in(tmp_path) == ['in']


def test_skip_bad_leaves_damaged_images_out_and_says_so(tmp_path, capsys):
    source = damaged_folder(tmp_path / 'in')
    assert not main(['pack', 'images', str(source), '--out', str(tmp_path / 'set'), '--skip-bad',
                     '--no-shuffle'])
    output = capsys.readouterr()
    assert '12 images' in output.out and '4 skipped' in output.out
    skipped = json.loads((tmp_path / 'set.json').read_text())['skipped']
    assert [path for path, _ in skipped] == sorted(DAMAGED)
    for path, reason in skipped:
        assert path in output.err and DAMAGED[path] in reason
    assert [label for label, _ in read_back(tmp_path / 'set')] == [0] * 4 + [1] * 4 + [2] * 4
    assert check_records(tmp_path / 'set.rec').count == 12


def test_nothing_but_damaged_images_is_no_set(tmp_path):
    (tmp_path / 'in' / 'ant').mkdir(parents=True)
    (tmp_path / 'in' / 'ant' / 'zero.jpg').touch()
    assert 'no images to pack' in fault_of(tmp_path / 'in', tmp_path / 'set', skip_bad=True)
    assert names_in(tmp_path) == ['in']


# Folders

def test_what_is_not_an_image_is_ignored_and_reported(tmp_path, capsys):
    source = class_folders(tmp_path / 'in')
    (source / 'README.txt').touch()
    (source / '.cache').mkdir()
    (source / 'ant' / 'Thumbs.db').touch()
    (source / 'ant' / '._0.jpg').touch()
    (source / 'bee' / 'more').mkdir()
    ignored = ['.cache', 'README.txt', os.path.join('ant', '._0.jpg'), os.path.join('ant', 'Thumbs.db'),
               os.path.join('bee', 'more')]
    assert not main(['pack', 'images', str(source), '--out', str(tmp_path / 'set')])
    output = capsys.readouterr()
    assert '12 images' in output.out and '5 ignored' in output.out
    assert all(name in output.err for name in ignored)
    assert sorted(json.loads((tmp_path / 'set.json').read_text())['ignored']) == sorted(ignored)


def test_folders_that_are_not_class_folders_are_refused(tmp_path):
    out = tmp_path / 'set'
    assert 'does not exist' in fault_of(tmp_path / 'no', out)
    (tmp_path / 'in').mkdir()
    assert 'no class folders' in fault_of(tmp_path / 'in', out)
    class_folders(tmp_path / 'in' / 'train')
    message = fault_of(tmp_path / 'in', out)  # one level too high
    assert f'{tmp_path / "in" / "train"} holds no image directly (the 3 folders' in message
    (tmp_path / 'in' / 'train' / 'dog').mkdir()
    assert f'{tmp_path / "in" / "train" / "dog"} holds no image: ' in fault_of(tmp_path / 'in' / 'train', out)
    save(tmp_path / 'in' / 'train' / '1.jpg')
    assert '1 image(s) directly (1.jpg)' in fault_of(tmp_path / 'in' / 'train', out)
    assert '`root`' in fault_of(tmp_path / 'in', out, root=tmp_path)


def test_names_in_any_bytes_are_packed(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b'in', b'caf\xe9')
    os.makedirs(folder)
    with open(os.path.join(folder, b'\xff.jpg'), 'wb') as file:
        file.write(encoded(picture(), 'JPEG'))
    with open(os.path.join(folder, b'\xfe.jpg'), 'wb'):
        pass
    assert main(['pack', 'images', str(tmp_path / 'in'), '--out', str(tmp_path / 'set')]) == 2
    assert not main(['pack', 'images', str(tmp_path / 'in'), '--out', str(tmp_path / 'set'), '--skip-bad'])
    assert (tmp_path / 'set.classes.txt').read_bytes() == b'caf\xe9\n'


# Lists

def test_an_mxnet_list(tmp_path):
    class_folders(tmp_path / 'in')
    (tmp_path / 'in' / 'set.lst').write_text('7\t2.000000\tcat/1.jpg\n3\t0.000000\tant/0.jpg\n')
    summary = pack_images(tmp_path / 'in' / 'set.lst', tmp_path / 'set', shuffle=False)
    assert summary.classes is None and not (tmp_path / 'set.classes.txt').exists()
    assert read_back(tmp_path / 'set') == [(2, (tmp_path / 'in/cat/1.jpg').read_bytes()),
                                           (0, (tmp_path / 'in/ant/0.jpg').read_bytes())]


def test_an_mxnet_list_with_several_labels(tmp_path):
    class_folders(tmp_path / 'in')
    (tmp_path / 'set.lst').write_text('0\t0.5\t-1\tcat/1.jpg\n1\t2\t3.25\tant/0.jpg\n')
    pack_images(tmp_path / 'set.lst', tmp_path / 'set', root=tmp_path / 'in', shuffle=False)
    assert [list(label) for label, _ in read_back(tmp_path / 'set')] == [[0.5, -1], [2, 3.25]]
    assert check_records(tmp_path / 'set.rec', label_width=2).count == 2


def test_a_text_list(tmp_path):
    save(tmp_path / 'in' / 'a b.jpg')
    save(tmp_path / 'in' / 'c.jpg', seed=1)
    (tmp_path / 'list.txt').write_text(f'a b.jpg 1\n\n{tmp_path / "in" / "c.jpg"}\t0\n')
    pack_images(tmp_path / 'list.txt', tmp_path / 'set', root=tmp_path / 'in', shuffle=False)
    assert read_back(tmp_path / 'set') == [(1, (tmp_path / 'in' / 'a b.jpg').read_bytes()),
                                           (0, (tmp_path / 'in' / 'c.jpg').read_bytes())]


@pytest.mark.parametrize('name, line, expected', [
    ('list.txt', 'b.jpg', 'is not "path label"'),
    ('list.txt', 'b.jpg one', 'is not "path label"'),
    ('list.txt', '0\t1\tb.jpg', 'must be named *.lst'),
    ('list.txt', 'b.jpg -1', 'a non-negative integer'),
    ('list.txt', 'b.jpg 1.5', 'a non-negative integer'),
    ('list.txt', 'b.jpg nan', 'not finite'),
    ('list.txt', 'b.jpg 1_0', 'is not "path label"'),
    ('list.txt', 'b.jpg, 0', 'a comma stands between'),
    ('list.txt', 'b.jpg 16777217', 'does not hold every integer above 16,777,216'),
    ('list.lst', '1\t16777217\tb.jpg', 'does not hold every integer above'),
    ('list.lst', '1\t1_0\tb.jpg', 'is not "index<TAB>label<TAB>path"'),
    ('list.txt', './/a.jpg 1', './/a.jpg is on line 1 too'),
    ('list.lst', '1\t1\t./a.jpg', './a.jpg is on line 1 too'),
    ('list.txt', 'a.jpg 1', 'a.jpg is on line 1 too'),
    ('list.lst', '1\tb.jpg', 'is not "index<TAB>label<TAB>path"'),
    ('list.lst', '1\tone\tb.jpg', 'is not "index<TAB>label<TAB>path"'),
    ('list.lst', 'b.jpg\t1\t1', 'is not "index<TAB>label<TAB>path"'),
    ('list.lst', '1\t1\t2\tb.jpg', '2 label(s)'),
    ('list.lst', '1\t-1\tb.jpg', 'a non-negative integer'),
])
def test_a_faulty_line_is_named(tmp_path, name, line, expected):
    path = tmp_path / name
    path.write_text(('0\t0\ta.jpg' if name.endswith('lst') else 'a.jpg 0') + f'\n{line}\n')
    message = fault_of(path, tmp_path / 'set')
    assert f'{path}: line 2: ' in message and expected in message


@pytest.mark.parametrize('name, lines', [('list.txt', ['in\\ant\\0.jpg 0', 'in\\bee\\0.jpg 1']),
                                         ('list.lst', ['0\t0\tin\\ant\\0.jpg', '1\t1\tin\\bee\\0.jpg'])])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16-le', 'utf-16-be'])
def test_lists_made_in_windows(tmp_path, name, lines, encoding):
    """With backslashes, and as PowerShell's ``>`` writes them."""
    class_folders(tmp_path / 'in')
    text = '\r\n'.join(lines) + '\r\n'
    (tmp_path / name).write_bytes((('\ufeff' if '16' in encoding else '') + text).encode(encoding))
    assert pack_images(tmp_path / name, tmp_path / 'set', resize=0, shuffle=False).count == 2
    assert list(read_records(tmp_path / 'set.rec')) == [
        (label, (tmp_path / 'in' / folder / '0.jpg').read_bytes()) for label, folder in enumerate(('ant', 'bee'))]


def test_a_name_may_hold_a_backslash_or_end_with_a_comma(tmp_path):
    class_folders(tmp_path / 'in')
    for name in ('a\\b.jpg', 'c,'):
        shutil.copy(tmp_path / 'in' / 'ant' / '0.jpg', tmp_path / name)
    (tmp_path / 'list.txt').write_text('a\\b.jpg 0\nc, 1\n')
    assert pack_images(tmp_path / 'list.txt', tmp_path / 'set').count == 2


@pytest.mark.parametrize('content', ['a.jpg 0\n'.encode('utf-16-le'), b'\xff\xfea', b'\x00\x01\x02'])
def test_a_list_that_is_not_text_is_named(tmp_path, content):
    (tmp_path / 'list.txt').write_bytes(content)
    assert 'is not a text in UTF-8 or UTF-16: save it as UTF-8' in fault_of(tmp_path / 'list.txt', tmp_path / 'set')


def test_labels_that_float32_does_not_hold():
    """Neighboring integers above 2**24 are one number there."""
    assert np.float32(2**24) == np.float32(2**24 + 1)
    for label in (2**24 + 1, 2**24 + 2, [1, 2**24 + 1]):
        assert 'does not hold every integer above 16,777,216' in label_fault(label)
    for label in (2**24, [1, 2**24], [1, 1e9], [0.1, 1 / 3]):
        assert label_fault(label) is None


def test_a_folder_that_is_missing_is_made(tmp_path):
    pack_images(class_folders(tmp_path / 'in'), tmp_path / 'a' / 'b' / 'set')
    assert check_records(tmp_path / 'a' / 'b' / 'set.rec').count == 12


def test_a_list_of_nothing_or_with_a_wrong_root(tmp_path):
    (tmp_path / 'list.txt').write_text('\n')
    assert 'lists no images' in fault_of(tmp_path / 'list.txt', tmp_path / 'set')
    assert '`root`' in fault_of(tmp_path / 'list.txt', tmp_path / 'set', root=tmp_path / 'no')
    (tmp_path / 'list.txt').write_text('gone.jpg 0\n')
    assert 'gone.jpg does not exist' in fault_of(tmp_path / 'list.txt', tmp_path / 'set')


# Where it is written

def test_existing_files_need_overwrite(tmp_path):
    source = class_folders(tmp_path / 'in')
    pack_images(source, tmp_path / 'set')
    before = (tmp_path / 'set.rec').read_bytes()
    assert f'{tmp_path / "set.rec"}, ' in fault_of(source, tmp_path / 'set', seed=1)
    assert (tmp_path / 'set.rec').read_bytes() == before
    pack_images(source, tmp_path / 'set', seed=1, overwrite=True)
    assert (tmp_path / 'set.rec').read_bytes() != before
    check_records(tmp_path / 'set.rec')


def test_a_failed_overwrite_leaves_the_old_files(tmp_path):
    source = class_folders(tmp_path / 'in')
    pack_images(source, tmp_path / 'set')
    before = names_in(tmp_path)
    (source / 'ant' / 'zero.jpg').touch()
    assert 'zero.jpg' in fault_of(source, tmp_path / 'set', overwrite=True)
    assert names_in(tmp_path) == before
    assert check_records(tmp_path / 'set.rec').count == 12


def test_an_old_file_of_classes_does_not_stay(tmp_path):
    pack_images(class_folders(tmp_path / 'in'), tmp_path / 'set')
    (tmp_path / 'list.txt').write_text('in/ant/0.jpg 5\n')
    pack_images(tmp_path / 'list.txt', tmp_path / 'set', overwrite=True)
    assert not (tmp_path / 'set.classes.txt').exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    source = class_folders(tmp_path / 'in')
    (tmp_path / 'file').touch()
    assert f'{tmp_path / "file"} is not a folder' in fault_of(source, tmp_path / 'file' / 'set')
    assert 'is a folder' in fault_of(source, tmp_path)
    assert 'is a folder' in fault_of(source, f'{tmp_path}/')
    assert 'omit the .rec suffix' in fault_of(source, tmp_path / 'set.rec')


@pytest.mark.parametrize('flag, value', [('resize', -1), ('quality', 0), ('quality', 101), ('workers', 0),
                                         ('seed', -1)])
def test_a_flag_out_of_range_is_refused(tmp_path, flag, value):
    source = class_folders(tmp_path / 'in')
    assert f'`{flag}` is {value}' in fault_of(source, tmp_path / 'set', **{flag: value})


@pytest.mark.parametrize('limit, images, expected', [
    (150_000, [(0, b'x' * 50_000)] * 5, 'cannot be written'),
    # Only buffered bytes fail, on closing, of which MXNet says nothing.
    (2_000, [(0, b'x' * 3_000)], 'bytes could be written'),
])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, limit, images, expected):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError) as caught:
            write_records(tmp_path / 'set', images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / 'set') in str(caught.value) and expected in str(caught.value)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize('sent, phase', [(signal.SIGINT, 'workers start'), (signal.SIGTERM, 'workers work')])
def test_a_signal_leaves_nothing_behind(tmp_path, sent, phase):
    (tmp_path / 'in' / 'ant').mkdir(parents=True)
    (tmp_path / 'out').mkdir()
    image = encoded(Image.effect_noise((1200, 1200), 90).convert('RGB'), 'JPEG')
    for i in range(300):
        (tmp_path / 'in' / 'ant' / f'{i}.jpg').write_bytes(image)
    process = subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', 'pack', 'images', str(tmp_path / 'in'),
                                '--out', str(tmp_path / 'out' / 'set'), '--workers', '2'],
                               cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True,
                               # A job that a shell put in the background is deaf to Ctrl-C.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        reached = False
        while not reached and process.poll() is None:
            time.sleep(0.2)
            # The workers start as soon as the file is there, and work when it grows.
            sizes = [path.stat().st_size for path in (tmp_path / 'out').glob('*/*.rec')]
            reached = bool(sizes) if phase == 'workers start' else sum(sizes) > 0
        time.sleep(0.3)
        assert process.poll() is None, process.stderr.read()
        # A terminal sends Ctrl-C to the whole group; a scheduler sends SIGTERM to the process.
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        errors = process.communicate(timeout=120)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 128 + sent
    assert 'Traceback' not in errors
    assert names_in(tmp_path / 'out') == []


# write_records

def test_write_records_takes_arrays_that_another_program_encoded(tmp_path):
    pixels = [np.full((16, 16, 3), value, np.uint8) for value in (10, 120, 250)]
    samples = ((np.int64(label), pack.encode_jpeg(image)) for label, image in enumerate(pixels))
    rec_path, count, size = write_records(tmp_path / 'set', samples, classes=['a', 'b', 'c'],
                                          details={'origin': 'arrays'})
    assert (rec_path, count, size) == (str(tmp_path / 'set.rec'), 3, os.path.getsize(tmp_path / 'set.rec'))
    for number, (label, image) in enumerate(read_back(tmp_path / 'set')):
        assert label == number
        assert_like(mx.image.imdecode(image).asnumpy(), pixels[number])
    assert json.loads((tmp_path / 'set.json').read_text())['origin'] == 'arrays'


def test_write_records_takes_landmarks(tmp_path):
    points = np.random.RandomState(0).randn(3, 136)
    write_records(tmp_path / 'set', [(row, encoded(picture(), 'JPEG')) for row in points])
    assert np.array_equal([label for label, _ in read_back(tmp_path / 'set')], points.astype(np.float32))
    assert check_records(tmp_path / 'set.rec', label_width=136).count == 3


@pytest.mark.parametrize('labels, expected', [([0, float('nan')], 'Sample 1 .*not finite'),
                                              ([0, -1], 'Sample 1 .*non-negative integer'),
                                              ([[1., 2.], [1., np.inf]], 'Sample 1 .*not finite'),
                                              ([[1., 2.], [1., 2., 3.]], 'Sample 1 .*3 label'),
                                              ([0, [1., 2.]], 'Sample 1 .*2 label'),
                                              ([], 'no image')])
def test_write_records_refuses_a_label_that_is_not_sound(tmp_path, labels, expected):
    image = encoded(picture(), 'JPEG')
    with pytest.raises(InputError, match=expected):
        write_records(tmp_path / 'set', ((label, image) for label in labels))
    assert names_in(tmp_path) == []


def test_write_records_leaves_nothing_when_the_samples_fail(tmp_path):
    def samples():
        yield 0, b'image'
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_records(tmp_path / 'set', samples())
    assert names_in(tmp_path) == []


def test_a_class_with_a_line_break_is_refused(tmp_path):
    with pytest.raises(InputError, match='line break'):
        write_records(tmp_path / 'set', [(0, b'image')], classes=['a\nb'])


# Photos

@pytest.mark.skipif(not os.path.isdir(DATA), reason=f'{DATA} is not there')
def test_photos(tmp_path):
    """200 photos: the labels of their folders, the shorter side at most 128, like their sources."""
    source = os.path.join(DATA, 'imagenette', 'val')
    for name in sorted(os.listdir(source)):
        (tmp_path / 'in' / name).mkdir(parents=True)
        for photo in sorted(os.listdir(os.path.join(source, name)))[:20]:
            shutil.copy(os.path.join(source, name, photo), tmp_path / 'in' / name)
    pack_images(tmp_path / 'in', tmp_path / 'set', resize=128, shuffle=False)
    summary = check_records(tmp_path / 'set.rec', num_classes=10)
    assert summary.class_counts == dict.fromkeys(range(10), 20)
    paths = sorted((tmp_path / 'in').glob('*/*'))
    for path, (label, image) in zip(paths, read_back(tmp_path / 'set')):
        assert sorted(os.listdir(source))[int(label)] == path.parent.name
        photo = Image.open(path).convert('RGB')
        pixels = mx.image.imdecode(image).asnumpy()
        assert min(pixels.shape[:2]) == min(128, *photo.size)
        # JPEG changes photos more than the smooth pictures above; another photo would differ by 50 or so.
        assert_like(pixels, photo.resize(pixels.shape[1::-1], Image.Resampling.BOX), tolerance=10)


def test_named_pipe_among_the_pictures(tmp_path):
    """Opened, it would wait for a writer without end."""
    (tmp_path / 'photos' / 'a').mkdir(parents=True)
    os.mkfifo(tmp_path / 'photos' / 'a' / 'pipe.jpg')
    with pytest.raises(InputError, match='pipe.jpg is a named pipe, not a file'):
        pack_images(tmp_path / 'photos', tmp_path / 'out', workers=1)
