"""The recurrence as published: recursive doubling over a padded batch.

Yue et al., WSDM 2024, arXiv 2310.02367, section 3.3. It goes through all rows once for each power
of two in their number; tests and benchmarks hold the other forms against it.
"""

import torch

from models.shapes import Channels, PaddedChannels, PaddedMask


def scan_doubling(u: PaddedChannels, lam: Channels, real: PaddedMask) -> PaddedChannels:
    """Run the recurrence from zero states over a left-padded batch.

    Blocks of 1, 2, 4, ... positions are joined in pairs: the right half of each pair takes the last
    state of its left half times 1 to block powers of lambda, unless that position is a pad.

    Args:
        u: inputs; those at pads count for their own position only.
        lam: eigenvalues, of u's dtype.
        real: False at pads, which all lie before their sequence's first True.

    Returns:
        The state at every position; at a pad it is u.
    """
    n, length, c = u.shape
    levels = (length - 1).bit_length()
    padding = (1 << levels) - length
    h = torch.cat((u.new_zeros(n, padding, c), u), 1)
    carries = torch.cat((real.new_zeros(n, padding), real), 1).to(u.dtype)
    powers = lam[None]  # (block, c): lambda^1 ... lambda^block
    for level in range(levels):
        block = 1 << level
        left, right = h.view(-1, 2, block, c).unbind(1)
        carry = left[:, -1:] * carries.view(-1, 2, block)[:, 0, -1:, None]
        h = torch.stack((left, right + powers * carry), 1).view(n, -1, c)
        powers = torch.cat((powers, powers * powers[-1]), 0)
    return h[:, padding:]
