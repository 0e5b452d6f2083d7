"""Figures of a landmark evaluation: CED (Figure 4), faces (Figure 5), error by yaw; each with its numbers as CSV."""
import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from ..data.faces.landmarks import landmark_box
from ..data.faces.records import FaceRecord, read_face_records
from ..utils.files import write_file
from .landmarks import MEAN_FACE, FaceErrors, ced

PathLike = Union[str, 'os.PathLike[str]']

_FACES = 24
_COLUMNS = 6
_YAW_STEP = 15
# Side of a face's panel, in units of the longer side of the box around both sets of landmarks.
_VIEW = 1.3


def draw_ced(results: Mapping[str, FaceErrors], path: PathLike, title: str) -> None:
    """Draw the CED of several networks as step functions; see :func:`gluon_lprnet.evaluate.landmarks.ced`.

    Parameters
    ----------
    results : dict of str to FaceErrors
        By network.
    path : path
        Without extension: ``.png``, ``.svg``, and ``.csv`` with the corners of the curves, are written.
    title : str
    """
    figure, axis = _figure(title)
    rows = []
    # The rare large errors, and more of the mean face's, would squeeze the curves to the left; the CSV has them.
    limit = max(np.percentile(found.errors, 60 if label == MEAN_FACE else 90) for label, found in results.items())
    for label, found in results.items():
        errors, fractions = ced(found.errors)
        # The last step stays at 1 up to the edge of the figure.
        axis.plot(100 * np.append(errors, max(errors[-1], limit)), 100 * np.append(fractions, 1), label=label,
                  drawstyle='steps-post', linestyle='--' if label == MEAN_FACE else '-')
        rows += [(label, 100 * error, fraction) for error, fraction in zip(errors, fractions)]
    axis.set(xlabel='NME in percent', ylabel='faces in percent', xlim=(0, 100 * limit), ylim=(0, 100))
    _save(figure, path, legend=True)
    write_csv(path, ('network', 'nme_percent', 'fraction_of_faces'), rows)


def draw_error_by_yaw(results: Mapping[str, FaceErrors], path: PathLike, title: str) -> None:
    """Draw NME against yaw: faces as points, the means of bins of 15 degrees as lines.

    The parameters are those of :func:`draw_ced`. The CSV has the means. Faces without a yaw are omitted.
    """
    figure, axis = _figure(title)
    rows, highest = [], 0
    for label, found in results.items():
        known = ~np.isnan(found.yaw)
        yaw, errors = found.yaw[known], 100 * found.errors[known]
        steps = np.floor(yaw / _YAW_STEP)
        means = [(step * _YAW_STEP, (step + 1) * _YAW_STEP, int((steps == step).sum()), errors[steps == step].mean())
                 for step in np.unique(steps)]
        line, = axis.plot([(low + high) / 2 for low, high, _, _ in means], [mean for *_, mean in means], marker='o',
                          label=label, zorder=3)
        axis.scatter(yaw, errors, s=2, alpha=0.25, color=line.get_color(), linewidths=0)
        rows += [(label, *row) for row in means]
        highest = max(highest, *(mean for *_, mean in means))
    axis.set(xlabel='yaw in degrees', ylabel='NME in percent', ylim=(0, 1.6 * highest))
    _save(figure, path, legend=True)
    write_csv(path, ('network', 'yaw_from', 'yaw_to', 'faces', 'mean_nme_percent'), rows)


def draw_grid(records: Iterable[FaceRecord], found: FaceErrors, indices: Sequence[int], path: PathLike,
              title: str) -> None:
    """Draw faces with true landmarks in green and predicted ones in red.

    Parameters
    ----------
    records : iterable of FaceRecord
    found : FaceErrors
        Of these records.
    indices : sequence of int
        The faces to draw, in this order.
    path, title
        As of :func:`draw_ced`; the CSV names the faces.
    """
    from matplotlib.figure import Figure
    wanted = {index: place for place, index in enumerate(indices)}
    columns = min(_COLUMNS, len(wanted))
    rows = math.ceil(len(wanted) / columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.5), layout='constrained')
    figure.suptitle(f'{title}: true landmarks green, predicted red', fontsize='medium')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis('off')
    for index, record in enumerate(records):
        if index in wanted:
            _draw_face(axes[wanted[index]], record, found, index)
    _save(figure, path)
    write_csv(path, *_face_rows(found, indices))


