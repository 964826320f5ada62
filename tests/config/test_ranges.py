"""Ranges of numbers: declared for every key, checked when a config is read, and named in the one line of the error."""

import copy
import math
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest

from prance_jax.config.experiment import Config
from prance_jax.config.io import from_dict, load_config, to_dict
from prance_jax.core.errors import UserError
from prance_jax.core.fields import Entries, Range, annotations, check_fields, kinds

ROOT = Path(__file__).parents[2]
VALUES = (-1, 0, 10**9, math.nan, "x")


def read(file):
    return to_dict(load_config(ROOT / file, Config))


def numbers(tree, path=()):
    """Paths of all numbers of a config, those in tuples as well."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield *path, key
        yield from numbers(value, (*path, key))


def put(tree, path, value):
    """A copy with another value at a path."""
    if not path:
        return value
    changed = copy.copy(tree)
    changed[path[0]] = put(tree[path[0]], path[1:], value)
    return changed


def spelled(path):
    return "config" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def number_annotations(annotation, path, ranges=()):
    """(key, its ranges) for every int and float of a schema, also those that are None by default."""
    if get_origin(annotation) is Annotated:
        annotation, *ranges = get_args(annotation)
    for kind in kinds(annotation):
        if hasattr(kind, "__dataclass_fields__"):
            for name, inner in annotations(kind).items():
                yield from number_annotations(inner, f"{path}.{name}")
        elif get_origin(kind) is tuple:
            for item in get_args(kind):
                yield from number_annotations(item, f"{path}[]")
        elif get_origin(kind) is Annotated:
            yield from number_annotations(kind, path)
        elif kind in (int, float):
            yield path, [item for item in ranges if isinstance(item, Range)]


def test_every_number_has_one_range():
    ranges = dict(number_annotations(Config, "config"))
    assert len(ranges) > 250 and {
        "config.selector.ppo.clip",
        "config.cascade.peers[].looks[].exits[]",
    } <= set(ranges)
    assert [key for key, declared in ranges.items() if len(declared) != 1] == []


@pytest.mark.parametrize("file, section", [("configs/digits.py", ""), ("configs/demo.py", "cascade")])
def test_every_number_is_refused_by_name_or_kept(file, section):
    raw = read(file)
    for path in numbers(raw[section] if section else raw, (section,) if section else ()):
        for value in VALUES:
            try:
                config = to_dict(from_dict(Config, put(raw, path, value)))
            except UserError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 200, text
                # A rule for several keys names the last part of the key: begins=0, (lowest, highest).
                key, name = spelled(path), [part for part in path if isinstance(part, str)][-1]
                assert (
                    text.startswith(f"{key} = {value!r}")
                    or text.startswith(f"{key} = {float(value)!r}")
                    or (value != "x" and math.isfinite(value) and text.startswith("config.") and name in text)
                ), (path, value, text)
            else:
                for part in path:
                    config = config[part]
                assert config == value and math.isfinite(value)


REFUSED = [
    ("seeds", [3, 1, 3], "none twice"),
    ("seeds", [2**32], "from 0 to 4,294,967,295"),  # JAX takes the lower 32 bits
    ("token_modes", ["merge", "merge"], "none twice"),
    ("dense.label_smoothing", 1.5, "from 0 to 1"),
    ("meta.distillation", math.inf, "from 0 to 1"),
    ("meta.optimizer.ema", 1.0, "0 or more and below 1"),
    ("finetune.steps", -5, "from 0 to 2,147,483,647"),
    ("finetune.optimizer.learning_rate", -1e-3, "from 0 to 100"),
    ("finetune.optimizer.max_grad_norm", 0.0, "above 0"),
    ("selector.ppo.gamma", 1.01, "from 0 to 1"),
    ("selector.ppo.clip", 0.0, "above 0 and up to 1"),
    ("selector.batch", 0, "from 1 to 65,536"),
    ("evaluation.batch", 10**7, "from 1 to 65,536"),
    ("data.augment.magnitude", 11.0, "from 0 to 10"),
    ("data.digits.min_crop", 9, "from 1 to 8"),
    ("compare.insertion.shares", [0.2, 0.6], "descending"),
    ("compare.shares", [0.301, 0.3], "none twice in 2 decimals"),  # both rows would be NAME_30
    ("pit.depths", [0, 6, 4], "from 1"),
]


@pytest.mark.parametrize("key, value, right", REFUSED, ids=[key for key, *_ in REFUSED])
def test_values_without_a_meaning(key, value, right):
    with pytest.raises(UserError) as caught:
        from_dict(Config, put(read("configs/digits.py"), key.split("."), value))
    assert str(caught.value).startswith(f"config.{key}") and right in str(caught.value)


# Key, value, what the message names beside the key.
RULES = [
    ("meta.random_batch", 33, "from 1 to 32"),  # of a batch of 32
    ("selector.ppo.minibatches", 5, "768 decisions"),  # three decision points, 256 images
    ("segment.selector.ppo.minibatches", 7, "768 decisions"),
    ("data.digits.train_digits", 1600, "leave 20 or more of the 1797 digits"),
    ("model.patch_size", 5, "image size 28"),
    ("model.first_group", "20x1", "choose from min, max"),
    ("model.space.widths", [48, 24], "ascending"),
]


@pytest.mark.parametrize("key, value, right", RULES, ids=[key for key, *_ in RULES])
def test_values_that_do_not_fit_together(key, value, right):
    with pytest.raises(UserError) as caught:
        from_dict(Config, put(read("configs/digits.py"), key.split("."), value))
    text = str(caught.value)
    assert text.startswith(f"config.{key.split('.')[0]}") and right in text
    assert key.split(".")[-1].replace("_", " ").split()[0] in text


@pytest.mark.parametrize(
    "key, value, right",
    [
        (("cascade", "looks", 0, "image_size"), 12, "image size 12 is not a multiple of patch size 5"),
        (("cascade", "looks", 1, "exits"), [1], "exits=(1,) must be groups from 0 to 0"),
        (("cascade", "peers", 0, "looks", 0, "image_size"), 8, "image size 8"),
        (("cascade", "selector", "ppo", "minibatches"), 3, "32 decisions an update do not divide into 3"),
    ],
)
def test_looks_that_do_not_fit_the_network(key, value, right):
    with pytest.raises(UserError) as caught:
        from_dict(Config, put(read("tests/tiny_cascade.py"), key, value))
    assert str(caught.value).startswith("config.cascade") and right in str(caught.value)


def test_ranges_in_words():
    assert str(Range(2, 1000)) == "from 2 to 1,000"
    assert str(Range(0, 0.5, above=True)) == "above 0 and up to 0.5"
    assert str(Range(0, 1, above=True, below=True)) == "above 0 and below 1"
    assert str(Entries("ascending", fewest=2)) == "2 or more entries, ascending, none twice"


def test_fields_without_a_config_keep_their_types():
    """A list in the place of a tuple would make the dataclass unhashable."""
    config = load_config(ROOT / "configs/digits.py", Config)
    check_fields(config, "config")
    object.__setattr__(config, "seeds", [0])
    with pytest.raises(UserError, match=r"config: seeds = \[0\] has the wrong type; it should be tuple"):
        check_fields(config, "config")
