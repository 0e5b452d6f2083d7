"""MXNet's RecordIO files of images: read without MXNet, and written completely or not at all.

The format, little-endian throughout. A ``.rec`` is a sequence of parts, each padded to 4 bytes:
the magic number 0xced7230a, a word whose upper 3 bits say which part of a record it is (0 the
whole record, 1 its first part, 2 a middle one, 3 the last) and whose lower 29 bits are the
length, then the data. MXNet splits a record wherever its data contains the magic number at a multiple
of 4 bytes, and drops those 4 bytes. The record is a header ``flag (uint32), label (float32),
id (uint64), id2 (uint64)``, then `flag` labels (float32), then the image file; if the flag is 0,
the label is that of the header. An ``.idx`` is text: a line ``key<TAB>byte offset`` per record.
"""
import contextlib
import functools
import json
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Optional, Union

import numpy as np
from tqdm import tqdm

from .._compat import import_mxnet
from ..utils.errors import InputError
from ..utils.files import PathLike, folder_aside, make_folder, put_in_place, write_errors
from ..utils.signals import exit_on_sigterm

_MAGIC = 0xced7230a
_MAGIC_BYTES = struct.pack('<I', _MAGIC)
_PART = struct.Struct('<II')
HEADER = struct.Struct('<IfQQ')
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_BLOCK = 1 << 20
# Of float32: up to it, every integer has a number of its own.
_LARGEST_CLASS = 2**24
MANIFEST_FORMAT = 'gluon_lprnet records'
MANIFEST_VERSION = 1

# A class, or the numbers of a label.
Label = Union[float, np.ndarray]

# (length, offset) to the bytes there, fewer at the end of the file, as os.pread gives them.
Reader = Callable[[int, int], bytes]


class Damage(Exception):
    """A record cannot be read; the message completes "record 7: ..."."""


def read_records(rec_path: PathLike) -> Iterator[tuple[Label, bytes]]:
    """Iterate over a ``.rec`` file in the file's order.

    Parameters
    ----------
    rec_path : str or os.PathLike

    Yields
    ------
    label : float or numpy.ndarray
        The label; float32 of shape (label_width,) if the header's flag is not 0.
    image : bytes
        The image file, still encoded.

    Raises
    ------
    InputError
        The file is missing or empty, or a record is damaged; the records before it are yielded first.
    """
    rec_path = os.fspath(rec_path)
    size = size_of(rec_path)
    with open(rec_path, 'rb') as file:
        pread = reader_of(file)
        offset = number = 0
        while offset < size:
            try:
                payload, _, following = read_record(pread, size, offset)
                yield split_payload(payload)
            except Damage as damage:
                raise damaged(rec_path, number, offset, damage) from None
            offset, number = following, number + 1


def label_fault(label: Label) -> Optional[str]:
    """Say what is wrong with a record's label.

    Parameters
    ----------
    label : float or numpy.ndarray
        A number is a class; an array of shape (label_width,), label_width > 1, holds any numbers.

    Returns
    -------
    str or None
        None for a valid label.
    """
    label = np.asarray(label, dtype=np.float64).ravel()
    if not np.isfinite(label).all():
        return 'it is not finite'
    if label.size == 1 and (label.item() < 0 or label.item() != math.floor(label.item())):
        return 'a class must be a non-negative integer'
    # Other numbers are measurements, which may be rounded.
    integers = label[label == np.floor(label)]
    if (integers > _LARGEST_CLASS if label.size == 1 else integers != integers.astype(np.float32)).any():
        return f'labels are stored as float32, which does not hold every integer above {_LARGEST_CLASS:,}'
    return None


def file_crc32(path: PathLike) -> str:
    """Compute the CRC-32 of a file as 8 hexadecimal digits, using a few megabytes of memory."""
    crc, block = 0, memoryview(bytearray(1 << 22))
    with open(path, 'rb', buffering=0) as file, \
            tqdm(desc=f'CRC-32 of {os.path.basename(path)}', total=os.path.getsize(path), unit='B',
                 unit_scale=True, disable=None, leave=False) as bar:
        while True:
            length = file.readinto(block)
            if not length:
                return f'{crc:08x}'
            crc = zlib.crc32(block[:length], crc)
            bar.update(length)


def beside(rec_path: PathLike, extension: str) -> str:
    return os.path.splitext(rec_path)[0] + extension


def size_of(path: PathLike, remedy: str = 'check the path') -> int:
    if os.path.isdir(path):
        raise InputError(f'{path} is a folder: give a file in it.')
    if not os.path.exists(path):
        raise InputError(f'{path} does not exist: {remedy}.')
    size = os.path.getsize(path)
    if not size:
        raise InputError(f'{path} is empty: copy or pack it again.')
    return size


def damaged(rec_path: PathLike, number: int, offset: int, damage: Damage) -> InputError:
    return InputError(f'{rec_path}: record {number} (counted from 0, at byte {offset}): {damage}. '
                      'Copy or pack the file again.')


def reader_of(file: IO[bytes]) -> Reader:
    """Reads anywhere in a file, and no more than is asked for."""
    return functools.partial(os.pread, file.fileno())


