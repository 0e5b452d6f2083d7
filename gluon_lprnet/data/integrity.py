"""MXNet's RecordIO files of images: read, and checked before MXNet reads them.

MXNet 1.9.1 does not survive a damaged ``.rec``: a truncated file or a wrong magic number aborts
the process, an image that does not decode kills it or raises without naming the record, half a
JPEG is accepted silently, and the format has no checksum. :func:`check_records` finds these
faults first and says which record is at fault.

The format, little-endian throughout. A ``.rec`` is a sequence of parts, each padded to 4 bytes:
the magic number 0xced7230a, a word whose upper 3 bits say which part of a record it is (0 the
whole record, 1 its first part, 2 a middle one, 3 the last) and whose lower 29 bits hold the
length, then the data. MXNet splits a record wherever its data holds the magic number at a multiple
of 4 bytes, and drops those 4 bytes. The record is a header ``flag (uint32), label (float32),
id (uint64), id2 (uint64)``, then `flag` labels (float32), then the image file; with a flag of 0
the header's label is the label. An ``.idx`` is text: a line ``key<TAB>byte offset`` per record.
"""
import io
import json
import math
import multiprocessing
import os
import signal
import struct
import threading
import warnings
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Dict, NamedTuple

import cv2
import mxnet as mx
import numpy as np
from PIL import Image, ImageFile
from tqdm import tqdm

from ..utils.errors import InputError

_MAGIC = 0xced7230a
_MAGIC_BYTES = struct.pack('<I', _MAGIC)
_PART = struct.Struct('<II')
_HEADER = struct.Struct('<IfQQ')
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)

MANIFEST_FORMAT = 'gluon_lprnet records'
MANIFEST_VERSION = 1

_IMAGES_PER_TASK = 32
_BYTES_OF_A_PHOTO = 20_000
_FAULTS_SHOWN = 10


class RecordSummary(NamedTuple):
    """What :func:`check_records` found in a sound file.

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
        Records of each label, by label; empty if `label_width` is not 1.
    verified : str
        How the content was verified, in words.
    """

    path: str
    index_path: str
    count: int
    size: int
    label_width: int
    label_min: float
    label_max: float
    class_counts: Dict[int, int]
    verified: str


class _Damage(Exception):
    """A record cannot be read; the message completes "record 7: ..."."""


def read_records(rec_path):
    """Iterate over a ``.rec`` file in the file's order.

    Parameters
    ----------
    rec_path : str or os.PathLike

    Yields
    ------
    label : float or numpy.ndarray
        The label; float32 of shape (label_width,) where the header's flag is not 0.
    image : bytes
        The image file, still encoded.

    Raises
    ------
    InputError
        The file is missing or empty, or a record is damaged; records before it were yielded.
    """
    rec_path = os.fspath(rec_path)
    size = _size_of(rec_path)
    with open(rec_path, 'rb') as file:
        offset = number = 0
        while offset < size:
            try:
                payload, _, following = _read_record(file.fileno(), size, offset)
                yield _split_payload(payload)
            except _Damage as damage:
                raise _damaged(rec_path, number, offset, damage) from None
            offset, number = following, number + 1


