"""A notebook and the percent script that it is paired with, as lists of (kind, text)."""

import json
import re
from pathlib import Path


def of_script(path: Path) -> list[tuple[str, str]]:
    """The cells of a percent script: '# %%' opens code, '# %% [markdown]' a text in comments."""
    cells = []
    for head, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", path.read_text(), re.MULTILINE):
        kind = "markdown" if "[markdown]" in head else "code"
        lines = body.strip("\n").split("\n")
        if kind == "markdown":
            lines = [re.sub(r"^# ?", "", line) for line in lines]
        cells.append((kind, "\n".join(lines)))
    return cells


def of_notebook(path: Path) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]


def write(script: Path, path: Path) -> None:
    """Makes the notebook of a script, as `jupytext --to notebook` does."""
    cells = []
    for number, (kind, text) in enumerate(of_script(script)):
        cell = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    record = {
        "cells": cells,
        "metadata": {"accelerator": "GPU", "kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":  # python tests/notebook.py, after the script was changed
    launch = Path(__file__).parents[1] / "launch"
    write(launch / "colab.py", launch / "colab.ipynb")
