"""Checks of a machine and of a cluster, for ``intl-transfer doctor --gpu`` and ``--cluster``."""
