"""Escapes text for LaTeX."""

from __future__ import annotations

import re
import unicodedata

_SPECIALS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "−": r"$-$", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "→": r"$\rightarrow$",
    "†": r"\textsuperscript{\dag}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "β": r"$\beta$", "λ": r"$\lambda$",
    "α": r"$\alpha$", "μ": r"$\mu$", "σ": r"$\sigma$", "τ": r"$\tau$", "–": "--", "—": "---",
    "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\dots{}", '"': "''",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "æ": r"\ae{}",
    "Æ": r"\AE{}",
}  # fmt: skip
# Commands that need no font or input encoding: available in the Type 1 fonts of every TeX.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


# Between two characters that TeX would print as one: `--name` has no dash.
_LIGATURES = re.compile(r"(?<=-)(?=-)|(?<=[`?!])(?=`)|(?<=')(?=')|(?<=,)(?=,)")


def escape_latex(text: str) -> str:
    """Escapes text for LaTeX; characters without a glyph in pdflatex become their code points.

    Letters are composed first: names from macOS have their accents apart.
    """
    parts = _LIGATURES.split(unicodedata.normalize("NFC", text))
    return "{}".join("".join(map(_character, part)) for part in parts)


def _character(character: str) -> str:
    if character in _SPECIALS:
        return _SPECIALS[character]
    if character < "\x7f":
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        base = {"i": r"\i", "j": r"\j"}.get(parts[0], parts[0])
        return rf"\{_ACCENTS[parts[1]]}{{{base}}}"
    plain = [c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)]
    if plain and all(c.isascii() for c in plain):
        return "".join(map(_character, plain))
    return f"[U+{ord(character):04X}]"
