"""Downstream-transfer and detection benchmark suite for INTL self-supervised pretraining."""

__version__ = "0.1.0"
