"""The documentation is tried: every command in it exists with those options, and its Python runs."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from ayni.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
for _entry in entry_points(group="ayni.commands"):
    _entry.load()(app)
COMMANDS = typer.main.get_command(app)


def command_lines() -> list[tuple[str, str]]:
    """Every line of a console block, and every span, that begins with `ayni `."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```console\n(.*?)```", text, re.S):
            found += [(page.name, line) for line in block.splitlines() if line.startswith("ayni ")]
        found += [(page.name, span) for span in re.findall(r"`(ayni [a-z][^`]*)`", text)]
    return found


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_in_the_documentation_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line.replace("...", ""), comments=True)[1:]
    command = COMMANDS
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: `{line}`: there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known | {"--help"}, f"{page}: `{line}`: there is no option {word}"


def test_the_readme_shows_the_ten_lines_that_are_tested() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks == [(ROOT / "examples/pneumonia/clinic.py").read_text()]


def test_every_file_that_the_documentation_links_to_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_command_line_says_every_command_with_an_example() -> None:
    def walk(command: object, name: str) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            assert f"Example: {name}" in (getattr(command, "help", "") or ""), f"`{name}` has no example in its help"
            return
        for word, child in children.items():
            walk(child, f"{name} {word}")

    walk(COMMANDS, "ayni")
