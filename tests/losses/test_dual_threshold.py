"""The dual threshold: which pairs stay, at its edges."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flipped_kd.losses.dual_threshold import DualThreshold


def test_a_positive_stays_from_the_threshold_on_and_a_negative_below_it() -> None:
    gold = torch.tensor([1, 1, 1, 0, 0, 0])
    probability = torch.tensor([0.49, 0.5, 0.51, 0.49, 0.5, 0.51])
    selection = DualThreshold()(gold, probability)
    assert selection.positive.tolist() == [False, True, True, False, False, False]
    assert selection.negative.tolist() == [False, False, False, True, False, False]
    assert selection.kept.tolist() == [False, True, True, True, False, False]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_pair_is_judged_by_its_own_rule(
    pairs: list[tuple[int, float, bool]], tau_positive: float, tau_negative: float
) -> None:
    gold, probability, excluded = (torch.tensor(column) for column in zip(*pairs, strict=True))
    # In float64, so that the comparison is that of Python floats.
    selection = DualThreshold(tau_positive, tau_negative)(gold, probability.double(), excluded)
    for index, (label, p, out) in enumerate(pairs):
        positive = label == 1 and p >= tau_positive and not out
        negative = label == 0 and (p < tau_negative or tau_negative == 1) and not out
        assert selection.positive[index].item() == positive
        assert selection.negative[index].item() == negative


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_thresholds_zero_and_one_keep_everything(probability: float) -> None:
    gold = torch.tensor([[1, 0], [0, 1]])
    selection = DualThreshold(positive=0.0, negative=1.0)(gold, torch.full((2, 2), probability))
    assert selection.positive.equal(gold.bool())
    assert selection.negative.equal(~gold.bool())


def test_thresholds_one_and_zero_drop_everything_but_certain_positives() -> None:
    selection = DualThreshold(positive=1.0, negative=0.0)(torch.tensor([1, 1, 0]), torch.tensor([0.999, 1.0, 0.0]))
    assert selection.positive.tolist() == [False, True, False]
    assert not selection.negative.any()


def test_excluded_pairs_are_in_neither_class() -> None:
    gold, probability = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    excluded = torch.tensor([[False, True], [False, True]])
    selection = DualThreshold()(gold, probability, excluded)
    assert selection.kept.equal(~excluded)


def test_with_labels_takes_the_diagonal_back_and_leaves_the_rest() -> None:
    labels, probability = torch.tensor([1, 0]), torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    of_matrix = DualThreshold()(torch.diag(labels), probability)
    assert of_matrix.kept.tolist() == [[False, False], [True, False]]
    whole = of_matrix.with_labels(labels)
    assert whole.positive.tolist() == [[True, False], [False, False]]
    assert whole.negative.tolist() == [[False, False], [True, True]]
    of_pairs = DualThreshold()(labels, probability.diagonal()).with_labels(labels)
    assert of_pairs.positive.tolist() == [True, False] and of_pairs.negative.tolist() == [False, True]


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("name", ["positive", "negative"])
def test_thresholds_outside_the_unit_interval_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}_threshold={value}.*\[0, 1\]"):
        DualThreshold(**{name: value})


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gold.*\(2, 2\).*probability.*\(2,\)"):
        DualThreshold()(torch.eye(2), torch.ones(2))


def test_config_rebuilds_the_threshold() -> None:
    config = json.loads(json.dumps(DualThreshold(0.4, 0.7).get_config_dict()))
    rebuilt = DualThreshold(**config)
    assert (rebuilt.positive, rebuilt.negative) == (0.4, 0.7)