def check_records(rec_path, idx_path=None, num_classes=None, label_width=1, content=True, workers=None,
                  progress=True):
    """Check a ``.rec`` file of images, its index and its labels, without MXNet's native reader.

    The structure of every record, the index and the labels are always checked. The content is
    checked against the CRC-32 of a manifest that ``pack`` wrote beside the file (which finds any
    changed bit), or, where there is no manifest, by decoding every image completely: with Pillow,
    which refuses a truncated JPEG that MXNet accepts, and with MXNet's decoder, which knows fewer
    formats (JPEG, PNG, BMP and TIFF).

    Parameters
    ----------
    rec_path : str or os.PathLike
    idx_path : str or os.PathLike, optional
        By default the path of the ``.rec`` with the extension ``.idx``.
    num_classes : int, optional
        Labels must be below it (`label_width` 1 only).
    label_width : int
        Numbers in each record's label; labels of width 1 must be integers from 0.
    content : bool
        False skips the check of the content, which reads the whole file.
    workers : int, optional
        Processes that decode; by default as many as CPUs, fewer for a small file. More than one
        needs the caller's main module to be importable (``if __name__ == '__main__':``).
    progress : bool
        Show progress bars where standard error is a terminal.

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
    own_idx_path = _beside(rec_path, '.idx')
    idx_path = own_idx_path if idx_path is None else os.fspath(idx_path)
    if label_width < 1:
        raise InputError(f'--label-width is {label_width}: it must be 1 or more.')
    if num_classes is not None and (num_classes < 1 or label_width != 1):
        raise InputError(f'--num-classes is {num_classes} with --label-width {label_width}: '
                         'it must be 1 or more, and needs a label width of 1.')
    size = _size_of(rec_path)
    _size_of(idx_path, 'every .rec needs its .idx: copy it too, or pack the images again')
    try:
        with open(rec_path, 'rb') as file:
            offsets, labels = _scan(file.fileno(), rec_path, size, label_width, progress)
        keys = _check_index(idx_path, rec_path, offsets)
        _check_labels(rec_path, keys, labels, num_classes)
        verified = 'not verified'
        if content:
            manifest = _load_manifest(rec_path)
            if manifest is None:
                _check_images(rec_path, offsets, keys, workers, progress)
                verified = 'every image decoded by Pillow and by MXNet'
            else:
                _check_checksum(rec_path, manifest['rec'], progress)
                verified = 'CRC-32 of the .rec equals the manifest\'s'
                if idx_path == own_idx_path:
                    _check_checksum(idx_path, manifest['idx'], progress)
                    verified = 'CRC-32 of the .rec and the .idx equal the manifest\'s'
    except OSError as error:
        raise InputError(f'{error.filename or rec_path} cannot be read: '
                         f'{error.strerror or error}.') from error
    classes, counts = np.unique(labels, return_counts=True) if label_width == 1 else ((), ())
    return RecordSummary(rec_path, idx_path, len(offsets), size, label_width, float(labels.min()), float(labels.max()),
                         {int(label): int(count) for label, count in zip(classes, counts)}, verified)


def label_fault(label):
    """Say what is wrong with a record's label.

    Parameters
    ----------
    label : float or numpy.ndarray
        A number is a class; an array of shape (label_width,), label_width > 1, holds any numbers.

    Returns
    -------
    str or None
        None for a sound label.
    """
    label = np.asarray(label, dtype=np.float32)
    if not np.isfinite(label).all():
        return 'it is not finite'
    if label.size == 1 and (label.item() < 0 or label.item() != math.floor(label.item())):
        return 'a class must be an integer from 0'
    return None


def file_crc32(path, progress=True):
    """Compute the CRC-32 of a file as 8 hexadecimal digits, in memory of a few megabytes."""
    crc, block = 0, memoryview(bytearray(1 << 22))
    with open(path, 'rb', buffering=0) as file, \
            tqdm(desc=f'CRC-32 of {os.path.basename(path)}', total=os.path.getsize(path), unit='B',
                 unit_scale=True, disable=None if progress else True, leave=False) as bar:
        while True:
            length = file.readinto(block)
            if not length:
                return f'{crc:08x}'
            crc = zlib.crc32(block[:length], crc)
            bar.update(length)


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


def default_workers(count):
    """The number of processes for `count` photos.

    As many as CPUs, but one for few: each takes seconds to start, as it imports MXNet.
    """
    return max(1, min(available_cpus(), count // 2000))


def available_cpus():
    """The number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def map_in_processes(function, tasks, workers):
    """Yield ``function(task)`` for each task, in order, computed by `workers` processes.

    Processes and not threads: decoding photos of 224x224 on 4 cores, 4 threads gave 1.2 to 1.6 times
    the speed of one, 4 processes 2.5 to 4 times. They are spawned and not forked, as MXNet
    does not survive a fork once its engine runs. At most a few tasks per worker are in memory.

    Parameters
    ----------
    function : callable
        Of a module's top level.
    tasks : iterable
    workers : int
        With 1, everything happens in the calling process.

    Raises
    ------
    InputError
        A worker process died.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), initializer=_start_worker)
    pending = deque()
    try:
        for task in tasks:
            pending.append(_submit(pool, function, task))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise InputError('A worker process died, for want of memory perhaps: give fewer --workers. '
                         '(In a script of your own, call this under '
                         '"if __name__ == \'__main__\':".)') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool, function, task):
    # Processes start here, and inherit the blocked signal: Ctrl-C, which the terminal sends to all of
    # them, is then the parent's alone, from their first instruction on. The parent gets it on unblocking.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker():
    cv2.setNumThreads(0)
    warnings.simplefilter('ignore')
    # A worker would wait for tasks for ever if its parent was killed.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _beside(rec_path, extension):
    return os.path.splitext(rec_path)[0] + extension


def _size_of(path, remedy='check the path'):
    if os.path.isdir(path):
        raise InputError(f'{path} is a folder: name the file in it.')
    if not os.path.exists(path):
        raise InputError(f'{path} does not exist: {remedy}.')
    size = os.path.getsize(path)
    if not size:
        raise InputError(f'{path} is empty: copy or pack it again.')
    return size


def _damaged(rec_path, number, offset, damage):
    return InputError(f'{rec_path}: record {number} (counted from 0, at byte {offset}): {damage}. '
                      'Copy or pack the file again.')


def _read_record(fd, size, offset, wanted=None):
    """Read the record at a byte offset.

    Returns its data (only the first `wanted` bytes, if given), the data's whole length, and the
    offset of the next record.
    """
    expected = (_WHOLE, _FIRST)
    payload, total = b'', 0
    while True:
        # Most reads are of the first few bytes alone: one system call for a part.
        part = os.pread(fd, _PART.size + (wanted or 0), offset)
        if len(part) < _PART.size:
            raise _Damage('the file ends inside it (truncated)')
        magic, word = _PART.unpack_from(part)
        if magic != _MAGIC:
            raise _Damage('it does not begin with the magic number of RecordIO, so it is damaged, or the '
                          'length of the record before it is, or this is not a RecordIO file')
        kind, length = word >> 29, word & 0x1fffffff
        if kind not in expected:
            raise _Damage(f'the kind of one of its parts is {kind}, not {expected[0]} or {expected[1]}')
        data = offset + _PART.size
        offset = data + (length + 3) // 4 * 4
        if offset > size:
            raise _Damage(f'the file ends inside it (truncated: {offset - size} bytes are missing)')
        if kind in (_MIDDLE, _LAST):
            payload += _MAGIC_BYTES
            total += len(_MAGIC_BYTES)
        payload += os.pread(fd, length, data) if wanted is None else part[_PART.size:_PART.size + length]
        total += length
        if kind in (_WHOLE, _LAST):
            return payload[:wanted], total, offset
        expected = (_MIDDLE, _LAST)


def _split_payload(payload):
    if len(payload) < _HEADER.size:
        raise _Damage(f'it is too short for a header ({len(payload)} bytes)')
    flag, label, _, _ = _HEADER.unpack_from(payload)
    begin = _HEADER.size + 4 * flag
    if len(payload) < begin:
        raise _Damage(f'its header announces {flag} labels, more than it holds')
    if flag:
        label = np.frombuffer(payload, '<f4', flag, _HEADER.size)
    return label, payload[begin:]


def _scan(fd, rec_path, size, label_width, progress):
    """Walk over all records; returns their byte offsets (n,) and labels (n, label_width)."""
    offsets, labels = [], []
    wanted = _HEADER.size + 4 * label_width
    offset = 0
    with tqdm(desc='structure', total=size, unit='B', unit_scale=True, disable=None if progress else True,
              leave=False) as bar:
        while offset < size:
            try:
                head, length, following = _read_record(fd, size, offset, wanted)
                if length < _HEADER.size:
                    raise _Damage(f'it is too short for a header ({length} bytes)')
                flag = int.from_bytes(head[:4], 'little')
                image_length = length - _HEADER.size - 4 * flag
                if image_length < 0:
                    raise _Damage(f'its header announces {flag} labels, more than it holds')
                if image_length == 0:
                    raise _Damage('it holds no image')
            except _Damage as damage:
                raise _damaged(rec_path, len(offsets), offset, damage) from None
            if max(flag, 1) != label_width:
                raise InputError(f'{rec_path}: record {len(offsets)} (counted from 0, at byte {offset}) has '
                                 f'{max(flag, 1)} label(s), not {label_width}: give --label-width '
                                 f'{max(flag, 1)}, or another file.')
            labels.append(head[_HEADER.size:wanted] if flag else head[4:8])
            offsets.append(offset)
            if len(offsets) % 4096 == 0:
                bar.update(following - bar.n)
            offset = following
    return (np.array(offsets, dtype=np.int64),
            np.frombuffer(b''.join(labels), '<f4').reshape(len(offsets), label_width))


def _check_index(idx_path, rec_path, offsets):
    """Compare the index with the records' byte offsets; returns the records' keys, in the file's order."""
    keys, listed = [], []
    with open(idx_path, 'rb') as file:
        for number, line in enumerate(file, 1):
            try:
                key, offset = map(int, line.split())
            except ValueError:
                raise InputError(f'{idx_path}: line {number} is not "key<TAB>byte offset", two integers: '
                                 f'{line[:60]!r}. Copy or pack the file again.') from None
            keys.append(key)
            listed.append(offset)
    try:
        keys, listed = np.array(keys, dtype=np.int64), np.array(listed, dtype=np.int64)
    except OverflowError:
        raise InputError(f'{idx_path} holds a number beyond 64 bits. Copy or pack the file again.') from None
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
        reason = 'but a class is an integer from 0. Pack the images again with the right labels'
        if not faulty.any() and num_classes is not None:
            faulty = classes >= num_classes
            reason = (f'but --num-classes is {num_classes}, so that labels run from 0 to {num_classes - 1}. '
                      f'Give --num-classes {int(classes.max()) + 1} or more, or another file')
    if faulty.any():
        number = np.flatnonzero(faulty)[0]
        label = labels[number]
        shown = f'{label[0]:g}' if label.size == 1 else str(label[~np.isfinite(label)][0])
        raise InputError(f'{rec_path}: record {number} (counted from 0, key {keys[number]}) has the label '
                         f'{shown}, {reason}. ({np.count_nonzero(faulty)} of {len(labels)} records have such '
                         'a label.)')


