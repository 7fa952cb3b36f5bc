"""A hook of mkdocs: the generated pages, the change log, the notebooks, and the address of the repository."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import api_pages
import argument_pages
import command_pages
import notebook_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the repository's address from setup.cfg, and put the generated pages into the navigation."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    config.repo_url = setup["metadata"]["url"]
    config.repo_name = config.repo_url.removeprefix("https://github.com/")
    # The hook that mkdocs has for the address has run by now.
    config.edit_uri = None
    config.nav = with_children(config.nav, {**command_children(), **api_children()})
    return config


def with_children(nav: list[Any], children: dict[str, list[Any]]) -> list[Any]:
    """Return a navigation in which each page that has children is a section with them."""
    found = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, place),) = entry.items()
            if isinstance(place, list):
                entry = {title: with_children(place, children)}
            elif place in children:
                entry = {title: [place, *children[place]]}
        found.append(entry)
    return found


def command_children() -> dict[str, list[Any]]:
    """Return the pages of the commands below the page that lists them."""
    return {
        f"{command_pages.FOLDER}/index.md": [{name: f"{command_pages.FOLDER}/{name}.md"} for name in command_pages.all_commands()]
    }


def api_children() -> dict[str, list[Any]]:
    """Return the pages of the package's folders below the first page of the API."""
    rooms = {**api_pages.ROOMS, "systems": "The table of systems"}
    return {f"{api_pages.FOLDER}/index.md": [{title: f"{api_pages.FOLDER}/{room}.md"} for room, title in rooms.items()]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    generated = {**command_pages.pages(), **argument_pages.pages(), **api_pages.pages(), "changelog.md": changelog()}
    generated |= notebook_pages.pages(str(config.repo_url))
    for place, text in generated.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Write the repository's address in the place of its placeholder."""
    return markdown.replace("https://github.com/OWNER/cllm4rec", str(config.repo_url))


def changelog() -> str:
    """Return CHANGELOG.md with the links of a page of docs/."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
