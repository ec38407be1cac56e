"""Names, versions and classes are those of TFDS, and a wrong name gets a helpful message."""

import pytest
import tensorflow_datasets as tfds
from idx_files import needs_tfds

from jax_mnist.data import catalogue, datasets


@needs_tfds
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
        ("fashon_mnist", "unknown dataset 'fashon_mnist': did you mean 'fashion_mnist'?"),
        ("emnist/digts", "unknown dataset 'emnist/digts': did you mean 'emnist/digits'?"),
        ("cifar10", "unknown dataset 'cifar10': expected one of mnist, fashion_mnist, kmnist"),
        ("./nowhere", "no folder './nowhere': expected one of"),
        ("~nobody_at_all/x", "no folder '~nobody_at_all/x': expected one of"),
    ],
)
def test_unknown_names_are_refused(name, message, tmp_path):
    for use in (catalogue.check_name, datasets.label_names):
        with pytest.raises(datasets.DatasetError) as error:
            use(name)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    with pytest.raises(datasets.DatasetError):
        datasets.load(name, "train", tmp_path)
    assert not list(tmp_path.iterdir())
