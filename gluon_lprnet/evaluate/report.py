"""What a classification network gets wrong: accuracy by class, the confusion matrix, the worst pictures."""
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..data.images import decode_image
from ..utils.errors import InputError
from ..utils.files import make_folder, write_file
from .classification import Answers
from .figures import file_name, write_csv

# Formats of the confusion matrix, by extension.

# Pictures that write_worst writes at most.
WORST = 50

# Up to so many classes, the cells of the confusion matrix have numbers; up to so many, its axes have names.
_MOST_NUMBERED, _MOST_NAMED = 25, 100
# Of a matrix without numbers, the entries off the diagonal that are named beside it.
_CONFUSIONS = 40


def confusion_matrix(answers: Answers) -> np.ndarray:
    """How many images of each class (row) were taken for each class (column): ndarray (classes, classes) int."""
    matrix = np.zeros((answers.classes, answers.classes), dtype=int)
    np.add.at(matrix, (answers.labels, answers.predicted), 1)
    return matrix


def by_class(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy by class, the least accurate first.

    Parameters
    ----------
    answers : Answers
    names : sequence of str
        Of the classes, in the order of the outputs.

    Returns
    -------
    list of dict
        Of each class that has images: ``class``, ``index``, ``images``, ``top1`` (a fraction), ``taken_for`` (the other
        class that was answered most often; None if there was none) and ``times``.
    """
    rows = []
    for index, counts in enumerate(confusion_matrix(answers)):
        images, correct = int(counts.sum()), int(counts[index])
        if images:
            counts[index] = 0
            other = int(counts.argmax())
            rows.append({'class': names[index], 'index': index, 'images': images, 'top1': correct / images,
                         'taken_for': names[other] if counts[other] else None, 'times': int(counts[other])})
    return sorted(rows, key=lambda row: row['top1'])


def draw_confusion(answers: Answers, names: Sequence[str], path: Path, title: str) -> None:
    """Draw the confusion matrix, and write its numbers to a CSV file of the same name.

    Above 25 classes the most frequent confusions stand beside the matrix in words. Above 100, a cell stands for several
    neighboring classes; the CSV file has each of them.

    Parameters
    ----------
    answers : Answers
    names : sequence of str
        Of the classes, in the order of the outputs.
    path : path
        With the extension of the format, one of :data:`gluon_lprnet.utils.files.FIGURES`.
    title : str
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    matrix = confusion_matrix(answers)
    write_csv(path.with_suffix(''), ('true class', *names),
              [(name, *map(int, row)) for name, row in zip(names, matrix)])
    cell = math.ceil(len(matrix) / _MOST_NAMED)
    shown = _in_cells(matrix, cell)
    images = shown.sum(axis=1, keepdims=True)
    # In inches: a cell has room for its number, or for a name beside it.
    side = max(4, len(shown) * (0.45 if len(shown) <= _MOST_NUMBERED else 0.15 if cell == 1 else 0.1))
    widths = [side] if len(shown) <= _MOST_NUMBERED else [side, 5]
    figure = Figure(figsize=(sum(widths) + 2.5, side + 2), layout='constrained')
    axis, *beside = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    # Rare confusions would be white on a linear scale.
    colors = axis.imshow(shown / np.maximum(images, 1), cmap='Blues', norm=PowerNorm(0.5, 0, 1),
                         interpolation='nearest', extent=(-0.5, cell * len(shown) - 0.5, cell * len(shown) - 0.5, -0.5))
    axis.set(xlabel='answered' + (f' (a cell is {cell} classes)' if cell > 1 else ''), ylabel='true class', title=title)
    figure.colorbar(colors, ax=axis, label='part of the images of the true class', shrink=0.6)
    if cell == 1:
        axis.set_xticks(range(len(shown)), names, rotation=90, fontsize='small')
        axis.set_yticks(range(len(shown)), names, fontsize='small')
    if len(shown) <= _MOST_NUMBERED:
        for row, column in zip(*np.nonzero(shown)):
            axis.text(column, row, shown[row, column], ha='center', va='center', fontsize='small',
                      color='white' if shown[row, column] > 0.4 * images[row, 0] else 'black')
    for text in beside:
        text.axis('off')
        text.text(0, 1, '\n'.join(['most frequent confusions', '', *_confusions(matrix, names)]), va='top',
                  fontsize='small', transform=text.transAxes)
    write_file(path, lambda scratch: figure.savefig(scratch, dpi=150))


def _in_cells(matrix, cell):
    """The sums of square cells of a matrix, which is filled up with zeros."""
    missing = -len(matrix) % cell
    cells = (len(matrix) + missing) // cell
    return np.pad(matrix, (0, missing)).reshape(cells, cell, cells, cell).sum(axis=(1, 3))


def _confusions(matrix, names):
    """Lines of the largest entries off the diagonal."""
    wrong = matrix - np.diag(np.diag(matrix))
    largest = np.argsort(-wrong, axis=None, kind='stable')[:_CONFUSIONS]
    pairs = zip(*np.unravel_index(largest, wrong.shape))
    return [f'{wrong[row, column]} of {matrix[row].sum()}  {names[row]} ({row}) as {names[column]} ({column})'
            for row, column in pairs if wrong[row, column]]


def write_worst(answers: Answers, names: Sequence[str], images: Iterable[tuple[Any, bytes]],
                sources: Optional[Sequence[str]], folder: Path) -> int:
    """Write the pictures that are wrong with the highest probability, named by both classes, and ``worst.csv``.

    Parameters
    ----------
    answers : Answers
    names : sequence of str
        Of the classes, in the order of the outputs.
    images : iterable of (label, bytes)
        The pictures' files, in the order of ``answers``.
    sources : sequence of str, optional
        Where the pictures are from, for ``worst.csv``; default: their number in the order, from 0.
    folder : path
        Made if it is not there.

    Returns
    -------
    int
        Pictures written.
    """
    wrong = np.flatnonzero(~answers.correct)
    worst = wrong[np.argsort(-answers.probability[wrong], kind='stable')][:WORST].tolist()
    ranks = {index: rank for rank, index in enumerate(worst, 1)}
    rows = []
    make_folder(folder)
    for index, (_, image) in enumerate(images):
        if index in ranks:
            true, said = names[answers.labels[index]], names[answers.predicted[index]]
            probability = answers.probability[index]
            target = folder / (f'{ranks[index]:02}-{file_name(true)}-as-{file_name(said)}-{probability:.2f}.'
                               + str(decode_image(image).format).lower())
            write_file(target, image)
            rows.append((ranks[index], target.name, sources[index] if sources else f'record {index}', true, said,
                         f'{probability:.6f}'))
    write_csv(folder / 'worst', ('rank', 'file', 'picture', 'true class', 'answered', 'probability'), sorted(rows))
    return len(rows)


def check_empty(folder: Path) -> None:
    """Raise InputError if a folder holds something, which the pictures of :func:`write_worst` would be mixed with."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f'{folder} is not an empty folder: give another one.')
