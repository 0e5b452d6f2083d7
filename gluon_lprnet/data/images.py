"""The one way of pictures into a network: a file of any format as 8-bit RGB, its crop, its normalization.

Packing, evaluation, prediction and alignment read through this module, and a model archive carries it to the server,
where there is no gluon_lprnet: it imports Pillow, NumPy and OpenCV alone.
"""
import contextlib
import io
import math
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

PathLike = Union[str, 'os.PathLike[str]']

# Above it, Pillow itself warns of a decompression bomb.
MAX_PIXELS = 89_478_485
# OpenCV warps no longer ones, neither in a training nor for a face.
MAX_SIDE = 32_766

# Pillow reads more, among them formats that run other programs (EPS).
_FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'ICO') + (
    ('HEIF',) if pillow_heif else ())
# By which a folder's pictures are told from its other files; a file without an ending is looked into.
EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm',
              '.jp2', '.avif', '.ico', '.heic', '.heif')
# Without it, a file is cut off, even if Pillow finds all pixels.
_END = {'PNG': b'IEND\xaeB`\x82', 'JPEG': b'\xff\xd9'}
_HEIF_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')

# Values of ``inter_method``, with the numbers and the meaning that MXNet gives them: how a picture is resized before
# the crop. A network's description names it; one without was written when everything was bilinear.
BILINEAR = 1
# Averages where it shrinks, cubic where it enlarges.
AUTO = 9


class ImageError(ValueError):
    """A picture that cannot be read; the message completes "the picture ...", or a file's name."""


class ImageTooLarge(ImageError):
    """A picture of more pixels than are taken, or with a side above MAX_SIDE."""


def is_image_file(path: PathLike) -> bool:
    """Whether a file of a folder is one of its pictures: by its extension, and without one by its first bytes."""
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1]
    if name.startswith('.'):
        return False
    if extension:
        return extension.lower() in EXTENSIONS
    # A pipe would be waited for without end.
    if not os.path.isfile(path):
        return False
    try:
        with open(path, 'rb') as file:
            _open(file)
    except (ImageTooLarge, OSError):
        return True
    except ImageError:
        return False
    return True


def images_in(folder: PathLike) -> list[Path]:
    """The pictures of a folder and of the folders in it, also linked ones, each folder once; sorted."""
    return sorted(Path(inside, name) for inside, files in files_in(folder) for name in files
                  if is_image_file(os.path.join(inside, name)))


def files_in(folder: PathLike) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder, those in it, and last those linked in it, each once, with the names of its files."""
    # Links last, so that files have the names of the folders themselves.
    seen, waiting = set(), [os.fspath(folder)]
    for start in waiting:
        for inside, folders, files in os.walk(start):
            real = os.path.realpath(inside)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            waiting += [path for name in sorted(folders) if os.path.islink(path := os.path.join(inside, name))]
            yield inside, files


def read_image(source: Union[PathLike, bytes], upright: bool = True, max_pixels: int = MAX_PIXELS,
               least_side: Optional[int] = None) -> np.ndarray:
    """Read a picture.

    The first frame of an animation; 16 bits scaled to 8; transparency laid on white; other color spaces (gray, palette,
    CMYK, LAB) converted by Pillow. A color profile in the file is not applied.

    Parameters
    ----------
    source : path or bytes
        A file's name, of any bytes, or its content.
    upright : bool
        Turn it as the orientation in its EXIF says, of every format.
    max_pixels : int
        Larger ones are refused; at most MAX_PIXELS.
    least_side : int, optional
        As for :func:`decode_image`.

    Returns
    -------
    ndarray (height, width, 3) uint8
        RGB.

    Raises
    ------
    ImageError
        It is missing, of no known format, damaged or cut off.
    ImageTooLarge
        It has too many pixels, which its header tells before anything is decoded.
    """
    picture = decode_image(source if isinstance(source, bytes) else read_file(source), max_pixels, least_side)
    return np.asarray(rgb(turned_upright(picture) if upright else picture))


def read_file(path: PathLike) -> bytes:
    """The bytes of a file, or ImageError."""
    try:
        # One in a folder of pictures would be waited for without end; the shell's own are meant.
        if stat.S_ISFIFO(os.stat(path).st_mode) and not os.fspath(path).startswith(('/dev/', '/proc/')):
            raise ImageError('is a named pipe, not a file')
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise ImageError('does not exist') from None
    except ImageError:
        raise
    # A name with a NUL is a ValueError.
    except (OSError, ValueError) as error:
        raise ImageError(f'cannot be read: {getattr(error, "strerror", None) or error}') from None


class _WholeOnly:
    """As a context: Pillow refuses what is cut off. Several threads may be in it at a time.

    Some packages, GluonCV among them, make Pillow accept that, for the whole process; so it does again when the last
    thread leaves.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._accepts_truncated = False

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._accepts_truncated = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._accepts_truncated


