"""The fine-tuning stage."""

import warnings

from intl_transfer import detectron2_compat

# Of deprecated functions that Detectron2 and fvcore call.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
warnings.filterwarnings("ignore", message=".*torch.meshgrid.*")
# Before any module of this package imports Detectron2.
detectron2_compat.install()
