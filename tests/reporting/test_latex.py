"""What reports write for LaTeX, compiled by pdflatex."""

import shutil
import subprocess

import pytest

from lqray.experiment.foreign import in_latex
from lqray.experiment.labels import KeyLabels
from lqray.reporting.labels import Labels
from lqray.reporting.links import Link
from lqray.reporting.report import written
from tests.testing.reports import report
from tests.testing.stores import Store

NASTY = [
    "_a_%b&c#d$e{f}g~h^i\\j",
    "*10pt",
    "[10pt] x",
    "--flag ?`",
    "Müller, Čapek & Øre: α ≤ 2·β²…",
    "名 😀 \x1b[2J",
    "`\"'<|>",
]


@pytest.fixture
def compiled(tmp_path):
    """Compiles a document with such a body, and returns what pdflatex said."""
    if not shutil.which("pdflatex"):
        pytest.skip("there is no pdflatex: Debian's texlive-latex-base and, for booktabs, texlive-latex-recommended")

    def compile_it(body):
        head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        (tmp_path / "table.tex").write_text(f"{head}{body}\n\\end{{document}}\n", encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, said[-2000:]
        return said

    return compile_it


def test_every_table_of_a_report_compiles(tmp_path, compiled):
    store = Store(tmp_path)
    phases = {"time/encode_seconds": 0.1, "time/backward_seconds": 0.2, "wire/bytes_sent": 1000}
    for method in ("full_precision", "alq", *NASTY):
        for seed in (1, 2):
            accuracies = [0.5, float("inf") if method == NASTY[0] else 0.9]
            store.run(
                method,
                seed,
                accuracies,
                params={"model.name": "[resnet_18]"},
                metrics=phases,
                name=f"{seed}{method}"[:40],
            )
    labels = Labels({"quantizer.method": KeyLabels("method_% [x]", {"alq": NASTY[2], "full_precision": NASTY[4]})})
    texts = []
    for options in (
        {"target": 0.85},
        {"columns": ["interval", "method", "model.name", "best", "difference"]},
        {"group_by": ["model.name", "trial"]},
        {"links": [Link("10mbit:20ms", 1e7, 0.02)], "workers": [2]},
    ):
        made = report(store, **options)
        texts += [written(made, "latex"), written(type(made)(**{**vars(made), "labels": labels}), "latex")]
    said = compiled("\n\n".join(texts))
    assert "Missing" not in said
    assert "\n\\midrule\n{[}9" in texts[2]
    assert r"\_a\_\%b\&c\#d\$e\{f\}g\textasciitilde{}h\textasciicircum{}i\textbackslash{}j" in texts[0]


def test_every_character_compiles(compiled):
    letters = [
        chr(code) for code in (*range(0x100, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2100), 0x4E2D, 0x1F600)
    ]
    cells = [in_latex(text) for text in (*map(chr, range(0x100)), *letters, *NASTY)]
    compiled(
        "\n\n".join(
            f"\\begin{{tabular}}{{l}}\na \\\\\n{cell} \\\\ \\midrule\n{cell} \\\\\n\\end{{tabular}}" for cell in cells
        )
    )


def test_letters_stay_letters():
    assert in_latex("Müller, Čapek, Øre") == r"M\"{u}ller, \v{C}apek, \O{}re"
    assert in_latex("2·β² ≤ α") == r"2$\cdot$$\beta$$^{2}$ $\leq$ $\alpha$"
    assert in_latex("名") == "U+540D"
    assert in_latex("--x [y] *z") == "-{}-x [y] *z"
