"""The one reader of pictures against NumPy's arithmetic, and what it refuses."""
import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import SHARED_DATA
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile

from gluon_lprnet.data import images
from gluon_lprnet.data.images import (
    AUTO,
    BILINEAR,
    ImageError,
    ImageTooLarge,
    center_crop,
    encode_image,
    images_in,
    is_image_file,
    normalize,
    read_image,
    resize,
)

FAULTS = SHARED_DATA / 'faults'


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width=60, height=40, seed=0):
    corners = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype='uint8')
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_CUBIC)


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, depth, color_type, row, **chunks):
    """A PNG of one row, byte by byte: of what Pillow and OpenCV do not write."""
    header = struct.pack('>IIBBBBB', width, 1, depth, color_type, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + b''.join(chunk(kind.encode(), data) for kind, data in chunks.items())
            + chunk(b'IDAT', zlib.compress(b'\0' + row)) + chunk(b'IEND', b''))


# Transparency

@pytest.mark.parametrize('kind, mode', [('PNG', 'RGBA'), ('PNG', 'LA'), ('TIFF', 'RGBA'), ('WEBP', 'RGBA'),
                                        ('GIF', 'P'), ('ICO', 'RGBA')])
def test_ink_on_a_transparent_ground_is_ink_on_white(kind, mode):
    """scikit-learn's digits as the alpha of black, as a drawing program saves them."""
    digits = pytest.importorskip('sklearn.datasets').load_digits()
    for digit in digits.images[:10]:
        alpha = np.kron((digit * 15.9).astype('uint8'), np.ones((4, 4), 'uint8'))
        if mode == 'P':
            alpha = np.where(alpha > 127, 255, 0).astype('uint8')
        gray = np.zeros_like(alpha)
        layers = (gray, alpha) if mode == 'LA' else (gray, gray, gray, alpha)
        picture = Image.merge(mode if mode != 'P' else 'RGBA', [Image.fromarray(layer) for layer in layers])
        options = {'WEBP': dict(lossless=True, exact=True), 'ICO': dict(sizes=[(32, 32)])}.get(kind, {})
        pixels = read_image(encoded(picture, kind, **options))
        np.testing.assert_allclose(pixels, np.repeat(255 - alpha[..., None].astype(int), 3, axis=2), atol=1)


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('color_type, channels', [(4, 2), (6, 4)])
def test_alpha_of_any_depth_is_laid_on_white(depth, color_type, channels):
    values = np.random.default_rng(depth).integers(0, 2 ** depth, (50, channels))
    row = values.astype('>u2' if depth == 16 else 'u1').tobytes()
    shares = values / (2 ** depth - 1)
    colors, alpha = shares[:, :-1], shares[:, -1:]
    expected = 255 * (colors * alpha + 1 - alpha) * np.ones(3)
    # Pillow cuts 16 bits off to 8, of color and alpha.
    np.testing.assert_allclose(read_image(png(50, depth, color_type, row))[0], expected, atol=depth / 8)


