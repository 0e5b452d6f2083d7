"""Photos without labels as RecordIO: to calibrate on and to learn from a teacher, apart from those of a test.

``python -m gluon_lprnet pack photos FOLDER... --out PREFIX --apart-from TEST_FOLDER`` searches folders through and
packs what they hold. A photo is dropped if its file's name or its fingerprint is that of one of the test: a copy counts
as the same, in another size or another compression too.
"""
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.flags import add_parser, non_negative_int
from ..utils.processes import default_workers, map_in_processes
from ..utils.text import integer, listing
from .images import ImageError, PathLike, images_in, read_image
from .pack import add_output_flags, check_ranges, convert_file
from .recordio import check_prefix, write_records

# Of 64 bits, so many may differ between two copies of a photo.
NEAR = 4
_PHOTOS_PER_TASK = 16


class PhotoSummary(NamedTuple):
    """What :func:`pack_photos` did.

    Attributes
    ----------
    packed, held_out : int
        Photos in ``PREFIX.rec`` and in ``PREFIX-held-out.rec``.
    of_the_test : list of str
        Dropped, because they are photos of the test.
    skipped : list of (str, str)
        Damaged ones, with the reason.
    """

    packed: int
    held_out: int
    of_the_test: list[str]
    skipped: list[tuple[str, str]]


def fingerprint(pixels: np.ndarray) -> int:
    """64 bits of a picture (height, width, 3) uint8: where gray rises from left to right, on a grid of 8x9."""
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), 'big')


class KnownPhotos:
    """The photos of some folders, by name and by fingerprint.

    Parameters
    ----------
    folders : sequence of path
        Searched through.

    Raises
    ------
    InputError
        If one of them holds no photos, or a photo cannot be read.
    """

    def __init__(self, folders: Sequence[PathLike]) -> None:
        paths = [path for folder in folders for path in photos_in(folder)]
        self._stems = {path.stem.lower() for path in paths}
        fingerprints = []
        for path in tqdm(paths, 'reading the test', unit='photo', leave=False, disable=None):
            try:
                fingerprints.append(fingerprint(read_image(path)))
            except ImageError as error:
                raise InputError(f'{path} {error}.') from error
        self._fingerprints = np.array(fingerprints, dtype='uint64')

    def __contains__(self, photo: tuple[Path, int]) -> bool:
        """Whether a photo, its path and fingerprint, is one of them."""
        path, bits = photo
        differing = np.unpackbits((self._fingerprints ^ np.uint64(bits))[:, None].view('uint8'), axis=1).sum(axis=1)
        return path.stem.lower() in self._stems or bool((differing <= NEAR).any())


def photos_in(folder: PathLike) -> list[Path]:
    """The pictures of a folder and the folders in it, sorted; InputError if there are none."""
    if not os.path.isdir(folder):
        raise InputError(f'{folder} is not a folder.')
    found = images_in(folder)
    if not found:
        raise InputError(f'{folder} holds no pictures.')
    return found


