"""Where in a checkpoint of published code the backbone lies: names, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mira.model.preprocessing import Interpolation


@dataclass(frozen=True)
class Branch:
    """One network of a checkpoint.

    Attributes:
        name: what its authors call it.
        backbone: what the names of the backbone's tensors begin with.
        projector: likewise of the projection head in front of the prototypes.
        prototypes: name of the tensor [K, D] of prototypes.
    """

    name: str
    backbone: str
    projector: str = ""
    prototypes: str = ""


@dataclass(frozen=True)
class Layout:
    """The names of one code's checkpoints, as `mira.model.weights.read_weights` gives them.

    Attributes:
        name: what to write for `layout`.
        teacher: the network that moves slowly; the same as `student` where there is only one.
        student: the network that the optimiser moves.
        marks: a file has this layout if names begin with each of these.
        left_out: beginnings of further names that a file of this layout carries and a backbone has no use for.
        vit_heads: attention heads of ViTs by their width, which their shapes do not tell.
        same_padding: convolutions pad as TensorFlow's "SAME", not as torchvision's ResNets.
        temperature: what the code divides cosine similarities with prototypes by.
        interpolation: with which the code resizes test pictures; torchvision's default unless it names another.
    """

    name: str
    teacher: Branch
    student: Branch
    marks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    vit_heads: Mapping[int, int] = field(default_factory=dict)
    same_padding: bool = False
    temperature: float = 1.0
    interpolation: Interpolation = "bilinear"


_TIMM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
_WHOLE = Branch("the network", "")
_BACKBONE = Branch("the network", "backbone.")
_SWAV = Branch("the network", "", "projection_head.", "prototypes.weight")

# A backbone alone, bare or in an entry "state_dict" or "model", with or without its classifier: torchvision, timm, and
# what DINO, Barlow Twins and VICReg publish as "backbone only". timm's training scripts keep a running average beside.
PLAIN = Layout("plain", _WHOLE, _WHOLE, left_out=("state_dict_ema.", "model_ema."))

# A checkpoint of this package. Its marks hold DINO's and more.
RUN = Layout(
    "run",
    Branch("teacher", "teacher.backbone."),
    Branch("student", "student.backbone."),
    marks=("teacher.backbone.", "student.backbone.", "prototypes."),
    left_out=("teacher.projector.", "student.projector.", "prototypes."),
)

LAYOUTS = (
    RUN,
    # github.com/movinghoon/MIRA, train.py: {"state_dict": Model with ModuleDicts `model` and `ema_model`}; tau_t 0.225.
    Layout(
        "mira",
        Branch("ema_model", "ema_model.encoder.", "ema_model.projector.", "ema_model.head.weight_v"),
        Branch("model", "model.encoder.", "model.projector.", "model.head.weight_v"),
        marks=("ema_model.encoder.", "model.encoder."),
        left_out=("model.projector.", "model.head.", "ema_model.projector.", "ema_model.head."),
        temperature=0.225,
    ),
    # github.com/facebookresearch/dino, main_dino.py (save_dict) and utils.py (MultiCropWrapper).
    Layout(
        "dino",
        Branch("teacher", "teacher.backbone."),
        Branch("student", "student.backbone."),
        marks=("teacher.backbone.", "student.backbone."),
        left_out=("teacher.head.", "student.head.", "dino_loss."),
        vit_heads=_TIMM_HEADS,
        interpolation="bicubic",  # eval_linear.py: interpolation=3
    ),
    # github.com/facebookresearch/swav, src/resnet50.py: one network with its head; also DeepCluster-v2, which
    # has several sets of prototypes. It pads by 1 and then by 2 in the first convolution, which is torchvision's 3.
    Layout(
        "swav",
        _SWAV,
        _SWAV,
        marks=("conv1.", "projection_head.", "prototypes."),
        left_out=("projection_head.", "prototypes."),
        temperature=0.1,
    ),
    # github.com/facebookresearch/moco, moco/builder.py: v1 and v2 differ in encoder_q.fc, the classifier's place.
    Layout(
        "moco",
        Branch("encoder_k", "encoder_k."),
        Branch("encoder_q", "encoder_q."),
        marks=("encoder_q.",),
        left_out=("queue",),
    ),
    # github.com/facebookresearch/moco-v3, moco/builder.py; vits.py: its ViT-S has 12 heads, timm's and DINO's have 6.
    Layout(
        "moco-v3",
        Branch("momentum_encoder", "momentum_encoder."),
        Branch("base_encoder", "base_encoder."),
        marks=("base_encoder.",),
        left_out=("predictor.",),
        vit_heads={384: 12, 768: 12},
    ),
    # github.com/yaox12/BYOL-PyTorch, model/basic_modules.py ("projetion" is theirs), and
    # github.com/sthalles/PyTorch-BYOL, trainer.py, with entries "online_network_state_dict" and "target_...".
    Layout(
        "byol",
        Branch("target_network", "target_network.encoder."),
        Branch("online_network", "online_network.encoder."),
        marks=("online_network.encoder.",),
        left_out=("online_network.projetion.", "target_network.projetion.", "predictor."),
    ),
    # github.com/ajtejankar/byol-convert, convert.py and resnet.py: DeepMind's online network in torchvision's names,
    # without BatchNorm's counters, and padded as in JAX.
    Layout("byol-jax", _WHOLE, _WHOLE, same_padding=True),
    # github.com/facebookresearch/barlowtwins, main.py.
    Layout(
        "barlow-twins",
        _BACKBONE,
        _BACKBONE,
        marks=("backbone.", "projector.", "bn."),
        left_out=("projector.", "bn."),
    ),
    # github.com/facebookresearch/vicreg, main_vicreg.py; its ResNet is padded as SwAV's.
    Layout("vicreg", _BACKBONE, _BACKBONE, marks=("backbone.", "projector."), left_out=("projector.",)),
    # github.com/vturrisi/solo-learn, solo/methods: whatever the method, a classifier is trained beside it.
    Layout(
        "solo-learn",
        Branch("momentum_backbone", "momentum_backbone."),
        Branch("backbone", "backbone."),
        marks=("backbone.", "projector.", "classifier."),
        left_out=(
            *("projector.", "predictor.", "classifier.", "prototypes.", "queue"),
            *("momentum_projector.", "momentum_classifier."),
        ),
    ),
    # github.com/lightly-ai/lightly, examples/pytorch_lightning.
    Layout(
        "lightly",
        Branch("backbone_momentum", "backbone_momentum."),
        Branch("backbone", "backbone."),
        marks=("backbone.", "projection_head."),
        left_out=("projection_head.", "prediction_head.", "projection_head_momentum.", "prototypes."),
    ),
    PLAIN,
)
