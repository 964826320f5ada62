"""Published cascades as peers: the page's config, and values of a wrong type inside ready-made dataclasses."""

import json
import re
from pathlib import Path

import pytest

from prance_jax.config.cascade import LookConfig, PeerConfig
from prance_jax.config.experiment import Config
from prance_jax.config.io import from_dict, load_config, to_dict
from prance_jax.config.peers import dvt, thinkingvit
from prance_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_page_has_a_config_with_all_peers(tmp_path, monkeypatch):
    """A workdir stores it as JSON; what is read back is the same config."""
    page = (ROOT / "configs/digits_cascade.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "config.py").write_text(snippet)
    monkeypatch.chdir(ROOT)
    config = load_config(tmp_path / "config.py", Config)
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    without = load_config(ROOT / "configs/digits_cascade.py", Config)
    assert config.cascade.looks == without.cascade.looks and without.cascade.peers == ()
    peers = {peer.name: peer.looks for peer in config.cascade.peers}
    sides = {name: [look.image_size for look in looks] for name, looks in peers.items()}
    assert sides == {"dvt": [16, 24, None], "cf_vit": [16, None], "thinkingvit": [None, None]}
    assert [look.refined for look in peers["cf_vit"]] == [None, 0.5]
    assert [look.shares for look in peers["dvt"][:-1]] == ["none", "none"]
    assert peers["cf_vit"][0].shares == peers["thinkingvit"][0].shares == "all"
    assert all([look.begins for look in looks] == [1] + [0] * (len(looks) - 1) for looks in peers.values())


@pytest.mark.parametrize("sizes", [(), (24, 16), (16, 16)])
def test_sizes_of_dvt_must_ascend(sizes):
    with pytest.raises(UserError, match="dvt: image_sizes=.* must be ascending"):
        dvt(sizes)


def test_a_share_above_the_dense_network_is_refused():
    config = to_dict(load_config(ROOT / "tests/tiny_cascade.py", Config))
    message = r"config.cascade.peers\[0\].looks\[0\].structures\[0\] = 1.5 is out of range; it should be above 0 and"
    with pytest.raises(UserError, match=message):
        from_dict(Config, {**config, "cascade": {**config["cascade"], "peers": (thinkingvit(1.5),)}})


def test_a_wrong_type_in_a_peer_is_found_when_the_config_is_read():
    """A workdir could not be opened again with it."""
    config = to_dict(load_config(ROOT / "tests/tiny_cascade.py", Config))
    peer = PeerConfig("dvt", (LookConfig(10, structures=(1.0,), begins=True), LookConfig()))
    with pytest.raises(UserError, match=r"peers\[0\].looks\[0\].begins = True has the wrong type"):
        from_dict(Config, {**config, "cascade": {**config["cascade"], "peers": (peer,)}})
