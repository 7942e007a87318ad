"""Sampling filters: functions that set the logits of excluded tokens to -inf.

Filters take logits or log-probabilities (rows, vocabulary) and can be chained. Each keeps the same
tokens as transformers' warper of that name, except that tokens tied at the edge are all kept. The
formulas are in `docs/decoding.md`.
"""

import math

import torch
from torch import Tensor

# Most sets that hold the wanted mass are much smaller, and sorting a vocabulary is slow.
_USUALLY_ENOUGH = 1024


def temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharpen (below 1) or flatten (above 1) the distribution."""
    return logits / temperature


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` most probable tokens (Fan et al., 2018, arXiv:1805.04833)."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, mass: float) -> Tensor:
    """Keep the nucleus: the smallest set of tokens that holds `mass` of the probability.

    Holtzman et al., 2020, arXiv:1904.09751.
    """
    return _keep_mass(logits, logits, mass)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep tokens that are at least `share` times as probable as the most probable one.

    Nguyen et al., 2024, arXiv:2407.01082.
    """
    least = logits.amax(dim=-1, keepdim=True) + math.log(share)
    return logits.masked_fill(logits < least, -torch.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose information is closest to the entropy, until they hold `mass`.

    Meister et al., 2023, arXiv:2202.00666.
    """
    log_probs = logits.log_softmax(dim=-1)
    entropy = -(log_probs * log_probs.exp()).nansum(dim=-1, keepdim=True)
    return _keep_mass(logits, -(log_probs + entropy).abs(), mass)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw a token for each row by inverting its cumulative distribution function.

    Args:
        logits: (rows, vocabulary).
        uniforms: (rows,) numbers in [0, 1).

    Returns:
        (rows,) token ids.
    """
    below = logits.softmax(dim=-1).cumsum(dim=-1)
    # Rounding may leave the last sum below 1; scaling by it keeps the search inside the row.
    return torch.searchsorted(below, uniforms[:, None] * below[:, -1:], right=True)[:, 0]


def _keep_mass(logits: Tensor, preference: Tensor, mass: float) -> Tensor:
    """Keep the most preferred tokens until they hold `mass`, and all that tie with the last."""
    least = _least_needed(logits.softmax(dim=-1), preference, mass, _USUALLY_ENOUGH)
    return logits.masked_fill(preference < least, -torch.inf)


def _least_needed(probabilities: Tensor, preference: Tensor, mass: float, width: int) -> Tensor:
    """Return the lowest preference (rows, 1) of the tokens needed to hold `mass`.

    Looks at the `width` most preferred tokens, and at more in rows where these do not suffice.
    """
    width = min(width, preference.shape[-1])
    preferred, tokens = preference.topk(width)
    held = probabilities.gather(-1, tokens).cumsum(dim=-1)
    last = (held < mass).sum(dim=-1, keepdim=True).clamp(max=width - 1)
    least = preferred.gather(-1, last)
    short = (held[:, -1] < mass).nonzero()[:, 0]
    if len(short) and width < preference.shape[-1]:
        least[short] = _least_needed(probabilities[short], preference[short], mass, 8 * width)
    return least
