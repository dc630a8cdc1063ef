import pytest
import torch
from torch import nn

from mira.model import (
    BackboneSettings,
    HeadSettings,
    Mira,
    ModelSettings,
    Network,
    ProjectionHead,
    Prototypes,
    create_backbone,
    default_statistics,
    normalise,
    update_teacher,
)

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


@pytest.mark.parametrize(
    ("name", "options", "crop", "channels"),
    [
        ("resnet18", SMALL, 28, 1),
        ("resnet18", SMALL, 64, 3),
        ("resnet10t", {}, 32, 3),
        ("vit_tiny_patch16_224", {"depth": 2}, 32, 1),
        ("convnext_atto", {"depths": [1, 1, 1, 1]}, 32, 3),
        ("efficientnet_b0", {}, 48, 3),
        ("mobilenetv3_small_050", {}, 64, 3),
        ("vit_tiny_patch16_224", {"depth": 1}, 72, 3),
    ],
)
def test_any_architecture_gives_pooled_features_for_every_crop_size(
    name: str, options: dict, crop: int, channels: int
) -> None:
    backbone = create_backbone(BackboneSettings(name=name, channels=channels, options=options), crop_size=crop)
    for size in (crop, 16):
        features = backbone(torch.randn(2, channels, size, size))
        assert features.shape == (2, backbone.num_features)


@pytest.mark.parametrize(("name", "sizes"), [("swin_tiny_patch4_window7_224", ()), ("convnext_atto", (16,))])
def test_an_architecture_that_does_not_take_the_sizes_is_refused_at_once(name: str, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"'{name}' does not take pictures of"):
        create_backbone(BackboneSettings(name=name, stem="standard"), crop_size=64, other_sizes=sizes)


def test_looking_at_the_width_leaves_no_trace() -> None:
    backbone = create_backbone(BackboneSettings(name="resnet18", options=SMALL), crop_size=32, other_sizes=(16,))
    assert backbone.training
    assert int(backbone.bn1.num_batches_tracked) == 0


def test_the_small_stem_keeps_the_resolution() -> None:
    sizes = {}
    for stem in ("standard", "small"):
        backbone = create_backbone(BackboneSettings(name="resnet18", stem=stem, options=SMALL), crop_size=32)
        sizes[stem] = backbone.eval().forward_features(torch.randn(1, 3, 32, 32)).shape[-1]
    assert sizes == {"standard": 1, "small": 4}
    with pytest.raises(ValueError, match="has no small stem"):
        create_backbone(BackboneSettings(name="efficientnet_b0", stem="small"), crop_size=32)


def test_an_option_that_the_architecture_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.backbone\.options.*colour"):
        create_backbone(BackboneSettings(name="resnet18", options={"colour": 3}), crop_size=64)


def test_the_last_norm_of_each_block_starts_at_zero() -> None:
    backbone = create_backbone(BackboneSettings(name="resnet18"), crop_size=224)
    for block in (module for module in backbone.modules() if type(module).__name__ == "BasicBlock"):
        assert block.bn2.weight.abs().max() == 0


def test_head_is_the_published_one() -> None:
    head = ProjectionHead(2048, HeadSettings())
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [layer.bias is None for layer in head if isinstance(layer, nn.Linear)] == [True, True, False]
    assert [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)] == [
        (2048, 2048),
        (2048, 2048),
        (256, 2048),
    ]


def test_prototypes_see_directions_only() -> None:
    prototypes = Prototypes(5, 4).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = prototypes(x)
    assert expected.abs().max() <= 1
    with torch.no_grad():
        prototypes.weight.mul_(7.0)
    torch.testing.assert_close(prototypes(3.0 * x), expected)
    assert Prototypes(5, 4)(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.fixture
def model() -> Mira:
    settings = ModelSettings.model_validate(
        {
            "backbone": {"name": "resnet18", "options": SMALL},
            "head": {"hidden": 8, "width": 4},
            "prototypes": {"count": 3},
        }
    )
    return Mira(settings, crop_size=32).double()


def test_the_teacher_starts_as_the_student_and_moves_towards_it(model: Mira) -> None:
    before = [p.clone() for p in model.teacher.parameters()]
    for a, b in zip(model.student.parameters(), before, strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1.0)
    buffers = {name: b.clone() for name, b in model.teacher.named_buffers()}
    update_teacher(model, 0.9)
    for p, old in zip(model.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), 0.9 * old.detach() + 0.1 * (old.detach() + 1.0))
    for name, b in model.teacher.named_buffers():
        assert torch.equal(b, buffers[name])
    update_teacher(model, 1.0)
    torch.testing.assert_close(next(model.teacher.parameters()), before[0] + 0.1)


def test_batching_crops_differs_only_by_batchnorm(model: Mira) -> None:
    views = [torch.randn(4, 3, s, s, dtype=torch.float64) for s in (32, 32, 16, 16)]
    network: Network = model.student.eval()
    together, features = network(views, "by_size")
    single, first = network(views, "single")
    assert features.shape == (4, 16)
    torch.testing.assert_close(first, features)
    for a, b in zip(together, single, strict=True):
        torch.testing.assert_close(a, b)
    network.train()
    network.backbone.requires_grad_(False)
    a, b = network(views, "by_size")[0][0], network(views, "single")[0][0]
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise(channels: int) -> None:
    mean, std = default_statistics(channels)
    pictures = torch.randint(0, 256, (2, channels, 5, 6), dtype=torch.uint8)
    expected = (pictures.double() / 255 - torch.tensor(mean).double().view(-1, 1, 1)) / torch.tensor(std).double().view(
        -1, 1, 1
    )
    torch.testing.assert_close(normalise(pictures, mean, std).double(), expected, atol=1e-5, rtol=1e-5)
