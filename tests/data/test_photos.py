"""Photos without labels: all that lie in folders, but none of a test."""
import json

import cv2
import numpy as np
import pytest
from PIL import Image

import gluon_lprnet  # noqa: F401  makes MXNet importable
from gluon_lprnet.__main__ import main
from gluon_lprnet.data.images import read_image
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.photos import KnownPhotos, fingerprint, pack_photos
from gluon_lprnet.data.recordio import read_records
from gluon_lprnet.utils.errors import InputError


def picture(seed):
    """Smooth, with edges everywhere, as photos have."""
    small = np.random.RandomState(seed).randint(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def folders(tmp_path):
    """Twelve photos in nested folders, and a test that has three of them: by name, as a copy, as a smaller copy."""
    for number in range(12):
        save(tmp_path / 'photos' / str(number % 2) / 'deep' / f'{number}.jpg', picture(number), quality=95)
    (tmp_path / 'photos' / 'README.md').write_text('not a photo')
    save(tmp_path / 'test' / '3.PNG', picture(100))
    save(tmp_path / 'test' / 'copy.jpg', picture(5), quality=60)
    save(tmp_path / 'test' / 'small.jpg', picture(8).resize((80, 60), Image.Resampling.LANCZOS), quality=80)
    save(tmp_path / 'test' / 'other.jpg', picture(101))
    return tmp_path


def test_none_of_the_test_is_packed(folders):
    summary = pack_photos([folders / 'photos'], folders / 'out', [folders / 'test'])
    assert sorted(path.rpartition('/')[2] for path in summary.of_the_test) == ['3.jpg', '5.jpg', '8.jpg']
    assert (summary.packed, summary.held_out, summary.skipped) == (9, 0, [])
    found = {fingerprint(read_image(image)) for _, image in read_records(str(folders / 'out.rec'))}
    assert found == {fingerprint(read_image(folders / 'photos' / str(number % 2) / 'deep' / f'{number}.jpg'))
                     for number in range(12) if number not in (3, 5, 8)}
    assert check_records(str(folders / 'out.rec')).count == 9
    assert len(json.loads((folders / 'out.json').read_text())['of_the_test']) == 3


def test_fingerprint_against_its_definition():
    pixels = np.asarray(picture(0))
    gray = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    bits = ''.join(str(int(row[column + 1] > row[column])) for row in gray for column in range(8))
    assert fingerprint(pixels) == int(bits, 2)
    different = [bin(fingerprint(np.asarray(picture(seed))) ^ int(bits, 2)).count('1') for seed in range(1, 40)]
    assert min(different) > 8


def test_how_near_a_copy_is(folders):
    known, path = KnownPhotos([folders / 'test']), folders / 'photos' / 'another.jpg'
    bits = fingerprint(read_image(folders / 'test' / 'other.jpg'))
    assert (path, bits ^ 0b1111) in known and (path, bits ^ 0b11111) not in known


def test_held_out_photos_are_others(folders):
    summary = pack_photos([folders / 'photos'], folders / 'out', held_out=4)
    parts = [{fingerprint(read_image(image)) for _, image in read_records(str(folders / name))}
             for name in ('out.rec', 'out-held-out.rec')]
    assert (summary.packed, summary.held_out) == (8, 4) == (len(parts[0]), len(parts[1]))
    assert not parts[0] & parts[1]


def test_faults(folders, capsys):
    (folders / 'photos' / 'broken.jpg').write_bytes(b'no photo')
    with pytest.raises(InputError, match=r'1 of 13 photos cannot be packed:\n.*broken.jpg is not an image'):
        pack_photos([folders / 'photos'], folders / 'out', held_out=2)
    assert not list(folders.glob('out*'))
    with pytest.raises(InputError, match='nothing is not a folder'):
        pack_photos([folders / 'photos'], folders / 'out', [folders / 'nothing'])
    (folders / 'empty').mkdir()
    with pytest.raises(InputError, match='empty holds no pictures'):
        pack_photos([folders / 'empty'], folders / 'out')
    assert not main(['pack', 'photos', str(folders / 'photos'), '--out', str(folders / 'out'), '--skip-bad',
                     '--apart-from', str(folders / 'test'), '--held-out', '2'])
    captured = capsys.readouterr()
    assert 'out.rec: 7 photos;' in captured.out and '3 of the test dropped, 1 skipped' in captured.out
    assert 'broken.jpg' in captured.err
