"""Old names of keys: warned of in files and overrides, silent in stored configs."""

import re
import warnings
from typing import get_type_hints

import pytest

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.config.renames import RENAMED
from prance_jax.core.errors import UserError
from prance_jax.core.fields import kinds

# Old key, current key, a value.
KEYS = [
    ("selector.prices", "selector.cost_weights", (-0.1, 0.4)),
    ("selector.reward.price", "selector.reward.cost_weight", 0.25),
    ("segment.selector.reward.price_rate", "segment.selector.reward.cost_weight_rate", 0.75),
    ("finetune.on_plans", "finetune.round_to_buckets", True),
    ("pit.tune.on_plans", "pit.tune.round_to_buckets", True),
    ("evaluation.plans", "evaluation.buckets", 7),
    ("compare.selective.ratio", "compare.predictor.ratio", 3.5),
    ("pit.selective.heads", "pit.predictor.heads", 2),
    ("pit.sites", "pit.predictor_blocks", (1, 0, 0)),
]
EVERY_KEY = pytest.mark.parametrize("old, current, value", KEYS, ids=[old for old, _, _ in KEYS])


def sections(schema, path="config"):
    """All sections of a schema with their full keys."""
    yield schema, path
    for name, hint in get_type_hints(schema).items():
        for kind in kinds(hint):
            if hasattr(kind, "__dataclass_fields__"):
                yield from sections(kind, f"{path}.{name}")


def nested(key, value):
    """{"a": {"b": value}} for "a.b"; a selector for all budgets has them as well."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value | ({"budgets": (0.5,)} if "cost_weights" in key or "prices" in key else {})


def read(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.fixture
def file(tmp_path):
    def write(values):
        path = tmp_path / "experiment.py"
        path.write_text(f"def get_config():\n    return {values!r}\n")
        return path

    return write


def first_difference(old, current):
    """Index of the first part in which two split keys differ."""
    return next(index for index, (a, b) in enumerate(zip(old, current)) if a != b)


def renamed(old, current):
    """Pattern of the warning: the full old key and the full current one, as far as they differ."""
    old, current = old.split("."), current.split(".")
    length = first_difference(old, current) + 1
    return re.escape(f"config.{'.'.join(old[:length])} is now called config.{'.'.join(current[:length])}")


@EVERY_KEY
def test_an_old_key_in_a_file_is_read_with_a_warning(file, old, current, value):
    with pytest.warns(FutureWarning, match=renamed(old, current)) as caught:
        config = io.load_config(file(nested(old, value)), Config)
    assert read(config, current) == value and len(caught) == 1
    assert config == io.load_config(file(nested(current, value)), Config)


@EVERY_KEY
def test_an_old_key_in_an_override_is_read_with_a_warning(file, old, current, value):
    path = file({"budgets": (0.5,), "selector": {"cost_weights": (0.0, 1.0)}} if "prices" in old else {})
    with pytest.warns(FutureWarning, match=renamed(old, current)) as caught:
        config = io.load_config(path, Config, [f"--config.{old}={value}"])
    assert read(config, current) == value and len(caught) == 1


@EVERY_KEY
def test_an_old_key_of_a_stored_config_is_read_silently(old, current, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = io.from_dict(Config, nested(old, value))
        completed = io.complete_config(Config, nested(old, value))
    assert read(config, current) == value
    assert completed == io.to_dict(config)


@EVERY_KEY
def test_old_and_current_key_together_are_an_error_that_names_both(file, old, current, value):
    old, current = old.split("."), current.split(".")
    length = first_difference(old, current)
    values = [nested(".".join(key[length:]), value) for key in (old, current)]
    for first, second in (values, values[::-1]):
        both = {**first, **second}
        for name in reversed(old[:length]):
            both = {name: both}
        with pytest.raises(UserError) as caught:
            io.load_config(file(both), Config)
        where = ".".join(["config", *old[:length]])
        assert str(caught.value) == (
            f"{where}: {old[length]} is the old name of {current[length]}; give only {current[length]}"
        )


def test_an_override_takes_the_place_of_an_old_key_in_the_file(file):
    with pytest.warns(FutureWarning):
        config = io.load_config(file({"evaluation": {"plans": 7}}), Config, ["--config.evaluation.buckets=3"])
    assert config.evaluation.buckets == 3


def test_the_table_lists_existing_keys():
    """Current names are fields of their section, old names are not; each old name is tested above."""
    known = {section.__name__: get_type_hints(section) for section, _ in sections(Config)}
    for section, names in RENAMED.items():
        assert set(names.values()) <= set(known[section]) and not set(names) & set(known[section])
        for old in names:
            assert any(old in key.split(".") for key, _, _ in KEYS)
