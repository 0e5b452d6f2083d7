"""RecordIO files of images, checked before MXNet's native reader sees them.

MXNet 1.9.1 does not survive a damaged ``.rec``: a truncated file or a wrong magic number aborts
the process, an undecodable image kills it or raises without naming the record, half a JPEG is
accepted silently, and the format has no checksum. :func:`check_records` finds these faults first
and names the record.
"""
import argparse
import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from .._compat import import_mxnet
from ..utils.errors import InputError
from ..utils.files import PathLike, write_file
from ..utils.processes import default_workers, map_in_processes
from ..utils.text import integer
from .images import MAX_SIDE, ImageError, check_image_size, decode_image, rgb, turned_upright
from .recordio import (
    HEADER,
    MANIFEST_FORMAT,
    MANIFEST_VERSION,
    Damage,
    InOrder,
    beside,
    damaged,
    file_crc32,
    read_record,
    reader_of,
    size_of,
    split_payload,
)
from .stamp import read_stamp, signature, write_stamp

# What commands verify before they read records; the first is their default.
DATA_CHECKS = ('stamp', 'full', 'structure')
DATA_CHECK_HELP = ('what is verified of records; stamp: every byte, but once, until the file changes; full: every '
                   'byte; structure: sizes, index and labels alone')
_NOT_VERIFIED = 'not verified'
# Spread over a file whose index and labels are those of its manifest.
_HEADERS_READ = 1000
# Of the path, which may be another the next time.
_NOT_STAMPED = ('path', 'index_path', 'size')
_IMAGES_PER_TASK = 32
_BYTES_OF_A_PHOTO = 20_000
_FAULTS_SHOWN = 10
# Of 255, between two decoders: of CMYK and of 16 bits they round differently by 1.
_MOST_DIFFERENCE = 16


class RecordSummary(NamedTuple):
    """What :func:`check_records` found in an undamaged file.

    Attributes
    ----------
    path, index_path : str
        The ``.rec`` file and its index.
    count : int
        Records in the file.
    size : int
        Bytes of the ``.rec`` file.
    label_width : int
        Numbers in each record's label.
    label_min, label_max : float
        The extremes over all records and numbers.
    class_counts : dict of int to int
        Number of records by label; empty if `label_width` is not 1.
    verified : str
        How the content was verified, in words.
    """

    path: str
    index_path: str
    count: int  # type: ignore[assignment]  # a field, not the method of tuples
    size: int
    label_width: int
    label_min: float
    label_max: float
    class_counts: dict[int, int]
    verified: str


