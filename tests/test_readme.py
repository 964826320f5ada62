"""What the README tells people to run, runs."""

import re
from pathlib import Path

from inference.test_model import IMAGES, make

import prance_jax

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_python_snippets_run(capsys, monkeypatch):
    """The trained workdir that one of them speaks of is a small random network here."""
    monkeypatch.setattr(prance_jax, "load", lambda workdir: make(prices=(0.01, 0.5)))
    snippets = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(snippets) == 5
    names = {}
    for number, snippet in enumerate(snippets):
        if number:  # the first one makes its own
            names["images"] = IMAGES
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["budget"] == 0.9
    # DeiT-S without a reduction has 4.61 GMACs; 8 patches fewer in each layer leave 101 tokens of 197.
    assert names["reduction"].left(names["spec"])[-1] == 101
    printed = capsys.readouterr().out
    assert printed.count("of the MACs") == 1 + 3 and 2 < float(printed.split()[-2]) < 4.6


def test_it_opens_with_the_two_commands():
    first = re.search(r"```bash\n(.*?)```", TEXT, re.DOTALL).group(1)
    scripts = re.findall(r"bash (launch/\S+)", first)
    assert scripts == ["launch/demo.sh", "launch/test.sh"]
    assert all((ROOT / script).exists() for script in scripts)


def test_files_it_names_exist():
    named = set(re.findall(r"`((?:prance_jax|configs|tests|launch)/[\w./]*)`", TEXT)) | set(
        re.findall(r"(configs/\w+\.py)", TEXT)
    )
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_commands_it_names_are_known():
    from prance_jax.cli import _parser

    fenced = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
    for words in re.findall(r"python -m prance_jax ([^\n#]*)", fenced):
        _parser().parse_args([word for word in words.split() if not word.startswith("--config.")])


def test_nothing_is_left_to_fill_in():
    assert "@@" not in TEXT
