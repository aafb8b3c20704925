"""Holds the style sheet of a report: light and dark, a phone and paper.

It names no address, since the page loads nothing. Colours stand here as classes and not in the
diagrams: what is not a class does not follow light and dark.
"""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5b6776; --rule: #dfe4ea;
  --trough: #eef1f4; --good: #1a7f4b; --warn: #9a6700; --bad: #b3261e; --link: #1f6f8b;
  --s0: #1f6f8b; --s1: #c8374a; --s2: #b7791f; --s3: #6b4fa0; --s4: #6b7785;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2028; --ink: #e6eaf0; --soft: #98a4b3; --rule: #2d3743;
    --trough: #242c36; --good: #4cc38a; --warn: #e2b340; --bad: #ff7b72; --link: #6cc0d8;
    --s0: #5fb8d3; --s1: #ff7b8a; --s2: #edae49; --s3: #b39ddb; --s4: #98a4b3;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "DejaVu Sans", sans-serif;
}
main { max-width: 1000px; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1, h2, h3 { line-height: 1.25; margin: 0; text-wrap: balance; }
h1 { font-size: 1.9rem; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-bottom: 0.9rem; }
h3 { font-size: 0.95rem; margin: 0 0 0.5rem; }
p { margin: 0 0 0.75rem; max-width: 68ch; }
p:last-child { margin-bottom: 0; }
.kicker {
  color: var(--soft); font-size: 0.78rem; letter-spacing: 0.09em; text-transform: uppercase;
}
.lead { color: var(--soft); margin: 0.35rem 0 0; }
header { margin-bottom: 1.5rem; }
section, footer { margin-top: 1.25rem; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 1.35rem 1.5rem 1.5rem;
}
footer, .soft { color: var(--soft); font-size: 0.85rem; }
code {
  font: 0.86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere;
}
p code { display: inline-block; max-width: 100%; }
dl.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 1rem 1.25rem; margin: 0;
}
.facts dt { color: var(--soft); font-size: 0.78rem; }
.facts dd { margin: 0; font-size: 1.06rem; font-variant-numeric: tabular-nums; }
.facts dd small { display: block; color: var(--soft); font-size: 0.78rem; }
.facts .wide { grid-column: 1 / -1; }
.badge {
  display: inline-block; border: 1px solid currentColor; border-radius: 99px;
  padding: 0.05rem 0.65rem; font-size: 0.85rem; font-weight: 600; margin-right: 0.5rem;
}
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.note { border-left: 3px solid var(--warn); padding-left: 0.8rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.tall { max-height: 34rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th, td {
  padding: 0.36rem 0.9rem 0.36rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums;
}
.grid th, .grid td { padding-right: 0.6rem; }
th:first-child, td:first-child, .left { text-align: left; }
th:last-child, td:last-child { padding-right: 0.25rem; }
tbody tr:last-child td { border-bottom: 0; }
thead th {
  color: var(--soft); font-weight: 600; font-size: 0.78rem; position: sticky; top: 0;
  background: var(--card);
}
tr.gone td { color: var(--soft); }
.grid {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem 2rem; align-items: start;
}
.wide-maps { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.95rem; font-weight: 600; margin-bottom: 0.5rem; }
svg { display: block; height: auto; }
svg.chart { width: 100%; max-width: 560px; }
svg.heat { max-width: none; }
.grid:not(.wide-maps) svg.heat { width: 100%; max-width: 440px; }
svg text { fill: var(--ink); font-family: inherit; font-size: 10.5px; }
svg .mark { fill: var(--soft); }
svg .axis { fill: var(--soft); font-size: 11px; }
svg .on-bright { fill: #15191f; } svg .on-dark { fill: #ffffff; }
.rule { stroke: var(--rule); } .tick { stroke: var(--soft); }
.trough { fill: var(--trough); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.line.s0, .line.s1, .line.s2, .line.s3, .line.s4 { stroke: var(--c); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); }
.s3 { --c: var(--s3); } .s4 { --c: var(--s4); }
.line.s1 { stroke-dasharray: 7 3; } .line.s2 { stroke-dasharray: 2 3; }
.line.s3 { stroke-dasharray: 9 3 2 3; } .line.s4 { stroke-dasharray: 4 4; }
.dot, .bar { fill: var(--c); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0 0 0.4rem;
  padding: 0; font-size: 0.85rem; }
.legend svg { display: inline-block; vertical-align: middle; margin-right: 0.4rem; }
.gap { margin-top: 1.1rem; }
.recall .scroll { margin-top: 0.7rem; }
.recall th { white-space: normal; vertical-align: bottom; }
@media (max-width: 640px) {
  body { font-size: 15px; }
  main { padding: 1.5rem 0.75rem 2rem; }
  section { padding: 1.1rem 1rem 1.2rem; border-radius: 10px; }
  h1 { font-size: 1.5rem; }
  dl.facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print {
  :root { --page: #ffffff; --card: #ffffff; --ink: #000000; --soft: #444444; --rule: #cccccc; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; margin-top: 1.6rem; }
  .tall { max-height: none; overflow: visible; }
  .scroll { overflow: visible; }
  thead th { position: static; }
  figure, tr { break-inside: avoid; }
  svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; }
}
"""
