"""A report on a session as one HTML page that needs nothing else: no network, no script, no font.

Values in, text out; it measures nothing and writes no file. The easy mistake is to let a name or a
title in unescaped: everything that somebody typed goes through `escaped`. Should one slip through,
the page's own policy still lets no script run and nothing load.
"""

from __future__ import annotations

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state._text import clock_time
from langchain_rwkv_state.views.recall_section import recall_section
from langchain_rwkv_state.views.sections import (
    facts_section,
    health_section,
    log_section,
    maps_section,
    sizes_section,
)
from langchain_rwkv_state.views.session_report import SessionReport
from langchain_rwkv_state.views.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_page(report: SessionReport) -> str:
    """Returns the page, as UTF-8 text to be written to a file."""
    layout = report.layout
    name = escaped(report.info.session)
    shape = f"RWKV-{layout.version} state of {layout.n_layer} layers of {layout.n_embd}"
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
