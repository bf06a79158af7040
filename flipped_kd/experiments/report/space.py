"""What the representations look like: alignment, uniformity, and the texts of the sample in two dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.spatial.distance import pdist

from ...evaluation.plots import BLACK, BLUE, GREEN, GREY, ORANGE, WHITE
from .data import SeedData
from .figures import Drawing, new_panel

# Okabe and Ito's palette with a marker each, for groups of texts that mean the same.
GROUP_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))


def representations(seed: SeedData) -> dict[str, np.ndarray]:
    """The vectors (n, D) of the sampled texts by what they are from: teacher, student before, after plain, flipped."""
    plain, flipped = (seed.students.get(name, {}) for name in ("llm_sft", "llm_flipped"))
    start = flipped or plain
    found = {
        "teacher": seed.shared.get("vectors"),
        "student, before training": start.get("before"),
        "plain fine-tuning, after": plain.get("after"),
        "flipped, after": flipped.get("after"),
    }
    # Without the seed's own arrays nothing tells which texts these are.
    return {title: vectors for title, vectors in found.items() if vectors is not None} if seed.shared else {}


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of texts that match, in [0, 4]: lower is better.

    Args:
        first: (n, D) unit vectors.
        second: (n, D) unit vectors of the texts that match them.

    Source:
        L_align with alpha = 2 of Wang and Isola, arXiv 2005.10242, section 4.1.1.
    """
    return float(((first.astype(np.float64) - second) ** 2).sum(1).mean())


def uniformity(vectors: np.ndarray) -> float:
    """log of the mean of exp(-2 |x - y|²) over pairs of different texts, in [-8, 0]: lower is better.

    Args:
        vectors: (n, D) unit vectors of distinct texts, n at least 2.

    Source:
        L_uniform of Wang and Isola, arXiv 2005.10242, section 4.1.2, with its t = 2.
    """
    return float(np.log(np.exp(-2 * pdist(vectors, "sqeuclidean")).mean()))


def spread_of(seed: SeedData) -> dict[str, tuple[float, float]]:
    """(alignment of the matching pairs, uniformity of the texts) of every representation."""
    found = representations(seed)
    if not found:
        return {}
    first, second = seed.shared["pairs"][seed.shared["pair_labels"] == 1].T
    return {title: (alignment(v[first], v[second]), uniformity(v)) for title, v in found.items()}


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, 2) on the first two principal components of (n, D), and the share of the variance of each (2,).

    The sign, which is arbitrary, is such that the largest coordinate of each is positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * sizes[:2]
    furthest = points[np.abs(points).argmax(0), np.arange(points.shape[1])]
    share = sizes[:2] ** 2 / max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    return points * np.where(furthest < 0, -1, 1), share


def draw_space(seed: SeedData) -> Iterator[Drawing]:
    """A plot for each representation: the same texts, the same colours."""
    for number, (title, vectors) in enumerate(representations(seed).items()):
        yield _draw(f"space_{number}", title, vectors, seed.shared["groups"])


def draw_spread(values: Mapping[str, tuple[float, float]]) -> Iterator[Drawing]:
    """Alignment against uniformity, a point for each representation."""
    if not values:
        return
    figure, panel = new_panel(
        "Alignment and uniformity", "uniformity (nats, lower is better)", "alignment (lower is better)"
    )
    styles = {
        "teacher": (BLACK, "^"),
        "student, before training": (GREY, "D"),
        "plain fine-tuning, after": (ORANGE, "s"),
    }
    for title, (aligned, uniform) in values.items():
        color, marker = styles.get(title, (BLUE, "o"))
        panel.plot([uniform], [aligned], marker, color=color, markersize=8, label=title)
    panel.margins(0.25)
    panel.legend(fontsize=8)
    yield Drawing(
        "alignment_uniformity", figure, "Alignment against uniformity of every representation: best is bottom left."
    )


def _draw(name: str, title: str, vectors: np.ndarray, groups: np.ndarray) -> Drawing:
    points, share = principal_components(vectors)
    if len(share) < 2:  # vectors of one number
        points, share = np.pad(points, ((0, 0), (0, 1))), np.pad(share, (0, 1))
    first, second = (f"component {place + 1} ({part:.0%} of the variance)" for place, part in enumerate(share))
    figure, panel = new_panel(title[0].upper() + title[1:], first, second, height=3.9)
    others = points[groups < 0]
    panel.scatter(others[:, 0], others[:, 1], s=9, color=GREY, alpha=0.35, linewidths=0, label="other texts")
    for group, (color, marker) in enumerate(GROUP_STYLES):
        chosen = points[groups == group]
        if len(chosen):
            panel.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=46,
                color=color,
                marker=marker,
                edgecolors=WHITE,
                lw=0.6,
                label=f"{group + 1}",
            )
    figure.legend(fontsize=8, loc="outside lower center", ncols=7, handletextpad=0.1, columnspacing=0.9)
    return Drawing(
        name,
        figure,
        f"{title[0].upper()}{title[1:]}: {len(points)} texts, the {groups.max(initial=-1) + 1} groups marked.",
    )
