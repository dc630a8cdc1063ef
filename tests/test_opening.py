import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mira
from mira.evaluation.features import extract_features
from mira.evaluation.subject import Subject
from mira.model import Preprocessing, default_statistics
from mira.model.foreign.torchvision_models import create_torchvision_backbone
from mira.opening import open_checkpoint, open_subject
from mira.training.checkpoint import checkpoint_paths

import timm  # isort: skip
from torchvision import models  # isort: skip


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's own download cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_run_its_checkpoint_and_its_export_are_one_backbone(finished_run: Path, which: str, tmp_path: Path) -> None:
    expected = mira.load_backbone(finished_run, which=which)
    checkpoint = checkpoint_paths(finished_run / "checkpoints")[-1]
    export = mira.export(finished_run, tmp_path / "mine.safetensors", which=which)
    for path in (finished_run, checkpoint, export):
        opened = open_checkpoint(path, which=which)
        assert same_weights(opened.subject.backbone, expected)
        assert opened.subject.preprocessing == expected.preprocessing
        assert opened.subject.checkpoint.startswith(str(path.resolve()))
        assert opened.architecture == "resnet18"
        assert not opened.subject.backbone.training
        rebuilt = opened.subject.untrained()
        assert rebuilt.state_dict().keys() == expected.state_dict().keys()
    assert open_subject(finished_run, which=which).name == ("MIRA" if which == "teacher" else "MIRA, student")
    assert open_subject(finished_run).prototype_logits(torch.randn(2, 16)).shape == (2, 6)
    assert open_subject(export).name == "mine"


def test_our_checkpoint_starts_another_pretraining(finished_run: Path) -> None:
    from mira.model import BackboneSettings, create_backbone

    checkpoint = checkpoint_paths(finished_run / "checkpoints")[-1]
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    settings = BackboneSettings(name="resnet18", options=options, pretrained=str(checkpoint))
    assert same_weights(create_backbone(settings, crop_size=32), mira.load_backbone(finished_run))


def test_torchvision_weights_with_their_own_preprocessing(cache: Path) -> None:
    torch.manual_seed(0)
    theirs = models.shufflenet_v2_x0_5().eval()
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    torch.save(theirs.state_dict(), cache / weights.url.rpartition("/")[2])
    for spec in ("torchvision:shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1"):
        opened = open_checkpoint(spec)
        subject = opened.subject
        assert subject.name == spec
        assert subject.checkpoint == "torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1"
        assert opened.left_out == ("fc",)
        assert subject.preprocessing == Preprocessing(
            224, 256, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"
        )
        pictures = torch.randn(2, 3, 96, 96)
        with torch.inference_mode():
            torch.testing.assert_close(theirs.fc(subject.backbone(pictures)), theirs(pictures))


CLASSIFIERS = {
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "convnext_tiny": "classifier.2",
    "vit_b_16": "heads.head",
    "swin_t": "head",
    "vgg11": "classifier.6",
    "googlenet": "fc",
    "inception_v3": "fc",
    "regnet_y_400mf": "fc",
}


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifier_of_any_torchvision_network_goes(name: str) -> None:
    # Names need no memory; RegNets compute their widths as tensors and do.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        full = models.get_model(name, weights=None)
        backbone, classifier = create_torchvision_backbone(name)
    assert classifier == CLASSIFIERS[name]
    assert backbone.num_features == full.get_submodule(classifier).in_features
    assert full.state_dict().keys() - backbone.state_dict().keys() == {f"{classifier}.weight", f"{classifier}.bias"}


def test_a_torchvision_network_without_a_linear_classifier() -> None:
    with pytest.raises(ValueError, match="'squeezenet1_0' does not end in a linear classifier"):
        create_torchvision_backbone("squeezenet1_0")


def test_a_file_for_an_architecture_of_torchvision(tmp_path: Path) -> None:
    theirs = models.mobilenet_v3_small(num_classes=10).eval()
    torch.save(
        {"model": {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}}, tmp_path / "my.pt"
    )
    opened = open_checkpoint(tmp_path / "my.pt", architecture="torchvision:mobilenet_v3_small")
    assert (opened.architecture, opened.left_out) == ("mobilenet_v3_small", ("classifier.3.",))
    assert opened.subject.preprocessing == Preprocessing(224, 256, 3, *default_statistics(3), "bilinear")
    pictures = torch.randn(2, 3, 64, 64)
    theirs.classifier[3] = nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(opened.subject.backbone(pictures), theirs(pictures))
    with pytest.raises(
        ValueError, match=r"names begin with features.0, .*known by their shapes: resnet18, .*dino, swav"
    ):
        open_subject(tmp_path / "my.pt")
    # Without the library before it, timm's network of this name is not there, torchvision's is.
    assert not timm.is_model("mobilenet_v3_small")
    assert same_weights(open_subject(tmp_path / "my.pt", architecture="mobilenet_v3_small").backbone, theirs)


