# SPDX-License-Identifier: Apache-2.0
"""Turns what docstrings have of reStructuredText into what the site's Markdown shows."""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_ROLE = re.compile(r":(?:func|class|mod|attr|meth|data|exc|obj):`(~?)([\w.]+)`")
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_BLOCK_MATH = re.compile(r"^\.\. math::(.*(?:\n(?:[ \t]+\S.*)?)*)", re.MULTILINE)
_LITERAL = re.compile(r"^(.*[^:\n])::\n((?:\n|[ \t]+.*(?:\n|\Z))+)", re.MULTILINE)
_PROMPTS = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def reference(match: re.Match[str], owner: Any) -> str:
    """Returns a name as code, linked where the reference has it."""
    short, name = match.groups()
    try:
        target = owner.resolve(name)
    except griffe.NameResolutionError:
        target = name
    said = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{target}" optional><code>{said}</code></autoref>'


def formula(tag: str, latex: str) -> str:
    """Returns a formula that scrolls by itself where it is too wide."""
    shown = convert(" ".join(latex.split()), "block" if tag == "div" else "inline")
    return f'<{tag} class="formula">{shown}</{tag}>'


def literal(match: re.Match[str]) -> str:
    """Returns an indented block behind ``::`` as a fenced one."""
    lines = match[2].strip("\n").splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    body = "\n".join(line[indent:] for line in lines)
    language = "python" if re.search(r"^(?:from|import) |\w = |\w\(", body, re.M) else "text"
    head = "" if match[1].strip() == "Example" else f"{match[1]}:\n\n"
    return f"{head}```{language}\n{body}\n```\n\n"


def markdown(text: str, owner: Any) -> str:
    """Returns a docstring for the site.

    Args:
        text: the docstring, without its indentation.
        owner: whose it is, in whose scope names are looked up.
    """
    text = _BLOCK_MATH.sub(lambda m: f"\n{formula('div', m[1])}\n\n", text)
    text = _LITERAL.sub(literal, text) if "```" not in text else text
    # In a span: at the start of a line Markdown would take the formula for a block.
    text = _INLINE_MATH.sub(lambda m: formula("span", m[1]), text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)  # as the parser knows it
    text = _PROMPTS.sub(lambda m: f"```pycon\n{m[0]}\n```\n", text)
    return _ROLE.sub(lambda m: reference(m, owner), text)


class Docstrings(griffe.Extension):
    """What griffe calls for each object that it reads."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            owner = obj if obj.is_module or obj.is_class else obj.parent
            obj.docstring.value = markdown(obj.docstring.value, owner)

    def on_package(self, *, pkg: Any, **_: Any) -> None:
        """Lets a function stand where its module of the same name hides it."""
        for package in (pkg, *pkg.modules.values()):
            for name in package.exports or ():
                member = package.members.get(str(name))
                if member is not None and member.is_module and name in member.members:
                    hidden = member.members[name]
                    self.on_object(obj=hidden)  # out of griffe's sight from here on
                    package.members[name] = griffe.Alias(name, hidden, parent=package)
