"""Publishing a document with compare-and-set, for `config put` and `config edit`."""

import getpass
from collections.abc import Mapping

from quorate_sdk.wire import ConfigFormat, ConfigMetadata

from quorate_cli.client import ControlPlane, api_path


def condition_headers(if_version: int | None) -> Mapping[str, str]:
    """The precondition: the document has this version now; 0: there is none; None: whatever there is."""
    if if_version is None:
        return {}
    return {"if-none-match": "*"} if if_version == 0 else {"if-match": f'"{if_version}"'}


def publish(
    control_plane: ControlPlane, name: tuple[str, str, str], content: bytes, if_version: int | None, comment: str,
    author: str, format_: ConfigFormat | None = None,
) -> ConfigMetadata:  # fmt: skip
    """Publish `content` under `name` (namespace, group, key); the version that is in force after it."""
    parameters = {"author": author, "comment": comment}
    if format_ is not None:
        parameters["format"] = format_.value
    return control_plane.write(
        ConfigMetadata, "PUT", api_path("config", *name), parameters=parameters,
        headers={"content-type": "application/octet-stream", **condition_headers(if_version)}, content=content,
    )  # fmt: skip


def current_user() -> str:
    """The name that a change is signed with when none is given."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
