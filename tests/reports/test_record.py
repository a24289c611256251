"""The headline is made from what chapters recorded: the highest floor, and what "above" means."""

from __future__ import annotations

import pytest

from nbhelpers.core.errors import InputError
from nbhelpers.core.estimate import Estimate
from nbhelpers.reports.record import (
    COMPARE,
    DONE,
    MEND,
    UNSURE,
    WITH_WARNINGS,
    counted,
    headline_text,
    make_headline,
)


def record(**more) -> dict:
    estimate = Estimate(0.8, 0.75, 0.85, n=200)
    return {
        "result": {
            "name": "Accuracy",
            "score": "accuracy",
            "model": "TinyCNN",
            "estimate": estimate,
            "n_text": "200 spines of 20 neurons",
        },
        "floors": {
            "majority class": {"accuracy": Estimate(0.5), "auc": Estimate(0.99)},
            "shape features": {"accuracy": Estimate(0.7), "auc": Estimate(0.6)},
        },
        **more,
    }


def test_the_highest_floor_on_the_same_score_stands_beside_the_score():
    headline = make_headline(record())
    assert (headline.floor_name, headline.floor) == ("shape features", 0.7)
    assert headline.above_floor is True
    assert str(headline) == (
        "Accuracy 0.800 [0.750, 0.850], 200 spines of 20 neurons "
        "(highest floor 0.700, shape features). "
        "Yes: TinyCNN is above shape features by +0.100 [+0.050, +0.150]."
    )


def test_the_paired_difference_decides_where_there_is_one():
    near = record(differences={"shape features": Estimate(0.1, -0.01, 0.21)})
    assert make_headline(near).above_floor is False
    assert make_headline(near).answer == (
        "Not shown: TinyCNN may be no better than shape features, "
        "difference +0.100 [-0.010, +0.210]."
    )
    far = record(differences={"shape features": Estimate(0.1, 0.01, 0.19)})
    assert make_headline(far).above_floor is True
    # The difference to another floor says nothing about the highest one.
    other = record(differences={"majority class": Estimate(0.3, -0.1, 0.5)})
    assert make_headline(other).above_floor is True


@pytest.mark.parametrize(
    ("difference", "begins", "above"),
    [
        (Estimate(0.1, 0.05, 0.15), "Yes: TinyCNN is above shape features by +0.100", True),
        (
            Estimate(-0.1, -0.15, -0.05),
            "No: TinyCNN is below shape features, difference -0.100",
            False,
        ),
        (Estimate(0.0, -0.05, 0.05), "Not shown: TinyCNN may be no better", False),
        (
            Estimate(0.1, reason="not assessable: 2 groups"),
            "Not shown: not assessable: 2 groups",
            None,
        ),
    ],
)
def test_the_answer_follows_the_outcome(difference, begins, above):
    headline = make_headline(record(differences={"shape features": difference}))
    assert headline.answer.startswith(begins) and headline.above_floor is above
    assert headline.answer in str(headline)


def test_rivals_synthetic_images_and_leaks_are_part_of_the_answer():
    rivals = {"CNN": Estimate(0.2, 0.1, 0.3), "2.5D": Estimate(0.01, -0.02, 0.04)}
    answer = make_headline(record(rivals=rivals, synthetic=True)).answer
    assert answer.endswith(
        "; against 2.5D, which is no floor, +0.010 [-0.020, +0.040]; on synthetic images."
    )
    leaks = make_headline(record(split=[{"known_leak": "75 of 92"}])).answer
    assert leaks.startswith("Not shown: the split leaks")


def test_a_notebook_whose_question_is_another_one_answers_it_itself():
    own = {"answer": "no", "because": "1 of 4 networks failed a sanity check"}
    headline = make_headline(record(answer=own))
    assert headline.answer == (
        "No: 1 of 4 networks failed a sanity check; "
        "TinyCNN minus shape features +0.100 [+0.050, +0.150]."
    )


def test_a_floor_without_a_value_is_none():
    found = record()
    found["floors"] = {"random weights": {"accuracy": Estimate.undefined("one class only")}}
    headline = make_headline(found)
    assert headline.floor is None and headline.above_floor is None
    assert headline.answer == "Not shown: there is no floor to compare the score with."


def test_without_an_interval_nobody_says_above():
    found = record()
    found["result"]["estimate"] = Estimate(0.8, n=200)
    headline = make_headline(found)
    assert headline.above_floor is None and "[" not in str(headline)


def test_a_leak_and_the_worst_finding_are_said():
    leaks = record(
        split=[{"known_leak": "75 of 92 were trained on"}],
        audit={"verdict": "fail", "worst": "Copies stand in two parts."},
    )
    headline = make_headline(leaks)
    assert headline.name == "Accuracy, from a split that leaks"
    assert headline.worst_finding == "Copies stand in two parts."
    assert str(headline).endswith(" Audit: Copies stand in two parts.")


def test_new_images_that_mean_nothing_are_said_beside_the_score():
    unlike = record(new_images={"warning": "Most look unlike the training images."})
    assert str(make_headline(unlike)).endswith("New images: Most look unlike the training images.")
    assert make_headline(record(new_images={"warning": ""})).warning == ""


