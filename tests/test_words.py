"""Names and texts use the field's terms; words of the project's past do not come back."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Files that hold old names on purpose: aliases of the release before.
ALIASES = {"prance_jax/core/old_names.py", "tests/core/test_old_names.py", "tests/test_words.py"}
# Old names of classes, functions and fields, and locals that do not say what they hold.
IDENTIFIERS = set(
    """
    Midway midway walk Outcome follow glance verdict attend_ahead Within extent aside owner owners hidden_units widest
    most_hidden Reduction Reduced Reducing TokenSelector Selective SelectiveViT Plan Plans plan plans levels run_in Rule
    StaticRule SelectorRule AnyPriceRule RandomRule GivenRule RoundedRule Priced Variables PranceProcess Context Episode
    Observer price prices worth tilt Ladder ladder rung rungs contract Lattice Normaliser taught divergence Contender
    contenders stand_in keep_rows keep_whole materialize own found told said asked goes
    """.split()
)
# In comments, docstrings and messages as well.
WORDS = re.compile(
    r"\b(Midway|midway|glance|verdict|Within|aside|Ladder|ladder|rungs?|PranceProcess|TokenSelector|SelectiveViT|Contenders?"
    r"|contenders?|Priced|tilt|taught|stand_in|materiali[sz]ed?|realised(?!_share)|real\. %|tok (?:end|mean) %)\b"
)
# Names of other libraries.
OTHERS = {("walk", "test_layers.py"), ("walk", "test_dtypes.py"), ("extent", "contact_sheets.py")}
FILES = sorted(
    path
    for folder in ("prance_jax", "configs", "launch", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if str(path.relative_to(ROOT)) not in ALIASES
)
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("configs/*.md")), ROOT / "launch/README.md"]
TEMPLATES = sorted((ROOT / "prance_jax").rglob("*.html")) + sorted((ROOT / "prance_jax").rglob("*.css"))


def without_aliases(path: Path) -> list[str]:
    """Lines, those blank that keep an old name as an alias (`core.old_names.renamed`)."""
    return ["" if " = renamed(" in line else line for line in path.read_text().splitlines()]


def identifiers(source: str) -> set[tuple[str, int]]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {(token.string, token.start[0]) for token in tokens if token.type == tokenize.NAME}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_code(path):
    used = sorted(
        (line, name) for name, line in identifiers("\n".join(without_aliases(path))) if name in IDENTIFIERS
    )
    # `ast.walk`, and Matplotlib's `imshow(extent=)`.
    used = [(line, name) for line, name in used if (name, path.name) not in OTHERS]
    assert not used, f"{path}: {used}"


@pytest.mark.parametrize("path", [*FILES, *TEXTS, *TEMPLATES], ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_texts(path):
    lines = without_aliases(path)
    used = [
        (number, match[0]) for number, line in enumerate(lines, 1) for match in [WORDS.search(line)] if match
    ]
    assert not used, f"{path}: {used}"
