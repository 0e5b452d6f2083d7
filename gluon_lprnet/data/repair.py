"""What is sound of a damaged RecordIO file, as a new one."""
import os
from typing import NamedTuple, Optional, Union

import numpy as np

from ..utils.errors import InputError
from .integrity import class_names, image_faults, load_manifest
from .recordio import (
    Damage,
    Labels,
    label_fault,
    next_magic,
    read_record,
    reader_of,
    size_of,
    split_payload,
    write_records,
    written_size,
)

# Of a manifest: what write_records says of the new file itself.
_OF_THE_FILE = ('format', 'version', 'count', *Labels._fields, 'classes', 'rec', 'idx')


class Loss(NamedTuple):
    """Bytes of a file, from ``offset`` up to ``end``, that hold no sound record, and why."""

    offset: int
    end: int
    reason: str


class RepairSummary(NamedTuple):
    """What :func:`repair_records` wrote.

    Attributes
    ----------
    path : str
        The new ``.rec`` file.
    kept : int
        Its records.
    lost : list of Loss
        In the order of the old file.
    """

    path: str
    kept: int
    lost: list[Loss]


def repair_records(rec_path: Union[str, 'os.PathLike[str]'], prefix: Union[str, 'os.PathLike[str]'],
                   workers: Optional[int] = None, overwrite: bool = False) -> RepairSummary:
    """Write the sound records of a damaged file, with a new index and manifest.

    After damage the next record is looked for by RecordIO's magic number. A record is sound if its structure and its
    label are, if it has as many labels as the first one, and if Pillow and MXNet decode its image alike. The old index
    is not read. Names of classes and whatever else the old manifest says of the packing are taken over.

    Parameters
    ----------
    rec_path : path
    prefix : path
        ``out/train`` gives ``out/train.rec`` and so on.
    workers : int, optional
        Processes that decode; by default as many as CPUs.
    overwrite : bool
        Replace existing files with the same prefix.

    Raises
    ------
    InputError
        If the file cannot be read or holds no sound record, or if the new one cannot be written.
    """
    rec_path = os.fspath(rec_path)
    try:
        offsets, ends, lost = _sound_records(rec_path)
        faults = dict(image_faults(rec_path, offsets, workers))
    except OSError as error:
        raise InputError(f'{error.filename or rec_path} cannot be read: {error.strerror or error}.') from error
    lost += [Loss(int(offsets[number]), int(ends[number]), f'its image {reason}') for number, reason in faults.items()]
    kept = np.delete(offsets, list(faults))
    if not len(kept):
        raise InputError(f'{rec_path} holds no sound record: nothing was written.')
    path, count, _ = write_records(prefix, _read(rec_path, kept), _classes(rec_path), _details(rec_path), overwrite)
    return RepairSummary(path, count, sorted(lost))


def _sound_records(rec_path):
    """Where the records with sound structure and labels begin and end, and the losses between them."""
    size, offset = size_of(rec_path), 0
    offsets, ends, lost, width = [], [], [], None
    with open(rec_path, 'rb') as file:
        pread = reader_of(file)
        while offset < size:
            try:
                payload, _, following = read_record(pread, size, offset)
                if following - offset != written_size(payload):
                    raise Damage('another record begins inside it, so its length is damaged')
                label, image = split_payload(payload)
                reason = _fault(label, image, width)
            except Damage as damage:
                following, reason = next_magic(file, offset + 4, size), str(damage)
            if reason is None:
                width = np.size(label)
                offsets.append(offset)
                ends.append(following)
            elif lost and lost[-1].end == offset:
                # What follows damage without a sound record between belongs to it.
                lost[-1] = lost[-1]._replace(end=following)
            else:
                lost.append(Loss(offset, following, reason))
            offset = following
    return np.array(offsets, dtype=np.int64), np.array(ends, dtype=np.int64), lost


def _fault(label, image, width):
    fault = label_fault(label)
    if fault:
        return f'its label is {label}: {fault}'
    if width not in (None, np.size(label)):
        return f'it has {np.size(label)} label(s), those before it {width}'
    return None if image else 'it holds no image'


def _read(rec_path, offsets):
    with open(rec_path, 'rb') as file:
        pread, size = reader_of(file), os.fstat(file.fileno()).st_size
        for offset in offsets.tolist():
            yield split_payload(read_record(pread, size, offset)[0])


def _classes(rec_path):
    try:
        return class_names(rec_path)
    except InputError:
        # The manifest is damaged as well.
        return None


def _details(rec_path):
    try:
        manifest = load_manifest(rec_path) or {}
    except InputError:
        return {}
    return {key: value for key, value in manifest.items() if key not in _OF_THE_FILE}
