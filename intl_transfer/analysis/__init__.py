"""The paper's own analyses, each one command: ``intl-transfer figure NAME``.

``docs/figures.md`` shows every figure, with what it says.
"""