def check_records(rec_path: PathLike, idx_path: Optional[PathLike] = None, num_classes: Optional[int] = None,
                  label_width: int = 1, data_check: str = 'full', workers: Optional[int] = None,
                  write_index: bool = False) -> RecordSummary:
    """Check a ``.rec`` file of images, its index and its labels, without MXNet's native reader.

    The content is checked with the structure of every record, the index and the labels, in one reading of the file:
    against the CRC-32 of a manifest that ``pack`` wrote beside the file (which finds any
    changed bit) or, without a manifest, by decoding every image completely: with Pillow,
    which refuses a truncated JPEG that MXNet accepts, and with MXNet's decoder, which knows fewer
    formats (JPEG, PNG, BMP and TIFF) and drops transparency. Both must give the same pixels, so that
    what MXNet trains on is what prediction sees. No image may be larger than
    :mod:`gluon_lprnet.data.images` takes.

    Parameters
    ----------
    rec_path : str or os.PathLike
    idx_path : str or os.PathLike, optional
        By default the path of the ``.rec`` with the extension ``.idx``.
    num_classes : int, optional
        Labels must be below this number (`label_width` 1 only).
    label_width : int
        Numbers in each record's label; labels of width 1 must be non-negative integers.
    data_check : {'full', 'stamp', 'structure'}
        ``full`` reads every byte, and leaves a stamp beside the file (see :mod:`gluon_lprnet.data.stamp`). ``stamp``
        does so unless there is a stamp and the file has not changed since. ``structure`` leaves out the content: where
        sizes and index are those of the manifest, it reads the index and the headers of 1,000 records, and otherwise
        the headers of all, in their order. With a stamp both read nothing but the stamp.
    workers : int, optional
        Processes that decode; by default as many as CPUs, fewer for a small file.
    write_index : bool
        If there is no index, write one, with the keys 0, 1, ..., once the structure was found to be sound.

    Returns
    -------
    RecordSummary

    Raises
    ------
    InputError
        At the first kind of fault found; the message names the file, the record (counted from 0),
        its key or its byte offset, and what to do.
    """
    rec_path = os.fspath(rec_path)
    own_idx_path = beside(rec_path, '.idx')
    idx_path = own_idx_path if idx_path is None else os.fspath(idx_path)
    if label_width < 1:
        raise InputError(f'`label_width` is {label_width}: it must be 1 or more.')
    if num_classes is not None and (num_classes < 1 or label_width != 1):
        raise InputError(f'`num_classes` is {num_classes} with `label_width` {label_width}: '
                         'it must be 1 or more, and needs a label width of 1.')
    size = size_of(rec_path)
    write_index = write_index and not os.path.lexists(idx_path)
    if not write_index:
        size_of(idx_path, 'every .rec needs its .idx: copy it too, or have "check" write it anew with `write_index`')
    before = signature(rec_path)
    # The labels are known of the file's own index alone.
    summary = _known(rec_path, size, data_check) if idx_path == own_idx_path and data_check != 'full' else None
    if summary and _fits(summary, label_width, num_classes):
        return summary
    try:
        manifest = None if data_check == 'structure' else load_manifest(rec_path)
        with open(rec_path, 'rb', buffering=0) as file:
            whole = InOrder(file)
            offsets, labels = _scan(whole if manifest else reader_of(file), rec_path, size, label_width)
            crc32 = manifest and whole.crc32()
        if write_index:
            # As MXNet's tools/rec2idx.py numbers records, and as they were packed here.
            write_file(idx_path, ''.join(f'{key}\t{offset}\n' for key, offset in enumerate(offsets)))
        keys = _check_index(idx_path, rec_path, offsets)
        _check_labels(rec_path, keys, labels, num_classes)
        verified = _NOT_VERIFIED
        if manifest:
            _check_checksum(rec_path, manifest['rec'], size, crc32)
            verified = 'CRC-32 of the .rec equals the manifest\'s'
            if idx_path == own_idx_path:
                _check_checksum(idx_path, manifest['idx'], os.path.getsize(idx_path), file_crc32(idx_path))
                verified = 'CRC-32 of the .rec and the .idx equal the manifest\'s'
            if manifest.get('max_side', math.inf) > MAX_SIDE:
                _check_images(_size_fault, rec_path, offsets, keys, workers)
        elif data_check != 'structure':
            _check_images(image_fault, rec_path, offsets, keys, workers)
            verified = 'every image decoded alike by Pillow and by MXNet'
    except OSError as error:
        raise InputError(f'{error.filename or rec_path} cannot be read: '
                         f'{error.strerror or error}.') from error
    classes, counts = np.unique(labels, return_counts=True) if label_width == 1 else ((), ())
    summary = RecordSummary(rec_path, idx_path, len(offsets), size, label_width, float(labels.min()),
                            float(labels.max()), {int(label): int(count) for label, count in zip(classes, counts)},
                            verified)
    if idx_path == own_idx_path:
        write_stamp(rec_path, before, {name: value for name, value in summary._asdict().items()
                                       if name not in _NOT_STAMPED})
    return summary


def add_check_flag(parser: 'argparse._ActionsContainer') -> None:
    """Add ``--data-check``, as :func:`check_records` takes it, to a command that reads records."""
    parser.add_argument('--data-check', choices=DATA_CHECKS, default=DATA_CHECKS[0],
                        help=f'{DATA_CHECK_HELP} (default: %(default)s)')


def _known(rec_path, size, data_check):
    """What is known of a file, with its own index, without reading its records; None if that is not enough."""
    stamp = read_stamp(rec_path)
    manifest = load_manifest(rec_path) if data_check == 'structure' else None
    try:
        if stamp and (data_check == 'structure' or stamp['verified'] != _NOT_VERIFIED):
            return _summary(rec_path, size, stamp, f'unchanged since {stamp["when"]}, when it was checked: '
                                                   f'{stamp["verified"]}')
        if manifest and manifest['rec']['bytes'] == size and _has_index(rec_path, size, manifest):
            return _summary(rec_path, size, manifest, _NOT_VERIFIED)
    except (LookupError, TypeError, ValueError, AttributeError, OSError):
        # Of a version before, or damaged: the records themselves tell.
        pass
    return None


def _summary(rec_path, size, known, verified):
    """A summary from what a stamp or a manifest says."""
    classes = {int(label): count for label, count in known['class_counts'].items()}
    return RecordSummary(rec_path, beside(rec_path, '.idx'), known['count'], size, known['label_width'],
                         float(known['label_min']), float(known['label_max']), classes, verified)


