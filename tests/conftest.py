from __future__ import annotations

from intl_transfer import detectron2_compat

# Test modules import Detectron2 at their top.
detectron2_compat.install()
