"""A hook of mkdocs: links from a page to files outside of docs/ become links to the repository.

A page says `[margin loss](../dmd/losses/margin.py)`, which works where the repository is read. On the site it leads to
`repo_url` of mkdocs.yml, and is plain text where that is not set.
"""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]*)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """The page with its links replaced."""
    repository = (config.repo_url or "").rstrip("/")

    def link(found: re.Match[str]) -> str:
        text, path = found.groups()
        return f"[{text}]({repository}/tree/HEAD/{path})" if repository else text

    return _OUTSIDE.sub(link, markdown)
