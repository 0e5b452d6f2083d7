"""A few records of a large file, which alone are read and checked: to calibrate on."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..utils.files import PathLike
from .integrity import RecordSummary, check_records, image_fault, read_index
from .recordio import Damage, beside, damaged, read_record, reader_of, size_of, split_payload, write_records


@contextmanager
def sampled(rec_path: PathLike, count: int, seed: int = 0) -> Iterator[RecordSummary]:
    """As a context: a temporary ``.rec`` file of some random records of another, in random order.

    The index is read, and each record that is taken is checked as :func:`gluon_lprnet.data.integrity.check_records`
    does: its structure, and that Pillow and MXNet decode its image alike. The others are not read.

    Parameters
    ----------
    rec_path : str or os.PathLike
        With its index beside it.
    count : int
        All records where there are fewer.
    seed : int

    Raises
    ------
    InputError
        If the file or the index cannot be read, or a record that is taken is damaged.
    """
    rec_path = os.fspath(rec_path)
    with tempfile.TemporaryDirectory(prefix='sampled-') as folder:
        prefix = Path(folder) / Path(rec_path).stem
        write_records(prefix, _taken(rec_path, count, seed))
        yield check_records(f'{prefix}.rec', data_check='structure')


def _taken(rec_path, count, seed):
    """(label, image) of the records; the label 0 for each, which may have any."""
    size, idx_path = size_of(rec_path), beside(rec_path, '.idx')
    size_of(idx_path, 'every .rec needs its .idx: copy it too, or have "check" write it anew with `write_index`')
    offsets = np.sort(read_index(idx_path)[1])
    ends = np.append(offsets[1:], size)
    order = np.random.default_rng(seed).permutation(len(offsets))[:count]
    with open(rec_path, 'rb', buffering=0) as file:
        for number, offset, end in zip(order, offsets[order].tolist(), ends[order].tolist()):
            try:
                if not 0 <= offset < size:
                    raise Damage('the index has it outside the file')
                payload, _, following = read_record(reader_of(file), size, offset)
                if following != end:
                    raise Damage('it does not end where the index has the next one begin')
                image = split_payload(payload)[1]
                fault = image_fault(image)
                if fault:
                    raise Damage(f'its image {fault}')
            except Damage as damage:
                raise damaged(rec_path, number, offset, damage) from None
            yield 0, image
