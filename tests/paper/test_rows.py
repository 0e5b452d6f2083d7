"""Each row of the experiments is the network, and each module of Figure 2 the module, that it is named for."""
import mxnet as mx
import numpy as np
import pytest
from reference.modules import Layers, dsc_reference, lpr_reference, random_parameters
from reference.networks import operators

from gluon_lprnet import get_model
from gluon_lprnet.artifact import model_arguments
from gluon_lprnet.paper import cifar10, figure2
from gluon_lprnet.paper.grid import Grid, Result
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.imagenet import ClassificationConfig

# Additions and L2 norms in an LPR module of each row of Table 4.
TABLE_4 = {'SConv': (0, 0), 'DSC Module': (0, 0), 'LPR Module (no Residual)': (0, 1), 'LPR Module (no L2Norm)': (1, 0),
           'LPR Module': (1, 1)}


def arguments_of(experiment, row):
    flags = [*experiment.flags.split(), *row.flags.split(), '--save-dir', 'nowhere']
    config, _ = parse(make_parser(ClassificationConfig, None), ClassificationConfig, flags)
    return config.model, model_arguments(config.to_dict())


def network_of(experiment, row):
    model, arguments = arguments_of(experiment, row)
    return get_model(model, **arguments)


def test_the_parts_of_the_module_that_rows_of_table_4_leave_out():
    experiment = cifar10.table4(0.5)
    found = {}
    for row in experiment.rows:
        counted = operators(network_of(experiment, row)(mx.sym.var('data')))
        found[row.title] = counted['elemwise_add'], counted['L2Normalization']
    eight = {f'in all eight places: {title}': (8 * add, 8 * norm)
             for title, add, norm in (('no Residual', 0, 1), ('no L2Norm', 1, 0), ('LPR Module', 1, 1))}
    printed = {title: (4 * add, 4 * norm) for title, (add, norm) in TABLE_4.items()}
    scaled = {title: counts for title, counts in found.items() if title.endswith('a learned scale')}
    assert len(scaled) == 2 and found == {**printed, **eight, **scaled}


@pytest.mark.parametrize('title, share', [('r = m/4', 4), ('r = m/8', 8), ('r = m/16', 16)])
def test_the_ranks_of_rows(title, share):
    experiment = cifar10.ranks(1.0)
    (row,) = (row for row in experiment.rows if row.title.endswith(title))
    shapes = [parameter.shape for name, parameter in network_of(experiment, row).collect_params().items()
              if name.endswith('weight')]
    # P1 (r, m, 1, 1) is followed by P2 (m, r, 1, 1).
    pairs = [one[:2] for one, other in zip(shapes, shapes[1:])
             if len(one) == 4 and one[:2] == other[1::-1] != one[1::-1]]
    assert [m for _, m in pairs] == [128, 256, *[512] * 5, 1024]
    assert all(r == m // share for r, m in pairs)


@pytest.mark.parametrize('size, small, side', [(112, False, 4), (100, False, 4), (32, True, 4), (224, False, 7)])
def test_the_global_depthwise_convolution_covers_the_last_feature_map(size, small, side):
    config = ClassificationConfig(model='lprnet_mobilenet_x0.25', num_classes=3, input_size=size, small_image=small,
                                  global_depthwise=True, save_dir='nowhere')
    net = get_model(config.model, **model_arguments(config.to_dict()))
    net.initialize()
    assert net(mx.nd.zeros((1, 3, size, size))).shape == (1, 3)
    assert (256, 1, side, side) in [parameter.shape for parameter in net.collect_params().values()]


@pytest.mark.parametrize('name, reference', [
    ('DSC', dsc_reference), ('DSC again', dsc_reference), ('LPR', lpr_reference),
    ('LPR no Residual', lambda layers, x: lpr_reference(layers, x, residual=False)),
    ('LPR no L2Norm', lambda layers, x: lpr_reference(layers, x, l2_norm=False))])
def test_the_modules_of_figure_2(name, reference):
    module = figure2.MODULES[name](16)
    x = mx.nd.random.normal(shape=(2, 16, 5, 5), dtype='float64')
    random_parameters(module)
    found = module(x).asnumpy()
    np.testing.assert_allclose(found, reference(Layers(module), x.asnumpy()), rtol=1e-6, atol=1e-9)


def test_latencies_are_drawn_at_their_own_rows(tmp_path, monkeypatch):
    experiment = cifar10.ranks(1.0)
    results = {row.name: Result({0: 80.0}, 1, 10 ** 6, None) for row in experiment.rows}
    timed = experiment.rows[-2:]
    for number, row in enumerate(timed):
        results[row.name] = results[row.name]._replace(milliseconds=7.0 + number)
    drawn = []
    monkeypatch.setattr(cifar10, '_draw_against', lambda axis, rows, costs: drawn.append(
        {row.name: cost for (row, _), cost in zip(rows, costs)}))
    monkeypatch.setattr('matplotlib.axes.Axes.legend', lambda *_, **__: None)
    cifar10.draw_accuracies(experiment, results, tmp_path / 'a.png')
    assert drawn == [{row.name: 1.0 for row in experiment.rows}, {timed[0].name: 7.0, timed[1].name: 8.0}]


def test_why_a_run_failed(tmp_path):
    grid, row = Grid([], [], [0], tmp_path), cifar10.ranks(1.0).rows[0]
    folder = tmp_path / f'{row.name}-seed0'
    folder.mkdir()
    (folder / 'errors.log').write_text('epoch 1/210 (train) done\nthe disk is full\n')
    assert grid._reason(row, 0, -9) == 'it was killed by SIGKILL; errors.log ends in: the disk is full'
    assert grid._reason(row, 0, 2) == 'the disk is full'
