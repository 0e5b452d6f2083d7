"""Batches of labeled images from RecordIO, through MXNet's native ``ImageRecordIter``."""
import datetime
import logging
import math
import os
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, Optional

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from .classes import labels_of
from .images import BILINEAR, shorter_side
from .integrity import RecordSummary

# Those of ImageNet in 8-bit RGB, as used by GluonCV and MXNet's examples.
IMAGENET_MEAN = (123.68, 116.779, 103.939)
IMAGENET_STD = (58.393, 57.12, 57.375)
_LOGGER = logging.getLogger(__name__)
# Seconds between two lines of the log where no progress bar is shown.
_REPORT_SECONDS = 60
Batch = namedtuple('Batch', 'data label')
Normalization = namedtuple('Normalization', 'mean std')


def parts(count: int, number: int) -> list[int]:
    """How many of ``count`` records are in each of the parts that MXNet divides a file into, in their order.

    Raises
    ------
    InputError
        If a part has none.
    """
    each = math.ceil(count / number)
    if each * (number - 1) >= count:
        raise InputError(f'{count} records cannot be divided among {number} workers: MXNet gives {each} to each, which '
                         'leaves none for the last. Take fewer workers.')
    return [each] * (number - 1) + [count - each * (number - 1)]


class ImageBatches:
    """The batches of one RecordIO file, epoch by epoch; the same seed and epoch give the same batches.

    Each epoch makes an iterator of its own, seeded by ``seed`` and the epoch: the order and the
    augmentation of an epoch do not depend on what was read before, so a resumed training continues on
    the very images that it would have seen.

    Parameters
    ----------
    records : gluon_lprnet.data.integrity.RecordSummary
        Of a file that passed :func:`gluon_lprnet.data.integrity.check_records`.
    input_size : int
        Height and width of the network's input, in pixels.
    batch_size : int
    normalization : Normalization
        Mean and standard deviation of R, G and B on the scale 0 to 255.
    resize : int
        The shorter side becomes this many pixels before the crop; -1 keeps the record's size.
    shuffle : bool
    threads : int
        Decoding threads.
    seed : int
    augmentation : dict
        Further arguments of ``mx.io.ImageRecordIter``; empty for the plain center crop.
    labels : ndarray of int, optional
        What a batch has in place of each label of the file: see :func:`gluon_lprnet.data.classes.labels_of`.
    part : tuple of (int, int)
        Of the records: its number from 0, and of how many. Each record is in one part.

    Attributes
    ----------
    count : int
        Records of the part.
    """

    def __init__(self, records: RecordSummary, input_size: int, batch_size: int, normalization: Normalization,
                 resize: int = -1, shuffle: bool = False, threads: int = 2, seed: int = 0,
                 augmentation: Optional[dict[str, Any]] = None, labels: Optional[np.ndarray] = None,
                 part: tuple[int, int] = (0, 1)) -> None:
        index, number = part
        self.count = parts(records.count, number)[index]
        # ImageRecordIter refuses a batch that is much larger than the set.
        self.batch_size = batch_size = min(batch_size, self.count)
        # Parts are augmented differently.
        self._seed = seed + 7919 * index
        self._labels = None if labels is None else mx.nd.array(labels)
        # MXNet takes a path for an address, in which #, ? and ; are no letters, and looks at all that is in its folder.
        self._links = tempfile.TemporaryDirectory(prefix='records-')
        path, index_path = (os.path.join(self._links.name, f'records{ending}') for ending in ('.rec', '.idx'))
        for link, file in ((path, records.path), (index_path, records.index_path)):
            os.symlink(os.path.abspath(file), link)
        self._arguments = dict(
            path_imgrec=path, path_imgidx=index_path, data_shape=(3, input_size, input_size),
            batch_size=batch_size, resize=resize, shuffle=shuffle, preprocess_threads=threads, verbose=False,
            part_index=index, num_parts=number,
            # MXNet loses up to `prefetch_buffer - 1` batches of memory with each iterator (apache/mxnet#15218).
            prefetch_buffer=1,
            **{f'mean_{c}': m for c, m in zip('rgb', normalization.mean)},
            **{f'std_{c}': s for c, s in zip('rgb', normalization.std)},
            **(augmentation or {}))

    def __len__(self) -> int:
        """Batches an epoch, a short last one included."""
        return math.ceil(self.count / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches from number ``start`` on.

        A batch lies in memory that the iterator uses again: it is valid until the next one is asked for.
        The last batch is as short as the records left: MXNet fills it up with images of the epoch's
        beginning, which are cut off again.

        Yields
        ------
        Batch
            ``data`` (N, 3, input_size, input_size) float32, ``label`` (N,) float32.
        """
        if start >= len(self):
            return
        seed = (self._seed + 1000003 * epoch) % 2 ** 31
        iterator = mx.io.ImageRecordIter(seed=seed, seed_aug=seed, **self._arguments)
        if start:
            self._skip(iterator, start)
        for batch in iterator:
            rows = self.batch_size - batch.pad
            label = batch.label[0][:rows]
            yield Batch(batch.data[0][:rows], label if self._labels is None else self._labels.take(label))

    def _skip(self, iterator: Any, batches: int) -> None:
        """Read so many batches, and say how long that takes: ImageRecordIter begins with the first one only."""
        images = batches * self.batch_size
        _LOGGER.info('%s images of the epoch are decoded once more, to come to the place of the checkpoint',
                     f'{images:,}')
        begin = reported = time.monotonic()
        bar = tqdm(total=images, desc='to the place of the checkpoint', unit='image', leave=False, disable=None)
        for done in range(1, batches + 1):
            next(iterator)
            bar.update(self.batch_size)
            now = time.monotonic()
            if bar.disable and (done == 1 or now - reported > _REPORT_SECONDS):
                reported, left = now, (now - begin) / done * (batches - done)
                _LOGGER.info('%s of %s decoded, ETA %s', f'{done * self.batch_size:,}', f'{images:,}',
                             datetime.timedelta(seconds=round(left)))
        bar.close()


def paper_augmentation(pad: int = 0, min_random_scale: float = 1.0, max_random_scale: float = 1.0,
                       max_random_illumination: float = 0.0, mirror: bool = True) -> dict[str, Any]:
    """Arguments of ``mx.io.ImageRecordIter`` for the paper's random crop, scale, flip and illumination.

    Parameters
    ----------
    pad : int
        Gray pixels added on each side before the crop, for images no larger than the crop.
    min_random_scale, max_random_scale : float
        Range of the factor by which width and height are scaled. An image that becomes smaller than the
        crop is enlarged to it again by ImageRecordIter.
    max_random_illumination : float
        Largest absolute value added to each pixel, on the scale 0 to 255.
    mirror : bool
        Flip left and right with probability 1/2.
    """
    augmentation = dict(rand_crop=True, rand_mirror=mirror, max_random_illumination=max_random_illumination)
    if pad:
        augmentation.update(pad=pad, fill_value=127)
    if (min_random_scale, max_random_scale) != (1.0, 1.0):
        augmentation.update(min_random_scale=min_random_scale, max_random_scale=max_random_scale)
    return augmentation


def validation_batches(records: RecordSummary, config: dict[str, Any], batch_size: int, threads: int,
                       **order: Any) -> ImageBatches:
    """The center crops of a validation set: the shorter side becomes input_size / crop_ratio, then comes the crop.

    Parameters
    ----------
    records : gluon_lprnet.data.integrity.RecordSummary
    config : dict
        With ``input_size``, ``crop_ratio``, ``rgb_mean``, ``rgb_std`` and, unless it is that of an older network,
        ``inter_method``; with ``class_names`` (and ``class_ids``), the labels are the classes of these names.
    batch_size, threads : int
    order
        ``shuffle`` and ``seed`` of :class:`ImageBatches`, to train on such crops or take a sample of them.

    Raises
    ------
    InputError
        If the file has a class that ``config`` does not name.
    """
    return ImageBatches(records, config['input_size'], batch_size, Normalization(config['rgb_mean'], config['rgb_std']),
                        resize=shorter_side(config), threads=threads,
                        augmentation=dict(inter_method=config.get('inter_method', BILINEAR)),
                        labels=labels_of(config, records), **order)
