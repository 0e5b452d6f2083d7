"""The pictures and labels that ``pack images`` packs: class folders, MXNet lists, text lists."""
import codecs
import os
import re
from pathlib import PurePath
from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.files import PathLike
from ..utils.text import integer, listing, real
from .images import is_image_file
from .recordio import label_fault

_SYNSET = re.compile(r'(n\d{8}) ')


class _Source(NamedTuple):
    """Images to pack: `paths` are relative to `root`, `labels` are floats or float32 arrays, `classes` are names."""

    root: str
    paths: list
    labels: list
    classes: Optional[list]
    ignored: list


def read_source(source: str, root: Optional[PathLike], classes: Optional[PathLike] = None) -> _Source:
    """The pictures of a folder or a list, with the classes of a file, if that is given: see ``pack_images``."""
    if not os.path.exists(source):
        raise InputError(f'{source} does not exist: give a folder of class folders, or a list file.')
    try:
        if not os.path.isdir(source):
            return _read_list(source, os.path.dirname(source) if root is None else os.fspath(root), classes)
        if root is not None:
            raise InputError(f'`root` is for a list, and {source} is a folder: omit it.')
        return _read_folder(source, classes)
    except OSError as error:
        raise InputError(f'{error.filename or source} cannot be read: {error.strerror or error}.') from error


def _entries(folder):
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _read_classes(path):
    """The folders and the names of classes, in the order of their labels, of a text file.

    Its lines are ``FOLDER``, ``FOLDER<TAB>NAME`` or, as in ImageNet's ``LOC_synset_mapping.txt``,
    ``n01440764 tench, Tinca tinca``, of which the first word is folder and name.
    """
    folders, names = [], []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        synset = _SYNSET.match(line)
        folder, _, name = (part.strip() for part in (synset[1] if synset else line).partition('\t'))
        for found, what in ((folders, folder), (names, name or folder)):
            if what in found:
                raise InputError(f'{path}: line {number}: {what} is on line {found.index(what) + 1} too. Mend the '
                                 'line.')
            found.append(what)
    if not names:
        raise InputError(f'{path} names no classes: write one on each line.')
    return folders, names


def _read_folder(folder, class_file):
    classes, paths, labels, ignored, unclassed = [], [], [], [], []
    for entry in _entries(folder):
        if entry.is_dir() and not entry.name.startswith('.'):
            classes.append(entry.name)
        else:
            is_image = not entry.is_dir() and is_image_file(entry.path)
            (unclassed if is_image else ignored).append(entry.name)
    if unclassed:
        raise InputError(f'{folder} holds {len(unclassed)} image(s) directly ({unclassed[0]}), which have no '
                         'class: move each into a folder per class, or give a list file.')
    if not classes:
        raise InputError(f'{folder} holds no class folders: give the folder that has a folder per class.')
    listed, names = _read_classes(class_file) if class_file else (classes, classes)
    strange = [name for name in classes if name not in listed]
    if strange:
        raise InputError(f'{folder} has {len(strange)} class folder(s) that are not in {class_file}: '
                         f'{listing(strange, 5).strip()}\nAdd them there, or move them away.')
    for name in tqdm(classes, 'reading the folders', unit='class', disable=None, leave=False):
        before, folders = len(paths), 0
        for entry in _entries(os.path.join(folder, name)):
            path = os.path.join(name, entry.name)
            folders += entry.is_dir()
            if entry.is_dir() or not is_image_file(entry.path):
                ignored.append(path)
            else:
                paths.append(path)
                labels.append(float(listed.index(name)))
        if len(paths) == before:
            remedy = (f' directly (the {folders} folders in it are not searched): name the folder whose '
                      'folders are the classes.' if folders else ': fill or remove it.')
            raise InputError(f'The class folder {os.path.join(folder, name)} holds no image{remedy}')
    return _Source(folder, paths, labels, names, ignored)


def _read_list(path, root, class_file):
    names = _read_classes(class_file)[1] if class_file else None
    if not os.path.isdir(root or '.'):
        raise InputError(f'`root` {root} is not a folder: name the one that the paths of {path} start from.')
    parse = _parse_lst_line if path.endswith('.lst') else _parse_text_line
    images, lines_of, labels = [], {}, []
    # Each picture is looked for, which takes a while where there are a million.
    lines = tqdm(list(_lines(path)), 'reading the list', unit='line', unit_scale=True, disable=None, leave=False)
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            image, label = parse(line)
            if np.size(label) == 1:
                label = float(np.asarray(label).item())
            fault = label_fault(label)
            if fault:
                raise ValueError(f'the label is {label}: {fault}')
            if names and not (np.size(label) == 1 and label < len(names)):
                raise ValueError(f'the label is {label}, and {class_file} names the classes 0 to {len(names) - 1}')
            if labels and np.size(label) != np.size(labels[0]):
                raise ValueError(f'it has {np.size(label)} label(s), the lines before it '
                                 f'{np.size(labels[0])}')
            image = _as_here(image, root)
            # Without './' and '//'.
            same = str(PurePath(image))
            if same in lines_of:
                raise ValueError(f'{image} is on line {lines_of[same]} too')
        except ValueError as error:
            raise InputError(f'{path}: line {line_number}: {error}. Mend the line.') from None
        lines_of[same] = line_number
        images.append(image)
        labels.append(label)
    if not labels:
        raise InputError(f'{path} lists no images.')
    return _Source(root, images, labels, names, [])


def _lines(path):
    """The lines of a text in UTF-8, or in the UTF-16 that Windows' PowerShell writes, without their ends."""
    with open(path, 'rb') as file:
        start = file.read(2)
    is_utf_16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    # Paths may be of any bytes; a byte order mark is an editor's.
    encoding, errors = ('utf-16', 'strict') if is_utf_16 else ('utf-8-sig', 'surrogateescape')
    try:
        with open(path, encoding=encoding, errors=errors) as file:
            for line in file:
                if '\0' in line:
                    raise ValueError
                yield line.rstrip('\r\n')
    except ValueError:
        raise InputError(f'{path} is not a text in UTF-8 or UTF-16: save it as UTF-8.') from None


def _as_here(image, root):
    """The path of a list in the form of this system."""
    if os.path.lexists(os.path.join(root, image)):
        return image
    if image.endswith(','):
        raise ValueError('a comma stands between path and label: write "path label", with a space or a tab')
    return image.replace('\\', os.sep)


def _parse_lst_line(line):
    fields = line.split('\t')
    try:
        integer(fields[0])
        labels = np.array([real(field) for field in fields[1:-1]])
    except ValueError:
        labels = np.zeros(0)
    if not labels.size or not fields[-1].strip():
        raise ValueError(f'{line[:100]!r} is not "index<TAB>label<TAB>path"')
    return fields[-1].strip(), labels


def _parse_text_line(line):
    fields = line.rsplit(None, 1)
    try:
        return fields[0].strip(), real(fields[1])
    except (ValueError, IndexError):
        raise ValueError(f'{line[:100]!r} is not "path label" (an MXNet list must be named *.lst)') from None
