"""Draw the pictures of this folder that come from its CSV files: ``python docs/results/draw.py``.

The other pictures are written by the commands named on the pages.
"""
import csv
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent


def read(name):
    """Return the rows of a CSV file of this folder, as dictionaries of strings."""
    with open(FOLDER / f'{name}.csv', newline='') as file:
        return list(csv.DictReader(file))


def save(figure, name):
    figure.savefig(FOLDER / f'{name}.png', dpi=110, bbox_inches='tight')
    plt.close(figure)


def draw_inference():
    """The latency of MobileNetV1 over LPRNet's, deployed, by width: one panel for each batch size, one thread."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, batch in zip(axes, ('1', '32')):
        rows = [row for row in read('inference_ratios') if (row['threads'], row['batch']) == ('1', batch)]
        for runtime in dict.fromkeys(row['runtime'] for row in rows):
            found = [row for row in rows if row['runtime'] == runtime]
            axis.plot([float(row['width']) for row in found],
                      [float(row['mobilenetv1_over_lprnet_deployed']) for row in found], marker='o', label=runtime)
        axis.axhline(1, color='black', linewidth=1)
        axis.set(xlabel='width', title=f'224x224, one thread, batch {batch}')
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('MobileNetV1 / LPRNet deployed, in time')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='upper center', bbox_to_anchor=(0.5, 0), ncols=6,
                  fontsize='small')
    save(figure, 'inference')


def draw_compression():
    """Top-1 of the compressed networks against their multiply-adds, after one epoch of tuning and after five."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    rows = read('compression')
    methods = {'LPR, ranks by layer': 'C0', 'LPR, one fraction': 'C1', 'SVD without residual, ranks by layer': 'C2',
               'SVD without residual, rank m/': 'C3'}
    for method, color in methods.items():
        found = [row for row in rows if method in row['network'] and row['tuned_5_epochs_top1_percent']]
        for column, face in (('tuned_1_epoch_top1_percent', 'none'), ('tuned_5_epochs_top1_percent', color)):
            points = [(float(row['multiply_adds_millions']), float(row[column])) for row in found if row[column]]
            axis.scatter(*zip(*points) if points else ((), ()), edgecolors=color, facecolors=face,
                         label=None if face == 'none' else method.replace('rank m/', 'one fraction'))
    original, = (row for row in rows if row['network'] == 'original')
    axis.axhline(float(original['untuned_top1_percent']), color='black', linewidth=1,
                 label=f"original, {original['multiply_adds_millions']}M multiply-adds")
    scratch, = (row for row in rows if 'from scratch' in row['network'])
    axis.scatter(float(scratch['multiply_adds_millions']), float(scratch['tuned_5_epochs_top1_percent']), marker='x',
                 color='black', label='LPRNet x0.5 from scratch, 21 epochs')
    axis.set(xlabel='multiply-adds (millions)', ylabel='top-1 (%)',
             title='MobileNetV1 x0.5, CIFAR-10: tuned for 1 epoch (empty) and 5 (filled)')
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small', loc='lower right')
    save(figure, 'compression')


def draw_compression_imagenet():
    """Compressed networks of 1,000 classes beside the originals, by multiply-adds and by time, and the best line."""
    rows = read('compression_imagenet')
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, cost, unit, label in ((axes[0], 'multiply_adds', 1e6, 'multiply-adds (millions)'),
                                    (axes[1], 'milliseconds', 1, 'milliseconds for an image, deployed')):
        points = {kind: [(float(row[cost]) / unit, 100 * float(row['top1']), row['network']) for row in rows
                         if row['kind'] == kind] for kind in ('original', 'compressed')}
        best = [point for point in sorted(points['original'])
                if all(other[1] < point[1] for other in points['original'] if other[0] < point[0])]
        axis.plot(*list(zip(*best))[:2], color='black', linewidth=1)
        for (kind, found), marker, beside in zip(points.items(), 'ox', ((-4, 4), (6, -12))):
            x, y, _ = zip(*found)
            axis.scatter(x, y, marker=marker, label=kind, zorder=3)
            for *place, name in found:
                axis.annotate(name.replace('mobilenetv1_', '').replace('compressed_mobilenet_', ''), place,
                              xytext=beside, ha='right', textcoords='offset points', fontsize=6)
        axis.set(xlabel=label, xscale='log')
        axis.grid(alpha=0.3, which='both')
    axes[0].set_ylabel('top-1 (%)')
    axes[0].legend(loc='lower right')
    save(figure, 'compression_imagenet')


def draw_int8():
    """What 8 bits cost: the loss of top-1 in points and the increase of NME, by runtime and calibration."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 1.2))
    rows = read('int8')
    runtimes = list(dict.fromkeys((row['runtime'], row['calibration']) for row in rows if row['calibration']))
    for axis, measure, sign, label in ((axes[0], 'top-1 percent', -1, 'top-1 lost (points)'),
                                       (axes[1], 'NME percent', 1, 'NME added (points)')):
        networks = list(dict.fromkeys(row['network'] for row in rows if row['measure'] == measure))
        for number, runtime in enumerate(runtimes):
            costs = []
            for network in networks:
                value = {(row['runtime'], row['calibration']): float(row['value']) for row in rows
                         if (row['network'], row['measure']) == (network, measure)}
                costs.append(sign * (value[runtime] - value['float32', '']))
            axis.bar([place + 0.2 * number for place in range(len(networks))], costs, width=0.18,
                     label=', '.join(runtime))
        axis.set(ylabel=label, xticks=[place + 0.3 for place in range(len(networks))])
        axis.set_xticklabels([network.replace(' x0.5', '\nx0.5') for network in networks], fontsize='small')
        axis.grid(alpha=0.3, axis='y')
    axes[0].legend(fontsize='small')
    figure.tight_layout()
    save(figure, 'int8')


def draw_serving():
    """Answers a second of the network, the handler and the server, by the number of clients: median and range."""
    figure, axis = plt.subplots(figsize=(7, 4))
    rows = read('serving')
    clients = list(dict.fromkeys(row['clients'] for row in rows))
    for number, measured in enumerate(('network', 'handler', 'server')):
        found = [row for row in rows if row['measured'] == measured]
        median, low, high = ([float(row[f'requests_per_second{part}']) for row in found]
                             for part in ('', '_minimum', '_maximum'))
        axis.bar([place + 0.27 * number for place in range(len(found))], median, width=0.25, label=measured, capsize=3,
                 yerr=([m - lo for m, lo in zip(median, low)], [hi - m for m, hi in zip(median, high)]))
    axis.set(xlabel='clients', ylabel='requests a second', xticks=[place + 0.27 for place in range(len(clients))],
             xticklabels=clients, title='JPEG 224x224, LPRNet-MobileNet x0.5, 4 workers: median and range of 5 rounds')
    axis.title.set_size('medium')
    axis.grid(alpha=0.3, axis='y')
    axis.legend()
    save(figure, 'serving')


if __name__ == '__main__':
    for draw in (draw_inference, draw_compression, draw_compression_imagenet, draw_int8, draw_serving):
        draw()
