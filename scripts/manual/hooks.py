"""Hooks of MkDocs: links from docs/ to other files of the repository.

On GitHub these links work as they are. The site holds docs/ only, so the build copies a linked image or
config file into the site. Of a link to any other file it keeps the text only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT: Final = Path(__file__).parents[2]
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)\)")
_COPIED: Final = frozenset(
    {".png", ".yaml", ".yml", ".json"}
)  # no .py: it would become a module of the package


def on_post_build(config: MkDocsConfig) -> None:
    """Remove the page for missing files, which works at one address only. The appliance has its own."""
    Path(config.site_dir, "404.html").unlink(missing_ok=True)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the links of ``page`` that leave docs/."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        image, label, path = link.groups()
        target = (folder / path).resolve()
        if target.is_relative_to(config.docs_dir):
            return link[0]
        if target.suffix not in _COPIED:
            return label
        place = f"repository/{target.relative_to(_ROOT)}"
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(target)))
        return f"{image}[{label}]({os.path.relpath(place, Path(page.file.src_uri).parent)})"

    return _LINK.sub(replaced, markdown)