class InOrder:
    """Reads a whole file once, from start to end, and computes its CRC-32.

    Parameters
    ----------
    file : binary file
        Unbuffered.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._held = b''
        self._begin = self._end = self._crc = 0

    def __call__(self, length: int, offset: int) -> bytes:
        """The bytes at ``offset``, which must not be before that of the last call."""
        while self._end < offset + length and self._read_on(offset):
            pass
        return self._held[offset - self._begin:offset - self._begin + length]

    def crc32(self) -> str:
        """Of the whole file, as :func:`file_crc32` has it."""
        while self._read_on(self._end):
            pass
        return f'{self._crc:08x}'

    def _read_on(self, offset: int) -> int:
        block = self._file.read(_BLOCK)
        self._crc = zlib.crc32(block, self._crc)
        # What is asked for may lie across two blocks.
        kept = self._held[max(0, offset - self._begin):]
        self._begin, self._held, self._end = self._end - len(kept), kept + block, self._end + len(block)
        return len(block)


def read_record(pread: Reader, size: int, offset: int, wanted: Optional[int] = None) -> tuple[bytes, int, int]:
    """Read the record at a byte offset of a file of ``size`` bytes.

    Returns its data (only the first `wanted` bytes, if given), the data's whole length, and the
    offset of the next record.
    """
    expected = (_WHOLE, _FIRST)
    # Joined at the end: a record may have a part for every 4 bytes.
    parts, total = [], 0
    while True:
        # Most reads need only the first few bytes: one system call per part.
        part = pread(_PART.size + (wanted or 0), offset)
        if len(part) < _PART.size:
            raise Damage('the file ends inside it (truncated)')
        magic, word = _PART.unpack_from(part)
        if magic != _MAGIC:
            raise Damage('it does not start with the magic number of RecordIO, so it is damaged, or the '
                          'length of the previous record is, or this is not a RecordIO file')
        kind, length = word >> 29, word & 0x1fffffff
        if kind not in expected:
            raise Damage(f'the kind of one of its parts is {kind}, not {expected[0]} or {expected[1]}')
        data = offset + _PART.size
        offset = data + (length + 3) // 4 * 4
        if offset > size:
            raise Damage(f'the file ends inside it (truncated: {offset - size} bytes are missing)')
        if kind in (_MIDDLE, _LAST):
            parts.append(_MAGIC_BYTES)
            total += len(_MAGIC_BYTES)
        if wanted is None or total < wanted:
            parts.append(pread(length, data) if wanted is None else part[_PART.size:_PART.size + length])
        total += length
        if kind in (_WHOLE, _LAST):
            return b''.join(parts)[:wanted], total, offset
        expected = (_MIDDLE, _LAST)


def next_magic(file: IO[bytes], offset: int, size: int) -> int:
    """Where the next part may begin, from ``offset`` on, at a multiple of 4 bytes; ``size`` if nowhere."""
    position = -(-offset // 4) * 4
    while position < size:
        # A magic number may lie across two blocks.
        block = os.pread(file.fileno(), _BLOCK + 4, position)
        found = block.find(_MAGIC_BYTES)
        while found >= 0 and found % 4:
            found = block.find(_MAGIC_BYTES, found + 1)
        if found >= 0:
            return position + found
        position += _BLOCK
    return size


def written_size(payload: bytes) -> int:
    """The bytes that MXNet writes for a record of this data, which it splits at each magic number."""
    words = np.frombuffer(payload, '<u4', len(payload) // 4)
    splits = int(np.count_nonzero(words == _MAGIC))
    return _PART.size * (1 + splits) + (len(payload) - len(_MAGIC_BYTES) * splits + 3) // 4 * 4


def split_payload(payload: bytes) -> tuple[Label, bytes]:
    if len(payload) < HEADER.size:
        raise Damage(f'it is too short for a header ({len(payload)} bytes)')
    flag, label, _, _ = HEADER.unpack_from(payload)
    begin = HEADER.size + 4 * flag
    if len(payload) < begin:
        raise Damage(f'its header announces {flag} labels, more than it contains')
    if flag:
        # A view would keep the whole payload beside the image.
        label = np.frombuffer(payload, '<f4', flag, HEADER.size).copy()
    return label, payload[begin:]


_EXTENSIONS = ('.rec', '.idx', '.classes.txt', '.json')


def write_records(prefix: PathLike, samples: Iterable[tuple[Label, bytes]], classes: Optional[Sequence[str]] = None,
                  details: Optional[dict[str, Any]] = None, overwrite: bool = False) -> tuple[str, int, int]:
    """Write records, index, classes and manifest, all or nothing.

    Parameters
    ----------
    prefix : str or os.PathLike
        Where to write: ``data/train`` gives ``data/train.rec`` and so on. The folder is made if it is missing.
    samples : iterable of (label, image)
        `label` is a class (a non-negative integer) or a 1-D array of finite numbers, all of the same
        length; `image` (bytes) is an encoded image that can be decoded: later checks rely on it.
        Records get the keys 0, 1, ... in this order.
    classes : sequence of str, optional
        The class of each label.
    details : dict, optional
        Further entries of the manifest; read after all samples, so the samples may add to it.
    overwrite : bool
        Replace existing files with the same prefix.

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
        Files exist, the disk is full, a label is invalid, or there are no samples. Whatever exception
        ends the writing, including one from `samples`, nothing is left at `prefix`.
    """
    prefix = check_prefix(prefix, overwrite)
    for name in classes or ():
        if '\n' in name:
            raise InputError(f'The name of the class {name!r} contains a line break: rename it.')
    folder, name = os.path.split(prefix)
    with exit_on_sigterm(), folder_aside(folder or '.', name) as aside:
        part = str(aside / name)
        count, labels, size = _write_rec(part, prefix, samples)
        with write_errors(f'{prefix}.rec'):
            length = os.path.getsize(f'{part}.rec')
            # MXNet does not notice when the last buffered bytes cannot be written.
            if length != size:
                raise InputError(f'{prefix}.rec: only {length} of {size} bytes could be written: the '
                                 'disk is full. Make room and pack again.')
            if classes is not None:
                # The name of a folder need not be valid UTF-8.
                with open(f'{part}.classes.txt', 'w', encoding='utf-8', errors='surrogateescape') as file:
                    file.writelines(f'{name}\n' for name in classes)
            manifest = {'format': MANIFEST_FORMAT, 'version': MANIFEST_VERSION,
                        'count': count, **labels._asdict(),
                        'classes': None if classes is None else list(classes), **(details or {})}
            for kind in ('rec', 'idx'):
                path = f'{part}.{kind}'
                manifest[kind] = {'bytes': os.path.getsize(path), 'crc32': file_crc32(path)}
            with open(f'{part}.json', 'w', encoding='utf-8') as file:
                json.dump(manifest, file, indent=1)
            # An older manifest goes first and the new one comes last: none ever stands beside a .rec that
            # it does not describe. An older file of classes may have no successor.
            for extension in ('.json', '.classes.txt'):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(prefix + extension)
            written = (Path(part + extension) for extension in _EXTENSIONS)
            put_in_place([path for path in written if path.exists()], folder or '.')
    return f'{prefix}.rec', count, size


class Labels(NamedTuple):
    """What a manifest says of the labels of all records.

    Attributes
    ----------
    label_width : int
        Numbers in each.
    label_min, label_max : float
        Over all records and numbers.
    class_counts : dict of int to int
        Number of records by label; empty if `label_width` is not 1.
    """

    label_width: int
    label_min: float
    label_max: float
    class_counts: dict[int, int]


def _write_rec(part, prefix, samples):
    """Write ``part.rec`` and ``part.idx``; returns the count, the labels and the size of the .rec."""
    mx = import_mxnet()
    count, width, size = 0, None, 0
    low, high, classes = math.inf, -math.inf, Counter()
    with write_errors(f'{prefix}.rec'):
        writer = mx.recordio.MXIndexedRecordIO(f'{part}.idx', f'{part}.rec', 'w')
    try:
        for label, image in samples:
            fault = label_fault(label)
            if fault:
                raise InputError(f'Sample {count} (counted from 0) has the label {label}: {fault}.')
            label = float(label) if np.ndim(label) == 0 else np.asarray(label, dtype=np.float32).ravel()
            if width not in (None, np.size(label)):
                raise InputError(f'Sample {count} (counted from 0) has {np.size(label)} label(s), those '
                                 f'before it {width}: all need the same number.')
            width = np.size(label)
            smallest, largest = np.min(label), np.max(label)
            low, high = min(low, smallest), max(high, largest)
            if width == 1:
                classes[int(largest)] += 1
            with write_errors(f'{prefix}.rec'):
                writer.write_idx(count, _pack(mx.recordio, label, count, image))
                size = writer.tell()
            count += 1
    finally:
        with write_errors(f'{prefix}.rec'):
            writer.close()
    if not count:
        raise InputError(f'{prefix}.rec: there are no images to pack.')
    return count, Labels(width, float(low), float(high), dict(sorted(classes.items()))), size


def _pack(recordio, label, key, image):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # MXNet calls ndarray.tostring
        return recordio.pack(recordio.IRHeader(0, label, key, 0), image)


def check_prefix(prefix: PathLike, overwrite: bool) -> str:
    """The prefix as str, if files can be written there; otherwise raises InputError."""
    prefix = os.fspath(prefix)
    folder, name = os.path.split(prefix)
    if not name or os.path.isdir(prefix):
        raise InputError(f'`prefix` {prefix} is a folder: add the beginning of the files\' names, for example '
                         f'{os.path.join(prefix, "train")}.')
    if name.endswith('.rec'):
        raise InputError(f'`prefix` {prefix} is the beginning of several names: omit the .rec suffix.')
    # Before any work is done.
    make_folder(folder or '.')
    existing = [prefix + extension for extension in _EXTENSIONS
                if os.path.lexists(prefix + extension)]
    if existing and not overwrite:
        raise InputError(f'{", ".join(existing)} exist(s) already: give `overwrite`, or another `prefix`.')
    return prefix
