"""Writes a report on a session as one HTML page that needs no network, no script and no font.

Values in, text out; it measures nothing and writes no file. Everything that somebody typed goes
through `escaped`. Should a text slip through, the page's own policy still lets no script run and
nothing load.
"""

from __future__ import annotations

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state._text import clock_time, model_shape
from langchain_rwkv_state.views.report.recall_section import recall_section
from langchain_rwkv_state.views.report.sections import (
    facts_section,
    health_section,
    log_section,
    maps_section,
    sizes_section,
)
from langchain_rwkv_state.views.report.session_report import SessionReport
from langchain_rwkv_state.views.report.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_page(report: SessionReport) -> str:
    """Returns the page, as UTF-8 text to be written to a file."""
    layout = report.layout
    name = escaped(report.info.session)
    shape = f"State of an {model_shape(layout.version, layout.n_layer, layout.n_embd)}"
    sections = "\n".join(
        (
            facts_section(report),
            log_section(report),
            sizes_section(report),
            health_section(report),
            maps_section(report),
            recall_section(report.recall, report.fingerprint),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{name} \u00b7 session report</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Session report</p>
<h1>{name}</h1>
<p class="lead">{shape}, as it stood on {clock_time(report.made_seconds)}</p>
</header>
{sections}
<footer>
<p>Made by langchain-rwkv-state {escaped(report.version)}. The page holds figures and no word of the
conversation; it loads nothing and runs no script.</p>
</footer>
</main>
</body>
</html>
"""
