"""``python -m gluon_lprnet check``: whether MXNet can read a RecordIO file of images, and what can be saved of one."""
from typing import Any

from ..utils.errors import InputError
from ..utils.flags import add_parser
from ..utils.text import integer, listing
from .integrity import check_records
from .repair import repair_records


def add_commands(subparsers: Any) -> None:
    parser = add_parser(
        subparsers, 'check', help='check a .rec file: structure, index, labels, images',
        example='gluon-lprnet check data/train.rec --num-classes 1000\n'
                'gluon-lprnet check damaged.rec --repair data/sound',
        description='Check a RecordIO file of images before MXNet reads it: the structure of every record, '
                    'the index, the labels, and the content (by the checksums of the manifest that "pack" '
                    'wrote, or by decoding every image).')
    parser.add_argument('rec', metavar='REC', help='the .rec file')
    parser.add_argument('--idx', help='its index (default: the path of the .rec with .idx)')
    parser.add_argument('--num-classes', type=integer, metavar='N', help='labels must be below N')
    parser.add_argument('--label-width', type=integer, default=1, metavar='W',
                        help='numbers in each label (default: 1, a class)')
    parser.add_argument('--workers', type=integer, help='processes that decode (default: as many as CPUs)')
    parser.add_argument('--repair', metavar='PREFIX',
                        help='write the sound records of a damaged file to PREFIX.rec, .idx and .json, and list the '
                             'others')
    parser.add_argument('--write-index', action='store_true', help='write the index if there is none')
    parser.set_defaults(run=_run)


def _run(args):
    if args.repair:
        _repair(args)
    else:
        _check(args)


def _repair(args):
    given = [flag for flag, value in (('--idx', args.idx), ('--num-classes', args.num_classes),
                                      ('--write-index', args.write_index)) if value]
    if given:
        raise InputError(f'{", ".join(given)} cannot go with --repair, which reads no index and writes one.')
    summary = repair_records(args.rec, args.repair, args.workers)
    print(f'{summary.path}: {summary.kept} sound records of {args.rec}')
    if summary.lost:
        print(f'{len(summary.lost)} place(s) lost:\n' + listing([
            f'bytes {loss.offset} to {loss.end}: {loss.reason}' for loss in summary.lost]))


def _check(args):
    summary = check_records(args.rec, args.idx, args.num_classes, args.label_width, workers=args.workers,
                            write_index=args.write_index)
    print(f'{summary.path}: {summary.count} records, {summary.size / 1e6:.1f} MB, valid')
    if summary.label_width == 1:
        counts = summary.class_counts.values()
        print(f'  labels: {len(counts)} classes, {summary.label_min:g} to {summary.label_max:g}; '
              f'{min(counts)} to {max(counts)} images each')
    else:
        print(f'  labels: {summary.label_width} numbers each, {summary.label_min:g} to {summary.label_max:g}')
    print('  index: lists every record once')
    print(f'  content: {summary.verified}')
