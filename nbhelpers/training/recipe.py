"""Recipe: one small typed object that says how a network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from nbhelpers.core.errors import ParameterError, check_choice, check_range

_CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "cosine", "plateau"),
    "keep": ("best", "last"),
    "precision": ("auto", "bf16", "fp32"),
    "select_by": ("balanced_accuracy", "accuracy", "macro_f1", "loss"),
    "loss": ("cross_entropy", "balanced_bce"),
    "mix": ("none", "mixup", "cutmix", "both"),
}


_RANGES = {
    "epochs": (1, 100_000),
    "batch_size": (1, 65_536),
    "learning_rate": (1e-9, 10),
    "backbone_rate": (0, 10),
    "clip_gradient": (0, 1e6),
    "weight_decay": (0, 10),
    "plateau_patience": (1, 100_000),
    "plateau_factor": (0, 1),
    "plateau_lowest_rate": (0, 10),
    "warmup_fraction": (0, 0.9),
    "label_smoothing": (0, 0.9),
    "class_weight_power": (0, 2),
    "ema_decay": (0, 0.99999),
    "input_px": (0, 8192),
    "early_stopping_patience": (0, 100_000),
    "test_time_augmentation": (1, 512),
    "mix_alpha": (0.01, 10),
}
_HIGHEST = {  # of an augmentation; the lowest is 0
    "rotation_degrees": 180,
    "scale": 0.9,
    "stretch": 0.9,
    "shear": 1,
    "shift": 0.5,
    "brightness": 0.9,
    "contrast": 0.9,
    "gamma": 2,
    "noise": 0.5,
    "blur_px": 5,
    "elastic_px": 64,
    "section_contrast": 0.9,
    "missing_sections": 0.5,
    "section_shift_px": 64,
}


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may be moved or changed, at random, each time it is seen. All zero:
    not at all.
    """

    rotation_degrees: float = 0.0  # up to this angle to either side
    scale: float = 0.0  # .1: between 90 % and 110 % of its size
    stretch: float = 0.0  # .1: height up to 10 % larger or smaller than width
    shear: float = 0.0  # .1: a vertical line leans by up to .1 px per px
    shift: float = 0.0  # .05: by up to 5 % of the width and height
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False  # by 0, 90, 180 or 270 degrees, for images without an upright
    # Gaussian blur over 3 x 3 px, of a width (standard deviation) from .1 px to this
    blur_px: float = 0.0
    brightness: float = 0.0  # .2: values times .8 to 1.2
    contrast: float = 0.0  # .1: distances from the image's mean times .9 to 1.1
    gamma: float = 0.0  # .2: values to the power of 1/1.2 to 1.2
    noise: float = 0.0  # .05: Gaussian noise of a width up to 5 % of the full range of values
    # for volumes only, see CubePreparation
    flip_depth: bool = False  # the sections in reverse order
    # pixels of a section move smoothly, by up to this, in px as the network sees them
    elastic_px: float = 0.0
    # .1: each section's distances from its mean times .9 to 1.1, and its mean too
    section_contrast: float = 0.0
    # .05: each section is lost at a chance of 5 %: black, or the mean of its neighbours
    missing_sections: float = 0.0
    # each section slips sideways by up to this, in px as the network sees them
    section_shift_px: float = 0.0

    def __post_init__(self):
        for name, high in _HIGHEST.items():
            check_range(f"augmentation {name}", getattr(self, name), 0, high)
        if 0 < self.blur_px < 0.1:
            raise ParameterError(
                "augmentation blur_px",
                f"{self.blur_px} is less than the narrowest blur.",
                "Give 0 or a number from 0.1.",
            )

    @property
    def resamples(self) -> bool:
        """Whether pixels are interpolated, beyond mirror images and quarter turns."""
        return any((self.rotation_degrees, self.scale, self.stretch, self.shear, self.shift))

    @property
    def changes_tones(self) -> bool:
        return any((self.blur_px, self.brightness, self.contrast, self.gamma, self.noise))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained, but for the data and the seed."""

    name: str = "recipe"
    epochs: int = 40
    batch_size: int = 32
    optimizer: str = "adamw"  # "sgd" has a momentum of .9
    learning_rate: float = 1e-3
    # .1: the pretrained part of a network learns at a tenth of the rate of its head
    backbone_rate: float = 1.0
    # 0: never; 1: a longer gradient (norm over all weights) is cut to this length
    clip_gradient: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "cosine"
    # "plateau": after so many epochs in which the validation loss stands still the rate is
    # multiplied by the factor, but never falls below the lowest
    plateau_patience: int = 5
    plateau_factor: float = 0.5
    plateau_lowest_rate: float = 0.0
    warmup_fraction: float = 0.0  # of all steps, with a rate that rises in a straight line
    loss: str = "cross_entropy"  # or "balanced_bce"; see losses.py
    label_smoothing: float = 0.0
    class_weight_power: float = 0.0  # 0: none; 1: each class counts the same in the loss
    # "mixup" blends two training images, "cutmix" puts a box of one into the other; see mixing.py
    mix: str = "none"
    # of the Beta distribution of the shares: small, and most images stay nearly as they are
    mix_alpha: float = 0.4
    ema_decay: float = 0.0  # 0: none; .99: average the weights over about the last 100 steps
    augmentation: Augmentation = field(default_factory=Augmentation)
    input_px: int = 0  # images are resampled to this height and width; 0: as they are
    keep: str = "best"  # the epoch with the best validation score, or the last one
    select_by: str = "balanced_accuracy"  # the validation score
    early_stopping_patience: int = 0  # epochs without improvement; 0: never stop early
    # views per image when predicting; 1: the image itself, 2: and its mirror image
    test_time_augmentation: int = 1
    precision: str = "auto"  # bf16 where the processor has it
    channels_last: bool = True

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            check_choice(f"recipe {name}", getattr(self, name), allowed)
        for name, (low, high) in _RANGES.items():
            check_range(f"recipe {name}", getattr(self, name), low, high)
        if self.loss == "balanced_bce" and self.class_weight_power:
            raise ParameterError(
                "recipe class_weight_power",
                "the loss 'balanced_bce' balances the classes already.",
                "Set class_weight_power to 0, or choose another loss.",
            )

    def but(self, **changes) -> Recipe:
        """The same recipe with some fields changed; an unknown name is refused. A learning rate or
        batch size of 0 is the one there is.
        """
        unknown = set(changes) - {item.name for item in fields(self)}
        if unknown:
            raise ParameterError(
                "recipe",
                f"{sorted(unknown)} are no fields.",
                f"There are {[item.name for item in fields(self)]}.",
            )
        kept = ("learning_rate", "batch_size")
        changed = {name: new for name, new in changes.items() if new != 0 or name not in kept}
        return replace(self, **changed)

    @classmethod
    def from_dict(cls, written: Mapping) -> Recipe:
        """Read what :meth:`as_dict` wrote. Raises KeyError, and TypeError for an unknown field."""
        given = dict(written)
        given.pop("focal_gamma", None)  # of a loss that there was before; no kept network used it
        return cls(**given | {"augmentation": Augmentation(**written["augmentation"])})

    def as_dict(self) -> dict:
        """All fields that decide anything, by name."""
        found = asdict(self)
        if self.schedule != "plateau":
            # trainings and checkpoints from before there were these are found by what is here
            for name in ("plateau_patience", "plateau_factor", "plateau_lowest_rate"):
                del found[name]
        return found
