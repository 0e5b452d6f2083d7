"""Pack images into the RecordIO files that training reads.

``python -m gluon_lprnet pack images FOLDER --out PREFIX`` writes

- ``PREFIX.rec``, ``PREFIX.idx``: the records and their index,
- ``PREFIX.classes.txt``: the class of each label, one per line, label 0 first (class folders only),
- ``PREFIX.json``: the manifest, with what was done, what was skipped, and the size and CRC-32 of the
  other two, by which ``check`` and training find any later damage.

They appear only when complete: everything is written in a folder ``PREFIX.partial-*`` first, which
is removed on any error, on Ctrl-C and on SIGTERM.
"""
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import warnings
from typing import List, NamedTuple, Optional, Tuple

import cv2
import mxnet as mx
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..utils.errors import InputError
from .integrity import (
    MANIFEST_FORMAT,
    MANIFEST_VERSION,
    decode_image,
    default_workers,
    file_crc32,
    label_fault,
    map_in_processes,
)

IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.webp', '.tif',
                    '.tiff', '.ppm', '.pgm')

_EXTENSIONS = ('.rec', '.idx', '.classes.txt', '.json')
_IMAGES_PER_TASK = 16
_NAMES_SHOWN = 100
_EXIF_ORIENTATION = 0x0112
# The EXIF value says how the stored picture lies; the transposition sets it upright.
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


class PackSummary(NamedTuple):
    """What was packed.

    Attributes
    ----------
    rec_path : str
    count : int
        Records written.
    size : int
        Bytes of the ``.rec`` file.
    classes : list of str or None
        The class of each label, or None if unknown (a list file).
    skipped : list of (str, str)
        Damaged images that were left out: path and reason.
    ignored : list of str
        Entries of the folder that are not images, by their names.
    """

    rec_path: str
    count: int
    size: int
    classes: Optional[List[str]]
    skipped: List[Tuple[str, str]]
    ignored: List[str]


class _Source(NamedTuple):
    """Images to pack: `paths` are relative to `root`, `labels` are floats or float32 arrays."""

    root: str
    paths: list
    labels: list
    classes: Optional[list]
    ignored: list