def new_images(given=24, predicted=24, flagged=0, low=0, warning="", own=True) -> dict:
    """Those of low confidence are others than those out of distribution, as far as there are."""
    return {
        "unflagged": max(0, predicted - (flagged or 0) - low),
        "own": own,
        "file": "evaluation.csv",
        "given": given,
        "predicted": predicted,
        "out_of_distribution": flagged,
        "low_confidence": low,
        "warning": warning,
    }


UNLIKE = "The classes given to them mean nothing."


@pytest.mark.parametrize(
    ("outcome", "said", "state", "next_steps"),
    [
        (
            {"predicted": 21, "flagged": 5, "low": 4},
            "Your 24 images: 21 predicted, 3 refused (could not be used), 5 out of distribution, "
            "4 of low confidence: see evaluation.csv.",
            DONE,
            "",
        ),
        ({}, "Your 24 images: 24 predicted: see evaluation.csv.", DONE, ""),
        (
            {"low": 12},
            "Your 24 images: 24 predicted, 12 of low confidence: see evaluation.csv.",
            DONE,
            "",
        ),
        (
            {"low": 13},
            "Your 24 images: 24 predicted, 13 of low confidence: see evaluation.csv.",
            WITH_WARNINGS,
            UNSURE,
        ),
        (
            {"predicted": 0},
            "Your 24 images: 0 predicted, 24 refused (could not be used): see evaluation.csv.",
            WITH_WARNINGS,
            MEND,
        ),
        (
            {"flagged": 24, "low": 24, "warning": UNLIKE},
            "Your 24 images: 24 predicted, 24 out of distribution, 24 of low confidence: "
            "see evaluation.csv.",
            WITH_WARNINGS,
            f"{UNLIKE} {COMPARE}",
        ),
        (
            {"predicted": 16, "flagged": 6},
            "Your 24 images: 16 predicted, 8 refused (could not be used), 6 out of distribution: "
            "see evaluation.csv.",
            WITH_WARNINGS,
            f"{MEND} {COMPARE}",
        ),
        (
            {"flagged": None},
            "Your 24 images: 24 predicted, too few training images to tell which are out of "
            "distribution: see evaluation.csv.",
            DONE,
            "",
        ),
        (
            {"given": 1, "predicted": 1},
            "Your 1 image: 1 predicted: see evaluation.csv.",
            DONE,
            "",
        ),
        (
            {"given": 1, "predicted": 0, "flagged": None},
            "Your 1 image: 0 predicted, 1 refused (could not be used): see evaluation.csv.",
            WITH_WARNINGS,
            MEND,
        ),
    ],
)
def test_what_became_of_the_users_images_comes_first(outcome, said, state, next_steps):
    headline = make_headline(record(new_images=new_images(**outcome)))
    assert (headline.users_images, headline.state) == (said, state)
    assert headline.warning == next_steps
    first = f"{said} {next_steps} ".replace("  ", " ")
    assert str(headline).startswith(f"{first}Accuracy 0.800 [0.750, 0.850]")
    assert "New images:" not in str(headline)


def test_examples_drawn_by_a_program_are_no_images_of_the_user():
    examples = new_images(flagged=24, warning=UNLIKE, own=False)
    headline = make_headline(record(new_images=examples))
    assert headline.users_images == "" and headline.state == DONE
    assert str(headline).endswith(f"New images: {UNLIKE}")


@pytest.mark.parametrize(
    ("data", "said", "state"),
    [
        (
            {"own": "folder", "n": 200, "left_out": 3},
            "Your labelled images: 203 given, 200 used, 3 left out.",
            DONE,
        ),
        (
            {"own": "folder", "n": 3, "left_out": 200},
            "Your labelled images: 203 given, 3 used, 200 left out.",
            WITH_WARNINGS,
        ),
        # what is left out of plates are files, fields and wells: no sum of them is what was given
        (
            {"own": "in_cell", "n": 200, "left_out": 3},
            "Your labelled images: 200 used, 3 left out.",
            DONE,
        ),
        ({"own": "", "n": 3, "left_out": 200}, "", DONE),
    ],
)
def test_own_labelled_images_are_counted_before_the_score(data, said, state):
    headline = make_headline(record(data=[data]))
    assert (headline.users_images, headline.state) == (said, state)
    assert str(headline).startswith(said)
    examples = new_images(flagged=24, warning=UNLIKE, own=False)
    both = make_headline(record(data=[data], new_images=examples))
    assert both.state == state  # examples have no part in it


def test_without_a_score_there_is_no_headline():
    with pytest.raises(InputError, match="no chapter recorded a score"):
        make_headline({"floors": {}})


def test_a_headline_of_an_older_run_is_still_read():
    old = {"name": "Accuracy", "value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    old |= {"floor_name": "majority class", "floor": 0.55}
    assert headline_text(old).endswith("(highest floor 0.550, majority class); NOT ABOVE ITS FLOOR")


@pytest.mark.parametrize(
    ("groups", "words"),
    [(24, "192 synapses of 24 neurons"), (192, "192 synapses"), (None, "192 synapses")],
)
def test_n_has_its_unit(groups, words):
    assert counted(192, groups, "synapses", "neurons") == words
