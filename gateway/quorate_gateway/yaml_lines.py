"""YAML with the line of every value: safe loading only, keys that are given twice refused.

The nodes are composed first, so that an error which is found later, in the values, can be told by its line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

# libyaml's parser where the wheel has it: the same safe loading, some ten times as fast.
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DEPTH_MAX = 32


class YamlProblem(Exception):
    """It is no YAML that may be used. `line` counts from 1, 0 when it is not known."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class LinedDocument:
    """A document's value, and its nodes to find lines by."""

    value: Any
    root: yaml.Node

    def line_of(self, place: Sequence[str | int]) -> int:
        """The line of what stands at `place` (keys and indices), or of the nearest thing around it."""
        node, line = self.root, self.root.start_mark.line
        for part in place:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return int(line) + 1


def read_yaml(content: str) -> LinedDocument:
    """The one document in `content`. Raises YamlProblem."""
    _refuse_deep_nesting(content)
    try:
        return _load(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlProblem(_text(error), mark.line + 1 if mark else 0) from error
    except (yaml.YAMLError, ValueError) as error:
        raise YamlProblem(_text(error)) from error


def _load(content: str) -> LinedDocument:
    loader = _LOADER(content)
    try:
        root = loader.get_single_node()
        if root is None:
            raise YamlProblem("the document is empty", 1)
        _refuse_repeated_keys(root)
        return LinedDocument(loader.construct_document(root), root)
    finally:
        loader.dispose()


def _refuse_deep_nesting(content: str) -> None:
    """NB: composing is recursive in C, where what is nested some thousand times ends the process. Events are not."""
    depth = 0
    try:
        for event in yaml.parse(content, _LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > DEPTH_MAX:
                line = 0 if event.start_mark is None else event.start_mark.line + 1
                raise YamlProblem(f"nested more than {DEPTH_MAX} deep", line)
    except yaml.YAMLError:
        return  # it is told of with its line by who loads it


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line, item
    return None


def _refuse_repeated_keys(root: yaml.Node) -> None:
    """NB: YAML itself would silently keep the last one of them."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                children.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise YamlProblem(f"{key.value!r} is given twice, first in line {lines[name]}", line)
                lines[name] = line
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        # An anchor may be used many times: each node is looked at once.
        fresh = [child for child in children if id(child) not in seen]
        seen.update(id(child) for child in fresh)
        waiting.extend(fresh)


def _text(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return f"not valid YAML: {error.problem or error.context}"
    return f"not valid YAML: {str(error).splitlines()[0]}"
