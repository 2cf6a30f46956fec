"""The page and the schema file about routes are those of the schema that is in force."""

import runpy
import subprocess
import sys
from typing import Any

import pytest
from quorate_gateway.routes import check_routes
from support.repository import ROOT

SCRIPT = ROOT / "scripts" / "write_route_reference.py"
PAGE = ROOT / "docs" / "reference" / "routes.md"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_page_and_schema_file_are_up_to_date() -> None:
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_table_that_was_edited_by_hand_is_written_anew_and_the_prose_stays(script: dict[str, Any]) -> None:
    page = PAGE.read_text()
    edited = page.replace("| `timeout_ms` | integer", "| `timeout_ms` | seconds").replace(
        "# Routes of", "# The routes of"
    )
    assert edited.count("seconds") == page.count("seconds") + 1
    assert script["render_page"](edited) == page.replace("# Routes of", "# The routes of")


def test_a_model_without_a_table_is_an_error(script: dict[str, Any]) -> None:
    page = PAGE.read_text().replace("<!-- fields of RouteRetry -->", "")
    with pytest.raises(ValueError, match=r"missing: .'RouteRetry'"):
        script["render_page"](page)
    with pytest.raises(ValueError, match=r"of no model: .'RouteRetries'"):
        script["render_page"](PAGE.read_text().replace("fields of RouteRetry", "fields of RouteRetries"))


def test_the_routes_that_the_page_shows_are_valid() -> None:
    shown = PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]
    assert check_routes(shown)[1] == []
