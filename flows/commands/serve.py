"""``clearwell serve``."""

from __future__ import annotations

from infra.errors import ConfigurationError
from infra.model_registry import CHAMPION
from infra.project import Project
from infra.settings import settings


def serve_model(model: str, port: int, every: float) -> None:
    """Serve NAME@ALIAS until interrupted."""
    settings()
    from flows.commands.console import out
    from infra.serving import serve

    name, _, alias = model.partition("@")
    if not name:
        raise ConfigurationError(f"Name a model: `clearwell serve NAME@{CHAMPION}`, got {model!r}.")

    def say(address: str) -> None:
        out.print(f"{name}@{alias or CHAMPION} answers at {address}/invocations. Ctrl-C ends it.", soft_wrap=True)

    serve(Project().registry, name, alias or CHAMPION, port, every, say)
