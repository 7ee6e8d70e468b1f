"""FID, sFID, Inception Score, precision, recall and FD-DINOv2 of many images against a reference.

The definitions are those of ADM's evaluator (arXiv 2105.05233): FID (1706.08500) on Inception's pooled features, sFID
(2103.03841) on its spatial ones, the Inception Score (1606.03498) as the mean over splits in the given order, precision and
recall (1904.06991) with 3 neighbours on the pooled features. FD-DINOv2 is 2306.04675's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmdit.errors import UserError
from mmdit.metrics.feature_networks import DinoFeatures, InceptionFeatures, to_tensor
from mmdit.metrics.frechet import FeatureStatistics, frechet_distance
from mmdit.metrics.image_sets import ImageSet

NEIGHBOURS = 3
SPLIT_SIZE = 5000  # of the Inception Score: ten splits of 50,000 images


class ImageFeatures:
    """Features of one set of images, from whichever of the two networks are there."""

    def __init__(self, inception: InceptionFeatures | None, dino: DinoFeatures | None) -> None:
        self.inception, self.dino = inception, dino
        self.pool, self.spatial, self.tokens = FeatureStatistics(), FeatureStatistics(), FeatureStatistics()
        self.pool_rows: list[torch.Tensor] = []
        self.logit_rows: list[torch.Tensor] = []
        self.num_images = 0

    def update(self, images: np.ndarray) -> None:
        """Add uint8 images (B, H, W, 3)."""
        self.num_images += len(images)
        if self.inception is not None:
            device = next(self.inception.parameters()).device
            features = self.inception(to_tensor(images, device))
            self.pool.update(features["pool"])
            self.spatial.update(features["spatial"])
            self.pool_rows.append(features["pool"].cpu())
            self.logit_rows.append(features["logits"].cpu())
        if self.dino is not None:
            self.tokens.update(self.dino(images))

    @classmethod
    def of(
        cls,
        images: ImageSet,
        *,
        inception: InceptionFeatures | None,
        dino: DinoFeatures | None,
        batch_size: int,
        progress: bool,
        what: str,
    ) -> ImageFeatures:
        """Features of a whole set."""
        features = cls(inception, dino)
        with tqdm(total=len(images), desc=what, unit="image", disable=not progress) as bar:
            for batch in images.batches(batch_size):
                features.update(batch)
                bar.update(len(batch))
        return features


def inception_score(logits: torch.Tensor, split_size: int = SPLIT_SIZE) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(mean KL(p(y|x) || p(y))), of logits (N, C) in their order.

    As in ADM's evaluator the last split holds what is left, be it little.
    """
    scores = []
    for part in logits.double().split(split_size):
        log_p = part.log_softmax(dim=1)  # (n, C)
        log_mean = log_p.logsumexp(dim=0) - math.log(len(part))
        scores.append(math.exp(float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean())))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(generated: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Shares of generated features (N, D) within the real ones' 3-neighbour balls, and of real ones within generated."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    result = prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=10000,
        save_cpu_ram=True,
        verbose=False,
    )
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def score_generation(
    samples: ImageSet,
    reference: ImageSet,
    *,
    inception: InceptionFeatures | None,
    dino: DinoFeatures | None,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure samples against a reference; what can't be measured is NaN.

    Args:
        samples: at least two images.
        reference: images, or statistics (mean and covariance of pooled and spatial features, as ADM publishes them), or
            both: then the statistics count for FID and sFID, the images for the rest.
        inception, dino: the networks; None = without the metrics of it.
        batch_size: images at a time.
        progress: show bars.

    Raises:
        UserError: fewer than two samples, or a reference with neither images nor statistics.
    """
    if len(samples) < 2:
        raise UserError(f"{samples.name}: holds {len(samples)} images: at least 2 are needed")
    if not len(reference) and not reference.statistics:
        raise UserError(f"{reference.name}: holds neither images nor statistics")
    if inception is not None and reference.statistics:
        _check_statistics(reference, inception)
    how: dict[str, Any] = {"inception": inception, "dino": dino, "batch_size": batch_size, "progress": progress}
    real = ImageFeatures.of(reference, **how, what="reference")
    made = ImageFeatures.of(samples, **how, what="samples")
    report: dict[str, Any] = dict.fromkeys(
        ("fid", "sfid", "inception_score", "inception_score_std", "precision", "recall", "fd_dinov2"), float("nan")
    )
    if inception is not None:
        given = reference.statistics
        report["fid"] = _distance(made.pool, real.pool, given.get("mu"), given.get("sigma"))
        report["sfid"] = _distance(made.spatial, real.spatial, given.get("mu_s"), given.get("sigma_s"))
        report["inception_score"], report["inception_score_std"] = inception_score(torch.cat(made.logit_rows))
        if min(real.num_images, made.num_images) > NEIGHBOURS:
            rows = torch.cat(made.pool_rows), torch.cat(real.pool_rows)
            report["precision"], report["recall"] = precision_recall(*rows)
    if dino is not None:
        report["fd_dinov2"] = _distance(made.tokens, real.tokens)
    report["num_samples"], report["num_reference_images"] = made.num_images, real.num_images
    report["reference_statistics"] = sorted(reference.statistics)
    return report


def _check_statistics(reference: ImageSet, inception: InceptionFeatures) -> None:
    """Refuse another network's statistics before hours of work."""
    image = to_tensor(np.zeros((1, 32, 32, 3), dtype=np.uint8), next(inception.parameters()).device)
    features = inception(image)
    for mean, covariance, kind in (("mu", "sigma", "pool"), ("mu_s", "sigma_s", "spatial")):
        found = [reference.statistics[name].shape for name in (mean, covariance) if name in reference.statistics]
        width = features[kind].shape[1]
        if found and found != [(width,), (width, width)]:
            raise UserError(
                f"{reference.name}: {mean} and {covariance} have shapes {', '.join(map(str, found))}: Inception's statistics "
                f"have ({width},) and ({width}, {width}), both or none"
            )


def _distance(
    made: FeatureStatistics,
    real: FeatureStatistics,
    mean: np.ndarray | None = None,
    covariance: np.ndarray | None = None,
) -> float:
    if mean is not None and covariance is not None:
        return frechet_distance(made.mean, made.covariance, mean, covariance)
    if real.count < 2:
        return float("nan")
    return frechet_distance(made.mean, made.covariance, real.mean, real.covariance)
