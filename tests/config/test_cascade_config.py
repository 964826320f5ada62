"""Mistakes in the section `cascade` of a config are one UserError each, with the key."""

from pathlib import Path

import pytest

from prance_jax.config.experiment import Config
from prance_jax.config.io import from_dict, load_config, to_dict
from prance_jax.core.errors import UserError

CONFIG = Path(__file__).parents[1] / "tiny_cascade.py"
MISTAKES = {
    "--config.token_modes=prune,merge": "one token mode",
    "--config.cascade.budgets=0.5,1.5": r"config.cascade.budgets\[1\] = 1.5 is out of range; it should be above 0 and up to 1",
    "--config.cascade.methods=tome,topk": "'topk' is not known; choose from",
    "--config.cascade.rounds=-1": "config.cascade.rounds = -1 is out of range; it should be from 0",
    "--config.cascade.selector.quality=agreement": "choose one of 'correct', 'probability'",
    "--config.cascade.selector.cost_weights=2,1": "must be \\(lowest, highest\\)",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes(override):
    with pytest.raises(UserError, match=MISTAKES[override]):
        load_config(CONFIG, Config, [override])


def test_mistakes_in_a_look():
    config = to_dict(load_config(CONFIG, Config, []))
    look = config["cascade"]["looks"][0]
    for key, value, message in (
        ("shares", "some", "choose one of 'all', 'all_but_norms', 'none'"),
        ("structures", [1.0, 0.5], r"looks.0..structures = \(1.0, 0.5\) is wrong; .* ascending"),
        ("begins", 3, "must be 0 to 1"),
        ("refined", 1.5, "refined = 1.5 is out of range; it should be above 0 and up to 1"),
        ("refined", 0.5, "needs begins=0, since an earlier look chooses the cells; begins is 1"),
    ):
        looks = [{**look, key: value}, config["cascade"]["looks"][1]]
        with pytest.raises(UserError, match=message):
            from_dict(Config, {**config, "cascade": {**config["cascade"], "looks": looks}})


def test_the_first_look_is_not_refined():
    config = to_dict(load_config(CONFIG, Config, []))
    looks = [{"refined": 0.5}, {"begins": 1}]
    with pytest.raises(UserError, match="the first look follows no other, so its `refined` must be None"):
        from_dict(Config, {**config, "cascade": {**config["cascade"], "looks": looks}})


def test_a_config_without_a_cascade_has_none():
    assert load_config(CONFIG.parent / "tiny_config.py", Config, []).cascade is None


def test_mistakes_in_a_peer():
    looks = ({"structures": (1.0,), "begins": 1},)
    config = to_dict(load_config(CONFIG, Config, []))
    for peers, message in (
        ([{"name": "dvt", "looks": looks}] * 2, "must differ"),
        ([{"name": "oracle", "looks": looks}], "not that of another row"),
        ([{"name": "prance_2", "looks": looks}], "not that of another row"),
        (
            [{"name": "cascade", "looks": looks}],
            "not that of another row",
        ),  # cascade_seed0.json is a file of the run
        ([{"name": "tome_tuned", "looks": looks}], "not that of another row"),
        ([{"name": "CF-ViT", "looks": looks}], "must be lower-case letters"),
        ([{"name": "dvt", "looks": ({"structures": (1.0,)},)}], "peers, dvt: at least one look"),
    ):
        with pytest.raises(UserError, match=message):
            from_dict(Config, {**config, "cascade": {**config["cascade"], "peers": peers}})
