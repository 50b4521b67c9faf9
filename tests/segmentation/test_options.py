"""The sections `evaluation` and `auxiliary`: what they refuse, and that a whole config is looked at."""

import pytest
from helpers.tiny import tiny_config

from cp2_jax.options import ConfigError
from cp2_jax.segmentation import options
from cp2_jax.segmentation.options import AuxiliaryOptions, EvaluationOptions


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": -1}, "evaluation.batch_size=-1: must be 0 or more"),
        ({"batch_size": 1.5}, "evaluation.batch_size=1.5: must be a whole number"),
        ({"programs": -2}, "evaluation.programs=-2"),
        ({"flip": 1}, "evaluation.flip=1: must be True or False"),
        ({"limit": -1}, "evaluation.limit=-1"),
        ({"resize": (512,)}, r"evaluation.resize=\(512,\): give two whole numbers above 0"),
        ({"window": (64, 64)}, r"evaluation.stride=\(\): must be between 1 and the window, \(64, 64\)"),
        ({"window": (64, 64), "stride": (65, 10)}, r"evaluation.stride=\(65, 10\)"),
        ({"ratios": ()}, r"evaluation.ratios=\(\): give one factor above 0 or more"),
        ({"ratios": (1.0, 0.0)}, r"evaluation.ratios=\(1.0, 0.0\)"),
    ],
)
def test_impossible_evaluations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationOptions(**changes)
    config = tiny_config()
    config.data.path = "somewhere"
    options.check(config)
    if not (changes.keys() & {"batch_size", "flip", "limit"}):  # the config itself keeps to the types
        config.evaluation.update(changes)
        with pytest.raises(ConfigError, match=message):
            options.check(config)


def test_a_saved_evaluation_is_read_with_lists_for_tuples():
    saved = {"evaluation": {"window": [8, 8], "stride": [4, 4], "ratios": [0.5, 1.0]}}
    assert EvaluationOptions.from_config(saved) == EvaluationOptions(window=(8, 8), stride=(4, 4), ratios=(0.5, 1.0))
    with pytest.raises(ConfigError, match=r"evaluation.windows: there is no such key \(did you mean window\?\)"):
        EvaluationOptions.from_config({"evaluation": {"windows": [8, 8]}})


def test_sizes_at_which_images_are_shown():
    assert EvaluationOptions().sizes((30, 40)) == [(30, 40)]
    assert EvaluationOptions(resize=(80, 60)).sizes((30, 40)) == [(60, 80)]
    assert EvaluationOptions(ratios=(0.5, 1.0)).sizes((30, 40)) == [(15, 20), (30, 40)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weight": -0.1}, "auxiliary.weight=-0.1: must be 0 or more"),
        ({"weight": 0.4, "stage": 4}, "auxiliary.stage=4: the backbone has 4 stages: use 0 to 3"),
        ({"stage": -1}, "auxiliary.stage=-1"),
        ({"channels": 0}, "auxiliary.channels=0: must be greater than 0"),
        ({"num_convs": 0.5}, "auxiliary.num_convs=0.5: must be a whole number"),
    ],
)
def test_impossible_auxiliary_heads_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AuxiliaryOptions.from_config({"auxiliary": changes}).check_stage(4)
    AuxiliaryOptions.from_config({"auxiliary": {"stage": 9}}).check_stage(4)  # without weight there is no such head


def shown(**changes):
    config = tiny_config(**changes)
    config.data.path = "images"
    return config


def test_scores_to_compare_with():
    options.check(shown(compare_with=(("paper", 77.6), ("scratch", 40))))
    for wrong in (("paper", 77.6), (("paper", "77.6"),), ((77.6, "paper"),), (("paper", float("nan")),)):
        with pytest.raises(ConfigError, match="compare_with=.*give pairs of words and a score in %"):
            options.check(shown(compare_with=wrong))


def test_trackers_are_checked_before_anything_runs():
    with pytest.raises(ConfigError, match="trackers='mlfow': there is no 'mlfow'"):
        options.check(shown(trackers="mlfow"))
