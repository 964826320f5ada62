"""Arrays that the package makes state their type: JAX's defaults are 64 bits wide under `jax_enable_x64`.

Other defaults draw other random numbers, break the equality of branches and carries, and change checkpoints.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "prance_jax"
FILES = sorted(ROOT.rglob("*.py"))
# Function -> position of its argument `dtype`; None where it must be named.
MAKERS = {
    "jnp.zeros": 1,
    "jnp.ones": 1,
    "jnp.empty": 1,
    "jnp.full": 2,
    "jnp.arange": None,
    "jnp.linspace": None,
    "jnp.eye": None,
    "jnp.indices": None,
    "jax.nn.one_hot": None,
    "jax.random.uniform": 2,
    "jax.random.normal": 2,
    "jax.random.gumbel": 2,
    "jax.random.beta": None,
    "jax.random.randint": 4,
    "jax.random.truncated_normal": None,
}
CONVERTERS = {"jnp.asarray", "jnp.array"}
LITERALS = (ast.List, ast.Tuple, ast.ListComp, ast.GeneratorExp, ast.Constant)


def lacks_dtype(call: ast.Call) -> bool:
    """Whether a call leaves the type of its result to JAX's defaults."""
    name = ast.unparse(call.func)
    if any(keyword.arg == "dtype" for keyword in call.keywords):
        return False
    if name in CONVERTERS:
        return isinstance(call.args[0], LITERALS) and len(call.args) < 2
    if name not in MAKERS:
        return False
    position = MAKERS[name]
    return position is None or len(call.args) <= position


def test_the_rule_finds_defaults():
    source = (
        "jnp.zeros(3); jnp.zeros(3, bool); jnp.asarray([1]); jnp.asarray(x); jax.random.randint(k, (), 0, 2)"
    )
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert [lacks_dtype(call) for call in calls] == [True, False, True, False, True]


def test_arrays_state_their_type():
    defaults = []
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        defaults += [f"{path}:{call.lineno} {ast.unparse(call)}" for call in calls if lacks_dtype(call)]
    assert not defaults, "\n".join(defaults)
