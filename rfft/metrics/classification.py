"""Metrics of a classifier. N samples, K classes; class 0 is "available"."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rfft.metrics.verdict import NOT_FINITE, verdicts_of


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, k: int) -> NDArray[np.int64]:
    """Return the matrix [K,K] of counts: rows are the true classes, columns the predicted ones."""
    cells = np.asarray(labels) * k + np.asarray(predicted)
    return np.bincount(cells, minlength=k * k).reshape(k, k)


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under precision over recall, as a sum of steps, one per distinct score.

    It is 0 without positives.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, dtype=bool)
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_score]
    seen = np.flatnonzero(last_of_score) + 1
    recall_steps = np.diff(hits, prepend=0) / max(hits[-1], 1)
    return float((recall_steps * hits / seen).sum())


def classification_report(
    probabilities: ArrayLike, labels: ArrayLike, names: Sequence[str]
) -> dict[str, Any]:
    """Return accuracy, macro F1, per class precision, recall, F1 and AP, and the confusion matrix.

    Takes probabilities [N,K] and labels [N]. A ratio with nothing in its denominator is 0; a class without
    samples does not count in macro F1. A row that is not finite is wrong, whatever its label: it stands in no
    column of the confusion matrix, and is counted under "not_finite".
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    predicted = verdicts_of(torch.from_numpy(probabilities)).numpy()
    finite = predicted != NOT_FINITE
    probabilities = np.where(finite[:, None], probabilities, -1.0)  # the last ones in every ranking
    confusion = confusion_matrix(labels[finite], predicted[finite], len(names))
    hits, chosen = np.diag(confusion), confusion.sum(axis=0)
    support = np.bincount(labels, minlength=len(names))
    precision = hits / np.maximum(chosen, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + chosen, 1)
    classes = {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "ap": average_precision(probabilities[:, i], labels == i),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    }
    return {
        "accuracy": float(hits.sum() / max(len(labels), 1)),
        "macro_f1": float(f1[support > 0].mean()),
        "classes": classes,
        "confusion": confusion.tolist(),
        "not_finite": int((~finite).sum()),
    }


def agreement(first: ArrayLike, second: ArrayLike, k: int) -> tuple[float, float]:
    """Return the share of equal verdicts [N] and Cohen's kappa, which takes off what chance would give."""
    confusion = confusion_matrix(first, second, k)
    n = confusion.sum()
    share = np.trace(confusion) / n
    chance = (confusion.sum(axis=0) @ confusion.sum(axis=1)) / n**2
    kappa = (share - chance) / (1 - chance) if chance < 1 else 1.0
    return float(share), float(kappa)