def _load_manifest(rec_path):
    path = _beside(rec_path, '.json')
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


def _check_checksum(path, expected, progress):
    remedy = ('Copy the file again; if it was changed on purpose, remove the manifest '
              f'{_beside(path, ".json")} to have every image decoded instead.')
    size = os.path.getsize(path)
    if size != expected['bytes']:
        raise InputError(f'{path} has {size} bytes, and had {expected["bytes"]} when it was packed. {remedy}')
    crc = file_crc32(path, progress)
    if crc != expected['crc32']:
        raise InputError(f'{path} is damaged: its CRC-32 is {crc}, and was {expected["crc32"]} when it was '
                         f'packed. {remedy}')


def _check_images(rec_path, offsets, keys, workers, progress):
    if workers is None:
        # The bytes tell the work, as images may be of 1 KB or of 100.
        workers = default_workers(os.path.getsize(rec_path) // _BYTES_OF_A_PHOTO)
    if workers < 1:
        raise InputError(f'--workers is {workers}: it must be 1 or more.')
    tasks = ((rec_path, first, offsets[first:first + _IMAGES_PER_TASK])
             for first in range(0, len(offsets), _IMAGES_PER_TASK))
    faults = []
    with tqdm(desc='decoding', total=len(offsets), unit='image', unit_scale=True,
              disable=None if progress else True, leave=False) as bar:
        for count, found in map_in_processes(_find_image_faults, tasks, workers):
            faults += found
            bar.update(count)
    if faults:
        shown = ''.join(f'\n  record {number} (counted from 0, key {keys[number]}) {reason}'
                        for number, reason in faults[:_FAULTS_SHOWN])
        more = '' if len(faults) <= _FAULTS_SHOWN else f'\n  and {len(faults) - _FAULTS_SHOWN} more'
        raise InputError(f'{rec_path}: {len(faults)} of {len(offsets)} images are damaged:{shown}{more}\n'
                         'Copy or pack the file again.')


def _find_image_faults(task):
    rec_path, first, offsets = task
    faults = []
    with open(rec_path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        for number, offset in enumerate(offsets.tolist(), first):
            image = _split_payload(_read_record(file.fileno(), size, offset)[0])[1]
            try:
                picture = decode_image(image)
            except ValueError as error:
                faults.append((number, str(error)))
                continue
            try:
                mx.image.imdecode(image).wait_to_read()
            except mx.base.MXNetError:
                faults.append((number, f'is an image of a kind ({picture.format}) that MXNet does not '
                                       'decode'))
    return len(offsets), faults


def add_commands(subparsers):
    parser = subparsers.add_parser(
        'check', help='check a .rec file: structure, index, labels, images',
        description='Check a RecordIO file of images before MXNet reads it: the structure of every record, '
                    'the index, the labels, and the content (by the checksums of the manifest that "pack" '
                    'wrote, or by decoding every image).')
    parser.add_argument('rec', metavar='REC', help='the .rec file')
    parser.add_argument('--idx', help='its index (default: the same path with .idx)')
    parser.add_argument('--num-classes', type=int, metavar='N', help='labels must be below N')
    parser.add_argument('--label-width', type=int, default=1, metavar='W',
                        help='numbers in each label (default: 1, a class)')
    parser.add_argument('--workers', type=int, help='processes that decode (default: as many as CPUs)')
    parser.set_defaults(run=_run_check)


def _run_check(args):
    summary = check_records(args.rec, args.idx, args.num_classes, args.label_width, workers=args.workers)
    print(f'{summary.path}: {summary.count} records, {summary.size / 1e6:.1f} MB, sound')
    if summary.label_width == 1:
        counts = summary.class_counts.values()
        print(f'  labels: {len(counts)} classes, {summary.label_min:g} to {summary.label_max:g}; '
              f'{min(counts)} to {max(counts)} images each')
    else:
        print(f'  labels: {summary.label_width} numbers each, {summary.label_min:g} to {summary.label_max:g}')
    print('  index: lists every record once')
    print(f'  content: {summary.verified}')
