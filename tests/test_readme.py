"""What the README and the pages beside the configs tell people to run, runs; what they point to exists."""

import re
import shlex
from pathlib import Path

import pytest
from serving.test_model import IMAGES, make

import prance_jax

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PAGES = sorted((ROOT / "configs").glob("*.md"))
DOCUMENTS = [README, *PAGES, ROOT / "launch/README.md"]
TEXT = README.read_text()
MAX_BYTES = 12_288
MAX_TABLES = 2


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(path: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(path: Path) -> list[list[str]]:
    """Arguments of each `python -m prance_jax` line in the bash blocks; a backslash continues a line."""
    lines = "".join(fenced(path, "bash")).replace("\\\n", " ").splitlines()
    calls = [line.partition("python -m prance_jax ")[2] for line in lines]
    return [shlex.split(call, comments=True) for call in calls if call]


COMMANDS = [(name_of(path), words) for path in DOCUMENTS for words in commands(path)]


def test_readme_is_short():
    assert len(TEXT.encode()) <= MAX_BYTES


def test_readme_has_few_tables():
    assert len(re.findall(r"^\|[-:| ]+\|$", prose(README), re.MULTILINE)) <= MAX_TABLES


def test_readme_opens_with_the_two_commands():
    scripts = re.findall(r"bash (launch/\S+)", fenced(README, "bash")[0])
    assert scripts == ["launch/demo.sh", "launch/test.sh"]
    assert all((ROOT / script).is_file() for script in scripts)


def test_readme_snippets_run(capsys, monkeypatch):
    """A small random network stands for the trained workdir that one snippet loads."""
    monkeypatch.setattr(prance_jax, "load", lambda workdir: make((0.01, 0.5)))
    names = {}
    for number, snippet in enumerate(fenced(README, "python")):
        if number:  # the first snippet makes its page_config images
            names["images"] = IMAGES
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["budget"] == 0.9
    # 8 patches fewer in each layer but the last leave 109 tokens of 197.
    assert names["reduction"].tokens_after(names["spec"])[-1] == 109
    printed = capsys.readouterr().out
    assert printed.count("of the MACs") == 1 + 3
    assert 2 < float(printed.split()[-2]) < 4.6


@pytest.mark.parametrize("path", DOCUMENTS[1:], ids=name_of)
def test_snippets_of_the_pages_run(path, monkeypatch):
    monkeypatch.setattr(prance_jax, "load", lambda workdir: make((0.01, 0.5)))
    names = {"images": IMAGES}
    for snippet in fenced(path, "python"):
        exec(compile(snippet, name_of(path), "exec"), names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_point_to_something(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), f"{name_of(path)}: {link} is not a file"
        if anchor:
            assert anchor in anchors(target), f"{name_of(path)}: {link} is not a heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_in_backticks_exist(path):
    files = re.findall(r"`((?:prance_jax|configs|tests|launch)/[\w./]*)`", path.read_text())
    files += re.findall(r"(?<!\w)((?:configs|launch)/\w+\.(?:py|md|sh|ipynb))", path.read_text())
    assert not [file for file in files if not (ROOT / file).exists()]


def test_folders_of_the_readme_are_all_folders():
    section = TEXT.split("## Folders")[1].split("\n## ")[0]
    listed = re.findall(r"^- `(\w+)`:", section, re.MULTILINE)
    folders = sorted(file.parent.name for file in (ROOT / "prance_jax").glob("*/__init__.py"))
    assert sorted(listed) == folders


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {words[0]}" for page, words in COMMANDS])
def test_commands_are_known(page, words):
    """The command line is parsed; its overrides name keys of its config and have the right type."""
    from prance_jax.cli import make_parser
    from prance_jax.config.experiment import Config
    from prance_jax.config.io import load_config

    overrides = [word for word in words if word.startswith("--config.")]
    options = make_parser().parse_args([word for word in words if word not in overrides])
    config = getattr(options, "config", None)
    if config is None:
        assert not overrides, f"{page}: overrides need --config"
    elif config.startswith("configs/"):  # others are the reader's page_config files
        load_config(ROOT / config, Config, overrides)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_config_keys_in_the_text_exist(path):
    """Overrides in backticks, such as `--config.seeds=0,1,2`."""
    from prance_jax.config.experiment import Config
    from prance_jax.config.io import load_config

    page_config = path.with_suffix(".py")
    config = page_config if page_config in CONFIGS else ROOT / "configs/digits.py"
    for code in re.findall(r"`([^`\n]+)`", prose(path)):
        overrides = [word for word in code.split() if word.startswith("--config.")]
        if overrides != ["--config.KEY=VALUE"]:
            load_config(config, Config, overrides)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_each_config_has_a_page(config):
    page = config.with_suffix(".md")
    assert page.is_file()
    assert f"[{page.stem}](configs/{page.name})" in TEXT


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_say_how_their_results_were_made(page):
    """Question, answer, command, hardware, seeds, date."""
    text = page.read_text()
    assert page.with_suffix(".py") in CONFIGS
    assert "\nQuestion: " in text and "\nAnswer: " in text
    assert any(page.stem in " ".join(words) for words in commands(page))
    assert re.search(r"CPU|TPU|GPU", text)
    if re.search(r"^\|[-:| ]+\|$", prose(page), re.MULTILINE):
        assert re.search(r"\bseeds?\b", text, re.IGNORECASE)
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_nothing_is_left_to_fill_in(path):
    assert not re.search(r"@@|\{\{|\bTODO\b|\bFIXME\b", path.read_text())