CACHED_TIMM = """
import sys
from pathlib import Path
import torch
from mira.opening import open_subject
import timm
from safetensors.torch import save_file

theirs = timm.create_model("test_vit").eval()
folder = Path(sys.argv[1]) / "hub" / "models--timm--test_vit.r160_in1k"
snapshot = folder / "snapshots" / "0123"
snapshot.mkdir(parents=True)
save_file(theirs.state_dict(), snapshot / "model.safetensors")
(folder / "refs").mkdir()
(folder / "refs" / "main").write_text("0123")
subject = open_subject("timm:test_vit")
pictures = torch.randn(2, 3, 160, 160)
theirs.reset_classifier(0)
with torch.inference_mode():
    torch.testing.assert_close(subject.backbone(pictures), theirs(pictures))
p = subject.preprocessing
assert (p.size, p.resize, p.mean, p.std) == (160, 168, (0.5,) * 3, (0.5,) * 3), p
assert not torch.equal(subject.untrained().state_dict()["cls_token"], theirs.state_dict()["cls_token"])
assert open_subject("timm:test_vit", size=96).backbone(torch.randn(1, 3, 96, 96)).shape == (1, 64)
try:
    open_subject("timm:test_resnet")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_timm_weights_from_the_cache_and_the_sentence_without_a_network(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CACHED_TIMM, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the weights of 'timm:test_resnet' are not on this machine and could not be fetched" in done.stdout


def test_an_untrained_network_depends_on_its_seed_alone() -> None:
    one, again, other = (open_subject(f"random:test_resnet{seed}").backbone for seed in ("", "@0", "@1"))
    assert same_weights(one, again)
    assert not same_weights(one, other)
    subject = open_subject("random:test_resnet@3")
    assert (subject.name, subject.checkpoint) == ("random:test_resnet@3", "random:test_resnet@3")
    assert subject.preprocessing.size == 160


def test_the_input_can_be_changed(finished_run: Path) -> None:
    own = open_subject(finished_run).preprocessing
    changed = open_subject(finished_run, size=64).preprocessing
    assert (changed.size, changed.resize, changed.mean) == (64, own.resize * 64 // own.size, own.mean)
    changed = open_subject(finished_run, resize=40, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)).preprocessing
    assert changed == Preprocessing(32, 40, 3, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert open_subject(finished_run, interpolation="bilinear").preprocessing.interpolation == "bilinear"
    with pytest.raises(ValueError, match="interpolation must be bicubic or bilinear, not 'nearest'"):
        open_subject(finished_run, interpolation="nearest")
    with pytest.raises(ValueError, match="1 <= size <= resize"):
        open_subject(finished_run, resize=16)
    with pytest.raises(ValueError, match="one value for each of 3 channels"):
        open_subject(finished_run, mean=(0.5,))


def test_a_size_that_the_network_does_not_take() -> None:
    with pytest.raises(ValueError, match="test_maxvit does not take pictures of 100 pixels .*leave out size"):
        open_subject("random:test_maxvit", size=100)


@pytest.mark.parametrize(
    ("checkpoint", "arguments", "message"),
    [
        ("nowhere.pth", {}, "there is no run and no weights file 'nowhere.pth'. Published weights are timm:NAME"),
        ("timm:resnet51", {}, "timm has no architecture 'resnet51'"),
        (
            "torchvision:resnet51",
            {},
            "torchvision has no classification network 'resnet51'; near it: resnet101, resnet152",
        ),
        ("torchvision:resnet50@V9", {}, "has no weights 'V9', only IMAGENET1K_V1, IMAGENET1K_V2"),
        ("random:resnet18@x", {}, "write random:NAME or random:NAME@SEED"),
        ("random:test_resnet", {"architecture": "resnet18"}, "says itself what it holds"),
        ("random:test_resnet", {"which": "both"}, "which must be 'teacher' or 'student', not 'both'"),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(checkpoint: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_subject(checkpoint, **arguments)


def test_the_architecture_of_a_run_is_its_own(finished_run: Path) -> None:
    with pytest.raises(ValueError, match="says itself what it holds"):
        open_subject(finished_run, architecture="resnet50")


def test_a_module_of_ones_own(picture_folder: Path) -> None:
    module = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    subject = Subject("mine", module.eval(), Preprocessing(32, 36, 3, *default_statistics(3)))
    source = mira.open_source(str(picture_folder), split="all", labels="folder", channels=3)
    features = extract_features(subject.backbone, source, preprocessing=subject.preprocessing)
    assert features.features.shape == (64, 48)
