"""A network of the same class with other widths or plain weights: a pruned one is saved as architecture and tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from models.base import isolated_seed
from models.networks import build
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier, folded_layer
from models.networks.mlp import MLPEncoder
from models.networks.resnet import ResNetEncoder


def resized_architecture(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture of `network` with the widths that the tensors of `state` have.

    Parameters
    ----------
    network : nn.Module
        Carries an ``architecture``.
    state : mapping of str to Tensor
        Named like its state dict.
    """
    architecture = copy.deepcopy(dict(network.architecture))  # type: ignore[arg-type]
    if isinstance(network, SplitClassifier):
        inner = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        architecture["encoder"] = resized_architecture(network.encoder, inner)
        if "embedding.0.weight" in state:
            architecture["embedding_dim"] = len(state["embedding.0.weight"])
    elif isinstance(network, ConvEncoder):
        units = [sum(isinstance(unit, nn.Sequential) for unit in block.children()) for block in network.blocks]
        widths = [[len(state[f"blocks.{b}.{u}.0.weight"]) for u in range(count)] for b, count in enumerate(units)]
        plain = all(len(set(block)) == 1 and len(block) == architecture.get("units", 1) for block in widths)
        architecture["channels"] = [block[0] for block in widths] if plain else widths
    elif isinstance(network, MLPEncoder):
        architecture["widths"] = [len(state[f"blocks.{b}.0.weight"]) for b in range(len(network.blocks))]
    elif isinstance(network, ResNetEncoder):
        architecture["inner_widths"] = [
            len(state[f"blocks.{s}.{b}.conv1.weight"])
            for s, stage in enumerate(network.blocks)
            for b, _ in enumerate(stage.children())
        ]
    return architecture


def folded(network: nn.Module) -> nn.Module:
    """A copy with plain weights where they were parametrised (weight normalisation)."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, SplitClassifier):
            module.fold_head()
    for name, module in list(plain.named_modules()):
        if is_parametrized(module):
            plain.set_submodule(name, folded_layer(module))
    return plain


def rebuilt(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module | None:
    """A network of the class of `network` that holds `state`, in eval mode; None where its class cannot.

    Its ``architecture`` and state dict rebuild it anywhere.
    """
    if not hasattr(network, "architecture"):
        return None
    with isolated_seed(0):  # building draws first weights; the caller's generator must not notice
        try:
            smaller = build(resized_architecture(network, state))
        except KeyError:
            return None
    shapes = {name: tensor.shape for name, tensor in smaller.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in state.items()}:
        return None
    smaller.load_state_dict(dict(state))
    return smaller.eval()
