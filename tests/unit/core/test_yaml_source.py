"""YAML files that know their lines: what a user reads when a file is not what it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.yaml_source import YamlDocument, dotted, load_yaml, nearest, parse_yaml, shown
from pytest_llmbench.errors import ConfigError


def _refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "config.yaml")
    return str(caught.value)


def test_an_empty_file_holds_nothing() -> None:
    document = parse_yaml("# only a comment\n", "config.yaml")
    assert document.data is None
    assert document.line_of(("anything",)) == 1


def test_data_is_plain_python() -> None:
    assert parse_yaml("a: {b: [1, 2.5, true, null, x]}", "f").data == {"a": {"b": [1, 2.5, True, None, "x"]}}


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ((), 1),
        (("backend",), 2),
        (("models",), 3),
        (("models", 0), 4),
        (("models", 0, "name"), 4),
        (("models", 0, "files", "Q4_0"), 6),
        (("models", 1), 7),
        (("models", 1, "size"), 7),  # absent: its deepest ancestor that is there
        (("models", 9), 3),
        (("models", 0, "files", "only in our models", "Q4_0"), 6),
        (("models", "not an index"), 3),
        (("backend", "below a scalar"), 2),
        (("nowhere",), 1),
    ],
)
def test_each_key_is_found_on_its_line(location: tuple[str | int, ...], line: int) -> None:
    text = "# comment\nbackend: embedded\nmodels:\n  - name: a\n    files:\n      Q4_0: x\n  - name: b\n"
    assert parse_yaml(text, "models.yaml").line_of(location) == line


def test_a_key_that_is_a_list_is_passed_over_when_looking_for_a_line() -> None:
    document = parse_yaml("? !!str a\n: 1\nb: 2\n", "f")
    assert document.line_of(("b",)) == 3


def test_a_complaint_names_file_line_and_key() -> None:
    document = parse_yaml("a:\n  - b: 1\n", "configs/config.yaml")
    assert document.complaint(("a", 0, "b"), "is wrong") == "configs/config.yaml:2: a[0].b: is wrong"
    assert document.complaint((), "is wrong") == "configs/config.yaml:1: is wrong"
    error = document.error(("a",), "is wrong")
    assert isinstance(error, ConfigError)
    assert str(error) == "configs/config.yaml:1: a: is wrong"


@given(st.text(), st.text())
def test_a_complaint_is_one_printable_line_whatever_was_written(key: str, message: str) -> None:
    complaint = YamlDocument("f", None).complaint((key,), message)
    assert complaint.startswith("f:1: ")
    assert complaint.isprintable()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\n b: 2\n", 2, "mapping values are not allowed"),
        ("a: [1, 2\n", 1, "did not find expected"),
        ("a: 1\nb: 'open\n", 2, "unexpected end of stream"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "expected a single document"),
        ("a: 1\nb: !!python/object:os.system {}\n", 2, "could not determine a constructor"),
        ("? [a]\n: 1\n", 1, "unhashable key"),
        ("a: 1\n\tb: 2\n", 2, "a tab character"),
    ],
)
def test_a_syntax_error_names_file_and_line_and_what_to_check(text: str, line: int, words: str) -> None:
    refusal = _refusal(text)
    assert refusal.startswith(f"config.yaml:{line}: not valid YAML: ")
    assert words in refusal
    assert refusal.endswith("; check indentation, colons and quotes")


def test_a_syntax_error_never_points_behind_the_end_of_the_file() -> None:
    assert _refusal("a: [").startswith("config.yaml:1: ")


@pytest.mark.parametrize(
    "value", ["2024-99-99", "!!bool maybe", '!!int ""', '!!float ""', "!!timestamp noon", "0b_", "9" * 5000]
)
def test_a_value_that_does_not_fit_its_type_names_its_line(value: str) -> None:
    refusal = _refusal(f"a: 1\nb:\n  - {value}\n")
    assert refusal.startswith("config.yaml:3: not valid YAML: this value does not fit its type (")
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("character", "name"), [("\0", r"'\x00'"), ("\a", r"'\x07'"), ("\x9f", r"'\x9f'"), ("\ud800", r"'\ud800'")]
)
def test_a_control_character_is_named_with_its_line(character: str, name: str) -> None:
    refusal = _refusal(f"a: 1\nb: {character}\n")
    assert refusal == f"config.yaml:2: not valid YAML: the character {name} is not allowed"


def test_a_key_written_twice_names_both_lines() -> None:
    assert _refusal("a: 1\nb: 2\na: 3\n") == "config.yaml:3: a: written twice (first on line 1); keep one"


def test_a_key_written_twice_is_found_in_depth() -> None:
    refusal = _refusal("models:\n  - files:\n      Q4_0: x\n      Q4_0: y\n")
    assert refusal == "config.yaml:4: Q4_0: written twice (first on line 3); keep one"


def test_a_key_written_twice_is_one_line_even_if_the_key_is_two() -> None:
    assert _refusal('"a\\nb": 1\n"a\\nb": 2\n') == r"config.yaml:2: a\nb: written twice (first on line 1); keep one"


def test_the_same_key_in_two_places_and_two_merges_are_no_repetition() -> None:
    text = "x: &x {a: 1}\ny: &y {b: 2}\nz:\n  <<: *x\n  <<: *y\n  a: 3\n"
    assert parse_yaml(text, "f").data == {"x": {"a": 1}, "y": {"b": 2}, "z": {"a": 3, "b": 2}}


def test_a_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("name: Größe\n".encode())
    assert load_yaml(path, "config.yaml").data == {"name": "Größe"}


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path / "absent.yaml", "absent.yaml")
    assert str(caught.value) == "absent.yaml: can not be read: No such file or directory"


def test_a_file_that_is_not_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, "config.yaml")
    assert str(caught.value) == "config.yaml: can not be read: it is not UTF-8 text"


@given(st.text())
def test_any_text_is_either_read_or_refused_with_a_line(text: str) -> None:
    try:
        document = parse_yaml(text, "f.yaml")
    except ConfigError as exc:
        complaint = str(exc)
    else:
        assert document.data is None or document.root is not None
        return
    line, rest = complaint.removeprefix("f.yaml:").split(": ", 1)
    assert 1 <= int(line) <= len(text.splitlines())
    assert rest.startswith("not valid YAML: ") or "written twice" in rest
    assert complaint.isprintable()


def test_locations_read_like_python() -> None:
    assert dotted(("models", 0, "files", "Q4_0", 1)) == "models[0].files.Q4_0[1]"
    assert dotted(()) == ""


def test_the_nearest_word_is_offered_only_when_it_is_near() -> None:
    allowed = ["backend", "profiles"]
    assert nearest("bakend", allowed) == " (did you mean 'backend'?)"
    assert nearest("xyz", allowed) == ""


def test_values_are_shown_short() -> None:
    assert shown("word") == "'word'"
    assert len(shown("x" * 10_000)) < 130
    assert len(shown({"x" * 10_000})) < 200
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    assert len(shown(nested)) < 200
    assert len(shown(1 << 100_000)) < 130


@pytest.mark.parametrize(
    "text", ["a: &a {b: *a}\n", "a: &a [*a]\n", "a: &a\n  b: &b {c: [1, *b]}\n  d: *a\n", "&a {? *a : 1}\n"]
)
def test_an_anchor_that_holds_itself_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:\d+: this part contains itself"):
        parse_yaml(text, "f.yaml")


def test_an_anchor_used_twice_is_fine() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n", "f.yaml").data["c"] == [{"x": 1}, {"x": 1}]