def pack_images(source, prefix, resize=480, quality=95, workers=None, skip_bad=False, shuffle=True, seed=0,
                root=None, overwrite=False, progress=True):
    """Pack photos into ``prefix.rec`` with its index, classes and manifest.

    Every image is decoded completely, set upright by its EXIF orientation, made 8-bit RGB (16 bits
    scaled, transparency laid on white, the first frame of an animation), shrunk so that its SHORTER
    side is `resize`, and encoded as JPEG. Nothing is enlarged. A baseline RGB JPEG that needs none
    of this keeps its bytes, and so its quality. The same input and seed give the same bytes,
    whatever the number of workers.

    Parameters
    ----------
    source : str or os.PathLike
        One of

        - a folder of class folders, which in sorted order of their names have the labels 0, 1, ...;
          images lie directly in them. Entries without the extension of an image, hidden ones and
          folders within class folders are not packed but reported.
        - an MXNet list, ``*.lst``: lines ``index<TAB>label[<TAB>label...]<TAB>path``; the index is
          not used. With several labels on each line, they may be any numbers.
        - any other file: a text list, lines ``path label``.
    prefix : str or os.PathLike
        Where to write: ``data/train`` gives ``data/train.rec`` and so on. The folder must exist.
    resize : int
        Length of the shorter side in pixels: 480 for training and 256 for validation on ImageNet;
        smaller photos stay as they are. 0 keeps every size.
    quality : int
        JPEG quality, 1 to 100, of the images that are encoded again.
    workers : int, optional
        Processes; by default as many as CPUs, fewer for few images. More than one needs the
        caller's main module to be importable (``if __name__ == '__main__':``).
    skip_bad : bool
        Leave out images that are missing or damaged, and say so in the summary and the manifest,
        instead of failing.
    shuffle : bool
        Write the images in an order drawn by `seed` (MXNet's reader reads in the file's order);
        otherwise in the order of the source: by class and name, or as listed.
    seed : int
        0 to 2**32 - 1.
    root : str or os.PathLike, optional
        The folder that a list's paths start from; by default the folder of the list.
    overwrite : bool
        Replace files of the same prefix.
    progress : bool
        Show progress bars where standard error is a terminal.

    Returns
    -------
    PackSummary

    Raises
    ------
    InputError
        A flag, the source, or (without `skip_bad`) any image is at fault; all damaged images are
        named. Nothing is left at `prefix`.
    """
    check_prefix(prefix, overwrite)
    check_ranges(('--resize', resize, 0, 65500), ('--quality', quality, 1, 100), ('--workers', workers, 1, 1024),
                 ('--seed', seed, 0, 2**32 - 1))
    source = _read_source(os.fspath(source), root)
    order = np.arange(len(source.paths))
    if shuffle:
        np.random.RandomState(seed).shuffle(order)
    workers = default_workers(len(order)) if workers is None else workers
    skipped = []

    def convert_all():
        tasks = (([os.path.join(source.root, source.paths[i]) for i in order[first:first + _IMAGES_PER_TASK]],
                  resize, quality) for first in range(0, len(order), _IMAGES_PER_TASK))
        results = itertools.chain.from_iterable(map_in_processes(_convert_files, tasks, workers))
        for i, (image, reason) in zip(order, tqdm(results, desc='packing', total=len(order), unit='image',
                                                  disable=None if progress else True, leave=False)):
            if reason is not None:
                skipped.append((source.paths[i], reason))
            elif skip_bad or not skipped:  # after a failure the others are still examined, not written
                yield source.labels[i], image
        skipped.sort()
        if skipped and not skip_bad:
            raise InputError(f'{len(skipped)} of {len(order)} images in {source.root} cannot be packed:\n'
                             f'{listing([f"{path} {reason}" for path, reason in skipped])}\n'
                             'Mend or remove them, or give --skip-bad to leave them out. '
                             'Nothing was written.')

    details = {'resize': resize, 'quality': quality, 'shuffle': shuffle, 'seed': seed if shuffle else None,
               'skipped': skipped, 'ignored': source.ignored}
    rec_path, count, size = write_records(prefix, convert_all(), source.classes, details, overwrite, progress)
    return PackSummary(rec_path, count, size, source.classes, skipped, source.ignored)


def write_records(prefix, samples, classes=None, details=None, overwrite=False, progress=True):
    """Write records, index, classes and manifest, all or nothing.

    Parameters
    ----------
    prefix : str or os.PathLike
        Where to write: ``data/train`` gives ``data/train.rec`` and so on. The folder must exist.
    samples : iterable of (label, image)
        `label` is a class (an integer from 0) or a 1-D array of finite numbers, of one length
        throughout; `image` (bytes) is an encoded image that decodes: the later check relies on it.
        Records get the keys 0, 1, ... in this order.
    classes : sequence of str, optional
        The class of each label.
    details : dict, optional
        Further entries of the manifest; read when all samples were, so that these may add to it.
    overwrite : bool
        Replace files of the same prefix.
    progress : bool
        Show a progress bar where standard error is a terminal.

    Returns
    -------
    rec_path : str
    count : int
        Records written.
    size : int
        Bytes of the ``.rec`` file.

    Raises
    ------
    InputError
        Files exist, the disk is full, a label is not sound, or there is no sample. Whatever
        exception ends the writing, also one of `samples`, nothing is left at `prefix`.
    """
    prefix = check_prefix(prefix, overwrite)
    for name in classes or ():
        if '\n' in name:
            raise InputError(f'The class {name!r} has a line break in its name: rename it.')
    with exit_on_sigterm(), _folder_aside(prefix) as aside:
        part = os.path.join(aside, os.path.basename(prefix))
        count, label_width, size = _write_rec(part, prefix, samples)
        with _disk_errors(prefix):
            written = os.path.getsize(f'{part}.rec')
            # MXNet does not notice when the last buffered bytes cannot be written.
            if written != size:
                raise InputError(f'{prefix}.rec: only {written} of {size} bytes could be written: the '
                                 'disk is full. Make room and pack again.')
            if classes is not None:
                # A folder's name need not be valid UTF-8.
                with open(f'{part}.classes.txt', 'w', encoding='utf-8', errors='surrogateescape') as file:
                    file.writelines(f'{name}\n' for name in classes)
            manifest = {'format': MANIFEST_FORMAT, 'version': MANIFEST_VERSION,
                        'count': count, 'label_width': label_width,
                        'classes': None if classes is None else list(classes), **(details or {})}
            for kind in ('rec', 'idx'):
                path = f'{part}.{kind}'
                manifest[kind] = {'bytes': os.path.getsize(path), 'crc32': file_crc32(path, progress)}
            with open(f'{part}.json', 'w', encoding='utf-8') as file:
                json.dump(manifest, file, indent=1)
            _publish(part, prefix)
    return f'{prefix}.rec', count, size


