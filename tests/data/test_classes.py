"""Names of classes: a file's labels in the order of the network's outputs, or an error."""
import numpy as np
import pytest
from conftest import encode

from gluon_lprnet.__main__ import main
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.classes import labels_of
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.train import imagenet
from gluon_lprnet.utils.errors import InputError

NETWORK = {'class_names': ['red', 'green', 'blue', 'white'], 'class_ids': ['n1', 'n2', 'n3', 'n4']}
CONFIG = {'input_size': 8, 'crop_ratio': 1.0, 'rgb_mean': (0,) * 3, 'rgb_std': (1,) * 3}


def write(prefix, classes, labels=None):
    """Records of one picture a label, whose gray is 10 times the label; the path of the file."""
    labels = range(len(classes)) if labels is None else labels
    write_records(prefix, [(label, encode(np.full((8, 8, 3), 10 * label, 'uint8'))) for label in labels],
                  classes=classes)
    return f'{prefix}.rec'


@pytest.mark.parametrize('classes, expected', [
    (['red', 'green', 'blue', 'white'], [0, 1, 2, 3]), (['blue', 'red'], [2, 0]), (['n4', 'n1', 'n2'], [3, 0, 1]),
    (['n1', 'n2', 'n3', 'n4'], [0, 1, 2, 3])])
def test_labels_are_in_the_order_of_the_network(tmp_path, classes, expected):
    rec = write(tmp_path / 'set', classes)
    batches = validation_batches(check_records(rec), {**CONFIG, **NETWORK}, batch_size=3, threads=1)
    pairs = [(data.asnumpy()[row].mean() / 10, label.asnumpy()[row])
             for data, label in batches.epoch(0) for row in range(len(label))]
    np.testing.assert_allclose(pairs, [(label, expected[label]) for label in range(len(classes))])


@pytest.mark.parametrize('network, classes', [({}, ['a', 'b']), ({'class_names': None}, ['a', 'b']), (NETWORK, None)])
def test_labels_stay_where_one_side_has_no_names(tmp_path, network, classes):
    write_records(tmp_path / 'set', [(1, encode(np.zeros((8, 8, 3), 'uint8')))], classes=classes)
    assert labels_of(network, check_records(tmp_path / 'set.rec')) is None


@pytest.mark.parametrize('classes, named', [(['red', 'black'], 'black'), (['red', 'n2'], 'red, n2')])
def test_other_classes_are_refused_by_name(tmp_path, classes, named):
    with pytest.raises(InputError, match=f'set.rec has other classes than the network: {named}; the network knows red'):
        labels_of(NETWORK, check_records(write(tmp_path / 'set', classes)))


def test_fewer_names_than_labels_are_refused(tmp_path):
    rec = write(tmp_path / 'set', None, [0, 1, 3])
    (tmp_path / 'set.classes.txt').write_bytes(b'red\r\ngreen\r\n')
    with pytest.raises(InputError, match='set.rec has the label 3, and names of 2 classes'):
        labels_of(NETWORK, check_records(rec))
    (tmp_path / 'set.classes.txt').write_bytes(b'n4\r\nn2\r\nn1\r\nn3\r\n')
    assert labels_of(NETWORK, check_records(rec)).tolist() == [3, 1, 0, 2]


# --- in commands

@pytest.fixture
def flags(training_flags, tmp_path):
    return [*training_flags, '--num-epochs', '2', '--tuning-epochs', '0']


def test_validation_on_other_classes_ends_before_the_training(flags, tmp_path, capsys):
    rec = write(tmp_path / 'other', ['red', 'green', 'yellow'])
    assert imagenet.main([*flags, '--rec-val', rec]) == 2
    assert 'other.rec has other classes than the network: yellow' in capsys.readouterr().err
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_the_number_of_classes_is_that_of_the_names(flags, tiny_records, tmp_path, capsys):
    at = flags.index('--num-classes')
    assert imagenet.main([*flags, '--num-classes', '4']) == 2
    assert '--num-classes 4: ' in capsys.readouterr().err
    preset = flags.index('--preset')
    without = [flag for number, flag in enumerate(flags) if number not in (at, at + 1, preset, preset + 1)]
    assert imagenet.main([*without, '--lr', '0.01', '--small-image']) == 0
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert ' parameters: 3 classes, 50 images, 4 steps an epoch, 2 epochs\n' in log.splitlines(True)[1]
    printed = capsys.readouterr().err
    assert 'num_data_workers' in log and 'num_data_workers' not in printed
    # On a file of the same classes in another order, and on one of others.
    _, images, labels = tiny_records
    # A network that answers one class alone, too, has another accuracy if two are exchanged.
    some = [number for number, label in enumerate(labels) if label == 0 or number < 9]
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        classes = [name for _, name in sorted(zip(order, ['red', 'green', 'blue']))]
        write_records(tmp_path / 'set', [(order[labels[number]], encode(images[number])) for number in some],
                      classes=classes, overwrite=True)
        assert not main(['evaluate', str(tmp_path / 'run'), '--rec-val', str(tmp_path / 'set.rec')])
        results.append(capsys.readouterr().out)
    assert results[0] == results[1]
    assert main(['evaluate', str(tmp_path / 'run'), '--rec-val', write(tmp_path / 'other', ['a', 'b', 'c'])]) == 2
    assert 'other.rec has other classes than the network: a, b, c' in capsys.readouterr().err


def test_without_names_the_number_must_be_given(flags, tmp_path, capsys):
    write_records(tmp_path / 'plain', [(0, encode(np.zeros((16, 16, 3), 'uint8')))])
    argv = ['--rec-train', str(tmp_path / 'plain.rec'), '--rec-val', str(tmp_path / 'plain.rec'),
            '--save-dir', str(tmp_path / 'run')]
    assert imagenet.main(argv) == 2
    assert '--num-classes is missing' in capsys.readouterr().err
