"""Shared networks: shapes, and rebuilding each from its description."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from models.base import isolated_seed
from models.networks import build
from models.networks.autoencoder import ConvAutoencoder, MLPAutoencoder, PairedAutoencoder
from models.networks.convnet import AverageConvNet, ConvEncoder, Normalised
from models.networks.heads import ProjectingClassifier, ProjectionHead, SplitClassifier
from models.networks.mlp import MLPEncoder
from models.networks.resnet import NAMED, ResNetEncoder, named_resnet
from models.networks.unet import UNet

IMAGES = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
SMALL = {
    "convnet": lambda: ConvEncoder([4, 6], units=2),
    "average-convnet": lambda: AverageConvNet(3, 1, (12, 12), width=4),
    "normalised": lambda: Normalised(ConvEncoder((4,)), [0.3], (0.5,)),
    "resnet": lambda: ResNetEncoder((1, 1), (4, 8), in_channels=1),
    "pre-activation": lambda: ResNetEncoder([1, 1], widths=[4, 8], in_channels=1, pre_activation=True),
    "mlp": lambda: MLPEncoder(144, (10, 5)),
    "mlp, standardising": lambda: MLPEncoder(144, (5,), standardise=True),
    "unet": lambda: UNet(2, widths=(4, 8, 8)),
    "projection": lambda: nn.Sequential(nn.Flatten(), ProjectionHead(144, (6, 3)))[1],
    "split": lambda: SplitClassifier(ConvEncoder((4,)), 3, embedding_dim=7),
    "split, bare": lambda: SplitClassifier(MLPEncoder(144, (5,)), 3, embedding_dim=None),
    "split, weight-normalised": lambda: SplitClassifier(ConvEncoder((4,)), 3, normalised_head=True),
    "projecting": lambda: ProjectingClassifier(ResNetEncoder((1,), (4,), in_channels=1), 3, projection_dim=5),
}


def apply(network):
    x = IMAGES.flatten(1) if isinstance(network, ProjectionHead) else IMAGES
    with torch.no_grad():
        out = network.eval()(x)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_rebuilt_from_its_description_and_weights(name):
    network = SMALL[name]()
    described = json.loads(json.dumps(network.architecture))
    again = build(described)
    assert type(again) is type(network)
    assert again.architecture == network.architecture
    again.load_state_dict(network.state_dict())
    assert torch.equal(apply(again), apply(network))


def test_defaults_need_no_description():
    assert ConvEncoder().architecture == {"name": "convnet"}
    assert SplitClassifier(ConvEncoder(), 4).architecture == {
        "name": "split-classifier",
        "encoder": {"name": "convnet"},
        "n_classes": 4,
    }


def test_a_description_is_a_copy():
    encoder = ConvEncoder((4,))
    whole = SplitClassifier(encoder, 2)
    encoder.architecture["channels"] = [99]
    assert whole.architecture["encoder"]["channels"] == [4]


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"no network 'transformer'\. Known: .*convnet.*, mlp"):
        build({"name": "transformer"})


def test_a_network_round_a_foreign_one_works_without_a_description():
    class Foreign(nn.Module):
        out_dim = 144

        def forward(self, x):
            return x.flatten(1)

    network = SplitClassifier(Foreign(), 3)
    assert apply(network).shape == (3, 3)
    assert not hasattr(network, "architecture")


def test_a_subclass_is_not_described_as_its_parent():
    class Wider(ConvEncoder):
        def __init__(self):
            super().__init__((8,))

    assert not hasattr(Wider(), "architecture")


def test_folding_keeps_the_function_and_leaves_a_plain_head():
    with isolated_seed(0):
        network = SplitClassifier(ConvEncoder((4,)), 3, normalised_head=True)
        network.head.parametrizations.weight.original0.data.mul_(2.5)
    before = apply(network)
    folded = network.fold_head()
    assert folded is network
    assert not is_parametrized(network.head)
    torch.testing.assert_close(apply(network), before)
    again = build(network.architecture)
    again.load_state_dict(network.state_dict())
    assert torch.equal(apply(again), apply(network))


def test_folding_a_plain_head_changes_nothing():
    network = SplitClassifier(ConvEncoder((4,)), 3)
    before, architecture = apply(network), dict(network.architecture)
    assert torch.equal(apply(network.fold_head()), before)
    assert network.architecture == architecture


def test_parameter_groups_hold_every_parameter_once():
    network = SplitClassifier(ConvEncoder((4,)), 3)
    groups = network.parameter_groups()
    assert list(groups) == ["backbone", "embedding", "head"]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(id(p) for p in network.parameters())


def test_encoders_tell_their_width_and_the_maps_of_their_stages():
    conv, residual, mlp = ConvEncoder((4, 6, 8)), ResNetEncoder((1, 1), (4, 8), 1), MLPEncoder(144, (10, 5))
    assert [tuple(m.shape[1:]) for m in conv.stages(IMAGES)] == [(4, 6, 6), (6, 3, 3), (8, 3, 3)]
    assert [tuple(m.shape[1:]) for m in residual.stages(IMAGES)] == [(4, 12, 12), (8, 6, 6)]
    assert [tuple(m.shape[1:]) for m in mlp.stages(IMAGES)] == [(10,), (5,)]
    for encoder in (conv, residual, mlp):
        assert encoder(IMAGES).shape == (3, encoder.out_dim)


def test_units_of_columns_do_not_matter_to_a_network_that_standardises():
    X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    with isolated_seed(0):
        network = MLPEncoder(3, (4,), standardise=True)
    answers = []
    for units in (torch.ones(3), torch.tensor([1.0, 1000.0, 0.01])):
        network.scale.reset_running_stats()
        network.train()
        for _ in range(100):
            network(X * units + 5 * units)
        answers.append(network.eval()(X * units + 5 * units))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-2, atol=1e-2)


def test_a_projecting_classifier_pools_the_last_map():
    network = ProjectingClassifier(ConvEncoder((4, 6)), 3, projection_dim=5).eval()
    logits, projection, maps = network(IMAGES)
    assert (logits.shape, projection.shape, len(maps)) == ((3, 3), (3, 5), 2)
    torch.testing.assert_close(logits, network.classifier(network.encoder(IMAGES)))


def test_a_projection_head_ends_without_activation():
    assert isinstance(ProjectionHead(3, (4, 5)).layers[-1], nn.Linear)
    assert ProjectionHead(3, (4, 5)).out_dim == 5


@pytest.mark.parametrize("name", NAMED)
def test_named_encoders_are_built(name):
    assert named_resnet(name, 1).stem[0].in_channels == 1


def test_resnet20_has_its_published_size():
    network = SplitClassifier(named_resnet("resnet20", 3), 10, embedding_dim=None)
    # 0.27 M in He et al., 2016a, table 6, whose parameter-free shortcuts here are 1x1 convolutions
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(0.27e6, rel=0.02)


def test_an_unknown_encoder_name_is_refused():
    with pytest.raises(ValueError, match=r"no encoder 'resnet99'\. Known: resnet20"):
        named_resnet("resnet99", 3)


@pytest.mark.parametrize("size", [(16, 16), (15, 9), (1, 1), (7, 32)])
@pytest.mark.parametrize("widths", [(4,), (4, 8), (4, 6, 8, 8)])
def test_the_unet_answers_at_the_size_of_its_input(size, widths):
    network = UNet(3, in_channels=2, widths=widths).eval()
    x = torch.rand(2, 2, *size)
    assert network(x).shape == (2, 3, *size)
    assert network.features(x).shape == (2, widths[0], *size)
    assert len(network.stages(x)) == len(widths)


def test_the_unet_learns_which_half_of_an_image_is_bright():
    with isolated_seed(0):
        network, x = UNet(2, widths=(4, 8)), torch.rand(8, 1, 9, 11)
        y = (x[:, 0] > 0.5).long()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        assert (network.eval()(x).argmax(1) == y).float().mean() > 0.95
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvAutoencoder((1, 12, 12), latent_dim=3),
        lambda: MLPAutoencoder((1, 12, 12), latent_dim=3, hidden=(20, 10), dropout=0.5),
        lambda: PairedAutoencoder(MLPEncoder(144, (3,)), MLPEncoder(3, (144,))),
    ],
)
def test_an_autoencoder_gives_short_codes_draws_samples_and_is_rebuilt(make):
    autoencoder = make().eval()
    codes = autoencoder.encoder(IMAGES)
    drawn = autoencoder.decoder(codes)
    assert codes.shape == (3, 3)
    assert drawn.numel() == IMAGES.numel()
    again = build(json.loads(json.dumps(autoencoder.architecture))).eval()
    again.load_state_dict(autoencoder.state_dict())
    assert torch.equal(again.decoder(again.encoder(IMAGES)), drawn)
    if not isinstance(autoencoder, PairedAutoencoder):
        assert drawn.shape == IMAGES.shape
        assert (drawn.min() > 0, drawn.max() < 1) == (True, True)


def test_dropout_stands_before_every_layer_of_the_encoder_and_none_of_the_decoder():
    autoencoder = MLPAutoencoder((6,), hidden=(5, 4), dropout=0.2)
    kinds = [type(layer).__name__ for layer in autoencoder.encoder]
    assert kinds == ["Flatten", *["Dropout", "Linear", "ReLU"] * 2, "Dropout", "Linear"]
    assert not any(isinstance(layer, nn.Dropout) for layer in autoencoder.decoder)


def test_images_that_can_not_be_halved_twice_are_refused():
    with pytest.raises(ValueError, match="square with sides divisible by 4, got 12x10"):
        ConvAutoencoder((1, 12, 10))