def pack_photos(folders: Sequence[PathLike], prefix: PathLike, apart_from: Sequence[PathLike] = (), held_out: int = 0,
                resize: int = 256, quality: int = 95, workers: Optional[int] = None, skip_bad: bool = False,
                shuffle: bool = True, seed: int = 0, overwrite: bool = False) -> PhotoSummary:
    """Pack photos, all with the label 0, into ``prefix.rec``.

    Parameters
    ----------
    folders : sequence of path
        Searched through.
    prefix : path
    apart_from : sequence of path
        Folders with the photos of a test, none of which is packed.
    held_out : int
        So many of the photos go to ``prefix-held-out.rec`` instead.
    resize, quality, workers, skip_bad, shuffle, seed, overwrite
        As of :func:`gluon_lprnet.data.pack.pack_images`.

    Returns
    -------
    PhotoSummary

    Raises
    ------
    InputError
        A parameter or, without ``skip_bad``, a photo is at fault, or no photo is left.
    """
    prefixes = [check_prefix(prefix, overwrite)]
    if held_out:
        prefixes.append(check_prefix(f'{os.fspath(prefix)}-held-out', overwrite))
    check_ranges(resize=(resize, 0, 65500), quality=(quality, 1, 100), workers=(workers, 1, 1024),
                 seed=(seed, 0, 2**32 - 1))
    paths = [path for folder in folders for path in photos_in(folder)]
    if shuffle:
        paths = [paths[number] for number in np.random.RandomState(seed).permutation(len(paths))]
    workers = default_workers(len(paths)) if workers is None else workers
    known = KnownPhotos(apart_from)
    dropped: list[str] = []
    skipped: list[tuple[str, str]] = []

    def samples():
        tasks = ((paths[first:first + _PHOTOS_PER_TASK], resize, quality)
                 for first in range(0, len(paths), _PHOTOS_PER_TASK))
        results = itertools.chain.from_iterable(map_in_processes(_convert, tasks, workers))
        for path, (image, bits, reason) in zip(paths, tqdm(results, 'packing', len(paths), unit='photo', disable=None,
                                                           leave=False)):
            if reason is not None:
                skipped.append((str(path), reason))
            elif (path, bits) in known:
                dropped.append(str(path))
            else:
                yield 0, image
        if skipped and not skip_bad:
            raise InputError(f'{len(skipped)} of {len(paths)} photos cannot be packed:\n'
                             f'{listing([f"{path} {reason}" for path, reason in skipped])}\n'
                             'Mend or remove them, or give `skip_bad` to leave them out. Nothing was written.')

    details = {'folders': [os.fspath(folder) for folder in folders], 'resize': resize, 'quality': quality,
               'seed': seed if shuffle else None, 'apart_from': [os.fspath(folder) for folder in apart_from],
               'of_the_test': dropped, 'skipped': skipped}
    stream = samples()
    kept_aside = list(itertools.islice(stream, held_out))
    count = write_records(prefixes[0], stream, None, details, overwrite)[1]
    if held_out:
        write_records(prefixes[1], kept_aside, None, details, overwrite)
    return PhotoSummary(count, len(kept_aside), dropped, skipped)


def _convert(task):
    """For each path (image, fingerprint, None) or (None, None, what is wrong with the file)."""
    paths, resize, quality = task
    results = []
    for path in paths:
        try:
            image = convert_file(path, resize, quality)
            results.append((image, fingerprint(read_image(image)), None))
        except ValueError as error:
            results.append((None, None, str(error)))
    return results


def add_pack_kind(kinds: Any) -> None:
    parser = add_parser(
        kinds, 'photos', help='photos without labels, to compress a network on',
        example='gluon-lprnet pack photos photos more_photos --out data/photos --held-out 500 --apart-from test',
        description='Search folders through and pack all photos, with the label 0, into PREFIX.rec, .idx and .json. '
                    'They appear only when complete.')
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='folder, searched through at any depth')
    parser.add_argument('--apart-from', nargs='+', default=(), metavar='FOLDER',
                        help='drop photos whose name or fingerprint is that of a photo in these folders: a test')
    parser.add_argument('--held-out', type=non_negative_int, default=0, metavar='N',
                        help='write N of the photos to PREFIX-held-out.rec instead (default: %(default)s)')
    parser.add_argument('--resize', type=integer, default=256, metavar='N',
                        help='shrink photos so that the SHORTER side has N pixels; 0 keeps every size '
                             '(default: %(default)s)')
    add_output_flags(parser)
    parser.set_defaults(run=_run)


def _run(args):
    summary = pack_photos(args.folders, args.out, args.apart_from, args.held_out, args.resize, args.quality,
                          args.workers, args.skip_bad, args.shuffle, args.seed, args.overwrite)
    for what, names in (('are photos of the test and were dropped', summary.of_the_test),
                        ('cannot be read and were skipped', [' '.join(each) for each in summary.skipped])):
        if names:
            print(f'{len(names)} {what}:\n{listing(names)}', file=sys.stderr)
    print(f'{args.out}.rec: {summary.packed} photos'
          + (f'; {args.out}-held-out.rec: {summary.held_out}' if summary.held_out else '')
          + f'; {len(summary.of_the_test)} of the test dropped, {len(summary.skipped)} skipped')
