"""The style sheet of report.html."""

STYLE = """
:root {
  --paper: #ffffff; --ink: #1c1e21; --muted: #666c75; --rule: #e4e5e8; --grid: #ececef; --soft: #f6f6f7;
  --essence: #0a6c8f; --full: #8a5fb0; --baseline: #8c929b; --ensemble: #b87514; --teacher: #d3a75e; --gmm: #c9ccd1;
  --good: #1a7f4b; --bad: #bf3b2b; --open: #8c929b; --ins: #b87514;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e6e6e4; --muted: #9a9fa7; --rule: #2e3238; --grid: #262a2f; --soft: #1d2024;
    --essence: #54b8dc; --full: #bd97df; --baseline: #8d949e; --ensemble: #e3a548; --teacher: #9a7a44; --gmm: #4a4f57;
    --good: #57c78b; --bad: #f0796b; --open: #8d949e; --ins: #e3a548;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
.eyebrow { margin: 0 0 .6rem; color: var(--muted); font-size: .85rem; }
h1 { margin: 0 0 .8rem; max-width: 44rem; font-size: clamp(1.55rem, 1.1rem + 2.2vw, 2.3rem); line-height: 1.18;
  font-weight: 650; letter-spacing: -.015em; text-wrap: balance; }
.summary { margin: 0 0 2rem; max-width: 42rem; font-size: 1.06rem; }
section { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: 1.1rem; }
h2 { margin: 0 0 1rem; font-size: 1.2rem; font-weight: 650; letter-spacing: -.005em; }
h3 { margin: 0 0 .5rem; font-size: .95rem; font-weight: 600; }
h3 small { display: block; color: var(--muted); font-weight: 400; font-size: .8rem; }
.lead { margin: -.4rem 0 1.3rem; max-width: 42rem; }
.muted { color: var(--muted); }
.fine { font-size: .82rem; line-height: 1.45; max-width: 44rem; }
.block { margin-top: 1.5rem; min-width: 0; }
.columns { display: grid; gap: 0 2.75rem; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
.columns.three { grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: 0 2rem; }
.columns > * { min-width: 0; }
h2 + .columns { margin-top: -1rem; }
h2 + .columns > :not(.block) { margin-top: 1rem; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1.25rem 1.5rem; }
.figure { border-top: 3px solid var(--c); padding-top: .5rem; }
.figure .label { font-size: .85rem; }
.figure .big { font-size: 2rem; font-weight: 650; line-height: 1.2; letter-spacing: -.02em; }
.figure .big span { font-size: 1rem; font-weight: 400; color: var(--muted); margin-left: .15em; letter-spacing: 0; }
.figure .muted { font-size: .82rem; }

table { width: 100%; border-collapse: collapse; }
thead th { color: var(--muted); font-weight: 500; font-size: .82rem; line-height: 1.25; text-align: left;
  vertical-align: bottom; padding: 0 0 .45rem .6rem; border-bottom: 1px solid var(--ink); }
tbody th { text-align: left; font-weight: 500; padding: .5rem .6rem .5rem 0; vertical-align: top; line-height: 1.3; }
thead th:first-child { padding-left: 0; }
td { padding: .5rem 0 .5rem .6rem; vertical-align: top; line-height: 1.3; }
tbody tr { border-bottom: 1px solid var(--rule); }
tbody tr.rule { border-top: 1px solid var(--muted); }
.num { text-align: right; white-space: nowrap; }
table small { display: block; color: var(--muted); font-weight: 400; font-size: .78rem; }
table.wer td { font-size: 1.05rem; }
table .best { font-weight: 700; }
table .best small { font-weight: 400; }
table.cost th, table.cost td { font-size: .92rem; }
table.cost thead th { font-size: .8rem; white-space: normal; }
.swatch { display: inline-block; width: .62em; height: .62em; border-radius: 2px; margin-right: .5em;
  background: var(--c); }

.c-essence, .c-student-essence { --c: var(--essence); }
.c-student-full { --c: var(--full); }
.c-baseline, .c-other { --c: var(--baseline); }
.c-ensemble { --c: var(--ensemble); }
.c-teacher { --c: var(--teacher); }
.c-gmm { --c: var(--gmm); }
.c-hard { --c: var(--baseline); }
.c-soft { --c: var(--full); }
.c-dev { --c: var(--essence); }
.good { --c: var(--good); } .bad { --c: var(--bad); } .open { --c: var(--open); }

.chart { margin: 0; }
.plot { position: relative; margin: .35rem .6rem 1.9rem 2.6rem; }
.plot > svg, .cell svg { display: block; width: 100%; height: 100%; overflow: visible; }
.axis-title { font-size: .8rem; color: var(--muted); }
.axis-title.x { text-align: right; margin-top: -.4rem; padding-right: .6rem; }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--muted); stroke-width: 1; }
.tick { fill: var(--muted); font-size: 12px; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dot { fill: var(--c); stroke: var(--paper); stroke-width: 1.5; }
.note { fill: var(--c); font-size: 13px; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; color: var(--muted); margin-top: .25rem; }
.key { display: inline-block; width: 1.1em; height: 0; border-top: 2.5px solid var(--c); vertical-align: .3em;
  margin-right: .4em; }

.cell { position: relative; align-self: stretch; min-height: 1.5rem; }
.cell svg { position: absolute; inset: 0; }
.whisker { stroke: var(--c); stroke-width: 2.5; stroke-linecap: round; }
.nil { stroke: var(--ink); stroke-width: 1; }
.bar { fill: var(--c); }
.rows .row { display: grid; grid-template-columns: 6.5rem 1fr 5.6rem; gap: .75rem; align-items: center;
  min-height: 2.6rem; font-size: .95rem; line-height: 1.25; }
.rows small { display: block; color: var(--muted); font-size: .75rem; white-space: nowrap; }
.rows .foot { min-height: 1.3rem; }
.rows.bars .row { grid-template-columns: minmax(7rem, 45%) 1fr 5.6rem; min-height: 1.75rem; gap: .6rem;
  font-size: .9rem; }
table .cell { height: 2.4rem; }
table .cell.labels { height: 1.3rem; }
td.graph, th.graph { width: 34%; padding-left: 1.6rem; }
tfoot td { padding-top: 0; padding-bottom: 0; }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .9rem 1.5rem;
  margin: 1rem 0 0; align-content: start; }
.facts.wide { grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.facts dt { font-size: .8rem; color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts.wide dd { font-size: .92rem; }
.facts.wide div:last-child { grid-column: 1 / -1; }
.notices { margin: 0 0 1.5rem; padding-left: 1.1rem; font-size: .9rem; overflow-wrap: anywhere; }

.alignment img { display: block; width: 100%; height: 150px; image-rendering: auto; }
.lane { position: relative; height: 1.7rem; }
.lane span { position: absolute; top: 0; bottom: 0; display: flex; align-items: center; justify-content: center;
  border-left: 1px solid var(--rule); overflow: hidden; white-space: nowrap; font-size: .85rem; }
.lane b { font-weight: 500; }
.lane.phones span { font-size: .7rem; color: var(--muted); }
.lane.time { height: 1.2rem; }
.lane.time span { border: 0; justify-content: flex-start; font-size: .75rem; color: var(--muted); overflow: visible; }
@media (prefers-color-scheme: dark) { .alignment img { filter: invert(1); mix-blend-mode: screen; } }

.utts { list-style: none; margin: 0; padding: 0; }
.utts li { padding: .7rem 0; border-bottom: 1px solid var(--rule); break-inside: avoid; }
.utt { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; font-size: .82rem;
  margin-bottom: .35rem; overflow-wrap: anywhere; }
.compared { display: grid; grid-template-columns: auto 1fr; gap: .75rem; line-height: 1.35; font-size: .92rem; }
.compared .words { display: flex; flex-wrap: wrap; gap: .5rem .5rem; min-width: 0; }
.word, .heads { display: grid; grid-template-rows: repeat(3, auto); align-content: start; justify-items: start; }
.word span { padding: 0 .15em; border-radius: 3px; overflow-wrap: anywhere; }
.heads span { color: var(--muted); }
.utts audio { display: block; height: 2rem; width: min(22rem, 100%); margin-top: .5rem; }
.ref { color: var(--muted); }
.sub { color: var(--bad); background: color-mix(in srgb, var(--bad) 12%, transparent); }
.ins { color: var(--ins); background: color-mix(in srgb, var(--ins) 14%, transparent); }
.del { color: var(--bad); font-weight: 600; }
.fine .sub, .fine .ins { padding: 0 .3em; border-radius: 3px; margin-right: .6em; }

footer { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; color: var(--muted);
  font-size: .85rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; font-size: .92em;
  overflow-wrap: anywhere; }

@media (max-width: 560px) {
  main { padding: 1.5rem 1rem 3rem; }
  section { margin-top: 2.5rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  table.wer td { padding-left: .35rem; font-size: 1rem; }
  table small { font-size: .72rem; }
  table.cost th, table.cost td { font-size: .84rem; }
  table.cost td { padding-left: .35rem; white-space: normal; }
  table.cost .optional { display: none; }
  .graph { display: none; }
  .rows .row { grid-template-columns: 7rem 1fr 5.3rem; gap: .5rem; }
  .rows.bars .row { grid-template-columns: minmax(6rem, 42%) 1fr 5rem; }
  .lane.words span { font-size: .72rem; justify-content: flex-start; padding-left: 2px; }
  .lane.phones b { display: none; }
  .lane.phones { height: .6rem; }
}
@media print {
  audio { display: none !important; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { break-inside: auto; margin-top: 1.6rem; }
  .columns > .block, tr, .chart, .figures, .facts > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
