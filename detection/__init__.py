"""The fine-tuning stage."""

from intl_transfer import detectron2_compat

# Before any module of this package imports Detectron2.
detectron2_compat.install()