def draw_all(results: Mapping[str, Mapping[str, FaceErrors]], recs: Mapping[str, PathLike], folder: PathLike,
             seed: int = 0) -> None:
    """Write all figures and tables of an evaluation.

    Parameters
    ----------
    results : dict
        As of :func:`gluon_lprnet.evaluate.landmarks.evaluate_sets`.
    recs : dict of str to path
        The sets' files.
    folder : path
        Created if it does not exist. Gets ``SET-ced``, ``SET-yaw`` (if the set has poses), and for each network
        ``SET-NETWORK-random``, ``SET-NETWORK-worst`` (``.png``, ``.svg``, ``.csv``) and
        ``SET-NETWORK-faces.csv`` with the error of each face.
    seed : int
        For the choice of random faces, which is the same for every network.
    """
    for name, networks in results.items():
        prefix = Path(folder) / file_name(name)
        draw_ced(networks, f'{prefix}-ced', name)
        first = next(iter(networks.values()))
        if not np.isnan(first.yaw).all():
            draw_error_by_yaw(networks, f'{prefix}-yaw', name)
        count = len(first.errors)
        chosen = np.random.default_rng(seed).permutation(count)[:_FACES].tolist()
        for label, found in networks.items():
            stem = f'{prefix}-{file_name(label)}'
            write_csv(f'{stem}-faces', *_face_rows(found, range(count)))
            if label != MEAN_FACE:
                draw_grid(read_face_records(recs[name]), found, chosen, f'{stem}-random', f'{label} on {name}, random')
                worst = np.argsort(-found.errors, kind='stable')[:_FACES].tolist()
                draw_grid(read_face_records(recs[name]), found, worst, f'{stem}-worst', f'{label} on {name}, worst')


def _draw_face(axis, record, found, index):
    # From pixels of the set's image to those of the record's crop.
    truth, predicted = ((points - record.offset) / record.scale
                        for points in (found.truth[index], found.predicted[index]))
    left, top, right, bottom = landmark_box(np.concatenate([truth, predicted]))
    half = _VIEW * max(right - left, bottom - top) / 2
    axis.imshow(record.pixels())
    axis.scatter(*truth.T, s=3, color='lime', linewidths=0)
    axis.scatter(*predicted.T, s=3, color='red', linewidths=0)
    axis.set(xlim=((left + right) / 2 - half, (left + right) / 2 + half),
             ylim=((top + bottom) / 2 + half, (top + bottom) / 2 - half))
    yaw = '' if np.isnan(found.yaw[index]) else f', yaw {found.yaw[index]:.0f}'
    axis.set_title(f'{100 * found.errors[index]:.2f}%{yaw}', fontsize='small')


def _face_rows(found, indices):
    return ('name', 'yaw_degrees', 'nme_percent'), [
        (found.names[index], '' if np.isnan(found.yaw[index]) else found.yaw[index], 100 * found.errors[index])
        for index in indices]


def _figure(title):
    # The object interface: no display is needed, and nothing global of matplotlib changes.
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.subplots()
    axis.set_title(title)
    axis.grid(alpha=0.3)
    return figure, axis


def _save(figure, path, legend=False):
    from matplotlib import rc_context
    if legend:
        # Below the axes, so that it never covers a curve.
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.set_figheight(figure.get_figheight() + 0.2 * len(labels))
        figure.legend(handles, labels, loc='outside lower center', fontsize='small')
    write_file(f'{path}.png', lambda scratch: figure.savefig(scratch, dpi=150))
    # Without date and random ids, so that equal numbers give equal files.
    with rc_context({'svg.hashsalt': 'gluon_lprnet'}):
        write_file(f'{path}.svg', lambda scratch: figure.savefig(scratch, dpi=150, metadata={'Date': None}))


def write_csv(path: PathLike, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline='')
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_file(f'{path}.csv', text.getvalue())


def file_name(label: str) -> str:
    return re.sub(r'[^\w.+-]+', '_', label).strip('_')
