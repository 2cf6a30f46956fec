"""What is committed speaks of the project alone: no address of a download host, no machine's path, no dead link."""

import re
from pathlib import Path

import pytest
from support.repository import ROOT, tracked_files

FILE_BYTES_MAX = 1_048_576
README_LINES_MAX = 120
# Written in pieces, so that this file does not contain what it looks for.
FORBIDDEN = [
    "p" + r"ypi\.org",
    "python" + r"hosted\.org",
    "deb" + r"\.debian\.org",
    "registry" + r"\.npmjs",
    "--index" + "-url [h/]",
    "--find" + "-links",
    "/ro" + "ot/",
    "/wo" + "rk/",
    "file:" + "///",
]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def texts() -> list[tuple[Path, str]]:
    return [(path, path.read_text(errors="replace")) for path in tracked_files()]


def test_no_download_address_and_no_path_of_a_machine_is_committed() -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_lock_pins_every_package_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", lock.strip())
    assert len(entries) > 50
    assert [entry.splitlines()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


def test_no_large_file_and_no_secret_is_committed() -> None:
    assert [path for path in tracked_files() if path.stat().st_size > FILE_BYTES_MAX] == []
    names = re.compile(r"\.(pem|key|token|secret)$|^\.env")
    assert [path for path in tracked_files() if names.search(path.name)] == []


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX


def test_no_placeholder_is_left_in_a_page() -> None:
    pattern = re.compile(r"@@\w+@@|\b(TO" + "DO|FIX" + r"ME|TB" + r"D)\b")
    found = [path for path in tracked_files() if path.suffix in {".md", ".py"} and pattern.search(path.read_text())]
    assert found == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


PAGES = [path for path in tracked_files() if path.suffix == ".md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []
