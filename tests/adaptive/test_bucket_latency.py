"""The latency table: times looked up by hand, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec

from prance_jax.adaptive.bucket_latency import LatencyTable, load_latency_table
from prance_jax.adaptive.buckets import Bucket, Buckets
from prance_jax.core.errors import UserError
from prance_jax.spec.structure import GroupChoice, Structure

SPEC = make_spec("prune", space=SHORT)
BUCKETS = Buckets(
    SPEC,
    SHORT.first_group("24x2"),
    (
        (Bucket((16, 16), (32, 32), (8,)), Bucket((28, 28), (84, 84), (17,))),
        (Bucket((24,), (48,), (5,)), Bucket((28,), (84,), (17,))),
    ),
)


@pytest.fixture
def table():
    return LatencyTable(BUCKETS, 1.0, (((2.0,), (4.0,)), ((0.5, 0.75), (3.0, 3.5))), 10.0, "a device")


def test_milliseconds_by_hand(table):
    """17 tokens arrive; keep rate 0.5 leaves 8, 0.55 leaves 9, which only the large bucket holds."""
    choice = lambda layers, widths, mlp_dims, keep: GroupChoice(
        (jnp.array(widths),) * layers, (jnp.array(mlp_dims),) * layers, (jnp.array(keep, jnp.float32),)
    )
    structure = Structure(
        (
            BUCKETS.first_choice,
            choice(2, [16, 16, 28, 28], [32, 32, 28, 84], [0.5, 0.55, 0.3, 1.0]),
            choice(1, [16, 24, 16, 28], [16, 48, 16, 28], [0.5, 0.6, 1.0, 1.0]),
        )
    )
    # group 1: small, large, large, large; group 2: 4 tokens small; 5 small; 5 small; 17 large.
    expected = [1 + 2 + 0.5, 1 + 4 + 0.75, 1 + 4 + 0.75, 1 + 4 + 3.5]
    np.testing.assert_allclose(table.milliseconds(structure), expected, rtol=1e-6)
    np.testing.assert_allclose(table.share(structure), np.array(expected) / 10, rtol=1e-6)


def test_written_and_read(table, tmp_path):
    table.save(tmp_path / "latency.json", lambda path, text: path.write_text(text))
    assert load_latency_table(tmp_path / "latency.json", SPEC) == table


def test_what_is_no_table_of_this_network(table, tmp_path):
    with pytest.raises(UserError, match="does not exist; the profile command"):
        load_latency_table(tmp_path / "none.json", SPEC)
    (tmp_path / "torn.json").write_text('{"device": ')
    with pytest.raises(UserError, match="torn.json is not a latency table"):
        load_latency_table(tmp_path / "torn.json", SPEC)
    table.save(tmp_path / "other.json", lambda path, text: path.write_text(text))
    with pytest.raises(UserError, match="groups need at least one bucket each|another network"):
        load_latency_table(tmp_path / "other.json", make_spec("prune"))
    with pytest.raises(UserError, match="one time per bucket"):
        LatencyTable(BUCKETS, 1.0, (((2.0,),), ((0.5, 0.75), (3.0, 3.5))), 10.0)
