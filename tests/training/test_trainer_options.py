"""What pretrained networks need of the trainer: parts that stay, parts that learn slower, gradients
that are cut.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nbhelpers.core.imageset import ImageSet
from nbhelpers.training.augment import Transform
from nbhelpers.training.recipe import Recipe
from nbhelpers.training.trainer import ClassifierTask, ReducedRate, train

RECIPE = Recipe(
    epochs=2, batch_size=8, learning_rate=1e-2, schedule="constant", keep="last", precision="fp32"
)


class TwoParts(nn.Module):
    """A backbone and a head, as the trainer tells them apart."""

    def __init__(self, frozen=False):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(16, 2)
        self.backbone.requires_grad_(not frozen)

    def forward(self, images):
        return self.head(self.backbone(images))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    label = np.arange(32) % 2
    pixels = (draw.integers(0, 150, (32, 1, 12, 12)) + 100 * label[:, None, None, None]).astype(
        np.uint8
    )
    table = pd.DataFrame(
        {
            "id": [f"i{at}" for at in range(32)],
            "label": np.where(label, "bright", "dark"),
            "group": [f"g{at}" for at in range(32)],
        }
    )
    return ImageSet("toy", table, pixels, ("bright", "dark"), "none", True)


def run(folder, images, recipe, frozen=False):
    torch.manual_seed(0)
    network = TwoParts(frozen)
    start = copy.deepcopy(network.state_dict())
    trained = train(
        lambda: copy.deepcopy(network),
        images,
        (images.ids, images.ids[:0]),
        recipe,
        transform=Transform(recipe.augmentation),
        seed=1,
        work_folder=folder,
    )
    return {
        name: (value - start[name]).abs().max().item()
        for name, value in trained.network.state_dict().items()
    }


@pytest.mark.parametrize(("ema_decay", "rounding"), [(0.0, 0), (0.9, 1e-6)])
def test_frozen_parts_stay_as_they_were(tmp_path, images, ema_decay, rounding):
    moved = run(tmp_path, images, RECIPE.but(ema_decay=ema_decay, weight_decay=0.1), frozen=True)
    assert (
        max(moved["backbone.0.weight"], moved["backbone.0.bias"]) <= rounding
        and moved["head.weight"] > 1e-3
    )


def test_the_backbone_learns_at_its_own_rate(tmp_path, images):
    plain, slow, still = (
        run(tmp_path / str(rate), images, RECIPE.but(backbone_rate=rate))
        for rate in (1.0, 0.1, 0.0)
    )
    assert 0 < slow["backbone.0.weight"] < 0.3 * plain["backbone.0.weight"]
    assert still["backbone.0.weight"] == 0 and still["head.weight"] > 0


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_the_optimizer_is_the_one_asked_for(optimizer, kind):
    recipe = RECIPE.but(optimizer=optimizer)
    task = ClassifierTask(
        TwoParts(),
        recipe,
        Transform(recipe.augmentation),
        class_counts=np.array([1, 1]),
        total_steps=20,
        seed=0,
    )
    made = task.configure_optimizers()["optimizer"]
    assert type(made) is kind and made.param_groups[0].get("momentum") == (
        0.9 if optimizer == "sgd" else None
    )


def test_gradient_descent_trains(tmp_path, images):
    moved = run(tmp_path, images, RECIPE.but(optimizer="sgd", learning_rate=1e-2))
    assert moved["head.weight"] > 0 and moved["backbone.0.weight"] > 0


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_schedule_keeps_the_ratio_of_the_rates(schedule):
    recipe = RECIPE.but(backbone_rate=0.1, schedule=schedule, warmup_fraction=0.2)
    task = ClassifierTask(
        TwoParts(),
        recipe,
        Transform(recipe.augmentation),
        class_counts=np.array([1, 1]),
        total_steps=20,
        seed=0,
    )
    made = task.configure_optimizers()
    optimizer = made["optimizer"]
    scheduler = made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        head, backbone = (group["lr"] for group in optimizer.param_groups)
        assert backbone == pytest.approx(head / 10)
        rates.append(head)
    assert len(set(rates)) > 1


def falling(recipe, losses):
    """The rates of both groups after each epoch with these losses."""
    groups = [{"lr": 1.0}, {"lr": 0.1}]
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)])
    callback = ReducedRate(recipe, "validation_loss")
    found = []
    for loss in losses:
        trainer.callback_metrics = {"validation_loss": torch.tensor(loss)}
        callback.on_train_epoch_end(trainer, None)
        found.append([group["lr"] for group in groups])
    return np.array(found)


PLATEAU = RECIPE.but(
    schedule="plateau", plateau_patience=3, plateau_factor=0.1, plateau_lowest_rate=0.005
)


def test_the_rate_falls_after_patience_epochs_and_never_below_the_lowest():
    found = falling(PLATEAU, [1.0, 0.5, *[0.5] * 9])
    assert found[:, 0] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.005])
    assert found[:7, 1] == pytest.approx(found[:7, 0] / 10)
    assert found[-1, 1] == pytest.approx(0.005)


def test_a_loss_that_falls_by_less_than_the_least_stands_still():
    quick = PLATEAU.but(plateau_patience=2)
    assert falling(quick, [1.0, 0.99995, 0.99992])[-1, 0] == pytest.approx(0.1)
    assert falling(quick, [1.0, 0.999, 0.998])[-1, 0] == 1


def test_the_count_of_a_plateau_survives_a_resume():
    first = ReducedRate(PLATEAU, "validation_loss")
    first.waited = 2
    first.best = 0.5
    second = ReducedRate(PLATEAU, "validation_loss")
    second.load_state_dict(first.state_dict())
    assert (second.waited, second.best) == (2, 0.5)


def test_a_clipped_gradient_is_no_longer_than_asked():
    recipe = RECIPE.but(clip_gradient=0.5)
    task = ClassifierTask(
        TwoParts(),
        recipe,
        Transform(recipe.augmentation),
        class_counts=np.array([1, 1]),
        total_steps=20,
        seed=0,
    )
    (task.network(torch.rand(4, 1, 12, 12)).sum() * 1e4).backward()

    def length():
        return torch.stack([part.grad.norm() for part in task.network.parameters()]).norm().item()

    assert length() > 100
    task.on_before_optimizer_step(None)
    assert length() == pytest.approx(0.5, rel=1e-3)


def test_clipping_works_in_training_in_both_precisions(tmp_path, images):
    free = run(tmp_path / "free", images, RECIPE.but(optimizer="adamw"))
    for precision in ("fp32", "bf16"):
        moved = run(
            tmp_path / precision, images, RECIPE.but(clip_gradient=1e-9, precision=precision)
        )
        assert (
            0 < moved["head.weight"] < free["head.weight"]
        )  # Adam's own scale hides most of it, not all


def test_numbers_too_small_for_a_float_are_zero_while_training():
    import subprocess
    import sys

    # in a process of its own: the setting stays for the whole life of one
    code = (
        "from nbhelpers.core.seeds import seed_everything; import torch; seed_everything(1); "
        "print(float((torch.full((8,), 1e-38) * 1e-3).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 0


def test_auto_precision_trains_grouped_convolutions_in_fp32_where_that_is_faster(monkeypatch):
    from nbhelpers.models.resnet import PretrainedCNN
    from nbhelpers.models.tinycnn import TinyCNN
    from nbhelpers.training import trainer

    tiny = TinyCNN(1, 3)
    grouped = PretrainedCNN("mobilenet_v2", 2)
    monkeypatch.setattr(trainer, "default_device", lambda: "cpu")
    monkeypatch.setattr(
        trainer, "uses_bf16", lambda precision, device=None: precision in ("auto", "bf16")
    )
    monkeypatch.setattr(trainer, "processor_flags", lambda: "avx512_bf16")
    assert trainer.trains_in_bf16("auto", tiny) and not trainer.trains_in_bf16("auto", grouped)
    assert trainer.trains_in_bf16("bf16", grouped) and not trainer.trains_in_bf16("fp32", tiny)
    monkeypatch.setattr(trainer, "processor_flags", lambda: "avx512_bf16 amx_bf16")
    assert trainer.trains_in_bf16("auto", grouped)
    monkeypatch.setattr(trainer, "uses_bf16", lambda precision, device=None: False)
    assert not trainer.trains_in_bf16("auto", tiny)
