"""Pictures of any format as 8-bit RGB, and back to JPEG."""
import io

import cv2
import numpy as np
from PIL import Image, ImageFile


def decode_image(image):
    """Decode an image file completely with Pillow, which unlike MXNet refuses one that is cut off.

    Parameters
    ----------
    image : bytes

    Returns
    -------
    PIL.Image.Image
        The first frame, as stored (any mode, not turned).

    Raises
    ------
    ValueError
        Whose message completes "the image ...".
    """
    if not image:
        raise ValueError('is empty (0 bytes)')
    # Some packages, GluonCV among them, make Pillow accept what is cut off, for the whole process.
    accepts_truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        picture = Image.open(io.BytesIO(image))
        picture.load()
    except Image.UnidentifiedImageError:
        raise ValueError('is not an image of a known format') from None
    except Exception as error:
        # Pillow's readers raise nearly any exception on damaged data (SyntaxError, struct.error...).
        raise ValueError(f'does not decode: {error}') from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = accepts_truncated
    return picture


IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.webp', '.tif',
                    '.tiff', '.ppm', '.pgm')
_EXIF_ORIENTATION = 0x0112
# The EXIF value says how the stored picture lies; the transposition sets it upright.
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


def encode_jpeg(pixels, quality=95):
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

    Raises
    ------
    ValueError
        A side is longer than the 65,500 pixels that JPEG can hold.
    """
    if max(pixels.shape) > 65500:
        raise ValueError(f'is of {pixels.shape[1]}x{pixels.shape[0]} pixels, more than a JPEG can hold')
    _, encoded = cv2.imencode('.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def orientation(picture):
    try:
        return picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:
        # Broken EXIF says nothing about the pixels, and Pillow raises nearly anything on it.
        return None


def rgb(picture):
    """A Pillow picture of any mode as 8-bit RGB: 16 bits scaled, transparency laid on white; or ValueError."""
    if picture.mode.startswith('I'):
        deep = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError('has more than 16 bits per channel: convert it first')
        picture = Image.fromarray((deep / 257 + 0.5).astype(np.uint8))
    elif picture.mode == 'F':
        raise ValueError('has pixels in floating point: convert it first')
    elif picture.mode in ('RGBA', 'LA', 'PA') or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        white = Image.new('RGBA', picture.size, 'white')
        picture = Image.alpha_composite(white, picture)
    return picture.convert('RGB')
