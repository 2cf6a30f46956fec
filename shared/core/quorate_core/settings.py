"""Typed settings of a process, from flags, then environment, then defaults; a bad one is named, never traced.

A process declares a subclass of `ProcessSettings` with its own environment prefix and calls `from_command_line`.
"""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, PlainSerializer, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

from quorate_core.errors import SettingsError
from quorate_core.logs import LogFormat

_HOST_PORT = re.compile(r"^(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):(?P<port>\d{1,5})$")


class HostPort:
    """`host:port`, with IPv6 hosts in brackets. Port 0 asks for a free port where one is bound."""

    # A plain class and no tuple or dataclass: settings libraries read those from JSON, and not from `host:port`.
    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostPort) and (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    def __repr__(self) -> str:
        return f"HostPort({str(self)!r})"

    @classmethod
    def parse(cls, text: Any) -> "HostPort":
        if isinstance(text, HostPort):
            return text
        match = _HOST_PORT.match(str(text))
        if match is None or int(match["port"]) > 65_535:
            raise ValueError(f"{text!r} is no address; write host:port, such as 127.0.0.1:8501")
        return cls(match["host"].strip("[]"), int(match["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than `localhost` counts as reachable by others."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


Address = Annotated[HostPort, BeforeValidator(HostPort.parse), PlainSerializer(str, return_type=str)]


class ProcessSettings(BaseSettings):
    """What every process has. Subclasses set `env_prefix` in their own `model_config`."""

    model_config = SettingsConfigDict(
        extra="ignore", cli_kebab_case=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    name: str
    """This process's name in logs, status and metrics, such as `node-1`."""
    data_dir: Path
    """Where this process keeps its files; made when it is not there."""
    log_format: LogFormat = LogFormat.TEXT
    log_level: str = "INFO"

    @classmethod
    def from_command_line(cls, program: str, arguments: list[str] | None = None) -> Self:
        """Settings from `arguments` (default: the process's own), then environment. `--help` explains and exits.

        Raises SettingsError with one line for each bad setting.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        try:
            return cls(_cli_parse_args=arguments, _cli_prog_name=program)  # type: ignore[call-arg]
        except ValidationError as error:
            raise SettingsError(_readable(error, cls.model_config.get("env_prefix", ""))) from error
        except PydanticSettingsError as error:
            raise SettingsError(str(error)) from error


def _readable(error: ValidationError, env_prefix: str) -> str:
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        flag, variable = "--" + field.replace("_", "-"), (env_prefix + field).upper()
        message = item["msg"].removeprefix("Value error, ")
        # A validator of the whole has no field of its own: its message names the flags.
        lines.append(f"{flag} (or {variable}): {message}" if field else message)
    return "\n".join(lines)
