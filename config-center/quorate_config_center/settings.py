"""The config center's own settings, from the environment of the node that it runs on."""

from typing import Annotated, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from quorate_core.errors import SettingsError

from quorate_config_center.history import VERSIONS_KEPT_DEFAULT

ENVIRONMENT_PREFIX = "QUORATE_CONFIG_CENTER_"


class ConfigCenterSettings(BaseSettings):
    """`versions_kept`: how many versions of a document are kept, the newest included; the same on all nodes."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX)

    versions_kept: Annotated[int, Field(ge=1, le=1_000)] = VERSIONS_KEPT_DEFAULT

    @classmethod
    def from_environment(cls) -> Self:
        """Raises SettingsError naming the variable."""
        try:
            return cls()
        except ValidationError as error:
            lines = (
                f"{ENVIRONMENT_PREFIX}{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}"
                for item in error.errors()
            )
            raise SettingsError("\n".join(lines)) from error