def _publish(part, prefix):
    parts = [extension for extension in _EXTENSIONS if os.path.exists(part + extension)]
    for extension in parts:
        with open(part + extension, 'rb') as file:
            os.fsync(file.fileno())
    # An older manifest goes first and the new one comes last: none ever stands beside a .rec that
    # it does not describe. An older file of classes may have no successor.
    for extension in ('.json', '.classes.txt'):
        with contextlib.suppress(FileNotFoundError):
            os.remove(prefix + extension)
    for extension in parts:
        os.replace(part + extension, prefix + extension)


def _write_rec(part, prefix, samples):
    """Write ``part.rec`` and ``part.idx``; returns the count, the label width and the size of the .rec."""
    count, width, size = 0, None, 0
    with _disk_errors(prefix):
        writer = mx.recordio.MXIndexedRecordIO(f'{part}.idx', f'{part}.rec', 'w')
    try:
        for label, image in samples:
            fault = label_fault(label)
            if fault:
                raise InputError(f'Sample {count} (counted from 0) has the label {label}: {fault}.')
            label = float(label) if np.ndim(label) == 0 else np.asarray(label, dtype=np.float32).ravel()
            if width not in (None, np.size(label)):
                raise InputError(f'Sample {count} (counted from 0) has {np.size(label)} label(s), the ones '
                                 f'before it {width}: give all the same number.')
            width = np.size(label)
            with _disk_errors(prefix):
                writer.write_idx(count, _pack(label, count, image))
                size = writer.tell()
            count += 1
    finally:
        with _disk_errors(prefix):
            writer.close()
    if not count:
        raise InputError(f'{prefix}.rec: there is no image to pack.')
    return count, width, size


def _pack(label, key, image):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # MXNet calls ndarray.tostring
        return mx.recordio.pack(mx.recordio.IRHeader(0, label, key, 0), image)


@contextlib.contextmanager
def _disk_errors(prefix):
    try:
        yield
    except (mx.base.MXNetError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f'{prefix}.rec and its companions cannot be written: {reason}. Check the '
                         'disk\'s free space and the folder\'s permissions.') from error


def _folder_aside(prefix):
    folder, name = os.path.split(prefix)
    with _disk_errors(prefix):
        return tempfile.TemporaryDirectory(prefix=f'{name}.partial-', dir=folder or '.')


