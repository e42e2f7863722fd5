"""How does a result page look? Its style sheet: light, dark, phone and print."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #20242a; --soft: #646b75; --rule: #e4e1da; --track:
    #efede7; --cotrained: #1f5f99; --single: #c9782f; --pretrained: #4c8f7b; --shuffled: #86aacb; --oneframe: #b9cfe2; --extra:
    #8a6aa8; --right: #2c7a52; --wrong: #b0453c; --behind: #9c5412; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --card: #1c2025; --ink: #e7e5e0; --soft: #9aa1ab; --rule: #30353c; --track: #282d34; --cotrained:
      #6cacea; --single: #e39c58; --pretrained: #78bfa7; --shuffled: #4a759f; --oneframe: #34506c; --extra: #b99bd8; --right:
      #6cc397; --wrong: #e58a80; --behind: #e39c58; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", "Noto Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
main { max-width: 1080px; margin: 0 auto; padding: 72px 28px 96px; }
h1 { font-size: 44px; line-height: 1.1; letter-spacing: -.025em; margin: 0 0 24px; font-weight: 680; text-wrap: balance; }
h2 { font-size: 25px; line-height: 1.25; letter-spacing: -.012em; margin: 0 0 6px; font-weight: 650; }
h3 { font-size: 16px; margin: 0 0 4px; font-weight: 650; overflow-wrap: anywhere; }
h3 small, .key { font-weight: 400; color: var(--soft); font-size: 14px; }
p { margin: 0 0 14px; max-width: 68ch; }
.lede { font-size: 22px; line-height: 1.45; letter-spacing: -.006em; max-width: 46em; text-wrap: pretty; }
.caution { color: var(--soft); font-size: 15px; border-left: 3px solid var(--single); padding-left: 14px; margin-top: 22px; }
.gone { color: var(--soft); font-size: 15px; margin-top: 16px; }
section { margin-top: 68px; }
.caption { color: var(--soft); font-size: 15px; margin-bottom: 22px; }
.scroll + .caption { margin-top: 10px; }
.scroll { overflow-x: auto; margin: 0 -28px; padding: 0 28px; }
table { border-collapse: collapse; width: 100%; font-size: 16px; line-height: 1.4; }
th, td { padding: 11px 0 11px 22px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule);
    vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 11em; overflow-wrap:
    anywhere; }
thead th { font-size: 13.5px; line-height: 1.3; color: var(--soft); font-weight: 500; vertical-align: bottom; white-space:
    normal; }
tbody th { font-weight: 600; }
tbody th small { display: block; font-weight: 400; color: var(--soft); font-size: 13.5px; }
td.lead { font-weight: 680; color: var(--cotrained); }
.none { color: var(--soft); }
.small table { font-size: 14px; }
.small th, .small td { padding-top: 7px; padding-bottom: 7px; }
.facts td, .facts th { text-align: left; }
.facts th { white-space: nowrap; font-weight: 500; color: var(--soft); padding-right: 12px; }
.facts td { white-space: normal; overflow-wrap: anywhere; width: 100%; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 36px 44px; }
.panel { min-width: 0; margin: 0; }
.aside { margin-top: 26px; }
.bar { display: grid; grid-template-columns: 9.5em 1fr 4.2em; gap: 12px; align-items: center; font-size: 14.5px; line-height:
    1.3; padding: 3.5px 0; }
.bar .words { overflow-wrap: anywhere; }
.bar .value { text-align: right; white-space: nowrap; }
.track { position: relative; height: 16px; border-radius: 3px; background: var(--track); }
.track i { position: absolute; display: block; }
.fill { left: 0; top: 0; bottom: 0; border-radius: 3px; background: var(--tone); }
.chance { width: 2px; margin-left: -1px; top: -3px; bottom: -3px; background: var(--ink); box-shadow: 0 0 0 1px var(--paper); }
.whisker { top: 50%; height: 2px; margin-top: -1px; background: var(--ink); box-shadow: 0 0 0 1px var(--paper); }
.cotrained { --tone: var(--cotrained); }
.single { --tone: var(--single); }
.pretrained { --tone: var(--pretrained); }
.shuffled { --tone: var(--shuffled); }
.oneframe { --tone: var(--oneframe); }
.extra { --tone: var(--extra); }
.plain { --tone: var(--soft); }
.truth { --tone: var(--right); }
.other { --tone: var(--shuffled); }
.key { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 8px; }
.key i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; background: var(--tone); margin-right: 7px;
    vertical-align: middle; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--soft); font-variant-numeric:
    tabular-nums; }
svg .level { stroke: var(--rule); stroke-width: 1; }
svg .reference { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 4; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg path { fill: none; stroke: var(--tone); stroke-linejoin: round; stroke-linecap: round; }
svg .faint { stroke-width: 1; opacity: .28; }
svg .curve { stroke-width: 2.2; }
svg circle { fill: var(--tone); }
svg .dashed, svg .dotted { stroke-linecap: butt; }
svg .dashed { stroke-dasharray: 8 5; }
svg .dotted { stroke-dasharray: 2.5 3.5; }
svg circle.dashed, svg circle.dotted { stroke-dasharray: none; }
.key i.dashed { background: repeating-linear-gradient(90deg, var(--tone) 0 4px, transparent 4px 6px); }
.key i.dotted { background: repeating-linear-gradient(90deg, var(--tone) 0 2px, transparent 2px 4px); }
svg .zero { stroke: var(--ink); stroke-width: 1.2; }
svg .name { fill: var(--ink); font-weight: 600; }
svg path.whisker { stroke-width: 2.4; }
svg path.solid.mark { fill: var(--tone); stroke: var(--paper); stroke-width: 1.2; }
svg path.hollow.mark { fill: var(--paper); stroke: var(--tone); stroke-width: 2; }
.key svg { display: inline-block; width: 18px; height: 18px; margin-right: 6px; vertical-align: -4px; }
.clips { display: grid; gap: 20px; margin-bottom: 44px; }
.clip { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 8px 30px; align-items: center; break-inside:
    avoid; }
.clip img { display: block; height: auto; border-radius: 4px; }
.clip .said .bar { grid-template-columns: minmax(0, 3fr) minmax(40px, 2fr) 3.2em; padding: 2px 0; }
.clip .said .track { height: 10px; }
.stills { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 28px 44px; }
.still { grid-template-columns: 128px minmax(0, 1fr); gap: 20px; }
.still .verdict { margin: 0 0 6px; }
.stages .bar { grid-template-columns: 15em 1fr 4.2em; }
.claim { border-left: 5px solid var(--soft); background: var(--card); border-radius: 0 8px 8px 0; padding: 16px 22px 14px; margin: 0 0 18px;
    box-shadow: inset 0 0 0 1px var(--rule); break-inside: avoid; }
.claim h3 { font-size: 19px; line-height: 1.35; }
.claim .stands { margin: 0 0 8px; max-width: none; }
.claim.shown { border-left-color: var(--cotrained); }
.claim.shown-in-part { border-left-color: var(--shuffled); }
.claim.the-opposite-shown { border-left-color: var(--single); }
.claim.not-asked { border-left-style: dotted; color: var(--soft); }
main ul { margin: 0 0 14px; padding-left: 1.15em; max-width: 78ch; font-size: 15px; line-height: 1.5; }
main li { margin: 0 0 6px; }
main ul.protocol { list-style: none; padding: 0; margin: 10px 0 0; color: var(--soft); font-size: 12.5px; line-height: 1.45;
    max-width: none; }
main ul.protocol li { margin: 0 0 3px; }
h3.group { font-size: 20px; margin: 40px 0 14px; padding-top: 14px; border-top: 1px solid var(--rule); }
.tabled { margin-top: 26px; }
td small { display: block; color: var(--soft); font-weight: 400; font-size: 12.5px; }
small.narrow { display: none !important; }
h3 + .caption { margin-bottom: 8px; }
td.behind { font-weight: 680; color: var(--behind); }
td.text { text-align: left; white-space: normal; min-width: 9em; }
td.said { white-space: normal; min-width: 7.5em; }
main ul:not(.protocol) { columns: 2 30em; column-gap: 36px; max-width: none; }
main ul:not(.protocol):has(> li:only-child) { columns: auto; max-width: 78ch; }
main li { break-inside: avoid; }
details { margin-top: 22px; }
summary { cursor: pointer; color: var(--cotrained); font-size: 15px; }
details .tabled { margin-top: 12px; }
details[open] > .grid { margin-top: 22px; }
div.wide + div.wide { margin-top: 26px; }
.grid div.wide + div.wide { margin-top: 0; }
.article thead th:nth-child(-n+3) { text-align: left; }
.wide .bar { grid-template-columns: minmax(0, 3fr) minmax(0, 4fr) 10.5em; }
.bar.signed .fill { border-radius: 0; }
.bar.signed small { color: var(--soft); }
.wide .bar.signed { grid-template-columns: minmax(0, 3fr) minmax(0, 4fr) 4em; }
.middle { left: 50%; width: 1px; top: -2px; bottom: -2px; background: var(--soft); }
.verdict { font-size: 14.5px; line-height: 1.35; margin: 7px 0 0; overflow-wrap: anywhere; max-width: none; }
.verdict b { font-weight: 650; }
.yes { color: var(--right); }
.no { color: var(--wrong); }
.path { color: var(--soft); font-size: 13px; }
pre { font: 14px/1.7 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; background: var(--card);
    border: 1px solid var(--rule); border-radius: 10px; padding: 14px 18px; overflow-x: auto; margin: 0; }
@media (max-width: 720px) {
  body { font-size: 16px; }
  main { padding: 40px 18px 64px; }
  h1 { font-size: 33px; }
  h2 { font-size: 22px; }
  .lede { font-size: 19px; }
  section { margin-top: 52px; }
  .scroll { margin: 0 -18px; padding: 0 18px 0 0; }
  .grid { gap: 26px; }
  .bar { grid-template-columns: 8.8em 1fr 3.6em; gap: 8px; }
  .clip { grid-template-columns: minmax(0, 1fr); }
  .clip.still { grid-template-columns: 96px minmax(0, 1fr); gap: 16px; }
  .stages .bar { grid-template-columns: 9.5em 1fr 3.6em; }
  .clips { gap: 30px; }
  table { font-size: 15px; }
  th, td { padding-left: 13px; }
  .scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; padding-left: 18px;
      background: var(--paper); min-width: 7.5em; }
  .clip .said { margin-bottom: 6px; }
  .claim { padding: 13px 15px 10px; }
  .claim h3 { font-size: 17px; }
  .wide .bar { grid-template-columns: minmax(0, 1fr) auto; gap: 2px 8px; padding: 5px 0; }
  .wide .bar .track { grid-column: 1 / -1; grid-row: 2; height: 12px; }
  .wide .bar.signed { grid-template-columns: minmax(0, 1fr) auto; }
  main ul { padding-left: 1em; }
  small.narrow { display: block !important; }
  .article td.text, .article thead th:nth-child(2), .article thead th:nth-child(3) { display: none; }
  .scroll.small th:first-child, .scroll.article th:first-child { min-width: 9.5em; }
  .facts th:first-child { min-width: 7.5em; white-space: normal; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; --track: #eee; --cotrained:
      #1f5f99; --single: #c9782f; --pretrained: #4c8f7b; --shuffled: #86aacb; --oneframe: #b9cfe2; --extra: #8a6aa8; --right:
      #2c7a52; --wrong: #b0453c; --behind: #9c5412; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { margin-top: 30pt; }
  h2, h3, .caption, summary { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 9pt; }
  th, td { padding-left: 8pt; }
  .panel, tr, pre, p { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { color: var(--ink); }
  .small table { font-size: 7.5pt; }
  td small, tbody th small { font-size: 7pt; }
  small.narrow { display: none !important; }
  .article td.text, .article thead th:nth-child(n) { display: table-cell; }
  .small th, .small td { padding-left: 5pt; }
  .grid { grid-template-columns: 1fr 1fr; gap: 18pt 24pt; }
}
"""
