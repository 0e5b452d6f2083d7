"""Pictures of every kind that a network is given."""
import io

import cv2
import numpy as np
from conftest import SHARED_DATA
from PIL import Image


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pen_drawing(side=1024, width=10):
    """An outline 10 pixels wide on a white page (side, side), which shrinking without averaging loses."""
    page = np.full((side, side, 3), 255, 'uint8')
    cv2.polylines(page, [np.array([[200, 150], [700, 300], [300, 800], [850, 900]])], False, (0, 0, 0), width)
    return page


def every_kind():
    """Files by what they are: dict of str to (bytes, extension)."""
    smooth = cv2.resize(np.random.default_rng(5).integers(0, 256, (5, 6, 3), dtype='uint8'), (190, 140))
    photo = Image.fromarray(smooth)
    ink = photo.convert('RGBA')
    ink.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 190).astype('uint8'), (140, 1))))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = cv2.imencode('.png', np.asarray(ink).astype('uint16') * 257)
    kinds = {'JPEG': (encoded(photo, 'JPEG'), 'jpg'), 'PNG': (encoded(photo, 'PNG'), 'png'),
             'progressive': (encoded(photo, 'JPEG', progressive=True), 'jpg'),
             'CMYK': (encoded(photo.convert('CMYK'), 'JPEG'), 'jpg'),
             'gray': (encoded(photo.convert('L'), 'JPEG'), 'jpg'),
             'RGBA': (encoded(ink, 'PNG'), 'png'), 'LA': (encoded(ink.convert('LA'), 'PNG'), 'png'),
             'palette': (encoded(photo.quantize(16), 'PNG', transparency=bytes(range(0, 256, 16))), 'png'),
             'one color': (encoded(Image.fromarray(smooth // 64 * 64), 'PNG', transparency=(64, 64, 64)), 'png'),
             '16 bits, alpha': (deep[1].tobytes(), 'png'), 'GIF': (encoded(photo, 'GIF'), 'gif'),
             'BMP': (encoded(photo, 'BMP'), 'bmp'), 'AVIF': (encoded(photo, 'AVIF'), 'avif'),
             'JPEG 2000': (encoded(photo, 'JPEG2000'), 'jp2'), 'ICO': (encoded(ink, 'ICO'), 'ico'),
             'transparent TIFF': (encoded(ink, 'TIFF'), 'tif'), 'transparent WebP': (encoded(ink, 'WEBP'), 'webp'),
             'pen drawing': (encoded(Image.fromarray(pen_drawing()), 'PNG'), 'png')}
    for kind in ('JPEG', 'WEBP', 'PNG', 'TIFF'):
        kinds[f'turned {kind}'] = encoded(photo, kind, exif=turned), kind.lower()
    for path in sorted((SHARED_DATA / 'faults').glob('*')):
        if path.suffix not in ('.md', '.mp4'):
            kinds[path.name] = path.read_bytes(), path.suffix[1:]
    return kinds
