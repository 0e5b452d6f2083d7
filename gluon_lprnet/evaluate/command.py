"""``gluon-lprnet evaluate``: accuracy of a classification network, in all and by class, and what it gets wrong."""
import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mxnet as mx

from ..data.batches import validation_batches
from ..data.imagenet_names import in_words
from ..data.integrity import add_check_flag, check_records, class_names
from ..data.pack import pack_images
from ..data.recordio import read_records
from ..data.sources import read_source
from ..utils.errors import InputError
from ..utils.files import check_figure
from ..utils.flags import add_parser, positive_int
from ..utils.text import FORMATS, render_table
from .classification import add_description_flags, classify, load_described
from .network_flag import add_network_flag, split_networks
from .report import by_class, check_empty, draw_confusion, write_worst


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'evaluate', help='accuracy of a classification network on RecordIO files or folders of class folders',
        example='gluon-lprnet evaluate data/val.rec --network runs/latest --per-class --confusion matrix.png',
        description='Print top-1 and top-5 accuracy, by class too. Exit status 1 if a picture of a folder could not '
                    'be read; the others count.')
    parser.add_argument('inputs', nargs='*', metavar='SET',
                        help='RecordIO file, or folder that has a folder for each class')
    add_network_flag(parser, 'classification')
    parser.add_argument('--rec-val', nargs=1, default=(), help=argparse.SUPPRESS)
    parser.add_argument('--rec-val-idx', metavar='IDX', help='index of the RecordIO file (default: its path with .idx)')
    parser.add_argument('--per-class', action='store_true', help='accuracy by class, the least accurate first')
    parser.add_argument('--confusion', type=Path, metavar='FILE.png',
                        help='draw the confusion matrix (PNG, SVG or PDF), with its numbers in FILE.csv')
    parser.add_argument('--worst', type=Path, metavar='DIR',
                        help='write the pictures that are wrong with the highest probability to this folder')
    parser.add_argument('--format', choices=FORMATS, default='text', help='how to print (default: %(default)s)')
    parser.add_argument('--batch-size', type=positive_int, default=64, help='images of a pass (default: %(default)s)')
    parser.add_argument('-j', '--num-data-workers', type=positive_int, default=2, metavar='N',
                        help='decoding threads (default: %(default)s)')
    add_check_flag(parser)
    parser.set_defaults(run=_run)
    add_description_flags(parser)


def _run(args):
    (network,), inputs = split_networks('evaluate', 'classification', args.inputs, args.network, args.rec_val)
    _check_flags(args, inputs)
    net, description = load_described(network, args)
    size = description['input_size']
    classes = net(mx.nd.zeros((1, 3, size, size))).shape[1]
    names = in_words(description.get('class_names') or map(str, range(classes)))
    rows, faults = [], 0
    for path in inputs:
        with _opened(path, args.rec_val_idx, args.data_check) as (records, sources, skipped):
            for picture, reason in skipped:
                print(f'{os.path.join(path, picture)} {reason}.', file=sys.stderr)
            faults += len(skipped)
            named = class_names(records.path)
            _check_classes(path, records, named, description, classes)
            if description.get('class_names') and not named:
                print(f'{path} names no classes: its labels are taken for numbers of the network\'s, where 0 is '
                      f'{names[0]}. If they are others, pack it again with the names of its classes.', file=sys.stderr)
            answers = classify(net, validation_batches(records, description, args.batch_size, args.num_data_workers),
                               mx.cpu())
            row = {'set': path, 'images': records.count, 'classes': classes, **answers.metrics}
            if args.per_class:
                row['by_class'] = by_class(answers, names)
            if args.confusion:
                draw_confusion(answers, names, args.confusion, f'{network} on {path}')
            if args.worst:
                row['worst'] = write_worst(answers, names, read_records(records.path), sources, args.worst)
        rows.append(row)
        if args.format != 'json':
            print(_in_text(row, args.format))
    if args.format == 'json':
        # One document, also of several sets.
        print(json.dumps({'network': network, 'sets': rows}, indent=1, ensure_ascii=False))
    return 1 if faults else 0


def _check_classes(path, records, names, description, classes):
    """Refuse a set of other classes than the network's; where both have names, these decide."""
    if description.get('class_names') and names:
        return
    if names and len(names) != classes:
        raise InputError(f'{path} has {len(names)} classes, and the network answers {classes} without names, so that '
                         'which is which is not known: give the names ("class_names" in its .json), or pack the set '
                         'with the classes of the network (`pack images --classes`).')
    if records.label_max >= classes:
        raise InputError(f'{path} has the label {records.label_max:g}, and the network answers {classes} classes, '
                         f'0 to {classes - 1}: give another set.')


def _check_flags(args, inputs):
    """Refuse what would fail, or overwrite something, at the end of an evaluation."""
    if len(inputs) > 1 and (args.rec_val_idx or args.confusion or args.worst):
        raise InputError(f'--rec-val-idx, --confusion and --worst are for one set, and {len(inputs)} are given: '
                         'evaluate them one by one.')
    if args.confusion:
        check_figure(args.confusion)
    if args.worst:
        check_empty(args.worst)


@contextlib.contextmanager
def _opened(path, index, data_check):
    """As a context: the records of a set, where each picture is from (or None), and what of it cannot be read.

    A folder of class folders is packed for the length of the block.
    """
    if not os.path.isdir(path):
        yield check_records(path, index, data_check=data_check), None, []
        return
    with tempfile.TemporaryDirectory(prefix='evaluate-') as scratch:
        # Pictures keep their sizes and, as far as they are JPEGs, their bytes.
        packed = pack_images(path, os.path.join(scratch, 'set'), resize=0, quality=100, skip_bad=True,
                             shuffle=False)
        bad = {picture for picture, _ in packed.skipped}
        sources = [picture for picture in read_source(path, None).paths if picture not in bad]
        yield check_records(packed.rec_path), sources, packed.skipped


def _in_text(row, form):
    metrics = ', '.join(f'{name} {row[name]:.4f}' for name in ('top1', 'top5') if name in row)
    text = f'{row["set"]}: {row["images"]} images, {row["classes"]} classes, {metrics}'
    if 'by_class' in row:
        cells = [(each['class'], each['index'], each['images'], f'{100 * each["top1"]:.1f}',
                  each['taken_for'] and f'{each["taken_for"]} ({each["times"]})') for each in row['by_class']]
        text += '\n\n' + render_table(('class', 'number', 'images', 'top-1 in %', 'most often taken for'), cells, form)
    return text
