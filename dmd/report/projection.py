"""Figures of the decoupled features in two dimensions: by modality and by label (the paper's Figs. 3 and 4)."""

from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from dmd.metrics import Scoring
from dmd.model.config import MODALITIES
from dmd.report.inference import SplitResult
from dmd.report.style import COLOURS, MARKERS, SEQUENTIAL, SPACE_TITLE, new_figure

Method = Literal["tsne", "pca"]
_LEAST_FOR_TSNE = 30
_PERPLEXITY = 30.0


def project(features: NDArray[np.floating], method: Method) -> NDArray[np.float64]:
    """Rows [N, n] in the plane [N, 2]; the same for the same features. Few rows are always projected by PCA."""
    centred = np.asarray(features, dtype=np.float64)
    if method == "pca" or len(centred) < _LEAST_FOR_TSNE:
        return PCA(n_components=2, random_state=0).fit_transform(centred)
    perplexity = min(_PERPLEXITY, (len(centred) - 1) / 3)
    return TSNE(n_components=2, init="pca", random_state=0, perplexity=perplexity).fit_transform(centred)


def projection_figure(result: SplitResult, method: Method) -> Figure:
    """Both spaces across; the same points by modality above and by label below."""
    figure = new_figure(9.2, 7.6)
    grid = figure.subplots(2, len(result.features))
    low, high, title = _colours(result.scoring)
    labels = result.feature_labels.sum(1) if result.scoring.kind == "multilabel" else result.feature_labels
    for column, (space, features) in enumerate(result.features.items()):
        points = project(features.reshape(-1, features.shape[-1]), method).reshape(len(MODALITIES), -1, 2)
        upper, lower = grid[0][column], grid[1][column]
        for number, modality in enumerate(MODALITIES):
            x, y = points[number].T
            upper.scatter(
                x, y, s=14, marker=MARKERS[number], color=COLOURS[number], alpha=0.75, linewidths=0, label=modality
            )
            shades = lower.scatter(
                x,
                y,
                s=14,
                marker=MARKERS[number],
                c=labels,
                cmap=SEQUENTIAL,
                vmin=low,
                vmax=high,
                alpha=0.85,
                linewidths=0,
            )
        upper.set_title(f"{SPACE_TITLE[space]}: by modality")
        lower.set_title(f"{SPACE_TITLE[space]}: by label")
        for axes in (upper, lower):
            axes.set(xticks=[], yticks=[])
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, markerscale=1.4)
    bar = figure.colorbar(shades, ax=list(grid[1]), label=title, shrink=0.8, aspect=25)
    if result.scoring.kind == "classes":
        bar.set_ticks(list(range(result.scoring.outputs)), labels=result.scoring.titles)
    return figure


def _colours(scoring: Scoring) -> tuple[float, float, str]:
    """The ends of the colour scale of labels, and what it shows."""
    if scoring.kind == "regression":
        return *scoring.limits, "true sentiment"
    if scoring.kind == "classes":
        return 0, scoring.outputs - 1, "true class"
    return 0, scoring.outputs, "number of emotions"
