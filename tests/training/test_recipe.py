"""A recipe refuses what it does not know, by name."""

import pytest

from nbhelpers.core.errors import ParameterError
from nbhelpers.training.recipe import Augmentation, Recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": "40"}, "epochs"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"schedule": "cosin"}, "schedule.*cosine"),
        ({"precision": "fp16"}, "precision.*bf16"),
        ({"batch_size": True}, "batch_size"),
        ({"epoch": 3}, r"\['epoch'\] are no fields"),
    ],
)
def test_wrong_values_are_named(changes, words):
    with pytest.raises(ParameterError, match=words):
        Recipe().but(**changes)


def test_augmentation_has_limits():
    with pytest.raises(ParameterError, match="rotation_degrees"):
        Augmentation(rotation_degrees=-1)


def test_the_settings_of_a_plateau_are_part_of_a_recipe_that_uses_them_only():
    plain = Recipe().but(plateau_patience=3)
    assert plain.as_dict() == Recipe().as_dict() and "plateau_factor" not in plain.as_dict()
    assert plain.but(schedule="plateau").as_dict()["plateau_patience"] == 3