def _has_index(rec_path, size, manifest):
    """Whether the index is that of the manifest, and headers spread over the file are where it says."""
    idx_path = beside(rec_path, '.idx')
    if file_crc32(idx_path) != manifest['idx']['crc32']:
        return False
    offsets = read_index(idx_path)[1]
    ends = np.append(offsets[1:], size)
    if len(offsets) != manifest['count'] or offsets[0] or (offsets >= ends).any():
        return False
    spread = np.unique(np.linspace(0, len(offsets) - 1, _HEADERS_READ).round().astype(int))
    with open(rec_path, 'rb', buffering=0) as file, contextlib.suppress(Damage):
        pread, wanted = reader_of(file), HEADER.size
        return all(read_record(pread, size, int(offsets[number]), wanted)[2] == ends[number] for number in spread)
    return False


def _fits(summary, label_width, num_classes):
    """Whether a file that was sound is so for these labels; if not, the check says why."""
    return summary.label_width == label_width and (num_classes is None or summary.label_max < num_classes)


def fingerprint(records: RecordSummary) -> dict[str, Any]:
    """What tells a file of records from others: the number of records, and a CRC-32.

    Parameters
    ----------
    records : RecordSummary

    Returns
    -------
    dict
        ``records``; ``crc32`` of the ``.rec`` by its manifest, or, without one, of the index.
    """
    manifest = load_manifest(records.path)
    return {'records': records.count,
            'crc32': manifest['rec']['crc32'] if manifest else file_crc32(records.index_path)}


