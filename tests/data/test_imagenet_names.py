"""ImageNet's names, against GluonCV's table and the ids of real photos' folders."""
import pytest

from gluon_lprnet.data.imagenet_names import imagenet_names, in_words, names_by_wnid


def test_the_table_is_that_of_gluoncv():
    classification = pytest.importorskip('gluoncv.data.imagenet.classification')
    expected = classification.ImageNet1kAttr()
    names = imagenet_names()
    assert list(names) == expected.synset and len(names) == 1000
    for wnid, name in zip(expected.synset, expected.classes):
        assert names[wnid] in (name, f'{name} ({wnid})')


def test_every_class_has_a_name_of_its_own():
    names = imagenet_names()
    assert len(set(names.values())) == 1000
    assert names['n02012849'] == 'crane (n02012849)' and names['n03126707'] == 'crane (n03126707)'
    assert list(names) == sorted(names)


def test_ids_are_those_of_the_photos(shared_data):
    assert {path.name for path in (shared_data / 'imagenet_samples').iterdir()} == set(imagenet_names())


def test_other_names_stay():
    assert in_words(['n01440764', 'tench', 'n00000001', '7']) == ['tench', 'tench', 'n00000001', '7']
    with pytest.raises(ValueError, match='not a WordNet id'):
        names_by_wnid(['n00000001 one', 'two'])