_whole_only = _WholeOnly()


def decode_image(image: bytes, max_pixels: int = MAX_PIXELS, least_side: Optional[int] = None) -> Image.Image:
    """Decode a picture completely, or not at all.

    Parameters
    ----------
    image : bytes
    max_pixels : int
        Larger ones are refused before they are decoded; at most MAX_PIXELS.
    least_side : int, optional
        A JPEG is decoded at a half, a quarter or an eighth of its size, the smallest whose sides are at least so long:
        each pixel is the mean of those that it stands for, and the time is a half to a quarter.

    Returns
    -------
    PIL.Image.Image
        The first frame, as stored (any mode, not turned, but of a TIFF).

    Raises
    ------
    ImageError, ImageTooLarge
    """
    if not image:
        raise ImageError('is empty (0 bytes)')
    picture = _open(io.BytesIO(image), max_pixels)
    try:
        with _whole_only:
            if picture.format == 'PNG':
                # Reading alone does not look at the checksums of the pixels.
                picture.verify()
                picture = _open(io.BytesIO(image), max_pixels)
                _scale_transparent_color(picture)
            if least_side:
                picture.draft(None, (least_side, least_side))
            picture.load()
        if _END.get(picture.format, b'') not in image:
            raise OSError('the end is missing')
    except Exception as error:
        # Pillow's readers raise nearly any exception on damaged data (SyntaxError, struct.error...).
        raise ImageError(f'does not decode (damaged or cut off): {error}') from error
    return picture


def _open(file, max_pixels=MAX_PIXELS):
    """A Pillow picture of which the header is read."""
    try:
        picture = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise ImageTooLarge(f'has more than {max_pixels:,} pixels: shrink it first') from None
    except Image.UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        if start[4:8] == b'ftyp' and start[8:] in _HEIF_BRANDS and pillow_heif is None:
            raise ImageError('is a HEIC image: install its reader (pip install pillow-heif), or '
                             'convert it to JPEG') from None
        raise ImageError('is not an image of a known format') from None
    except Exception as error:
        raise ImageError(f'does not decode (damaged or cut off): {error}') from error
    _check_size(*picture.size, max_pixels)
    return picture


def _scale_transparent_color(picture):
    """Pillow scales a PNG's pixels to 8 bits, and not the one color that its tRNS chunk makes transparent."""
    color, mode = picture.info.get('transparency'), picture.tile[0].args
    if color is not None and mode in ('L;2', 'L;4'):
        picture.info['transparency'] = color * {'L;2': 85, 'L;4': 17}[mode]
    elif color is not None and mode == 'RGB;16B':
        picture.info['transparency'] = tuple(part >> 8 for part in color)


def check_image_size(image: bytes) -> None:
    """Raise ImageTooLarge for a picture (bytes) above the limits, ImageError for one without a header."""
    _open(io.BytesIO(image))


def _check_size(width, height, max_pixels):
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageTooLarge(f'is {width}x{height} pixels: at most {max_pixels:,} pixels and {MAX_SIDE:,} a side are '
                            'taken, shrink it first')


def turned_upright(picture: Image.Image) -> Image.Image:
    """A Pillow picture turned as its EXIF says; the same one if it says nothing."""
    # Broken EXIF says nothing about the pixels, and Pillow raises nearly anything on it.
    with contextlib.suppress(Exception):
        picture = ImageOps.exif_transpose(picture)
    return picture


def is_turned(picture: Image.Image) -> bool:
    """Whether :func:`turned_upright` would change a Pillow picture."""
    try:
        return picture.getexif().get(0x0112) in range(2, 9)
    except Exception:
        return False


