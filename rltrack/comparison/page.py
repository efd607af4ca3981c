"""A comparison as pictures and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from rltrack.comparison.pictures import draw_curves, draw_distributions, draw_improvement
from rltrack.comparison.study import SEEDS_AS_UNITS, Study
from rltrack.files import replace_text
from rltrack.journal.values import info_title

PAGE = "comparison.html"
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.6rem 0 1.6rem;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.3rem .8rem;border-bottom:1px solid #8884;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
img{max-width:100%;background:#fff;border-radius:4px;margin:.4rem 0 1.2rem}
p.note{color:#777;font-size:.9em}
"""
_COLUMNS = (
    ("final_iqm", "final IQM"), ("final_interval", "95 % interval"), ("best_iqm", "best IQM"),
    ("best_interval", "95 % interval"), ("optimality_gap", "optimality gap"), ("env_steps", "env steps"),
    ("steps_to_threshold", "steps to threshold"), ("seconds_to_threshold", "seconds to threshold"),
    ("steps_per_second", "steps/s"), ("memory_mb", "memory (MB)"),
)  # fmt: skip


def write_comparison(study: Study, folder: Path, link: str | None = None) -> list[Path]:
    """Write pictures, page and data.

    Args:
        study: What to show.
        folder: Where; made if missing.
        link: Address of MLflow's page that compares the same runs.

    Returns:
        The files: the page first, then the pictures, then ``comparison.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(study, folder)
    page = folder / PAGE
    replace_text(page, as_html(study, pictures, link))
    data = folder / "comparison.json"
    data.write_bytes(orjson.dumps(study.to_record(), option=orjson.OPT_INDENT_2))
    return [page, *pictures, data]


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw learning curves, score distributions, and the matrix of improvement; of returns without a common scale, curves apart."""
    curves = [(group.label, group.curve()) for group in study.groups]
    if study.warning:
        return [draw_curves([curve], folder / f"learning_curve_{index}.png") for index, curve in enumerate(curves, 1)]
    drawn = [
        draw_curves(curves, folder / "learning_curves.png", study.threshold),
        draw_distributions(
            [(group.label, group.scores(by_seed=False)) for group in study.groups], folder / "score_distributions.png"
        ),
    ]
    if len(study.groups) > 1:
        matrix = [[value for value, _ in row] for row in study.improvement]
        drawn.append(draw_improvement([group.label for group in study.groups], matrix, folder / "improvement.png"))
    return drawn


def as_html(study: Study, pictures: Sequence[Path], link: str | None) -> str:
    """Return the page."""
    rows = study.rows()
    labels = [row["group"] for row in rows]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(', '.join(labels))}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(' · '.join(labels))}</h1>",
    ]
    if link:
        parts.append(f"<p><a href='{html.escape(link, quote=True)}'>The same runs in MLflow</a></p>")
    if study.warning:
        parts.append(f"<p><strong>{html.escape(study.warning)}</strong></p>")
    if study.note:
        parts.append(f"<p class=note>{html.escape(study.note)}</p>")
    parts.append(_table(["", *labels], [[title, *values] for title, values in shown_rows(rows)]))
    threshold = (
        f" Threshold and target of the optimality gap: {study.threshold:g}." if study.threshold is not None else ""
    )
    parts.append(
        "<p class=note>IQM: interquartile mean of the raw returns of an evaluation, over all seeds; interval: bootstrap, "
        f"stratified by seed.{threshold} Steps and seconds to the threshold: median over seeds; none if one does not reach it.</p>"
    )
    for picture in pictures:
        parts.append(_image(picture))
    if study.differences:
        parts += [
            "<h2>What differs</h2>",
            _table(["", *labels], [[k, *map(shown_setting, v)] for k, v in study.differences.items()]),
        ]
    if len(labels) > 1 and not study.warning:
        unit = "seeds" if study.by_seed else "episodes"
        parts.append("<h2>Probability of improvement</h2>")
        parts.append(
            _table(
                ["row better than column", *labels],
                [
                    [
                        label,
                        *(
                            "" if i == j else f"{p:.2f} ({low:.2f}–{high:.2f})"
                            for j, (p, (low, high)) in enumerate(row)
                        ),
                    ]
                    for i, (label, row) in enumerate(zip(labels, study.improvement, strict=True))
                ],
            )
        )
        few = "" if study.by_seed else f" With {SEEDS_AS_UNITS} seeds or more in each group, seeds are compared."
        parts.append(
            f"<p class=note>Over {unit} of the last evaluation, ties count half, with 95 % intervals.{few}</p>"
        )
    parts += ["<h2>Runs</h2>", _table(["", "runs"], [[row["group"], ", ".join(row["runs"])] for row in rows])]
    return "\n".join(parts) + "\n"


def shown_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return title and texts of each line of the table that has `Study.rows` as its columns."""
    infos = dict.fromkeys(key for row in rows for key in row["final_infos"])
    lines = [(title, [row[key] for row in rows]) for key, title in _COLUMNS]
    lines[4:4] = [(f"final {info_title(key)}", [row["final_infos"].get(key) for row in rows]) for key in infos]
    return [
        (title, [*map(shown_value, values)]) for title, values in lines if any(value is not None for value in values)
    ]


def shown_value(value: Any) -> str:
    """Return a cell's text."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"{value[0]:.5g} to {value[1]:.5g}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def shown_setting(value: Any) -> str:
    """Return a setting's text; one that a group does not have is a dash."""
    return "–" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(item)}</th>" for item in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(item)}</td>" for item in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{html.escape(path.stem.replace('_', ' '))}' src='data:image/png;base64,{data}'>"
