"""How much of the say a mixture of experts may have, by what their own sites' held-out images told of them.

Needs no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Told(NamedTuple):
    """Of one site: its expert is better than the global model by `gain` in the mean over `num_images` that it held out,
    with that standard `spread` between images (their number below the root)."""

    num_images: int
    gain: float
    spread: float


def share_of_the_say(told: Iterable[Told]) -> float:
    """0 to 1: by how much it is likelier that the experts are better at home than that they are worse, taking the mean
    over all images of all sites as normal. The rest is the global model's. 1 where fewer than two images were told of:
    then nothing speaks against the experts either.

    >>> share_of_the_say([Told(4, 0.1, 0.0), Told(4, -0.1, 0.0)]), share_of_the_say([])
    (0.0, 1.0)
    >>> round(share_of_the_say([Told(8, 0.1, 0.0), Told(8, 0.0, 0.1)]), 3)  # .05 with an error of .0224: z is 2.236
    0.975
    """
    sites = [site for site in told if site.num_images]
    number = sum(site.num_images for site in sites)
    if number < 2:
        return 1.0
    mean = sum(site.num_images * site.gain for site in sites) / number
    squares = sum(site.num_images * (site.gain**2 + site.spread**2) for site in sites)
    error = math.sqrt(max(0.0, squares - number * mean**2) / (number - 1) / number)
    if mean <= 0 or error == 0:
        return float(mean > 0)
    return math.erf(mean / error / math.sqrt(2))
