"""The page's Jinja templates, without scripts, fonts or anything from a network.

The metric switch is three radio buttons; CSS shows the tables of the chosen one.
"""

#: Macros that write tables (`formats.Grid`), notes and figures as HTML.
PARTS = """
{% macro note(text) %}{% for part in text.split("`") %}
{%- if loop.index0 % 2 %}<code>{{ part }}</code>{% else %}{{ part }}{% endif %}
{%- endfor %}{% endmacro %}
{% macro notes(texts, footnotes=()) %}<ul class="notes">
{% for text in texts %}<li>{{ note(text) }}</li>
{% endfor %}{% for text in footnotes -%}
<li><sup>{{ letter(loop.index0) }}</sup> {{ note(text) }}</li>
{% endfor %}</ul>{% endmacro %}
{% macro head(titles) %}<tr>
{%- for title in titles %}<th scope="col">{{ title }}</th>{% endfor %}</tr>{% endmacro %}
{% macro cell(text) %}{{ text.main }}{% if text.mark %}<sup>{{ text.mark }}</sup>{% endif %}
{%- for line in text.small.splitlines() %}<small>{{ line }}</small>{% endfor %}
{%- if text.runs %} <span class="logs">log{% for key in text.runs %}
<a href="{{ log_path(key) | urlencode }}" title="log of seed {{ key.seed }}">{{ key.seed }}</a>
{%- endfor %}</span>{% endif %}{% endmacro %}
{% macro table(grid, id="", kind="") %}
{%- if grid.sections %}<div class="scroll"><table
{%- if id %} id="{{ id }}"{% endif %}{% if kind %} class="{{ kind }}"{% endif %}><thead>
{% if grid.groups %}<tr><th></th>
{%- for name, count in grid.groups %}<th scope="colgroup" colspan="{{ count }}">{{ name }}</th>
{%- endfor %}</tr>
{% endif %}{{ head(grid.titles) }}</thead>
{% for title, rows in grid.sections %}<tbody>
{% if title %}<tr class="section"><th scope="colgroup" colspan="{{ grid.titles | length }}">
{{- title }}</th></tr>
{% endif %}{% for row in rows %}<tr><th scope="row">{{ cell(row[0]) }}</th>
{%- for text in row[1:] %}<td>{{ cell(text) }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
{% endfor %}</table></div>
{% else %}<p>– no run yet: <code>dvc repro</code> fills it.</p>
{% endif %}{% endmacro %}
{% macro tables(grids) %}{% for grid in grids %}<div class="m{{ loop.index0 }}">
{{- table(grid, id=grid.name ~ ("-" ~ loop.index0 if not loop.first else "")) }}</div>
{% endfor %}{{ notes(grids[0].notes, grids[0].footnotes) }}{% endmacro %}
{% macro picture(stem, alt) %}<div class="scroll">
{#- #}<img src="{{ stem | urlencode }}.png" alt="{{ alt }}" loading="lazy"></div>
{% endmacro %}
"""

