"""Parts of the README that are made from files of results, between two marks."""

from __future__ import annotations

import re


def part_of(text: str, kind: str) -> tuple[str, str]:
    """The file that a part of this kind is made from, relative to the root, and what stands between its marks.

    Raises:
        ValueError: there is no such part, or more than one.
    """
    ((path, part),) = re.findall(rf"<!-- {kind}: (\S+) -->\n(.*?)<!-- /{kind} -->", text, re.S)
    return path, part


def replaced(text: str, kind: str, path: str, part: str) -> str:
    """The text with its part of this kind made anew, if it shows this file."""
    begin, end = f"<!-- {kind}: {path} -->\n", f"<!-- /{kind} -->"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}{part}{end}", text, flags=re.S)
