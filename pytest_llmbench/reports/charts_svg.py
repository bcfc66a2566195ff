"""Drawings of matplotlib made into SVG that fits a page: no style attributes, few bytes, colours by class.

A page with a strict content security policy runs no ``style=``; and a colour that is a class can be another one in the
dark. So a drawing is made with colours that stand for roles, and each becomes a class here. Text is never given to
matplotlib, which would read ``$`` as mathematics and fail on what its font does not have: it is added here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree as ET

# What a part of a chart is, and the colour that stands for it while matplotlib draws.
SERIES = tuple(f"s{number}" for number in range(1, 9))
ROLES = ("grid", "base", "soft", "limit", *SERIES)
COLOUR_OF: Mapping[str, str] = {role: f"#0000{number:02x}" for number, role in enumerate(ROLES, 1)}
_ROLE_OF = {colour: role for role, colour in COLOUR_OF.items()}
_NUMBER = re.compile(r"-?\d+\.\d+")
_KEPT = ("stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap")
_HREF = "{http://www.w3.org/1999/xlink}href"

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Label:
    """Text in a chart; ``y`` is its baseline, downwards from the top, in the units of the view box."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    role: str = "tick"


@dataclass(frozen=True, slots=True)
class Ink:
    """What a path is painted with: classes, and attributes that are not colours."""

    classes: str
    attributes: dict[str, str]


def compact(
    drawn: str,
    *,
    prefix: str,
    name: str,
    size: tuple[int, int],
    labels: Sequence[Label],
    tips: Mapping[str, Sequence[str]],
) -> str:
    """An ``<svg>`` element as text.

    Args:
        drawn: a drawing of matplotlib's, as SVG.
        prefix: of every id in it, so that several can stand on one page.
        name: what it shows, for those who can not see it.
        size: width and height, in the units it was drawn in.
        tips: by the id of a group of markers, what each of them says when it is pointed at.
    """
    width, height = size
    box = {"class": "chart", "viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": name}
    root = ET.Element("svg", box)
    copying = _Copying(prefix, {}, {group: list(said) for group, said in tips.items()})
    _copy(ET.fromstring(drawn), root, copying)  # noqa: S314 - matplotlib's own output
    for label in labels:
        at = {"class": label.role, "x": _short(label.x), "y": _short(label.y)}
        if label.anchor != "start":
            at["text-anchor"] = label.anchor
        ET.SubElement(root, "text", at).text = label.text
    return ET.tostring(root, encoding="unicode")


@dataclass(slots=True)
class _Copying:
    """One drawing while it is copied.

    Attributes:
        shapes: the id of each marker in the drawing, and the one it has on the page.
        tips: by group, those that no marker has yet.
    """

    prefix: str
    shapes: dict[str, str]
    tips: dict[str, list[str]]


def _copy(source: ET.Element, target: ET.Element, copying: _Copying, group: str | None = None) -> None:
    """Append what a drawing paints to a flat list of paths and markers."""
    name = source.get("id")
    if name is not None and name in copying.tips:
        group = name
    for element in source:
        tag = _tag(element)
        if tag == "path":
            ink = _ink(element)
            if ink.classes:
                ET.SubElement(target, "path", {"class": ink.classes, **ink.attributes, "d": _path(element)})
        elif tag == "use":
            _mark(element, target, copying, group)
        elif tag == "defs":
            _define(element, target, copying, group)
        elif tag in {"g", "svg"}:
            _copy(element, target, copying, group)


def _define(source: ET.Element, target: ET.Element, copying: _Copying, group: str | None) -> None:
    """The shapes of markers; the first of a group can be shown again beside its name."""
    for element in source:
        if _tag(element) == "path":
            name = f"{copying.prefix}-{group}" if group is not None else f"{copying.prefix}-{len(copying.shapes)}"
            copying.shapes[f"#{element.get('id')}"] = name
            ET.SubElement(ET.SubElement(target, "defs"), "path", {"id": name, "d": _path(element)})


def _mark(element: ET.Element, target: ET.Element, copying: _Copying, group: str | None) -> None:
    at = {"x": _short(float(element.get("x", "0"))), "y": _short(float(element.get("y", "0")))}
    shape = copying.shapes[element.get(_HREF, "")]
    marker = ET.SubElement(target, "use", {"class": _ink(element).classes, "href": f"#{shape}", **at})
    if group is not None and (tips := copying.tips[group]):
        ET.SubElement(marker, "title").text = tips.pop(0)


def _ink(element: ET.Element) -> Ink:
    style = dict(part.strip().split(": ", 1) for part in element.get("style", "").split(";") if ": " in part)
    fill, stroke = _ROLE_OF.get(style.get("fill", "")), _ROLE_OF.get(style.get("stroke", ""))
    classes = [f"f-{fill}"] * (fill is not None) + [f"k-{stroke}"] * (stroke is not None)
    return Ink(" ".join(classes), {key: style[key] for key in _KEPT if key in style and stroke is not None})


def _path(element: ET.Element) -> str:
    """Its outline, in tenths of a unit: finer can not be seen, and differs by the processor."""
    return " ".join(_NUMBER.sub(lambda found: _short(float(found[0])), element.get("d", "")).split())


def _short(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
