"""Characters as pdflatex typesets them with no package but its own."""

from __future__ import annotations

import unicodedata

_SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\`{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\xa0": "~", "…": r"\ldots{}"},
    **{"–": "{--}", "—": "{---}", "‘": "{`}", "’": "'", "“": "{``}", "”": "{''}", "−": "$-$", "°": r"$^{\circ}$"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "œ": r"\oe{}", "Œ": r"\OE{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "å": r"\aa{}", "Å": r"\AA{}", "ı": r"\i{}"},
    **{each: f"$^{{{unicodedata.digit(each)}}}$" for each in "⁰¹²³⁴⁵⁶⁷⁸⁹"},
    **{each: f"$_{{{unicodedata.digit(each)}}}$" for each in "₀₁₂₃₄₅₆₇₈₉"},
}
_MATHS = {
    **{"±": "pm", "×": "times", "·": "cdot", "÷": "div", "≤": "leq", "≥": "geq", "≠": "neq", "≈": "approx"},
    **{"≡": "equiv", "∞": "infty", "∂": "partial", "∇": "nabla", "∈": "in", "→": "rightarrow"},
    **{"←": "leftarrow", "↔": "leftrightarrow", "√": "surd", "∑": "sum", "∏": "prod", "µ": "mu"},
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta"},
    **{"θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi"},
    **{"ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega"},
    **{"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma"},
    **{"Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega"},
}
_ACCENTS = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030c": "v", "\u0306": "u"},
    **{"\u0304": "=", "\u0307": ".", "\u030a": "r", "\u0327": "c", "\u030b": "H"},
}


def latex_letter(letter: str) -> str:
    """One character in LaTeX's text; U+ and its number, where there is no glyph of it."""
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter in _MATHS:
        return f"$\\{_MATHS[letter]}$"
    if letter.isascii():
        return letter
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii() and base.isalpha():
        return f"\\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"U+{ord(letter):04X}"
