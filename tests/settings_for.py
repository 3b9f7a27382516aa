"""Settings for tests: what a run has that is told nothing, and what the test says."""

from pathlib import Path
from typing import Any

from pytest_anchor.plugin.options import OPTIONS
from pytest_anchor.settings import Settings


def settings_for(folder: Path, /, **values: Any) -> Settings:
    """Settings of the run whose record is in *folder*."""
    defaults = {
        option.setting or name: option.check(name, option.default)
        for name, option in OPTIONS.items()
        if name != "run_id"
    }
    own = {"run_id": folder.name, "folder": folder, "owner": "main", "api_key": None, "local": False}
    own["mark_outcome"] = False  # few tests want its requests
    return Settings(**{**defaults, **own, **values})
