"""The document of API keys: its validation, with the line of each error.

    keys:
      - {id: shop-web, sha256: "9f86d081884c7d65…"}
      - {id: partner, sha256: "60303ae22b998861…", expires: 2027-01-31T00:00:00Z}
      - {id: lost-in-may, sha256: "fd61a03af4f77d87…", enabled: false}

It is published as `gateway/api-keys.yaml`. What belongs in it is made by `quorate keys new`.
"""

from collections.abc import Sequence

from pydantic import ValidationError
from quorate_core.documents import DocumentError
from quorate_core.errors import InvalidContent

from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.documents.errors_in_place import ERRORS_MAX, error_at, readable_errors
from quorate_gateway.yaml_lines import LinedDocument, YamlProblem, read_yaml

API_KEYS_KEY = "api-keys.yaml"
DOCUMENT_BYTES_MAX = 1_048_576
NO_KEYS = ApiKeysDocument(keys=[])


def parse_api_keys(content: str) -> ApiKeysDocument:
    """The document. Raises InvalidContent, whose `errors` have message, line and path."""
    document, errors = check_api_keys(content)
    if document is None or errors:
        first = errors[0]
        raise InvalidContent(
            f"line {first.line}: {first.message}" if first.line else first.message,
            errors=[{"message": error.message, "line": error.line, "path": error.path} for error in errors],
        )
    return document


def check_api_keys(content: str) -> tuple[ApiKeysDocument | None, Sequence[DocumentError]]:
    """The document, None when it cannot be read at all, and what is wrong with it."""
    if len(content.encode("utf-8", "surrogatepass")) > DOCUMENT_BYTES_MAX:
        return None, [DocumentError(f"the document is over {DOCUMENT_BYTES_MAX} bytes")]
    try:
        lined = read_yaml(content)
    except YamlProblem as problem:
        return None, [DocumentError(problem.message, problem.line)]
    if not isinstance(lined.value, dict):
        return None, [DocumentError("the document must be a mapping with the key 'keys'", 1)]
    try:
        document = ApiKeysDocument.model_validate(lined.value)
    except ValidationError as error:
        return None, readable_errors(error, ApiKeysDocument, lined)
    return document, _repeated(document, lined)


def _repeated(document: ApiKeysDocument, lined: LinedDocument) -> Sequence[DocumentError]:
    """Two keys with one id could not be told apart, and of two with one digest the second would never be found."""
    errors: list[DocumentError] = []
    for name in ("id", "sha256"):
        first_of: dict[str, int] = {}
        for index, key in enumerate(document.keys):
            first = first_of.setdefault(getattr(key, name), index)
            if first != index and len(errors) < ERRORS_MAX:
                line = lined.line_of(("keys", first, name))
                errors.append(
                    error_at(lined, ("keys", index, name), f"{name!r} is that of another key, in line {line}")
                )
    return errors
