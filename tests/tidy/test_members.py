"""Members: one mechanical naming rule, and each depends on just what it imports."""

import ast
import functools
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from support.repository import Member, members

MEMBERS = pytest.mark.parametrize("member", members(), ids=lambda member: member.folder.name)
# Loaded by name at run time, and so never imported: by uvicorn's `http="httptools"` and `ws="websockets-sansio"`.
LOADED_BY_NAME = {"quorate-core": {"httptools", "websockets"}}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ;]", name)[0]).lower()


@functools.cache
def distributions_by_import() -> dict[str, set[str]]:
    return {name: {canonical(found) for found in names} for name, names in packages_distributions().items()}


def imported_roots(member: Member) -> set[str]:
    roots: set[str] = set()
    for path in member.modules:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                roots.add(node.module.partition(".")[0])
    return roots - set(sys.stdlib_module_names) - {member.import_name}


@MEMBERS
def test_folder_distribution_and_import_have_the_same_name(member: Member) -> None:
    assert member.project["project"]["name"] == f"quorate-{member.folder.name}"
    assert (member.folder / member.import_name / "__init__.py").is_file()
    assert (member.folder / member.import_name / "py.typed").is_file()
    assert len((member.folder / "README.md").read_text().splitlines()) >= 5


@MEMBERS
def test_a_member_depends_on_just_what_it_imports(member: Member) -> None:
    declared = {canonical(name) for name in member.project["project"]["dependencies"]}
    imported: set[str] = set()
    for root in imported_roots(member):
        names = distributions_by_import().get(root, {canonical(root)})
        imported |= names & declared or names
    loaded = LOADED_BY_NAME.get(member.project["project"]["name"], set())
    assert declared - imported - loaded == set(), "declared and never imported"
    assert imported - declared == set(), "imported and not declared"
