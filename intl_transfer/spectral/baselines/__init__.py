"""Other methods' losses, for the same engine: each from its paper, exact over ranks.

All take V >= 2 views (N, d) and pair view 0 with each of the others, as INTL does, averaging over
pairs; with two views they are their papers' losses. W-MSE pairs all views with each other, as its
paper does.
"""

from intl_transfer.spectral.baselines.barlow_twins import barlow_twins_loss
from intl_transfer.spectral.baselines.nt_xent import nt_xent_loss
from intl_transfer.spectral.baselines.vicreg import vicreg_loss
from intl_transfer.spectral.baselines.w_mse import w_mse_loss

__all__ = ["barlow_twins_loss", "nt_xent_loss", "vicreg_loss", "w_mse_loss"]
