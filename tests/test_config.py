"""The configs in the repository, and what a config refuses."""

import math
from pathlib import Path

import modules
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jax_mnist import config as config_lib
from jax_mnist.analysis import claims
from jax_mnist.runs import study, trainer

ROOT = Path(__file__).parent.parent


def load(name):
    return modules.load(f"configs/{name}.py").get_config()


def differences(config, other):
    config_lib.check(config)
    return {field for field in other if config[field] != other[field]}


@pytest.mark.parametrize("name", claims.ORIGINAL)
def test_a_variant_differs_from_the_base_only_in_what_its_name_says(name):
    fields = {"bn": None, "gbn": "norm", "l1": "l1", "l2": "l2"}
    expected = {fields[part] for part in name.split("_")} - {None}
    assert differences(load(name), config_lib.base()) == expected


def test_the_configs_of_the_study_are_those_that_are_compared():
    configs = [load(name) for name in claims.ORIGINAL]
    assert len({c.l1 for c in configs}) == len({c.l2 for c in configs}) == 2
    for name in claims.REGULARIZERS:
        assert differences(load(name), load(claims.ADDED_TO)) == {name}
    assert differences(load("best"), load("warped")) == {"epochs"}


def test_a_config_is_locked_and_typed():
    config = load("gbn")
    with pytest.raises((AttributeError, KeyError)):
        config.epocs = 3
    with pytest.raises(TypeError):
        config.epochs = "three"


BAD = [
    ("epochs", 0), ("batch_size", 0), ("ghost_batch_size", 0), ("l1", -1e-5), ("l2", -1.0),
    ("l2", math.nan), ("l1", math.inf), ("learning_rate", -0.1), ("momentum", 1.0), ("ema", 1.0),
    ("norm_momentum", -0.1), ("seed", 2**31), ("rotation", 181.0), ("shift", -1.0), ("scale", 1.0),
    ("shear", 90.0), ("brightness", -0.1), ("contrast", math.nan), ("norm", "layer"),
    ("schedule", "linear"), ("stats_update", "median"), ("label_smoothing", 1.0), ("dropout", 1.0),
    ("mixup", -0.1), ("sam", -0.1), ("elastic", 29.0), ("cutout", 29.0), ("dataset", "minst"),
    ("replicas", 0), ("replica_devices", -1), ("data_devices", -1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_in_one_line_that_names_it(field, value):
    config = config_lib.base()
    config[field] = value
    with pytest.raises(config_lib.ConfigError, match=f"config.{field} must be") as error:
        config_lib.check(config)
    assert "\n" not in str(error.value)
    assert str(value) in str(error.value)


def test_every_field_but_free_text_is_checked():
    text = {"train_split", "validation_split", "data_dir", "source_dir"}
    switches = {"nesterov", "tensorboard"}
    assert {field for field, _ in BAD} | text | switches == set(config_lib.base())


BASE = config_lib.base().to_dict()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epochs": 1}, "must be a ConfigDict"),
        (FrozenConfigDict(BASE), "must be a ConfigDict"),
        (ConfigDict({"epochs": 1}), "config.batch_size is missing"),
        (ConfigDict(BASE | {"epocs": 1}), "config.epocs does not exist"),
        (ConfigDict(BASE | {"seed": "x"}), "config.seed must be of type int"),
        (ConfigDict(BASE | {"l2": None}), "config.l2 must be of type float"),
        (ConfigDict(BASE | {"nesterov": 1}), "config.nesterov must be of"),
    ],
)
def test_a_config_that_is_not_made_from_the_base_is_refused(config, message, tmp_path):
    for use in (
        config_lib.check,
        lambda c: trainer.train(c, tmp_path / "run"),
        lambda c: study.paired_runs({"x": study.Variant(c)}, 2, tmp_path),
    ):
        with pytest.raises(config_lib.ConfigError, match=message) as error:
            use(config)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_data_set_gets_a_proposal(tmp_path):
    config = config_lib.base()
    config.dataset = "fashon_mnist"
    with pytest.raises(config_lib.ConfigError, match="did you mean 'fashion_mnist'"):
        config_lib.check(config)
    config.dataset = str(tmp_path)
    config_lib.check(config)


def test_the_ends_of_the_ranges_are_allowed():
    config = config_lib.base()
    config.update(epochs=1, batch_size=1, ghost_batch_size=1, l1=0.0, momentum=0.0, rotation=180.0)
    config_lib.check(config)


def test_the_page_shows_the_table_which_says_of_every_field_what_it_takes_and_means():
    rows = [row.split(" | ") for row in config_lib.table().splitlines()[2:]]
    assert [row[0].strip("|` ") for row in rows] == [f.name for f in config_lib.FIELDS]
    assert all(len(row) == 4 and all(cell.strip(" |") for cell in row) for row in rows)
    (rotation,) = (row for row in rows if row[0] == "| `rotation`")
    assert rotation[1:3] == ["`7.0`", "at least 0 and at most 180 degrees"]
    assert config_lib.table() in (ROOT / "docs" / "configuration.md").read_text()


def test_a_config_splits_into_what_replicas_share_and_what_they_may_differ_in():
    config = config_lib.base()
    config.update(ema=0.5, mixup=0.1)
    shared, values = config_lib.split(config)
    assert {**shared, **values, "seed": 0} == config.to_dict() | {"enabled": ("ema", "mixup")}
    assert hash(shared) == hash(config_lib.split(config)[0])
    assert {"l1", "l2", "learning_rate", "rotation"} <= values.keys()
