"""How the plots of this project look: one hue, deeper with more hash rounds.

What is not ours is grey; lines are named at their right ends; there is no frame and no
background, so that they can be read on light and on dark pages.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

INK = '#7d8590'
HUE = '#2f81f7'
_LIGHTEST, _DEEPEST = (0.47, 0.72, 1.0), (0.02, 0.33, 0.80)
_MOST_ROUNDS = 16
_HEIGHT = 3.0
_DOTS_PER_INCH = 200


def image(widths: Sequence[float] = (4.5,)) -> tuple[Any, list[Any]]:
    """A figure of matplotlib with a pair of axes of each width in inches, one height.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install -e '.[reports]', or leave out --output."
        ) from error
    empty = figure.Figure(figsize=(sum(widths), _HEIGHT), layout='constrained')
    several = empty.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for axes in several:
        for side, spine in axes.spines.items():
            spine.set_visible(side in ('left', 'bottom'))
            spine.set_color(INK)
        axes.set_facecolor('none')
        axes.tick_params(which='both', colors=INK, labelsize='small')
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_color(INK)
    return empty, list(several)


def depth_of(rounds: int) -> tuple[float, float, float]:
    """The colour of attention with so many hash rounds."""
    share = min(1.0, math.log2(rounds) / math.log2(_MOST_ROUNDS))
    red, green, blue = (
        light + share * (deep - light)
        for light, deep in zip(_LIGHTEST, _DEEPEST, strict=True)
    )
    return red, green, blue


def colour(name: str) -> Any:
    """The colour of a line: by its hash rounds; the hue for ours, grey for the rest."""
    found = re.search(r'LSH-(\d+)', name)
    if found:
        return depth_of(int(found[1]))
    return HUE if re.match('ours|reversible|local', name) else INK


def lines(
    axes: Any, named: Mapping[str, Sequence[tuple[float, float]]], **style: Any
) -> None:
    """Draws lines, each with its name at the right end, none on another."""
    drawn = {name: points for name, points in named.items() if points}
    for name, points in drawn.items():
        axes.plot(*zip(*points, strict=True), color=colour(name), lw=1.6, **style)
    ends = sorted((points[-1][1], name) for name, points in drawn.items())
    low, high = axes.get_ylim()
    logarithmic = axes.get_yscale() == 'log'
    scale = math.log if logarithmic else float
    step = (scale(high) - scale(low)) / 14
    place = -math.inf
    for value, name in ends:
        place = max(scale(value), place + step)
        axes.annotate(
            name,
            (max(x for x, _ in drawn[name]), math.exp(place) if logarithmic else place),
            xytext=(5, 0),
            textcoords='offset points',
            va='center',
            fontsize='small',
            color=colour(name),
            annotation_clip=False,
        )


def save(empty: Any, target: str) -> None:
    """Writes a figure as an image without background."""
    empty.savefig(target, dpi=_DOTS_PER_INCH, transparent=True)
