"""Networks that methods share, each rebuilt from a small JSON-able description.

Every network carries ``architecture``: ``{"name": ..., parameters}``; :func:`build` turns one back into a module.
Weights travel apart from it, as safetensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
N = TypeVar("N", bound=type[nn.Module])


def network(name: str) -> Callable[[N], N]:
    """Class decorator: make a network rebuildable under `name`.

    The class's ``__init__`` arguments are recorded in ``architecture``; they must be JSON values
    or networks that carry an ``architecture`` themselves. Around a network that carries none the new one
    works as well, but carries none either.
    """

    def enter(cls: N) -> N:
        original = cls.__init__

        def recording_init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            names = original.__code__.co_varnames[1 : 1 + len(args)]
            given = dict(zip(names, args, strict=True)) | kwargs
            original(self, *args, **kwargs)
            nested = [value for value in given.values() if isinstance(value, nn.Module)]
            if type(self) is cls and all(hasattr(module, "architecture") for module in nested):
                parameters = {key: _described(value) for key, value in given.items()}
                self.architecture = {"name": name, **parameters}  # type: ignore[assignment]

        recording_init.__wrapped__ = original  # type: ignore[attr-defined]
        cls.__init__ = recording_init  # type: ignore[method-assign]
        _BUILDERS[name] = cls
        return cls

    return enter


def _described(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return copy.deepcopy(value.architecture)
    return list(value) if isinstance(value, tuple) else value


def build(architecture: dict[str, Any]) -> nn.Module:
    """The network (with fresh weights) that `architecture` describes.

    Raises
    ------
    ValueError
        If no network of that name exists.
    """
    parameters = {key: build(v) if isinstance(v, dict) and "name" in v else v for key, v in architecture.items()}
    name = parameters.pop("name")
    if name not in _BUILDERS:
        raise ValueError(f"There is no network {name!r}. Known: {', '.join(sorted(_BUILDERS))}.")
    return _BUILDERS[name](**parameters)


from models.networks import autoencoder, convnet, denoiser, heads, mlp, nin, pair_encoder, pointnet, resnet, unet, vae  # noqa: E402, F401  (they enter themselves)