def class_names(rec_path: PathLike) -> Optional[list[str]]:
    """The names of the classes of a ``.rec`` file, in the order of their labels.

    They come from the manifest or, without one, from the lines of the ``.classes.txt`` beside the file. Invalid UTF-8
    in a name is replaced by U+FFFD.

    Parameters
    ----------
    rec_path : str or os.PathLike

    Returns
    -------
    list of str or None
        None if neither file has names.

    Raises
    ------
    InputError
        The manifest is damaged.
    """
    rec_path = os.fspath(rec_path)
    manifest = load_manifest(rec_path)
    names = manifest.get('classes') if manifest else None
    if names is None:
        path = beside(rec_path, '.classes.txt')
        try:
            with open(path, encoding='utf-8', errors='surrogateescape', newline='\n') as file:
                # Not splitlines(), which splits names at a vertical tab or U+0085.
                names = [name.removesuffix('\r') for name in file.read().rstrip('\r\n').split('\n')]
        except FileNotFoundError:
            return None
    return [name.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace') for name in names]


def _scan(pread, rec_path, size, label_width):
    """Walk over all records; returns their byte offsets (n,) and labels (n, label_width)."""
    offsets, labels = [], []
    wanted = HEADER.size + 4 * label_width
    offset = 0
    with tqdm(desc='records', total=size, unit='B', unit_scale=True, disable=None,
              leave=False) as bar:
        while offset < size:
            try:
                head, length, following = read_record(pread, size, offset, wanted)
                if length < HEADER.size:
                    raise Damage(f'it is too short for a header ({length} bytes)')
                flag = int.from_bytes(head[:4], 'little')
                image_length = length - HEADER.size - 4 * flag
                if image_length < 0:
                    raise Damage(f'its header announces {flag} labels, more than it holds')
                if image_length == 0:
                    raise Damage('it holds no image')
            except Damage as damage:
                raise damaged(rec_path, len(offsets), offset, damage) from None
            if max(flag, 1) != label_width:
                raise InputError(f'{rec_path}: record {len(offsets)} (counted from 0, at byte {offset}) has '
                                 f'{max(flag, 1)} label(s), not {label_width}: give another file, '
                                 f'or check it with `label_width` {max(flag, 1)}.')
            labels.append(head[HEADER.size:wanted] if flag else head[4:8])
            offsets.append(offset)
            if len(offsets) % 4096 == 0:
                bar.update(following - bar.n)
            offset = following
    return (np.array(offsets, dtype=np.int64),
            np.frombuffer(b''.join(labels), '<f4').reshape(len(offsets), label_width))


def read_index(idx_path: str) -> tuple[np.ndarray, np.ndarray]:
    """The keys and the byte offsets of an index, int64 each, in the order of its lines; or InputError."""
    content = Path(idx_path).read_bytes()
    if _is_usual(np.frombuffer(content, np.uint8)):
        # Ten times as fast.
        usual = np.fromstring(content, np.int64, sep=' ')
        return usual[::2], usual[1::2]
    keys, offsets = [], []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            key, offset = map(integer, line.split())
        except ValueError:
            raise InputError(f'{idx_path}: line {number} is not "key<TAB>byte offset", two integers: '
                             f'{line[:60]!r}. Copy or pack the file again.') from None
        keys.append(key)
        offsets.append(offset)
    try:
        return np.array(keys, dtype=np.int64), np.array(offsets, dtype=np.int64)
    except OverflowError:
        raise InputError(f'{idx_path} holds a number beyond 64 bits. Copy or pack the file again.') from None


def _is_usual(content):
    """Whether the bytes of an index are as MXNet and this package write it: digits, and a tab and a newline in turn."""
    ends = np.flatnonzero(content < ord('0'))
    digits = np.diff(ends, prepend=-1) - 1
    return bool(len(ends) and ends[-1] == len(content) - 1 and content.max() <= ord('9')
                and (content[ends[::2]] == ord('\t')).all() and (content[ends[1::2]] == ord('\n')).all()
                and len(ends) % 2 == 0 and digits.min() > 0 and digits.max() <= 18)


def _check_index(idx_path, rec_path, offsets):
    """Compare the index with the records' byte offsets; returns the records' keys, in the file's order."""
    keys, listed = read_index(idx_path)
    other = (f'The index belongs to another file or is incomplete ({rec_path} holds {len(offsets)} '
             f'records, the index lists {len(listed)}): copy both files again, or pack again.')
    strangers = np.flatnonzero(~np.isin(listed, offsets))
    if strangers.size:
        line = strangers[0]
        raise InputError(f'{idx_path}: line {line + 1} (key {keys[line]}) points at byte {listed[line]} of '
                         f'{rec_path}, where no record begins. {other}')
    missing = np.flatnonzero(~np.isin(offsets, listed))
    if missing.size:
        raise InputError(f'{idx_path} does not list record {missing[0]} (counted from 0, at byte '
                         f'{offsets[missing[0]]}) of {rec_path}. {other}')
    for what, values in (('key', keys), ('byte offset', listed)):
        lines = np.argsort(values, kind='stable')
        twice = np.flatnonzero(np.diff(values[lines]) == 0)
        if twice.size:
            first, second = lines[twice[0]:twice[0] + 2]
            raise InputError(f'{idx_path}: lines {first + 1} and {second + 1} have the same {what}, '
                             f'{values[first]}. Pack the images again.')
    return keys[np.argsort(listed)]


def _check_labels(rec_path, keys, labels, num_classes):
    faulty = ~np.isfinite(labels).all(axis=1)
    reason = 'which is not finite. Pack the images again with the right labels'
    if not faulty.any() and labels.shape[1] == 1:
        classes = labels[:, 0]
        faulty = (classes < 0) | (classes != np.floor(classes))
        reason = 'but a class is a non-negative integer. Pack the images again with the right labels'
        if not faulty.any() and num_classes is not None:
            faulty = classes >= num_classes
            reason = (f'but `num_classes` is {num_classes}, so that labels run from 0 to {num_classes - 1}. '
                      f'Give `num_classes` {int(classes.max()) + 1} or more, or another file')
    if faulty.any():
        number = np.flatnonzero(faulty)[0]
        label = labels[number]
        shown = f'{label[0]:g}' if label.size == 1 else str(label[~np.isfinite(label)][0])
        raise InputError(f'{rec_path}: record {number} (counted from 0, key {keys[number]}) has the label '
                         f'{shown}, {reason}. ({np.count_nonzero(faulty)} of {len(labels)} records have such '
                         'a label.)')


def load_manifest(rec_path: PathLike) -> Optional[dict[str, Any]]:
    """The manifest beside a ``.rec``, a dict; None if there is none of this program; InputError if it is damaged."""
    path = beside(rec_path, '.json')
    try:
        with open(path, encoding='utf-8') as file:
            manifest = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        raise InputError(f'{path} is damaged: it is not JSON. Copy it again, or remove it to have every '
                         'image decoded instead.') from None
    if not isinstance(manifest, dict) or manifest.get('format') != MANIFEST_FORMAT:
        return None
    if manifest.get('version') != MANIFEST_VERSION:
        raise InputError(f'{path} is of version {manifest.get("version")}, and this program reads version '
                         f'{MANIFEST_VERSION}: remove it to have every image decoded instead.')
    if not all(isinstance(manifest.get(part), dict) and {'bytes', 'crc32'} <= set(manifest[part])
               for part in ('rec', 'idx')):
        raise InputError(f'{path} is damaged: it lacks the sizes and checksums of the .rec and the .idx. '
                         'Copy it again, or remove it to have every image decoded instead.')
    return manifest


def _check_checksum(path, expected, size, crc):
    remedy = ('Copy the file again; if it was changed on purpose, remove the manifest '
              f'{beside(path, ".json")} to have every image decoded instead.')
    if size != expected['bytes']:
        raise InputError(f'{path} has {size} bytes, and had {expected["bytes"]} when it was packed. {remedy}')
    if crc != expected['crc32']:
        raise InputError(f'{path} is damaged: its CRC-32 is {crc}, and was {expected["crc32"]} when it was '
                         f'packed. {remedy}')


def _check_images(fault_of, rec_path, offsets, keys, workers):
    faults = image_faults(rec_path, offsets, workers, fault_of)
    if faults:
        shown = ''.join(f'\n  record {number} (counted from 0, key {keys[number]}) {reason}'
                        for number, reason in faults[:_FAULTS_SHOWN])
        more = '' if len(faults) <= _FAULTS_SHOWN else f'\n  and {len(faults) - _FAULTS_SHOWN} more'
        raise InputError(f'{rec_path}: {len(faults)} of {len(offsets)} images cannot be used:{shown}{more}\n'
                         'Copy or pack the file again, or keep the others with `repair`.')


def image_faults(rec_path: str, offsets: np.ndarray, workers: Optional[int] = None,
                 fault_of: Optional[Callable[[bytes], Optional[str]]] = None) -> list[tuple[int, str]]:
    """Look at the image of every record, in several processes.

    Parameters
    ----------
    rec_path : str
    offsets : ndarray of int
        Where the records begin, which are sound but for their images.
    workers : int, optional
        By default as many as CPUs, fewer for a small file.
    fault_of : callable, optional
        From an image (bytes) to what is wrong with it, or None; by default whether Pillow and MXNet decode it alike.

    Returns
    -------
    list of (int, str)
        The faulty ones, counted from 0 as in ``offsets``, and why.
    """
    if workers is None:
        # The work is estimated from the bytes, since an image may have 1 KB or 100 KB.
        workers = default_workers(os.path.getsize(rec_path) // _BYTES_OF_A_PHOTO)
    if workers < 1:
        raise InputError(f'`workers` is {workers}: it must be 1 or more.')
    tasks = ((fault_of or image_fault, rec_path, first, offsets[first:first + _IMAGES_PER_TASK])
             for first in range(0, len(offsets), _IMAGES_PER_TASK))
    faults = []
    with tqdm(desc='images', total=len(offsets), unit='image', unit_scale=True,
              disable=None, leave=False) as bar:
        for count, found in map_in_processes(_find_faults, tasks, workers):
            faults += found
            bar.update(count)
    return faults


def _find_faults(task):
    fault_of, rec_path, first, offsets = task
    faults = []
    with open(rec_path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        for number, offset in enumerate(offsets.tolist(), first):
            fault = fault_of(split_payload(read_record(reader_of(file), size, offset)[0])[1])
            if fault is not None:
                faults.append((number, fault))
    return len(offsets), faults


def image_fault(image: bytes) -> Optional[str]:
    """What is wrong with a record's image, or None: it must decode, and alike by Pillow and by MXNet."""
    try:
        picture = decode_image(image)
        # ImageRecordIter follows the EXIF of JPEGs and of nothing else, mx.image that of nothing.
        pixels = np.asarray(rgb(picture if picture.format == 'JPEG' else turned_upright(picture)))
    except ImageError as error:
        return str(error)
    mx = import_mxnet()
    try:
        decoded = mx.image.imdecode(image).asnumpy()
    except mx.base.MXNetError:
        return f'is an image of a kind ({picture.format}) that MXNet does not decode'
    if decoded.shape != pixels.shape or np.abs(decoded.astype('int16') - pixels).max() > _MOST_DIFFERENCE:
        return (f'is an image ({picture.format}, {picture.mode}) that MXNet decodes to other pixels than prediction '
                'sees: it drops transparency, color spaces and, except of JPEG, EXIF; pack it with "pack images"')
    return None


def _size_fault(image):
    try:
        check_image_size(image)
    except ImageError as error:
        return str(error)
    return None
