"""Checkpoints: bit-identical, written atomically, with errors that name all mismatches."""

import errno
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.core.errors import UserError
from prance_jax.training.checkpoint import Checkpoints


class Inner(NamedTuple):
    mean: jax.Array
    count: jax.Array


def make(seed=0, width=5):
    key = jax.random.key(seed)
    half = jnp.arange(4, dtype=jnp.bfloat16) / 3
    return {
        "params": {"kernel": jax.random.normal(key, (3, width)), "half": half},
        "opt": (Inner(jnp.float32(0.1) + seed, jnp.int32(7)), None),
        "empty": jnp.zeros((0, 3)),
        "flags": jnp.array([True, False]),
        "keys": jax.random.split(key, 2),
        "raw": jax.random.PRNGKey(seed),
    }


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def damage(folder):
    """Cuts every array file of a checkpoint to a third."""
    for path in (folder / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def test_what_comes_back_is_bit_identical(tmp_path):
    Checkpoints(tmp_path / "new" / "meta").save(3, make(), note={"loss": 0.1})
    fresh = Checkpoints(tmp_path / "new" / "meta")
    assert_identical(fresh.restore(make(1)), make())
    assert_identical(fresh.restore(abstract(make()), step=3), make())
    restored = fresh.restore_newest(make(1))
    assert (restored.step, restored.note) == (3, {"loss": 0.1})


def test_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    assert checkpoints.restore_newest(make()) is None
    for step in (1, 5, 9):
        checkpoints.save(step, make(step))
    assert checkpoints.steps() == [5, 9] and checkpoints.latest() == 9
    assert_identical(checkpoints.restore(make(), step=5), make(5))
    with pytest.raises(UserError, match=r"has no checkpoint 1; it has \[5, 9\]"):
        checkpoints.restore(make(), step=1)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint in"):
        Checkpoints(tmp_path / "absent").restore(make())
    assert not (tmp_path / "absent").exists()


def test_another_model_is_refused_with_every_path(tmp_path):
    Checkpoints(tmp_path).save(4, make(width=5))
    other = {**make(width=6), "flags": jnp.zeros(2), "more": jnp.zeros(1)}
    del other["raw"]
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path).restore(other)
    text = str(caught.value)
    assert "params/kernel: wanted float32(3, 6), found float32(3, 5)" in text
    assert "flags: wanted float32(2,), found bool(2,)" in text
    assert "more: wanted float32(1,), found nothing" in text
    assert "raw: wanted nothing, found uint32(2,)" in text
    assert "half" not in text and "opt" not in text and "\n" not in text
    assert Checkpoints(tmp_path).latest() == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax, when its reads fail
def test_a_damaged_newest_is_skipped_with_a_warning(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, make(2))
    checkpoints.save(6, make(6))
    damage(tmp_path / "6")
    fresh = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, logger="prance_jax"):
        restored = fresh.restore_newest(make())
    assert restored.step == 2
    assert_identical(restored.tree, make(2))
    assert "is damaged" in caplog.text and "6" in caplog.text
    fresh.save(6, make(7))  # the step is free again
    assert_identical(Checkpoints(tmp_path).restore(make()), make(7))


def test_one_flipped_value_is_noticed(tmp_path, monkeypatch):
    Checkpoints(tmp_path).save(2, make(2))
    from prance_jax.training import tree_leaves

    checksum = tree_leaves.checksum
    monkeypatch.setattr(tree_leaves, "checksum", lambda leaf: checksum(np.asarray(leaf).reshape(-1)[::-1]))
    with pytest.raises(UserError, match="checksum does not fit for .*params/kernel"):
        Checkpoints(tmp_path).restore(make())


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, make(2))
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "5.orbax-checkpoint-tmp" / "state").write_text("half")
    assert_identical(Checkpoints(tmp_path).restore(make()), make(2))


def test_all_damaged_names_the_folder_and_what_was_found(tmp_path):
    Checkpoints(tmp_path).save(2, make(2))
    (tmp_path / "2" / "about" / "metadata").write_text("{")
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path).restore(make())
    assert str(tmp_path) in str(caught.value) and "about/metadata" in str(caught.value)
    with pytest.raises(UserError, match="is damaged"):
        Checkpoints(tmp_path).restore(make(), step=2)


@pytest.mark.parametrize("name", ["model.pth", "weights/checkpoint"])
def test_a_foreign_folder_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("torch")
    with pytest.raises(UserError, match=f"holds no checkpoint of prance_jax; found: {name.split('/')[0]}"):
        Checkpoints(tmp_path).restore(make())


def test_a_foreign_step_folder_is_named(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(8, args=ocp.args.StandardSave({"w": jnp.ones(2)}))
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path).restore(make())
    assert str(tmp_path) in str(caught.value) and "8:" in str(caught.value)


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # the failure comes before Orbax awaits it
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, caplog):
    import orbax.checkpoint as ocp

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, make(2))

    def full(*args, **kwargs):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("writing array chunk") from error

    for handler in (ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler):
        monkeypatch.setattr(handler, "save", full)
        monkeypatch.setattr(handler, "async_save", full)
    with pytest.raises(UserError, match="the disk is full: could not write checkpoint 4 .* intact"):
        checkpoints.save(4, make(4))
    monkeypatch.undo()
    assert caplog.text == ""  # no tracebacks of Orbax's threads
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    fresh = Checkpoints(tmp_path)
    assert fresh.latest() == 2
    assert_identical(fresh.restore(make()), make(2))
    fresh.save(4, make(4))


def test_arrays_spread_over_devices_come_back_where_the_example_is(tmp_path):
    device = jax.devices()[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = {"w": jax.device_put(jnp.arange(8.0), sharding)}
    Checkpoints(tmp_path).save(1, tree)
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore(tree)["w"], np.arange(8.0))
