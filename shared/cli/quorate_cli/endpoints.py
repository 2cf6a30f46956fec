"""Where the control plane is, and the token for it.

Named ones win: --endpoints, then QUORATE_ENDPOINTS, with the token of --token-file, QUORATE_TOKEN_FILE or
QUORATE_TOKEN. Otherwise it is the platform that runs here (`run/state.json`), with its own token, which is never sent
to endpoints that were named: they may be somebody else's.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quorate_core.errors import InvalidRequest, Unavailable
from quorate_core.secrets import load_secret

from quorate_cli.layout import Layout, find_root
from quorate_cli.run_state import RunState, read_run_state

ENDPOINTS_VARIABLE = "QUORATE_ENDPOINTS"
ADMIN_VARIABLE = "QUORATE_GATEWAY_ADMIN"
TOKEN_FILE_VARIABLE = "QUORATE_TOKEN_FILE"  # noqa: S105 - a variable's name
TOKEN_VARIABLE = "QUORATE_TOKEN"  # noqa: S105 - a variable's name
GATEWAY = "gateway's admin API"
HOW_TO_START = "Start it with: make up (or: quorate up). Or name one that runs elsewhere: see --help."


@dataclass(frozen=True, slots=True)
class Target:
    """`endpoints`: base URLs without a slash at the end, in the order in which they are tried; `what` they are."""

    endpoints: tuple[str, ...]
    token: str | None
    what: str = "control plane"


def find_target(endpoints: str | None, token_file: Path | None, environment: Mapping[str, str] = os.environ) -> Target:
    """The control plane to talk to. Raises Unavailable when none is named and none runs here."""
    named = endpoints or environment.get(ENDPOINTS_VARIABLE)
    if named:
        return Target(parse_endpoints(named), _named_token(token_file, environment))
    state, token = _local_run(token_file, environment)
    return Target(tuple(state.endpoints), token)


def find_gateway(admin: str | None, token_file: Path | None, environment: Mapping[str, str] = os.environ) -> Target:
    """The gateway's admin API. Raises Unavailable when none is named and none runs here."""
    named = admin or environment.get(ADMIN_VARIABLE)
    if named:
        return Target(parse_endpoints(named), _named_token(token_file, environment), GATEWAY)
    state, token = _local_run(token_file, environment)
    return Target((state.admin,), token, GATEWAY)


def _local_run(token_file: Path | None, environment: Mapping[str, str]) -> tuple[RunState, str | None]:
    """What runs here, and the token for it."""
    layout = Layout(find_root())
    state = read_run_state(layout)
    if state is None:
        raise Unavailable(f"no platform runs here (looked in {layout.root})", advice=HOW_TO_START)
    own = _named_token(token_file, environment)
    if own is None and layout.token_file.exists():
        own = load_secret(layout.token_file)
    return state, own


def parse_endpoints(text: str) -> tuple[str, ...]:
    """`http://a:8501,http://b:8501`; a scheme may be left out. Raises InvalidRequest naming the one that is wrong."""
    found = [_endpoint(word.strip()) for word in text.split(",") if word.strip()]
    if not found:
        raise InvalidRequest(f"{text!r} names no endpoint; write http://host:port, several with commas between")
    return tuple(found)


def _endpoint(word: str) -> str:
    url = word if "://" in word else f"http://{word}"
    scheme, _, rest = url.partition("://")
    authority = rest.rstrip("/")
    if scheme not in ("http", "https") or not authority or any(char in authority for char in "/?#@ "):
        raise InvalidRequest(f"{word!r} is no endpoint; write http://host:port")
    return f"{scheme}://{authority}"


def _named_token(token_file: Path | None, environment: Mapping[str, str]) -> str | None:
    path = token_file or (Path(environment[TOKEN_FILE_VARIABLE]) if environment.get(TOKEN_FILE_VARIABLE) else None)
    if path is not None:
        return load_secret(path)
    return environment.get(TOKEN_VARIABLE) or None
