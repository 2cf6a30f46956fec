"""The v3 API's paths, and how its operations and their fields are described in the OpenAPI document."""

from typing import Any

VERSIONS = ("v3", "v3beta")
"""The paths of etcd 3.4; they answer alike."""

BASE64: dict[str, Any] = {"type": "string", "format": "byte"}
INT64: dict[str, Any] = {"type": "string", "format": "int64"}
UINT64: dict[str, Any] = {"type": "string", "format": "uint64"}
FLAG: dict[str, Any] = {"type": "boolean"}


def choice(names: list[str]) -> dict[str, Any]:
    return {"type": "string", "enum": names}


def operation(properties: dict[str, Any]) -> dict[str, Any]:
    """Of a POST whose body is an object with these `properties`."""
    schema = {"type": "object", "properties": properties}
    return {
        "tags": ["etcd v3"],
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {
                "description": "As etcd's JSON API answers",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "default": _ERRORS,
        },
    }


_ERRORS: dict[str, Any] = {
    "description": "An error, in etcd's form (the code is gRPC's); of what the server refuses before: a problem",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "message", "code"],
                "properties": {
                    "error": {"type": "string"},
                    "message": {"type": "string"},
                    "code": {"type": "integer"},
                },
            }
        },
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "retry"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "retry": {"enum": ["safe", "unknown", "never"]},
                },
            }
        },
    },
}