@pytest.mark.parametrize('depth', [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_is_white(depth):
    count = min(2 ** depth, 256)
    values = np.arange(count) * (2 ** depth // count)
    bits = ''.join(format(value, f'0{depth}b') for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, '0'), 2).to_bytes(-(-len(bits) // 8), 'big')
    for transparent in values[:: max(1, count // 4)]:
        pixels = read_image(png(count, depth, 0, row, tRNS=struct.pack('>H', transparent)))
        expected = np.where(values == transparent, 255, values * 255 / (2 ** depth - 1))
        np.testing.assert_allclose(pixels[0, :, 0], expected, atol=1)


@pytest.mark.parametrize('depth', [8, 16])
def test_the_transparent_color_of_a_png_is_white(depth):
    colors = np.array([[10, 20, 30], [10, 20, 31], [200, 0, 0], [0, 0, 0]]) * (250 if depth == 16 else 1)
    row = colors.astype('>u2' if depth == 16 else 'u1').tobytes()
    for transparent in colors:
        pixels = read_image(png(4, depth, 2, row, tRNS=struct.pack('>HHH', *transparent)))
        expected = np.where((colors == transparent).all(axis=1)[:, None], 255, colors / (257 if depth == 16 else 1))
        np.testing.assert_allclose(pixels[0], expected, atol=1)


def test_a_palette_with_alpha_is_laid_on_white():
    image = png(3, 8, 3, bytes([0, 1, 2]), PLTE=bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]), tRNS=bytes([255, 0, 128]))
    np.testing.assert_allclose(read_image(image)[0], [[255, 0, 0], [255] * 3, [127, 127, 255]], atol=1)


# Orientation

STORED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize('kind, options, loss', [
    ('JPEG', dict(quality=100, subsampling=0), 2), ('WEBP', dict(lossless=True), 0), ('PNG', {}, 0), ('TIFF', {}, 0),
    ('TIFF', dict(compression='tiff_lzw'), 0), ('AVIF', dict(quality=100, subsampling='4:4:4'), 2)])
def test_exif_orientation_of_every_format(kind, options, loss):
    pixels = smooth()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(pixels)
        if orientation > 1:
            stored = stored.transpose(STORED[orientation])
        found = read_image(encoded(stored, kind, exif=exif, **options))
        assert found.shape == pixels.shape, orientation
        assert np.abs(found.astype(int) - pixels).mean() <= loss, orientation


def test_the_files_that_went_wrong():
    if not FAULTS.is_dir():
        pytest.skip(f'no files at {FAULTS}')
    upright = read_image(FAULTS / 'upright.png').astype(int)
    for extension, loss in (('jpg', 4), ('webp', 4), ('tif', 0)):
        found = read_image(FAULTS / f'orientation6.{extension}')
        assert found.shape == upright.shape and np.abs(found - upright).mean() <= loss
    cutout = Image.open(FAULTS / 'png_rgba_cutout.png')
    colors, alpha = np.asarray(cutout.convert('RGBA'))[..., :3] / 255, np.asarray(cutout)[..., 3:] / 255
    np.testing.assert_allclose(read_image(FAULTS / 'png_rgba_cutout.png'), 255 * (colors * alpha + 1 - alpha), atol=1.1)
    for name in ('gif.gif', 'avif.avif', 'lab.tif'):
        assert (read_image(FAULTS / name) == np.asarray(Image.open(FAULTS / name).convert('RGB'))).all()


# What is refused

@pytest.fixture
def lenient():
    """As after ``import gluoncv``."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    yield
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'PPM', 'JPEG2000', 'AVIF'])
def test_half_a_file_is_refused(lenient, kind):
    noise = cv2.resize(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype='uint8'), (200, 200))
    image = encoded(Image.fromarray(noise), kind)
    assert read_image(image).ndim == 3
    for part in (0.5, 0.9):
        with pytest.raises(ImageError, match='cut off|not an image'):
            read_image(image[:int(part * len(image))])


def test_threads_leave_pillow_as_it_was(lenient, monkeypatch):
    """The first of two leaves while the second decodes, which is not to be lenient then."""
    image = encoded(Image.fromarray(smooth()), 'BMP')
    load, inside, found = BmpImageFile.load, threading.Barrier(2, timeout=30), []
    first_is_done = threading.Event()

    def together(self):
        inside.wait()
        if threading.current_thread().name == 'second':
            assert first_is_done.wait(30)
        found.append(ImageFile.LOAD_TRUNCATED_IMAGES)
        return load(self)
    monkeypatch.setattr(BmpImageFile, 'load', together)
    first, second = (threading.Thread(target=images.decode_image, args=(image,), name=name)
                     for name in ('first', 'second'))
    first.start()
    second.start()
    first.join()
    first_is_done.set()
    second.join()
    assert found == [False, False]


def test_one_limit_of_pixels_and_of_sides_before_decoding(monkeypatch):
    def of_size(width, height):
        image = png(1, 8, 0, b'\0')
        header = b'IHDR' + struct.pack('>II', width, height) + image[24:29]
        return image[:12] + header + struct.pack('>I', zlib.crc32(header)) + image[33:]
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('was decoded'))
    for width, height in ((65_535, 65_535), (12_000, 12_000), (10_000, 10_000), (32_767, 1), (1, 32_767)):
        with pytest.raises(ImageTooLarge):
            read_image(of_size(width, height))


def test_a_large_jpeg_is_decoded_at_the_fraction_of_its_size_that_is_asked_for():
    coarse = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    pixels = cv2.resize(coarse, (1500, 1000), interpolation=cv2.INTER_CUBIC)
    picture, file = Image.fromarray(pixels), io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(file, 'JPEG', quality=95, exif=turned)
    for least, fraction in ((1000, 1), (501, 1), (500, 2), (240, 4), (9, 8)):
        found = images.read_image(file.getvalue(), upright=False, least_side=least)
        height, width = 1000 // fraction, 1500 // fraction // 2 * 2
        assert found.shape == (height, -(-1500 // fraction), 3)
        means = pixels[:height * fraction, :width * fraction].reshape(height, fraction, width, fraction, 3).mean((1, 3))
        assert abs(found[:, :width] - means).mean() < 1.5
        assert images.read_image(file.getvalue(), least_side=least).shape == (found.shape[1], found.shape[0], 3)
    for broken in (file.getvalue()[:-2], file.getvalue()[:len(file.getvalue()) // 2]):
        with pytest.raises(images.ImageError, match='damaged or cut off'):
            images.read_image(broken, least_side=240)
    file = io.BytesIO()
    picture.save(file, 'PNG')
    np.testing.assert_array_equal(images.read_image(file.getvalue(), least_side=9), pixels)


def test_what_a_network_sees_of_a_large_jpeg_is_nearly_the_same():
    description = dict(input_size=56, crop_ratio=0.875, inter_method=images.AUTO)
    pixels = cv2.resize(np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8), (1200, 900),
                        interpolation=cv2.INTER_CUBIC)
    side, jpeg = images.side_to_read(description), images.encode_jpeg(pixels)
    assert side == 256 and images.read_image(jpeg, least_side=side).shape == (450, 600, 3)
    whole, fraction = (images.center_crop(images.read_image(jpeg, least_side=least), description).astype('float64')
                       for least in (None, side))
    assert abs(whole - fraction).mean() < 1 < whole.std() / 20
    # Where a network was trained on pictures of which pixels were skipped, it goes on seeing those.
    assert images.side_to_read(dict(description, inter_method=images.BILINEAR)) is None


def test_a_picture_too_long_for_a_network_is_refused_before_it_is_enlarged():
    config = dict(input_size=224, crop_ratio=0.875)
    with pytest.raises(ImageError, match='30000x1 pixels: too long and narrow'):
        center_crop(np.zeros((1, 30_000, 3), 'uint8'), config)


def test_heic_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(images, 'pillow_heif', None)
    monkeypatch.setattr(images, '_FORMATS', tuple(each for each in images._FORMATS if each != 'HEIF'))
    with pytest.raises(ImageError, match=r'HEIC.*pip install pillow-heif'):
        read_image(b'\0\0\0\x18ftypheic' + bytes(100))


def test_heic_is_read_where_its_package_is():
    pillow_heif = pytest.importorskip('pillow_heif')
    pixels = smooth(64, 48)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=100)
    assert np.abs(read_image(buffer.getvalue()).astype(int) - pixels).mean() < 4


# Files

NAMES = r'''
import os, sys
from gluon_lprnet.data.images import encode_image, read_image
for name in (b'caf\xe9.jpg', 'caf\u00e9.jpg'.encode(), b'\xff\xfe.png'):
    path = os.fsdecode(os.path.join(os.fsencode(sys.argv[1]), name))
    with open(path, 'wb') as file:
        file.write(encode_image(read_image(sys.argv[2]), os.path.splitext(path)[1]))
    assert read_image(path).shape == (40, 60, 3)
'''


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8', 'POSIX'])
def test_names_of_any_bytes(tmp_path, locale):
    """In a process of its own, which OpenCV would end with SIGSEGV."""
    (tmp_path / 'plain.png').write_bytes(encode_image(smooth(), '.png'))
    environment = {**os.environ, 'LC_ALL': locale, 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}
    subprocess.run([sys.executable, '-W', 'ignore', '-c', NAMES, str(tmp_path), str(tmp_path / 'plain.png')],
                   check=True, env=environment)
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(
        [b'caf\xe9.jpg', 'caf\u00e9.jpg'.encode(), b'\xff\xfe.png', b'plain.png'])


def test_the_pictures_of_a_folder_and_what_is_linked_in_it(tmp_path):
    for name in ('in/a.jpg', 'in/inner/b.jpg', 'in/folder.jpg/c.jpg', 'elsewhere/d.jpg', 'in/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (('0', 'inner'), ('inner/up', '..'), ('z', '../elsewhere'), ('lost.jpg', 'none')):
        (tmp_path / 'in' / link).symlink_to(target)
    # What is linked has its own name where the folder has it anyway.
    assert images_in(tmp_path / 'in') == [tmp_path / 'in' / name for name in (
        'a.jpg', 'folder.jpg/c.jpg', 'inner/b.jpg', 'lost.jpg', 'z/d.jpg')]


def test_a_folders_pictures_are_told_by_extension_or_content(tmp_path):
    for name in ('a.JPG', 'b.avif', 'c.jp2', 'd.heic', 'e.gif', 'f.ico'):
        (tmp_path / name).touch()
        assert is_image_file(tmp_path / name)
    (tmp_path / 'n02979186_1').write_bytes(encoded(Image.fromarray(smooth()), 'JPEG'))
    assert is_image_file(tmp_path / 'n02979186_1')
    for name in ('README', '.hidden.jpg', 'notes.txt', 'Makefile'):
        (tmp_path / name).write_text('all:')
        assert not is_image_file(tmp_path / name)
    os.mkfifo(tmp_path / 'pipe')
    assert not is_image_file(tmp_path / 'pipe')


@pytest.mark.parametrize('extension, kind', [('.png', 'PNG'), ('.JPG', 'JPEG'), ('.gif', 'GIF'), ('.avif', 'AVIF'),
                                             ('.jp2', 'JPEG2000'), ('.webp', 'WEBP'), ('.tif', 'TIFF'), ('', 'JPEG')])
def test_pictures_are_written_in_the_format_of_their_extension(extension, kind):
    image = encode_image(smooth(), extension)
    assert Image.open(io.BytesIO(image)).format == kind
    assert np.abs(read_image(image).astype(int) - smooth()).mean() < 8


# Resizing

def test_shrinking_averages_and_the_older_reading_skips():
    """Pen lines of 4 pixels, shrunk by 32: a pen's share of ink, or nothing of most lines."""
    page = np.full((1024, 1024, 3), 255, 'uint8')
    page[:, 10::32] = page[:, 11::32] = page[:, 8::32] = page[:, 9::32] = 0
    assert (resize(page, (32, 32)) == round(255 * 28 / 32)).all()
    assert (resize(page, (32, 32), BILINEAR) == 255).all()


@pytest.mark.parametrize('method', [BILINEAR, AUTO])
@pytest.mark.parametrize('size', [(30, 20), (17, 11), (90, 60), (61, 41), (60, 40)])
def test_resizing_is_that_of_mxnet(size, method):
    pixels = smooth()
    interp = mx.image.image._get_interp_method(method, (40, 60, size[1], size[0]))
    expected = mx.image.imresize(mx.nd.array(pixels, dtype='uint8'), *size, interp=interp).asnumpy()
    assert np.abs(resize(pixels, size, method).astype(int) - expected).max() <= 1


def test_a_crop_normalized_is_the_formula():
    config = dict(input_size=24, crop_ratio=0.6, rgb_mean=[120.0, 110.0, 100.0], rgb_std=[50.0, 60.0, 70.0])
    pixels = smooth()
    crop = center_crop(pixels, config)
    # The shorter side is 40 already.
    assert (crop == pixels[8:32, 18:42]).all()
    expected = (crop.astype('float64') - config['rgb_mean']) / config['rgb_std']
    np.testing.assert_allclose(normalize(crop, config), expected.transpose(2, 0, 1), atol=1e-6)
