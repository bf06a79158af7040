"""Which test texts the report looks at more closely: a bounded sample, the same for every run on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..data.keys import dataset_keys

SAMPLE_PAIRS = 200
GROUPS = 6


@dataclass(frozen=True)
class Sample:
    """Texts of some pairs.

    Attributes:
        texts: n distinct texts.
        pairs: (m, 2) int64, rows of `texts`.
        labels: (m,) int8, gold.
        groups: (n,) int64. Texts that matching pairs of the whole set join, directly or over others, are a group; the
            largest have the numbers 0 to 5, all other texts have -1.
    """

    texts: Sequence[str]
    pairs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def sample_pairs(pairs: datasets.Dataset) -> Sample:
    """At most 200 pairs: half of them matches, if there are so many of both classes, else as many as there are.

    A fifth is taken from the largest groups, so that there is something to see; the rest is drawn at random, by the
    same numbers each time.

    Args:
        pairs: columns text_a, text_b, label.
    """
    labels = np.asarray(pairs["label"], np.int8)
    keys, place = np.unique(np.concatenate(dataset_keys(pairs)), return_inverse=True)
    ends = place.reshape(2, -1)
    component = _components(ends[:, labels == 1], len(keys))
    rows = _rows(labels, component[ends[0]], _largest(component))
    used, first, pairs_of = np.unique(ends[:, rows].reshape(-1), return_index=True, return_inverse=True)
    part = pairs.select(rows)
    both = [*part["text_a"], *part["text_b"]]
    return Sample(
        texts=tuple(both[place] for place in first),
        pairs=pairs_of.reshape(2, -1).T.astype(np.int64),
        labels=labels[rows],
        groups=_numbered(component[used]),
    )


def _components(matches: np.ndarray, count: int) -> np.ndarray:
    """The connected component (count,) of each text; `matches` (2, p) are texts that match."""
    graph = coo_matrix((np.ones(matches.shape[1], bool), (matches[0], matches[1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _largest(component: np.ndarray) -> np.ndarray:
    """Those with the most texts, more than one, the largest first."""
    sizes = np.bincount(component)
    order = np.argsort(-sizes, kind="stable")[:GROUPS]
    return order[sizes[order] > 1]


def _rows(labels: np.ndarray, component: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The rows of the sample, ascending."""
    draw = np.random.default_rng(0)
    matches, others = (draw.permutation(np.flatnonzero(labels == label)) for label in (1, 0))
    quota = min(len(matches), max(SAMPLE_PAIRS // 2, SAMPLE_PAIRS - len(others)))
    # Each of the largest groups gives the same share; stable, so the rest stays in its random order.
    share = SAMPLE_PAIRS // (5 * GROUPS)
    preferred = np.zeros(len(matches), bool)
    for group in largest:
        preferred[np.flatnonzero(component[matches] == group)[:share]] = True
    matches = matches[np.argsort(~preferred, kind="stable")][:quota]
    return np.sort(np.concatenate([matches, others[: SAMPLE_PAIRS - quota]]))


def _numbered(component: np.ndarray) -> np.ndarray:
    """0 for the texts of the component with the most texts here, and so on; -1 outside the largest."""
    found, numbers = np.unique(component, return_inverse=True)
    largest = _largest(numbers)
    result = np.full(len(found), -1, np.int64)
    result[largest] = np.arange(len(largest))
    return result[numbers]
