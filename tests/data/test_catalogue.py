"""Names, versions and classes are those of TFDS, and a wrong name gets a helpful message."""

import pytest
import tensorflow_datasets as tfds

from jax_mnist.data import catalogue, datasets


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_names_versions_and_label_names_are_those_of_tfds(name, tmp_path):
    builder = tfds.builder(name, data_dir=tmp_path)
    info = catalogue.CATALOGUE[name]
    assert datasets.label_names(name) == tuple(builder.info.features["label"].names)
    assert str(builder.version) == info.version
    assert type(builder) is getattr(tfds.image_classification, info.builder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emnist/digts", "did you mean 'emnist/digits'? expected one of mnist, fashion_mnist,"),
        ("./nowhere", "expected one of mnist, fashion_mnist,"),
        ("~nobody_at_all/x", "expected one of mnist, fashion_mnist,"),
    ],
)
def test_unknown_names_are_refused(name, message, tmp_path):
    for use in (datasets.label_names, lambda name: datasets.load(name, "train", tmp_path)):
        with pytest.raises(datasets.DatasetError) as error:
            use(name)
        assert str(error.value).startswith(f"unknown dataset or folder {name!r}: {message}")
    assert not list(tmp_path.iterdir())