def rgb(picture: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as 8-bit RGB: 16 bits scaled, transparency laid on white; or ImageError."""
    if picture.mode.startswith('I'):
        deep = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError('has more than 16 bits per channel: convert it first')
        gray = (deep / 257 + 0.5).astype(np.uint8)
        if 'transparency' in picture.info:
            gray[deep == picture.info['transparency']] = 255
        picture = Image.fromarray(gray)
    elif picture.mode == 'F':
        raise ImageError('has pixels in floating point: convert it first')
    elif picture.has_transparency_data:
        picture = picture.convert('RGBA')
        white = Image.new('RGBA', picture.size, 'white')
        white.alpha_composite(picture)
        picture = white
    # Otherwise Pillow would copy it.
    return picture if picture.mode == 'RGB' else picture.convert('RGB')


def resize(pixels: np.ndarray, size: tuple[int, int], inter_method: int = AUTO) -> np.ndarray:
    """Resize a picture.

    Parameters
    ----------
    pixels : ndarray (height, width, 3) uint8
    size : (int, int)
        Width and height.
    inter_method : int
        ``BILINEAR`` skips pixels where it shrinks a picture to less than half; ``AUTO`` averages all of them.

    Returns
    -------
    ndarray (height, width, 3) uint8
    """
    before = pixels.shape[1], pixels.shape[0]
    if tuple(size) == before:
        return pixels
    interpolation = cv2.INTER_LINEAR
    if inter_method == AUTO:
        # As ImageRecordIter and mx.image choose; one side shrinks and the other does not by rounding alone.
        if all(after < side for after, side in zip(size, before)):
            interpolation = cv2.INTER_AREA
        elif all(after > side for after, side in zip(size, before)):
            interpolation = cv2.INTER_CUBIC
    return cv2.resize(pixels, size, interpolation=interpolation)


def shorter_side(description: Mapping[str, Any]) -> int:
    """To how many pixels a network's description has the shorter side resized before the crop."""
    return math.ceil(description['input_size'] / description['crop_ratio'])


def side_to_read(description: Mapping[str, Any]) -> Optional[int]:
    """The ``least_side`` of :func:`read_image` for :func:`center_crop`; None where pixels are skipped, not averaged."""
    # Read at four times the side or more, the crop is within a fraction of a level of that of all the pixels.
    return 4 * shorter_side(description) if description.get('inter_method') == AUTO else None


def center_crop(pixels: np.ndarray, description: dict[str, Any]) -> np.ndarray:
    """The part of a picture that a classification network sees: resized by its shorter side, then the center.

    Parameters
    ----------
    pixels : ndarray (height, width, 3) uint8
    description : dict
        With ``input_size``, ``crop_ratio`` and, unless it is that of an older network, ``inter_method``.

    Returns
    -------
    ndarray (input_size, input_size, 3) uint8

    Raises
    ------
    ImageError
        Its shorter side enlarged to the network's, its longer one would be above MAX_SIDE.
    """
    side, size = shorter_side(description), description['input_size']
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    # Rounded as ImageRecordIter does.
    after = (width * side // shorter, height * side // shorter)
    if max(after) > MAX_SIDE:
        raise ImageError(f'is {width}x{height} pixels: too long and narrow for a network')
    pixels = resize(pixels, after, description.get('inter_method', BILINEAR))
    left, top = ((length - size) // 2 for length in after)
    return pixels[top:top + size, left:left + size]


def normalize(crop: np.ndarray, description: Mapping[str, Any]) -> np.ndarray:
    """A crop (height, width, 3) uint8 as a network's input (3, height, width) float32.

    ``description`` has ``rgb_mean`` and ``rgb_std``, on the scale 0 to 255.
    """
    mean, std = (np.array(description[key], 'float32').reshape(3, 1, 1) for key in ('rgb_mean', 'rgb_std'))
    values = np.empty((3, *crop.shape[:2]), 'float32')
    # Whole channels at a time: NumPy is several times slower on runs of three numbers.
    for channel, its_mean, out in zip(cv2.split(crop), mean, values):
        np.subtract(channel, its_mean, out=out)
    values /= std
    return values


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """Encode a picture as JPEG.

    Parameters
    ----------
    pixels : numpy.ndarray
        RGB, uint8 of shape (height, width, 3).
    quality : int
        1 to 100.

    Returns
    -------
    bytes
    """
    _, encoded = cv2.imencode('.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def encode_image(pixels: np.ndarray, extension: str) -> bytes:
    """Encode a picture in the format of a file's extension; as JPEG where Pillow does not write that one.

    Parameters
    ----------
    pixels : ndarray (height, width, 3) uint8
        RGB.
    extension : str
        ``.png``, for example.

    Returns
    -------
    bytes
    """
    Image.init()
    kind = Image.EXTENSION.get(extension.lower())
    encoded = io.BytesIO()
    # The quality of JPEG and WebP, at which the loss is not seen; other formats do not look at it.
    Image.fromarray(pixels).save(encoded, kind if kind in Image.SAVE else 'JPEG', quality=95)
    return encoded.getvalue()
