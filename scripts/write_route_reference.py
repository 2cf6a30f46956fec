"""Write what is made from the schema of gateway/routes.yaml: docs/reference/routes.schema.json, and the tables in
docs/reference/routes.md.

A table stands between two marks, and all else in that page is written by hand:

    ## Match
    <!-- fields of RouteMatch -->
    <!-- end of fields -->

A field that holds another model links to the heading above that model's table. Every model has a table: one without is
an error, so that no field can be added and not be found in the page.

    python scripts/write_route_reference.py            # write both
    python scripts/write_route_reference.py --check    # exit with 1 when they are not up to date
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from quorate_gateway.routes import routes_schema

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
PAGE = FOLDER / "routes.md"
SCHEMA = FOLDER / "routes.schema.json"
DOCUMENT = "RoutesDocument"
_TABLE = re.compile(r"<!-- fields of (\w+) -->\n.*?<!-- end of fields -->", re.DOTALL)
_HEADING_OR_TABLE = re.compile(r"^#+ (?P<heading>.+)$|^<!-- fields of (?P<model>\w+) -->$", re.MULTILINE)
_HEAD = "| field | | default | |\n| --- | --- | --- | --- |\n"

Schema = dict[str, Any]


def render_schema() -> str:
    return json.dumps(routes_schema(), indent=2) + "\n"


def render_page(page: str) -> str:
    """`page` with its tables as the schema has them. Raises ValueError when one is missing or too many."""
    models = _models()
    tables = _TABLE.findall(page)
    if sorted(tables) != sorted(models):
        missing, unknown = sorted(models.keys() - set(tables)), sorted(set(tables) - models.keys())
        raise ValueError(f"tables that are missing: {missing}; of no model: {unknown}; or one is there twice")
    anchors = _anchors(page)
    return _TABLE.sub(lambda found: _table(found[1], models[found[1]], anchors), page)


def _models() -> dict[str, Schema]:
    schema = routes_schema()
    models = {DOCUMENT: schema, **schema["$defs"]}
    return {name: model for name, model in models.items() if "properties" in model}


def _anchors(page: str) -> dict[str, str]:
    """By model: the link to the heading above its table."""
    anchors: dict[str, str] = {}
    heading = ""
    for found in _HEADING_OR_TABLE.finditer(page):
        if found["heading"]:
            heading = found["heading"]
        else:
            slug = re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")
            anchors[found["model"]] = f"[{heading.replace('`', '')}](#{slug})"
    return anchors


def _table(name: str, model: Schema, anchors: dict[str, str]) -> str:
    rows = [
        f"| `{field}` | {_kind(schema, anchors)} | {_default(field, schema, model)} | {_text(schema)} |\n"
        for field, schema in model["properties"].items()
    ]
    return f"<!-- fields of {name} -->\n{_HEAD}{''.join(rows)}<!-- end of fields -->"


def _text(schema: Schema) -> str:
    return " ".join(schema.get("description", "").split()).replace("|", "\\|")


def _default(field: str, schema: Schema, model: Schema) -> str:
    if field in model.get("required", ()):
        return "required"
    default = schema.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{json.dumps(default)}`".replace('`"', "`").replace('"`', "`")


def _kind(schema: Schema, anchors: dict[str, str]) -> str:
    """What may stand there, with its bounds."""
    if "$ref" in schema:
        return anchors[schema["$ref"].rpartition("/")[2]]
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            kinds = [_kind(one, anchors) for one in schema[alternatives] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list{_count(schema, 'Items')}: {_kind(schema['items'], anchors)}"
        case "object":
            return f"by name{_count(schema, 'Properties')}: {_of_values(schema, anchors)}"
        case "integer" | "number" as kind:
            return f"{kind}{_bounds(schema)}"
        case "string":
            return "text" + _count(schema, "Length", " characters")
        case "boolean":
            return "`true`, `false`"
        case other:
            raise ValueError(f"a field of type {other!r}, which this page has no words for")


def _of_values(schema: Schema, anchors: dict[str, str]) -> str:
    values = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
    return _kind(values, anchors) if isinstance(values, dict) else "text"


def _count(schema: Schema, of: str, unit: str = "") -> str:
    most = schema.get(f"max{of}")
    return "" if most is None else f" of up to {most}{unit}"


def _bounds(schema: Schema) -> str:
    least, above, most = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    low = f"above {above:g}" if above is not None else "" if least is None else _number(least)
    high = "" if most is None else _number(most)
    if not low or not high:
        return f", {low or high}" if low or high else ""
    return f", {low}, to {high}" if above is not None else f", {low} to {high}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def main(arguments: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    try:
        wanted = {PAGE: render_page(page), SCHEMA: render_schema()}
    except (ValueError, KeyError) as error:
        print(f"{PAGE.name}: {error}", file=sys.stderr)
        return 1
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path} is not up to date: run python {Path(__file__).name}", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
