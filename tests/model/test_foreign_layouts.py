import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import foreign_files as files
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mira.model import BackboneSettings, create_backbone
from mira.model.foreign.layouts import LAYOUTS
from mira.model.foreign.selection import recognise, select
from mira.model.weights import load_backbone_weights, read_weights
from mira.opening import open_checkpoint, open_subject

import timm  # isort: skip

Writer = Callable[[dict[str, Tensor], dict[str, Tensor]], dict]

WRITERS: list[tuple[str, Writer]] = [
    ("mira", files.mira),
    ("dino", files.dino),
    ("swav", files.swav_published),
    ("swav", files.swav_checkpoint),
    ("swav", files.deepcluster),
    ("moco", files.moco_v1),
    ("moco", files.moco_v2),
    ("moco-v3", files.moco_v3),
    ("byol", files.byol_yaox12),
    ("byol", files.byol_sthalles),
    ("barlow-twins", files.barlow_twins),
    ("vicreg", files.vicreg),
    ("solo-learn", files.solo_learn),
    ("lightly", files.lightly),
    ("plain", files.plain),
    ("plain", files.torchvision_classifier),
    ("plain", files.timm_training),
]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return files.random_resnet(1)


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return files.random_resnet(2)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A path whose file goes with the test: they are large."""
    path = tmp_path / "weights.pth.tar"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(("layout", "write"), WRITERS, ids=[write.__name__ for _, write in WRITERS])
def test_a_published_layout_opens_to_the_bit(
    layout: str, write: Writer, teacher: nn.Module, student: nn.Module, file: Path
) -> None:
    torch.save(write(teacher.state_dict(), student.state_dict()), file)
    branches = next(known for known in LAYOUTS if known.name == layout)
    pictures = torch.randn(2, 3, 64, 64)
    for which, network in (("teacher", teacher), ("student", student)):
        opened = open_checkpoint(file, which=which)
        assert (opened.layout, opened.architecture) == (layout, "resnet18")
        if branches.teacher is branches.student:  # one network, which both words mean
            network = student
        expected, found = network.state_dict(), opened.subject.backbone.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        with torch.inference_mode():
            torch.testing.assert_close(opened.subject.backbone(pictures), network(pictures))
        # Everything in the file is either loaded or named.
        tensors = read_weights(file)[0]
        prefix = select(tensors, which=which).branch.backbone
        rest = [name for name in tensors if not name.startswith(opened.left_out)]
        assert len([name for name in rest if not name.removeprefix(prefix).startswith(opened.left_out)]) == len(
            expected
        )


def test_the_layouts_are_told_apart_in_safetensors_too(teacher: nn.Module, student: nn.Module, file: Path) -> None:
    path = file.with_name("moco.safetensors")
    content = files.moco_v2(teacher.state_dict(), student.state_dict())["state_dict"]
    save_file({name: tensor.clone() for name, tensor in content.items()}, path)
    subject = open_subject(path, which="student")
    assert subject.name == "moco, encoder_q"
    assert torch.equal(subject.backbone.state_dict()["conv1.weight"], student.state_dict()["conv1.weight"])
    path.unlink()


def test_the_stem_of_swav_and_vicreg_pads_as_torchvision_does(student: nn.Module) -> None:
    pictures = torch.randn(2, 3, 65, 64)
    padded = F.conv2d(F.pad(pictures, (1, 1, 1, 1)), student.conv1.weight, stride=2, padding=2)
    torch.testing.assert_close(padded, student.conv1(pictures))


def test_byol_from_jax_pads_as_jax(student: nn.Module, file: Path) -> None:
    tensors = {name: value for name, value in student.state_dict().items() if "num_batches" not in name}
    torch.save(tensors | {"fc.weight": torch.randn(10, 512), "fc.bias": torch.randn(10)}, file)
    with pytest.raises(ValueError, match="no num_batches_tracked.*layout='plain'.*'byol-jax'"):
        open_subject(file)

    def pad(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        # TensorFlow's "SAME": ceil(side / stride) outputs; what is odd goes to the end.
        missing = []
        for side in inputs[0].shape[:1:-1]:
            total = max((-(-side // 2) - 1) * 2 + module.side - side, 0)
            missing += [total // 2, total - total // 2]
        return F.pad(inputs[0], missing)

    oracle = files.random_resnet(2)
    for module in oracle.modules():
        strided = isinstance(module, nn.Conv2d | nn.MaxPool2d) and module.stride in (2, (2, 2))
        if strided and module.kernel_size != (1, 1):
            module.side = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
            module.padding = 0
            module.register_forward_pre_hook(pad)
    converted, plain = (open_subject(file, layout=layout).backbone for layout in ("byol-jax", "plain"))
    for side in (64, 75):
        pictures = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            torch.testing.assert_close(converted(pictures), oracle(pictures))
            torch.testing.assert_close(plain(pictures), student(pictures))
    assert not torch.allclose(plain(torch.ones(1, 3, 64, 64)), converted(torch.ones(1, 3, 64, 64)), atol=1e-3)


@pytest.mark.parametrize(("write", "temperature"), [(files.mira, 0.225), (files.swav_published, 0.1)])
def test_prototypes_come_along(write: Writer, temperature: float, student: nn.Module, file: Path) -> None:
    content = write(student.state_dict(), student.state_dict())
    torch.save(content, file)
    subject = open_subject(file, which="student")
    names = {name.removeprefix("module."): value for name, value in content.get("state_dict", content).items()}
    start = "model.projector." if "model.projector.0.weight" in names else "projection_head."
    projector = nn.Sequential(nn.Linear(512, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)).eval()
    projector.load_state_dict({name.removeprefix(start): v for name, v in names.items() if name.startswith(start)})
    prototypes = names.get("model.head.weight_v", names.get("prototypes.weight"))
    features = torch.randn(3, 512)
    expected = F.cosine_similarity(projector(features)[:, None], prototypes[None], dim=-1) / temperature
    torch.testing.assert_close(subject.prototype_logits(features), expected.detach())
    assert open_subject(file, which="teacher").prototype_logits is not None


def test_layouts_without_one_set_of_prototypes_have_none(student: nn.Module, file: Path) -> None:
    torch.save(files.deepcluster({}, student.state_dict()), file)
    assert open_subject(file).prototype_logits is None


def test_dino_vit_at_the_size_of_its_position_embeddings(file: Path) -> None:
    teacher, student = (timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval() for _ in range(2))
    torch.save(files.dino(teacher.state_dict(), student.state_dict()), file)
    pictures = torch.randn(2, 3, 64, 64)
    for which, network in (("teacher", teacher), ("student", student)):
        opened = open_checkpoint(file, which=which)
        assert opened.architecture == "vit_tiny_patch16_224"
        assert opened.subject.preprocessing.size == 64
        assert torch.equal(opened.subject.backbone.state_dict()["pos_embed"], network.state_dict()["pos_embed"])
        with torch.inference_mode():
            torch.testing.assert_close(opened.subject.backbone(pictures), network(pictures))
    assert open_subject(file, size=96).backbone(torch.randn(1, 3, 96, 96)).shape == (1, 192)


def test_the_published_dino_vit_file_is_opened_by_its_layout_or_architecture(file: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    torch.save(network.state_dict(), file)
    with pytest.raises(ValueError, match="shapes of vit_tiny_patch16_224.*number of attention heads.*DINO"):
        open_subject(file)
    opened = open_checkpoint(file, architecture="vit_tiny_patch16_224")
    assert opened.subject.preprocessing.resize == 256
    pictures = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(opened.subject.backbone(pictures), network(pictures))


def test_moco_v3_small_vit_has_twelve_heads(file: Path) -> None:
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12).eval()
    # One storage for both branches keeps the file small.
    torch.save(files.moco_v3(theirs.state_dict(), theirs.state_dict(), slot="head."), file)
    opened = open_checkpoint(file)
    assert (opened.layout, opened.branch) == ("moco-v3", "momentum_encoder")
    pictures = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(opened.subject.backbone(pictures), theirs(pictures))
    six_heads = BackboneSettings(name="vit_small_patch16_224", pretrained=str(file))
    with pytest.raises(ValueError, match="12 attention heads and the backbone has 6"):
        create_backbone(six_heads, crop_size=224)
    twelve = six_heads.model_copy(update={"options": {"num_heads": 12}})
    torch.testing.assert_close(create_backbone(twelve, crop_size=224).eval()(pictures), theirs(pictures))


@pytest.mark.parametrize("write", [files.moco_v2, files.barlow_twins, files.byol_sthalles])
def test_pretraining_continues_from_a_published_layout(
    write: Writer, teacher: nn.Module, student: nn.Module, file: Path
) -> None:
    torch.save(write(teacher.state_dict(), student.state_dict()), file)
    settings = BackboneSettings(name="resnet18", stem="standard", pretrained=str(file))
    start = create_backbone(settings, crop_size=64)
    expected = student if write is files.barlow_twins else teacher
    assert torch.equal(start.state_dict()["conv1.weight"], expected.state_dict()["conv1.weight"])


def test_what_does_not_fit_is_listed(student: nn.Module, file: Path) -> None:
    tensors = student.state_dict() | {"extra.weight": torch.zeros(2), "bn1.weight": torch.ones(32)}
    del tensors["layer1.0.bn1.bias"]
    torch.save(files.vicreg({}, tensors), file)
    for architecture in ("resnet18", None):
        with pytest.raises(ValueError, match="bn1.weight is") as caught:
            open_subject(file, architecture=architecture)
        message = str(caught.value)
        assert "layer1.0.bn1.bias is missing" in message
        assert "extra.weight is not part of the backbone" in message
        assert "bn1.weight is (32,), the backbone's is (64,)" in message
    with pytest.raises(ValueError, match=r"do not fit the backbone: .*layer1.0.conv3.weight is missing.* more"):
        open_subject(file, architecture="resnet50")


def test_a_name_beside_the_backbone_that_no_layout_knows_is_listed(student: nn.Module, file: Path) -> None:
    content = files.vicreg({}, student.state_dict())
    # Once the prefix of the backbone is gone, the second would take the place of the backbone's own.
    content["model"] |= {"module.adapter.weight": torch.zeros(2), "module.conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save(content, file)
    with pytest.raises(ValueError, match="the layout 'vicreg' has no names adapter.weight, conv1.weight"):
        open_subject(file)


def test_a_branch_that_is_not_there(student: nn.Module, file: Path) -> None:
    content = files.moco_v2({}, student.state_dict())
    content["state_dict"] = {name: v for name, v in content["state_dict"].items() if "encoder_k" not in name}
    torch.save(content, file)
    with pytest.raises(ValueError, match="'encoder_k.', the teacher of the layout 'moco'.*pass which='student'"):
        open_subject(file)
    assert open_subject(file, which="student").name == "weights, encoder_q"


def test_a_layout_that_cannot_be_told_or_is_not_the_files(student: nn.Module, file: Path) -> None:
    both = ["encoder_q.conv1.weight", "base_encoder.conv1.weight"]
    with pytest.raises(ValueError, match="fit the layouts moco and moco-v3; the names begin with encoder_q.conv1"):
        recognise(both)
    torch.save(student.state_dict(), file)
    with pytest.raises(ValueError, match="there is no layout 'simclr'. Known: auto, run, mira, dino"):
        open_subject(file, layout="simclr")
    with pytest.raises(ValueError, match="no names begin with 'encoder_k.'.*the names begin with conv1.weight"):
        open_subject(file, layout="moco")
    with pytest.raises(ValueError, match="which must be 'teacher' or 'student', not 'both'"):
        select({}, which="both")


@pytest.mark.parametrize("shape", ["bare", "entry"])
def test_a_file_that_would_run_code_is_refused(shape: str, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "made"),))

    path = tmp_path / "harmful.pth"
    content = {"teacher": {"backbone.conv1.weight": torch.ones(1)}, "args": Harmful()}
    torch.save(Harmful() if shape == "bare" else content, path)
    with pytest.raises(ValueError, match=r"it asks for \w+.mkdir, .* Nothing was run. If you trust it"):
        open_subject(path)
    path.write_bytes(pickle.dumps({"args": Harmful()}))
    with pytest.raises(ValueError, match="not a file of plain tensors: (?!Weights only load failed)"):
        open_subject(path)
    assert not (tmp_path / "made").exists()


def test_a_damaged_file(student: nn.Module, file: Path) -> None:
    torch.save(student.state_dict(), file)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="weights.pth.tar' is damaged"):
        open_subject(file)


def test_two_state_dicts_of_the_same_names(student: nn.Module, file: Path) -> None:
    torch.save({"model": student.state_dict(), "state_dict": student.state_dict()}, file)
    with pytest.raises(ValueError, match="holds several state dicts"):
        load_backbone_weights(student, file)
