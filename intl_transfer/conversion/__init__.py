"""Checkpoints of other tools in, Detectron2 weights out, verified."""
