"""A few records of a file are taken and checked, and the others are not read."""
import numpy as np
import pytest

from gluon_lprnet.data.integrity import check_records, read_index
from gluon_lprnet.data.recordio import read_records, write_records
from gluon_lprnet.data.sample import sampled
from gluon_lprnet.utils.errors import InputError


@pytest.fixture
def records(tiny_records, tmp_path):
    """A copy with labels that differ, and the images in their order."""
    samples = [(number % 3, image) for number, (_, image) in enumerate(read_records(f'{tiny_records[0]}.rec'))]
    write_records(tmp_path / 'set', samples)
    return tmp_path / 'set.rec', [image for _, image in samples]


def chosen(records, count, seed=0):
    """The numbers of the records that are taken."""
    with sampled(records[0], count, seed) as found:
        assert check_records(found.path).count == found.count == min(count, 50)
        return [records[1].index(image) for _, image in read_records(found.path)]


def damage(path, number):
    offset = read_index(str(path.with_suffix('.idx')))[1][number]
    with open(path, 'r+b') as file:
        file.seek(offset + 8 + 24)
        file.write(b'no image')


def test_records_are_chosen_by_the_seed_each_once(records):
    taken = chosen(records, 20)
    assert len(set(taken)) == 20 and taken == chosen(records, 20)
    assert taken != sorted(taken) and set(taken) != set(chosen(records, 20, seed=1))
    assert sorted(chosen(records, 100)) == list(range(50))


def test_what_is_taken_is_checked_and_the_rest_is_not_read(records):
    taken = chosen(records, 10)
    for number in set(range(50)) - set(taken):
        damage(records[0], number)
    with pytest.raises(InputError, match='CRC-32'):
        check_records(records[0])
    assert chosen(records, 10) == taken
    damage(records[0], taken[4])
    with pytest.raises(InputError, match=rf'set\.rec: record {taken[4]} \(counted from 0, at byte \d+\): its image'):
        chosen(records, 10)


@pytest.mark.parametrize('change, said', [
    (lambda offsets: offsets + 4, 'does not start with the magic number'),
    (lambda offsets: offsets[::2], 'does not end where the index has the next one begin'),
    (lambda offsets: offsets * 1000, 'outside the file')])
def test_an_index_of_another_file_is_found(records, change, said):
    offsets = change(read_index(str(records[0].with_suffix('.idx')))[1])
    records[0].with_suffix('.idx').write_text(''.join(f'{key}\t{offset}\n' for key, offset in enumerate(offsets)))
    with pytest.raises(InputError, match=said):
        chosen(records, 10)


def test_the_index_is_read_as_numpy_reads_it(records):
    keys, offsets = read_index(str(records[0].with_suffix('.idx')))
    np.testing.assert_array_equal(np.loadtxt(records[0].with_suffix('.idx'), dtype=np.int64).T, [keys, offsets])
