"""Frechet distance of pictures' features to reference ones (FID, arXiv 1706.08500)."""

from torch import Tensor, nn

from rfft.metrics.library import torchmetrics


def fid(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of features [N,D] to reference features [M,D], of any network.

    Few pictures bias it upwards: compare models at equal N and M.
    """
    taken = nn.Identity()  # of features, not of pictures
    taken.num_features = features.shape[1]  # type: ignore[assignment]
    metric = torchmetrics("image.fid").FrechetInceptionDistance(feature=taken)
    metric.update(reference.float(), real=True)
    metric.update(features.float(), real=False)
    return float(metric.compute())