PAGE = """{% import "parts" as parts %}<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>semires: the study's report</title>
<style>
:root { --ink: #1b1b1f; --paper: #fdfdfd; --soft: #5c5f66; --line: #d8dae0; --band: #f1f3f6;
  --link: #0058a8; --good: #00694b; --bad: #a83a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --paper: #16181c; --soft: #a3a8b0; --line: #3a3e46; --band: #22252b;
    --link: #7cc0ff; --good: #4fcfa5; --bad: #ff9a6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { line-height: 1.2; margin: 0.5rem 0; } h2 { margin: 2.5rem 0 0.25rem; line-height: 1.25; }
a { color: var(--link); } nav ul { list-style: none; padding: 0; display: flex;
  flex-wrap: wrap; gap: 0.25rem 1rem; }
.where, .notes, figcaption, .small { color: var(--soft); font-size: 0.875rem; }
.where { margin: 0; } .notes { padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9375rem; }
th, td { padding: 0.3rem 0.6rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
tr > :first-child { text-align: left; } th[scope=row] { font-weight: normal; }
thead th { border-bottom: 2px solid var(--ink); white-space: normal; vertical-align: bottom; }
.section th { background: var(--band); font-weight: 600; }
td small { display: block; color: var(--soft); font-size: 0.75rem; }
table.text td, table.text th { text-align: left; }
table.text td { white-space: normal; overflow-wrap: anywhere; }
code { font-size: 0.875em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { display: block; max-width: 100%; height: auto;
  background: #fff; padding: 0.5rem; border-radius: 6px; margin-bottom: 0.5rem; }
summary { cursor: pointer; } details { margin: 0.75rem 0; }
.switch { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: 0.4rem 0;
  border: 0; border-bottom: 1px solid var(--line); margin: 1rem 0 0; }
.switch legend { float: left; margin-right: 0.75rem; padding: 0; font-weight: 600; }
.switch label { margin-right: 0.9rem; white-space: nowrap; cursor: pointer; }
.m1, .m2, body:has(#metric1:checked) .m0, body:has(#metric2:checked) .m0 { display: none; }
body:has(#metric1:checked) .m1, body:has(#metric2:checked) .m2 { display: block; }
section { scroll-margin-top: 3.5rem; } .logs { font-size: 0.75rem; white-space: nowrap; }
.claims .section a { font-weight: normal; font-size: 0.875rem; }
.claims td, .claims tbody th { white-space: normal; } .claims th:nth-child(2) { text-align: left; }
.claims th:nth-child(n+2) { min-width: 3rem; }
.verdict { font-weight: 600; white-space: nowrap !important; }
.supported { color: var(--good); } .contradicted { color: var(--bad); }
.undecided, .not-run { color: var(--soft); font-weight: normal; }
@media (max-width: 40rem) { th, td { padding: 0.3rem 0.4rem; }
  th[scope=row] { white-space: normal; min-width: 7.5rem; }
  figure img { max-width: none; width: 40rem; } }
</style>
</head>
<body>
<header>
<h1>SemiRES, regenerated</h1>
<p>Tables and figures of Yang et al., “SAM as the Guide: Mastering Pseudo-Label Refinement in
Semi-Supervised Referring Expression Segmentation” (ICML 2024), made by <code>semires
report</code> from {{ runs | length }} run records on {{ datasets }}. All numbers are
computed from these records.
“–” marks a number without a run; a note states the command that makes it.</p>
<nav aria-label="Contents"><ul>
{% for id, title in contents %}<li><a href="#s-{{ id }}">{{ title }}</a></li>
{% endfor %}</ul></nav>
</header>
<main>
{% if judgements %}<section id="s-claims"><h2>The paper's claims, judged</h2>
<p>Each claim is an inequality between two rows of the tables below; the link leads to the table or
figure. Also as <a href="claims.md">claims.md</a>, <a href="claims.csv">claims.csv</a>.</p>
{% for dataset, counts, groups in claims %}<p><strong>{{ dataset }}: {{ counts }}.</strong></p>
<div class="scroll"><table class="claims"><thead>{{ parts.head(claim_titles) }}</thead>
{% for claim, judged in groups %}<tbody><tr class="section">
<th scope="colgroup" colspan="{{ claim_titles | length }}">{{ claim.claim }}
<a href="#s-{{ judged[0].link }}">{{ claim.where }}</a></th></tr>
{% for j in judged %}<tr>
{%- for text in cells(j) %}{% if loop.index0 < 2 %}<th scope="row">{{ text }}</th>
{%- else %}<td>{{ text }}</td>{% endif %}{% endfor -%}
<td class="verdict {{ j.verdict.replace(" ", "-") }}"
{%- if j.reason %} title="{{ j.reason.replace("`", "") }}"{% endif %}>{{ j.verdict }}</td></tr>
{% endfor %}</tbody>
{% endfor %}</table></div>
{% endfor %}{{ parts.notes(claim_notes) }}</section>
{% endif %}<fieldset class="switch"><legend>Tables show</legend>
{% for metric in metrics %}<label><input type="radio" name="metric" id="metric{{ loop.index0 }}"
{%- if loop.first %} checked{% endif %}> {{ metric }}</label>
{% endfor %}</fieldset>
{% for table, differences in tables %}<section id="s-{{ table.name }}">
<h2>{{ headings[table.name] }}</h2>
<p class="where">{{ place(table) }}.</p>
<p><strong>{{ claimed(table) }}</strong> {{ table.claim }}</p>
{{ parts.tables(by_metric(table)) }}
<p class="small">Also as {% for ending in [".md", ".csv", ".tex", "_miou.tex"] -%}
<a href="{{ table.name }}{{ ending }}">{{ table.name }}{{ ending }}</a>
{%- if not loop.last %}, {% endif %}{% endfor %}.</p>
{% if differences %}<details><summary>Paired differences of the methods</summary>
{{ parts.tables(by_metric(differences)) }}
</details>{% endif %}
</section>
{% for name in after[table.name] %}{% set figure = figures[name] %}<section id="s-{{ name }}">
<h2>{{ headings[name] }}</h2>
<p class="where">{{ place(figure) }}.</p>
<figure>
{% for stem in pictures[name] %}
{%- if not loop.first or not loop.last %}<p class="small"><strong>
{{- name_of(stem.removeprefix(name ~ "-")) }}</strong></p>
{% endif %}{{ parts.picture(stem, figure.title ~ " (" ~ stem ~ ")") }}
{%- else %}<p>– no run yet: <code>dvc repro</code> fills it.</p>
{% endfor %}<figcaption><strong>{{ claimed(figure) }}</strong> {{ figure.claim }}
{% for note in figure.notes %} {{ note }}{% endfor %}</figcaption>
</figure>
</section>
{% endfor %}{% endfor %}
{% if thresholds %}<section id="s-thresholds"><h2>{{ thresholds_title }}</h2>
<p class="where">Not in the paper: {{ purpose }}.</p>
{% for grid in thresholds %}{% if not loop.first %}<h3>{{ grid.title }}</h3>
{% endif %}{{ parts.table(grid, id=grid.name) }}{{ parts.notes(grid.notes) }}
{% endfor %}<p class="small">Also as <a href="thresholds.md">thresholds.md</a>,
<a href="thresholds.csv">thresholds.csv</a>{% for grid in thresholds %},
<a href="{{ grid.name }}.tex">{{ grid.name }}.tex</a>{% endfor %}.</p>
{% for stem in pictures["thresholds"] %}<figure>
{{ parts.picture(stem, stem) }}<figcaption>{{ stem }}: {{ caption(stem) }}</figcaption>
</figure>
{% endfor %}</section>
{% endif %}<section id="s-labels"><h2>Pseudo-labels and proposals</h2>
<p>Overall IoU of the burn-in teacher's pseudo-labels on unlabelled references with their hidden
ground truth, before and after refinement, and the shares refined (%).</p>
<details><summary>All runs that refine</summary>{{ parts.table(labels) }}</details>
{% for stem in pictures["labels"] %}<figure>{{ parts.picture(stem, "Label quality of every rule") }}
<figcaption>The labels of the unlabelled part after every rule, measured
without training. Numbers: <a href="labels.md">labels.md</a>, <a href="labels.csv">labels.csv</a>.
</figcaption></figure>
{% endfor %}<p>Proposals: how well the best proposal of each object covers it.</p>
{{ parts.table(proposals) }}
</section>
<section id="s-runs"><h2>Runs</h2>
<p>A run's record, weights and predictions are in its folder. <a href="runs.csv">runs.csv</a> has
its metrics on every split and the SHA-256 of its weights and predictions. The MLflow links work
while <code>make ui</code> runs.</p>
<details><summary>All {{ runs | length }} runs</summary><div class="scroll"><table><thead>
{{- parts.head(["Folder", "oIoU (%)", "Evaluations", "MLflow"]) }}</thead><tbody>
{% for run in runs %}<tr><th scope="row">{{ run.folder.as_posix() }}</th>
<td>{% for split, values in run.metrics.items() if "oIoU" in values %}
{{- split }} {{ "%.2f" | format(values["oIoU"]) }}{% if not loop.last %}; {% endif %}
{%- endfor %}</td><td><a href="{{ log_path(run.key) | urlencode }}">log</a></td>
<td>{% if run.key in links %}<a href="{{ links[run.key] }}">MLflow</a>
{%- else %}–{% endif %}</td></tr>
{% endfor %}</tbody></table></div></details></section>
<section id="s-environment"><h2>Environment</h2>{{ parts.table(environment, kind="text") }}
</section>
<section id="s-parameters"><h2>Parameters</h2>
<p>As the run records state them; several values where runs differ.</p>
<details><summary>All parameters</summary>{{ parts.table(parameters, kind="text") }}</details>
</section>
</main>
</body>
</html>
"""
