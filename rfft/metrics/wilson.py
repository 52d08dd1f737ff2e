"""Interval of a share."""

from math import sqrt

Z_95 = 1.959963984540054


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share of n trials; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    denominator = 1 + z * z / n
    low, high = (centre - spread) / denominator, (centre + spread) / denominator
    # At shares of 0 and 1 the bound is exact; rounding must not push it off.
    return low if successes else 0.0, high if successes < n else 1.0


def shown_share(hits: int, total: int) -> str:
    """Return a share of pictures, each counted by itself, as people read it, with its interval."""
    low, high = wilson_interval(hits, total)
    return f"{hits} of {total} pictures ({hits / total:.1%}, 95 % interval {low:.1%} to {high:.1%})"
