"""Content is parsed as its format before it is accepted, and hostile content costs little."""

import time

import pytest
from quorate_config_center.formats import (
    CONTINUED_LINES_MAX,
    NESTING_MAX,
    YAML_NODES_MAX,
    check_content,
    format_of_key,
)
from quorate_sdk.wire import CONTENT_BYTES_MAX, ConfigFormat

YAML, JSON, TOML = ConfigFormat.YAML, ConfigFormat.JSON, ConfigFormat.TOML
PROPERTIES, TEXT = ConfigFormat.PROPERTIES, ConfigFormat.TEXT

BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("settings.yaml", YAML), ("settings.yml", YAML), ("a.JSON", JSON), ("a.b.toml", TOML),
        ("log.properties", PROPERTIES), ("motd", TEXT), ("yaml", TEXT), ("motd.txt", TEXT),
    ],
)  # fmt: skip
def test_a_document_has_the_format_of_its_keys_extension_else_text(key: str, expected: ConfigFormat) -> None:
    assert format_of_key(key) is expected


@pytest.mark.parametrize(
    ("content_format", "content"),
    [
        (YAML, ""), (YAML, "# only a comment\n"), (YAML, "a: &x {b: 1}\nc: {<<: *x, d: 2}\n"), (YAML, "--- 1\n...\n"),
        (YAML, "when: 2024-02-29\nhow: [1, 2.5, 0x1f, true, ~]\n"), (YAML, "a: {k: 1}\nb: {k: 1}\n"),
        (YAML, "long: '" + "1" * 2_000 + "'"), (JSON, '{"a": [1, {"a": null}], "b": -1e3}'), (JSON, '"text"'),
        (TOML, "a = 1\n[b.c]\nd = 2024-02-29\n"), (TOML, "x = [1.5, 2.5, 3.5" + ", 4.5" * 200 + "]\n"),
        (PROPERTIES, "a=1\nb: two\\\n  lines\n! note\nc \\u00e9\n"), (TEXT, "{anything: [goes"),
    ],
)  # fmt: skip
def test_well_formed_content_is_accepted(content_format: ConfigFormat, content: str) -> None:
    assert list(check_content(content_format, content)) == []


@pytest.mark.parametrize(
    ("content_format", "content", "line", "said"),
    [
        (YAML, "a: 1\nb: [1, 2\n", 3, "while parsing a flow sequence"),
        (YAML, "a:\n\t- b\n", 2, "cannot start any token"),
        (YAML, "a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        (YAML, "a: 1\nb: 2\na: 3\n", 3, "the key 'a' is given twice"),
        (YAML, "x: 1\na: 2024-99-99\n", 2, "month must be in 1..12"),
        (YAML, "x: 1\na: !!python/object:os.system x\n", 2, "could not determine a constructor"),
        (YAML, "x: 1\na: \0\n", 2, "the character #x0000 is not allowed"),
        (YAML, "a: &a [*a]", 1, "the alias *a stands inside what it refers to"),
        (YAML, "a: *b", 1, "the alias *b refers to nothing before it"),
        (YAML, "? [a]\n: b\n", 1, "found unhashable key"),
        (JSON, '{"a": 1,\n "b" 2}', 2, "Expecting ':' delimiter"),
        (JSON, "", 1, "Expecting value"),
        (JSON, "[1, NaN]", 0, "NaN is not JSON"),
        (JSON, '{"a": 1, "a": 2}', 0, "the name 'a' is given twice"),
        (JSON, "1" * 5_000, 0, "limit"),
        (TOML, "a = 1\nb =\n", 2, "Invalid value"),
        (TOML, "a = 1\na = 2", 2, "Cannot overwrite a value"),
        (TOML, 'a = """\nx\n', 3, "Unterminated string"),
        (TOML, "a = " + "1" * 5_000, 0, "limit"),
        (PROPERTIES, "a=1\nb=\\\n 2\nc:\\u00zz\n", 4, "is no escape"),
    ],
)
def test_malformed_content_is_refused_with_its_line(
    content_format: ConfigFormat, content: str, line: int, said: str
) -> None:
    [error] = check_content(content_format, content)
    assert said in error.message
    assert error.line == line


@pytest.mark.parametrize(
    ("content_format", "content", "said"),
    [
        (YAML, BILLION_LAUGHS, f"more than {YAML_NODES_MAX} values, aliases written out"),
        (YAML, "[" * 50_000, f"nested deeper than {NESTING_MAX} levels"),
        (YAML, "- " * 50_000 + "a", f"nested deeper than {NESTING_MAX} levels"),
        (YAML, "[" + "a," * 500_000 + "]", f"more than {YAML_NODES_MAX} values"),
        (YAML, "a: " + "1:" * 300_000 + "1", "a number of 600001 characters"),
        (JSON, "[" * 300_000, "nested too deeply"),
        (TOML, ".".join(["a"] * 300_000) + " = 1", "a dotted key of more than"),
        (TOML, '"a".' * 200_000 + '"a" = 1', "a dotted key of more than"),
        (TOML, "a = " + "[" * 300_000, "nested too deeply"),
        (PROPERTIES, "a\\\n" * 300_000, f"continued over more than {CONTINUED_LINES_MAX} lines"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_content_that_would_cost_far_more_than_its_size_is_refused_at_once(
    content_format: ConfigFormat, content: str, said: str
) -> None:
    began_s = time.process_time()
    [error] = check_content(content_format, content)
    assert said in error.message
    assert time.process_time() - began_s < 5.0


@pytest.mark.parametrize(
    ("content_format", "content"),
    [
        (YAML, "\n".join(f"key{i}: value {i}" for i in range(45_000))),
        (JSON, "[" + "1," * 500_000 + "1]"),
        (TOML, "a" * (CONTENT_BYTES_MAX - 2) + "=1"),
        (TOML, "\n".join(f"[a.b{i}]\nx=1" for i in range(60_000))),
        (PROPERTIES, ("a\\\n" * 150 + "b=1\n") * 1_700),
        (PROPERTIES, "\\" * CONTENT_BYTES_MAX),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_the_largest_documents_are_decided_in_seconds(content_format: ConfigFormat, content: str) -> None:
    assert len(content) <= CONTENT_BYTES_MAX
    began_s = time.process_time()
    assert list(check_content(content_format, content)) == []
    assert time.process_time() - began_s < 30.0