@contextlib.contextmanager
def exit_on_sigterm():
    """Let SIGTERM raise SystemExit, so that what was written so far is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_prefix(prefix, overwrite):
    """The prefix as str, if files can be written there; otherwise raises InputError."""
    prefix = os.fspath(prefix)
    folder, name = os.path.split(prefix)
    if not name or os.path.isdir(prefix):
        raise InputError(f'--out {prefix} is a folder: add the beginning of the files\' names, for example '
                         f'{os.path.join(prefix, "train")}.')
    if name.endswith('.rec'):
        raise InputError(f'--out {prefix} is the beginning of several names: leave ".rec" away.')
    if not os.path.isdir(folder or '.'):
        raise InputError(f'--out {prefix}: the folder {folder} does not exist. Make it first.')
    existing = [prefix + extension for extension in _EXTENSIONS
                if os.path.lexists(prefix + extension)]
    if existing and not overwrite:
        raise InputError(f'{", ".join(existing)} exist(s) already: give --overwrite, or another --out.')
    return prefix


def check_ranges(*ranges):
    """Raise InputError unless each (flag, value, lowest, highest) holds, or its value is None."""
    for flag, value, low, high in ranges:
        if value is not None and not low <= value <= high:
            raise InputError(f'{flag} is {value}: it must be from {low} to {high}.')


def listing(lines, shown=_NAMES_SHOWN):
    """Lines for a message, indented, and cut where there are too many."""
    more = [f'and {len(lines) - shown} more'] if len(lines) > shown else []
    return '\n'.join(f'  {line}' for line in lines[:shown] + more)


def _read_source(source, root):
    if not os.path.exists(source):
        raise InputError(f'{source} does not exist: give a folder of class folders, or a list file.')
    try:
        if not os.path.isdir(source):
            return _read_list(source, os.path.dirname(source) if root is None else os.fspath(root))
        if root is not None:
            raise InputError(f'--root is for a list, and {source} is a folder: leave it away.')
        return _read_folder(source)
    except OSError as error:
        raise InputError(f'{error.filename or source} cannot be read: {error.strerror or error}.') from error


def _entries(folder):
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_image_name(name):
    return not name.startswith('.') and name.lower().endswith(IMAGE_EXTENSIONS)


def _read_folder(folder):
    classes, paths, labels, ignored, unclassed = [], [], [], [], []
    for entry in _entries(folder):
        if entry.is_dir() and not entry.name.startswith('.'):
            classes.append(entry.name)
        else:
            is_image = _is_image_name(entry.name) and not entry.is_dir()
            (unclassed if is_image else ignored).append(entry.name)
    if unclassed:
        raise InputError(f'{folder} holds {len(unclassed)} image(s) directly ({unclassed[0]}), which have no '
                         'class: move each into a folder per class, or give a list file.')
    if not classes:
        raise InputError(f'{folder} holds no class folders: give the folder that has a folder per class.')
    for label, name in enumerate(classes):
        before, folders = len(paths), 0
        for entry in _entries(os.path.join(folder, name)):
            path = os.path.join(name, entry.name)
            folders += entry.is_dir()
            if entry.is_dir() or not _is_image_name(entry.name):
                ignored.append(path)
            else:
                paths.append(path)
                labels.append(float(label))
        if len(paths) == before:
            remedy = (f' directly (the {folders} folders in it are not searched): name the folder whose '
                      'folders are the classes.' if folders else ': fill or remove it.')
            raise InputError(f'The class folder {os.path.join(folder, name)} holds no image{remedy}')
    return _Source(folder, paths, labels, classes, ignored)


def _read_list(path, root):
    if not os.path.isdir(root or '.'):
        raise InputError(f'--root {root} is not a folder: name the one that the paths of {path} start from.')
    parse = _parse_lst_line if path.endswith('.lst') else _parse_text_line
    lines_of, labels = {}, []
    # Paths may be of any bytes; a byte order mark is an editor's.
    with open(path, encoding='utf-8-sig', errors='surrogateescape') as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                image, label = parse(line.rstrip('\r\n'))
                if np.size(label) == 1:
                    label = float(np.asarray(label).item())
                fault = label_fault(label)
                if fault:
                    raise ValueError(f'the label is {label}: {fault}')
                if labels and np.size(label) != np.size(labels[0]):
                    raise ValueError(f'it has {np.size(label)} label(s), the lines before it '
                                     f'{np.size(labels[0])}')
                if image in lines_of:
                    raise ValueError(f'{image} is on line {lines_of[image]} too')
            except ValueError as error:
                raise InputError(f'{path}: line {number}: {error}. Mend the line.') from None
            lines_of[image] = number
            labels.append(label)
    if not labels:
        raise InputError(f'{path} lists no images.')
    return _Source(root, list(lines_of), labels, None, [])


def _parse_lst_line(line):
    fields = line.split('\t')
    try:
        int(fields[0])
        labels = np.array(fields[1:-1], dtype=np.float32)
    except ValueError:
        labels = np.zeros(0)
    if not labels.size or not fields[-1].strip():
        raise ValueError(f'{line[:100]!r} is not "index<TAB>label<TAB>path"')
    return fields[-1].strip(), labels


def _parse_text_line(line):
    fields = line.rsplit(None, 1)
    try:
        return fields[0].strip(), float(fields[1])
    except (ValueError, IndexError):
        raise ValueError(f'{line[:100]!r} is not "path label" (an MXNet list must be named *.lst)') from None


def _convert_files(task):
    """Convert files; returns a list of (image, None) or (None, what is wrong with the file)."""
    paths, resize, quality = task
    results = []
    for path in paths:
        try:
            results.append((_convert_file(path, resize, quality), None))
        except ValueError as error:
            results.append((None, str(error)))
    return results


def _convert_file(path, resize, quality):
    try:
        with open(path, 'rb') as file:
            image = file.read()
    except FileNotFoundError:
        raise ValueError('does not exist') from None
    except OSError as error:
        raise ValueError(f'cannot be read: {error.strerror or error}') from None
    picture = decode_image(image)
    turn = _UPRIGHT.get(_orientation(picture))
    must_shrink = 0 < resize < min(picture.size)
    # A progressive JPEG is encoded again, as it takes longer to decode, in every epoch.
    if (picture.format == 'JPEG' and picture.mode == 'RGB' and not picture.info.get('progressive')
            and turn is None and not must_shrink):
        return image
    if turn is not None:
        picture = picture.transpose(turn)
    pixels = np.asarray(rgb(picture))
    if must_shrink:
        height, width = pixels.shape[:2]
        scale = resize / min(height, width)
        pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)),
                            interpolation=cv2.INTER_AREA)
    return encode_jpeg(pixels, quality)


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


def _orientation(picture):
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


def add_pack_kind(kinds):
    parser = kinds.add_parser(
        'images', help='photos in class folders, or listed with their labels',
        description='Pack photos into PREFIX.rec, .idx, .classes.txt and .json (the manifest with '
                    'checksums). They appear only when complete.')
    parser.add_argument('source', metavar='FOLDER_OR_LIST',
                        help='a folder with a folder per class (sorted names have the labels 0, 1, ...), an '
                             'MXNet list (*.lst), or a text list with lines "path label"')
    parser.add_argument('--root',
                        help='the folder that a list\'s paths start from (default: the list\'s own)')
    parser.add_argument('--resize', type=int, default=480, metavar='N',
                        help='shrink photos so that the SHORTER side has N pixels (ImageNet: 480 for '
                             'training, 256 for validation); smaller photos are kept as they are, never '
                             'enlarged; 0 keeps every size (default: %(default)s)')
    add_output_flags(parser)
    parser.set_defaults(run=_run_images)


def add_output_flags(parser):
    """Add the flags that all kinds of ``pack`` share: where and how records are written."""
    parser.add_argument('--out', required=True, metavar='PREFIX',
                        help='the beginning of the written files\' names')
    parser.add_argument('--quality', type=int, default=95,
                        help='JPEG quality of those encoded, 1 to 100 (default: %(default)s)')
    parser.add_argument('--workers', type=int,
                        help='processes (default: as many as CPUs, fewer for few images)')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave out missing and damaged images, and list them in the manifest, '
                             'instead of failing')
    parser.add_argument('--no-shuffle', dest='shuffle', action='store_false',
                        help='keep the order of the source')
    parser.add_argument('--shuffle', action='store_true', default=True,
                        help='write the images in random order (default)')
    parser.add_argument('--seed', type=int, default=0, help='of the random order (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')


def _run_images(args):
    summary = pack_images(args.source, args.out, args.resize, args.quality, args.workers, args.skip_bad,
                          args.shuffle, args.seed, args.root, args.overwrite)
    # Names go to standard error, which also prints those that are not valid UTF-8.
    if summary.ignored:
        print(f'{len(summary.ignored)} entries are not images and were ignored:\n{listing(summary.ignored)}',
              file=sys.stderr)
    if summary.skipped:
        skipped = listing([f'{path} {reason}' for path, reason in summary.skipped])
        print(f'{len(summary.skipped)} images were skipped:\n{skipped}', file=sys.stderr)
    of_classes = '' if summary.classes is None else f' of {len(summary.classes)} classes'
    print(f'{summary.rec_path}: {summary.count} images{of_classes}, {summary.size / 1e6:.1f} MB; '
          f'{len(summary.skipped)} skipped, {len(summary.ignored)} ignored')
