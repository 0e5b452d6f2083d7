"""Pack images into the RecordIO files that training reads.

``python -m gluon_lprnet pack images FOLDER --out PREFIX`` writes

- ``PREFIX.rec``, ``PREFIX.idx``: the records and their index,
- ``PREFIX.classes.txt``: the class of each label, one per line, label 0 first (where classes have names),
- ``PREFIX.json``: the manifest, with what was done, what was skipped, and the size and CRC-32 of the
  other two, with which ``check`` and training find any later damage.

They appear only when complete: everything is written in a folder ``.PREFIX.partial-*`` first, which
is removed on any error, on Ctrl-C and on SIGTERM.
"""
import argparse
import itertools
import os
import sys
from typing import Any, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.files import PathLike
from ..utils.flags import add_parser
from ..utils.processes import default_workers, map_in_processes
from ..utils.text import integer, listing
from .images import MAX_SIDE, decode_image, encode_jpeg, is_turned, read_file, resize, rgb, turned_upright
from .recordio import check_prefix, write_records
from .sources import read_source

_IMAGES_PER_TASK = 16


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
        The class of each label, or None if unknown (a list file without ``classes``).
    skipped : list of (str, str)
        Skipped damaged images: path and reason.
    ignored : list of str
        Entries of the folder whose names are not those of images.
    """

    rec_path: str
    count: int  # type: ignore[assignment]  # a field, not the method of tuples
    size: int
    classes: Optional[list[str]]
    skipped: list[tuple[str, str]]
    ignored: list[str]


def pack_images(source: PathLike, prefix: PathLike, resize: int = 480, quality: int = 95,
                workers: Optional[int] = None, skip_bad: bool = False, shuffle: bool = True, seed: int = 0,
                root: Optional[PathLike] = None, overwrite: bool = False,
                classes: Optional[PathLike] = None) -> PackSummary:
    """Pack photos into ``prefix.rec`` with its index, classes and manifest.

    Every image is decoded completely, rotated by its EXIF orientation, converted to 8-bit RGB (16 bits
    scaled, transparency on white, the first frame of an animation), shrunk so that its SHORTER side
    is `resize`, and encoded as JPEG. Nothing is enlarged. A baseline RGB JPEG that needs none of this
    keeps its bytes, and so its quality. The same input and seed give the same bytes, whatever the
    number of workers.

    Parameters
    ----------
    source : str or os.PathLike
        One of

        - a folder of class folders, which get the labels 0, 1, ... in sorted order of their names; images
          lie directly in them. Entries without the extension of an image, hidden ones and folders within
          class folders are reported and not packed.
        - an MXNet list, ``*.lst``: lines ``index<TAB>label[<TAB>label...]<TAB>path``; the index is
          not used. With several labels on each line, they may be any numbers.
        - any other file: a text list, lines ``path label``.
    prefix : str or os.PathLike
        Where to write: ``data/train`` gives ``data/train.rec`` and so on. The folder is made if it is missing.
    resize : int
        Length of the shorter side in pixels: 480 for training and 256 for validation on ImageNet;
        smaller photos stay as they are. 0 keeps every size.
    quality : int
        JPEG quality, 1 to 100, of the images that are encoded again.
    workers : int, optional
        Processes; by default as many as CPUs, fewer for few images.
    skip_bad : bool
        Skip missing or damaged images, and report them in the summary and the manifest, instead of
        failing.
    shuffle : bool
        Write the images in random order, by `seed` (MXNet's reader reads in the order of the file);
        otherwise in the order of the source: by class and name, or as listed.
    seed : int
        0 to 2**32 - 1.
    root : str or os.PathLike, optional
        The folder that the paths of a list are relative to; by default the folder of the list.
    overwrite : bool
        Replace existing files with the same prefix.
    classes : str or os.PathLike, optional
        A text file with a class on each line, which gets the labels 0, 1, ... in this order: the name of its folder,
        or ``FOLDER<TAB>NAME``; of lines ``n01440764 tench, Tinca tinca`` the first word. A folder must be in it, but
        a class need not have a folder. It names the classes of a list, too.

    Returns
    -------
    PackSummary

    Raises
    ------
    InputError
        A parameter, the source, or (without `skip_bad`) any image is at fault; all damaged images are
        named. Nothing is left at `prefix`.
    """
    check_prefix(prefix, overwrite)
    check_ranges(resize=(resize, 0, 65500), quality=(quality, 1, 100), workers=(workers, 1, 1024),
                 seed=(seed, 0, 2**32 - 1))
    pictures = read_source(os.fspath(source), root, classes)
    order = np.arange(len(pictures.paths))
    if shuffle:
        np.random.RandomState(seed).shuffle(order)
    workers = default_workers(len(order)) if workers is None else workers
    skipped: list[tuple[str, str]] = []

    def convert_all():
        tasks = (([os.path.join(pictures.root, pictures.paths[i]) for i in order[first:first + _IMAGES_PER_TASK]],
                  resize, quality) for first in range(0, len(order), _IMAGES_PER_TASK))
        results = itertools.chain.from_iterable(map_in_processes(_convert_files, tasks, workers))
        for i, (image, reason) in zip(order, tqdm(results, desc='packing', total=len(order), unit='image',
                                                  disable=None, leave=False)):
            if reason is not None:
                skipped.append((pictures.paths[i], reason))
            elif skip_bad or not skipped:  # after a failure the others are still checked, but not written
                yield pictures.labels[i], image
        skipped.sort()
        if skipped and not skip_bad:
            raise InputError(f'{len(skipped)} of {len(order)} images in {pictures.root} cannot be packed:\n'
                             f'{listing([f"{path} {reason}" for path, reason in skipped])}\n'
                             'Mend or remove them, or give `skip_bad` to leave them out. '
                             'Nothing was written.')

    details = {'resize': resize, 'quality': quality, 'shuffle': shuffle, 'seed': seed if shuffle else None,
               'skipped': skipped, 'max_side': MAX_SIDE, 'ignored': pictures.ignored}
    rec_path, count, size = write_records(prefix, convert_all(), pictures.classes, details, overwrite)
    return PackSummary(rec_path, count, size, pictures.classes, skipped, pictures.ignored)


def check_ranges(**ranges: tuple[Optional[float], float, float]) -> None:
    """Raise InputError unless each parameter's (value, lowest, highest) holds, or its value is None."""
    for parameter, (value, low, high) in ranges.items():
        if value is not None and not low <= value <= high:
            raise InputError(f'`{parameter}` is {value}: it must be from {low} to {high}.')


def _convert_files(task):
    """Convert files; returns a list of (image, None) or (None, what is wrong with the file)."""
    paths, resize_to, quality = task
    results = []
    for path in paths:
        try:
            results.append((convert_file(path, resize_to, quality), None))
        except ValueError as error:
            results.append((None, str(error)))
    return results


def convert_file(path: PathLike, resize_to: int, quality: int) -> bytes:
    """The record's image (bytes) of a picture file, as :func:`pack_images` makes it; or ImageError."""
    image = read_file(path)
    picture = decode_image(image)
    must_shrink = 0 < resize_to < min(picture.size)
    # A progressive JPEG is encoded again, because it takes longer to decode in every epoch.
    if (picture.format == 'JPEG' and picture.mode == 'RGB' and not picture.info.get('progressive')
            and not is_turned(picture) and not must_shrink):
        return image
    pixels = np.asarray(rgb(turned_upright(picture)))
    if must_shrink:
        height, width = pixels.shape[:2]
        scale = resize_to / min(height, width)
        pixels = resize(pixels, (round(width * scale), round(height * scale)))
    return encode_jpeg(pixels, quality)


def add_pack_kind(kinds: Any) -> None:
    parser = add_parser(
        kinds, 'images', help='photos in class folders, or listed with their labels',
        example='gluon-lprnet pack images photos/train --out data/train\n'
                'gluon-lprnet pack images list.txt --root photos --classes names.txt --out data/train',
        description='Pack photos into PREFIX.rec, .idx, .classes.txt and .json (the manifest with '
                    'checksums). They appear only when complete.')
    parser.add_argument('source', metavar='FOLDER_OR_LIST',
                        help='a folder with one folder per class (labels 0, 1, ... in sorted order), an '
                             'MXNet list (*.lst), or a text list with lines "path label"')
    parser.add_argument('--root',
                        help='the folder that the paths of a list are relative to (default: that of the list)')
    parser.add_argument('--classes', metavar='FILE',
                        help='text with a class on each line, label 0 first: order and names of the classes, for '
                             'folders (FOLDER or FOLDER<TAB>NAME) and for lists')
    parser.add_argument('--resize', type=integer, default=480, metavar='N',
                        help='shrink photos so that the SHORTER side has N pixels (ImageNet: 480 for '
                             'training, 256 for validation); smaller photos are kept as they are, never '
                             'enlarged; 0 keeps every size (default: %(default)s)')
    add_output_flags(parser)
    parser.set_defaults(run=_run_images)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by all kinds of ``pack``: where and how records are written."""
    parser.add_argument('--out', required=True, metavar='PREFIX',
                        help='path of the written files, without extension')
    parser.add_argument('--quality', type=integer, default=95,
                        help='JPEG quality of encoded images, 1 to 100 (default: %(default)s)')
    parser.add_argument('--workers', type=integer,
                        help='processes (default: as many as CPUs, fewer for few images)')
    parser.add_argument('--skip-bad', action='store_true',
                        help='skip missing and damaged images, and list them in the manifest, '
                             'instead of failing')
    parser.add_argument('--no-shuffle', dest='shuffle', action='store_false',
                        help='keep the order of the source')
    parser.add_argument('--shuffle', action='store_true', default=True,
                        help='write the images in random order (default)')
    parser.add_argument('--seed', type=integer, default=0, help='seed of the random order (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    parser.set_defaults(flags={'prefix': '--out'})


def _run_images(args):
    summary = pack_images(args.source, args.out, args.resize, args.quality, args.workers, args.skip_bad,
                          args.shuffle, args.seed, args.root, args.overwrite, args.classes)
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
