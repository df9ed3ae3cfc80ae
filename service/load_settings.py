"""The settings from flags, the environment and a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError, YamlConfigSettingsSource
from yaml import YAMLError

from service.setting_faults import fault
from service.settings import Settings


class BadSettings(Exception):
    """The settings are wrong. The message has a line for each fault."""


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Build the settings from flags (by field name), the environment, and a YAML file.

    Raises: BadSettings.
    """

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=config)

    if config is not None and not config.is_file():
        raise BadSettings(f"config: {config} is not a file")
    try:
        return Sources(**flags)
    except ValidationError as error:
        lines = (fault(each, Settings.model_fields, Settings.shown) for each in error.errors())
        raise BadSettings("\n".join(lines)) from error
    except (SettingsError, OSError, ValueError, YAMLError) as error:
        raise BadSettings(f"config: {error}") from error
