"The stage: what is asked for, and the sentence that comes out"
import pytest

from raptor_nb.evaluation.acceptance import check
from raptor_nb.policy import EvaluationError
from raptor_nb.settings import load_config
from raptor_nb.understand import ablation_conditions, check_parts, sentence


def test_unknown_parts_are_refused():
    assert check_parts(" probing, scaling ") == ["probing", "scaling"]
    with pytest.raises(EvaluationError, match="no part 'salt'; known: probing, failures"):
        check_parts("probing, salt")


def test_one_condition_of_each_kind():
    names = ["clean", "noise 0.03", "force 0.1", "delay 20 ms", "2 m/s limit",
             "tilted up to 90°", "figure eight in 5.5 s"]
    assert list(ablation_conditions(load_config("full"))) == names


def test_the_sentence_says_what_was_found():
    name = "hover throttle read from the hidden state after 5 s, calm"
    rows = [check(name, .99, "R²", published=.985),
            check("flights lost, no limit", .0024, "share", published=.054, note="8 drones")]
    assert sentence(rows) == (
        "After five seconds hover throttle can be read from the student's hidden state with "
        "R² 0.99 (published policy: 0.98); it loses 0.2 % of flights on 8 drones "
        "(published policy: 5.4 %).")
    assert sentence(rows[:0]) == "0 numbers were found."
