// The heat map: blocks down, taps across, what is outside blocks above and below; one cell has the keyboard.

const view = { state: 0, mode: "verdict" };

function arranged(cases) {
  const before = [], after = [], blocks = new Map(), layers = [];
  for (const at of cases) {
    const tap = index.taps[index.cases.tap[at]];
    if (!tap.block) { (blocks.size ? after : before).push(at); continue; }
    if (!blocks.has(tap.block)) blocks.set(tap.block, new Map());
    blocks.get(tap.block).set(tap.layer, at);
    if (!layers.includes(tap.layer)) layers.push(tap.layer);
  }
  layers.sort((a, b) => (a === "") - (b === ""));
  return { before, after, blocks, layers };
}

function cell(at, first) {
  if (at === undefined) return make("td", { class: "empty", role: "gridcell" });
  const found = shown(at, view.mode);
  const kind = [found.kind, found.over && "over", at === first && "first"].filter(Boolean).join(" ");
  return make("td", {
    class: kind, role: "gridcell", tabindex: "-1", "data-case": at, "data-outcome": outcomeOf(at), text: found.text, style: { "--t": found.t },
    "aria-label": spoken(at, view.mode), title: spoken(at, view.mode),
  });
}

// Taps outside blocks: as many a row as the blocks have columns.
function strip(cases, title, columns, first) {
  if (!cases.length) return [];
  const rows = [];
  for (let from = 0; from < cases.length; from += columns) {
    const some = cases.slice(from, from + columns);
    const rest = () => Array.from({ length: columns - some.length }, () => make("td", { class: "empty" }));
    rows.push(
      make("tr", {}, make("th", { class: "rowhead", text: from ? "" : title }), ...some.map((at) => make("th", { scope: "col", text: nameOf(at) })), ...rest()),
      make("tr", { "data-row": "" }, make("th", { class: "rowhead" }), ...some.map((at) => cell(at, first)), ...rest()),
    );
  }
  return rows;
}

function drawMap() {
  const state = index.states[view.state], cases = byState[view.state];
  const { before, after, blocks, layers } = arranged(cases);
  const columns = Math.max(layers.length, Math.min(9, Math.max(before.length, after.length, 1)));
  const pad = () => Array.from({ length: columns - layers.length }, () => make("td", { class: "empty" }));
  const rows = [...strip(before, "before", columns, state.first)];
  if (blocks.size) {
    rows.push(make("tr", {}, make("th", { class: "rowhead", text: "block" }), ...layers.map((name) => make("th", { scope: "col", text: name || "output" })), ...pad()));
    for (const [name, row] of blocks) {
      rows.push(make("tr", { "data-row": "" }, make("th", { class: "rowhead", scope: "row", text: name }), ...layers.map((layer) => cell(row.get(layer), state.first)), ...pad()));
    }
  }
  rows.push(...strip(after, "after", columns, state.first));
  const title = `${state.pair} ${state.state}: ${words.modes[view.mode][0].toLowerCase()} of ${cases.length} taps`;
  const table = make("table", { role: "grid", "aria-label": title, id: "grid" }, make("tbody", {}, ...rows));
  const map = byId("map");
  const held = map.querySelector("td[tabindex='0']")?.dataset.case;
  map.classList.toggle("dense", blocks.size > 16);
  map.replaceChildren(table);
  const start = map.querySelector(`td[data-case="${held}"]`) ?? map.querySelector("td.first") ?? map.querySelector("td[data-case]");
  start?.setAttribute("tabindex", "0");
  drawLegend();
}

function drawLegend() {
  const key = (kind, text, words, t = 0) => make("span", { class: "key" }, make("span", { class: `box ${kind}`, text, style: { "--t": t }, "aria-hidden": "true" }), words);
  const first = key("first", "▸", "first divergence");
  const limits = index.limits, mode = view.mode;
  const marks = [["failed", "▽ ✕", "drowned, but another function"], ["known", "▽ ◆", "known and accepted"]];
  const accepted = () => marks.filter(([outcome]) => byState[view.state].some((at) => outcomeOf(at) === outcome && also(at))).map(([outcome, sign, words]) => key(`v2 ${outcome}`, sign, words));
  byId("mode-words").textContent = words.modes[mode][1] + missing(mode);
  const keys = {
    verdict: () => [...index.verdicts.map((name, n) => key(`v${n}`, SYMBOLS[n], name)), ...accepted(), key("v4", "!", "could not be run")],
    logic_error: () => [key("cool", "0", "same function", 0.1), key("hot strong over", "9e-2", `above the limit ${num(limits.logic_error, 1)}, another function`, 0.8)],
    impact: () => [key("cool", "0.2", "drowned in the reference's noise", 0.4), key("hot strong over", "9", `felt: above ${num(limits.impact)}`, 0.8)],
    rounding_excess: () => [key("cool", "1", "as precise", 0.15), key("hot", "1.4", "less or more precise", 0.3), key("hot strong over", "9", `total rounding above ${num(limits.strong)}`, 0.9)],
    rel_l2: () => [key("cool", "0", "equal", 0), key("cool", "0.5", "far apart; a large one may be honest rounding", 1.6)],
    lora_effect: () => [key("cool", "1", "as on the reference", 0.15), key("hot strong over", "0.1", "more, less or not at all", 0.8)],
  }[mode]();
  byId("legend").replaceChildren(...keys, first);
}

function missing(mode) {
  if (mode === "verdict" || byState[view.state].some((at) => index.cases[mode][at] !== null)) return "";
  if (mode === "lora_effect") return index.states[view.state].lora ? " This record does not hold it." : " There is none with the LoRA off: switch it on.";
  return " Nothing here needed it.";
}

function moveTo(target) {
  if (!target) return;
  byId("map").querySelector("td[tabindex='0']")?.setAttribute("tabindex", "-1");
  target.setAttribute("tabindex", "0");
  target.focus();
}

function onKey(event) {
  const from = event.target.closest("td[data-case]");
  if (!from || event.altKey || event.metaKey) return;
  const rows = [...byId("map").querySelectorAll("tr[data-row]")].map((row) => [...row.children].slice(1));
  const y = rows.findIndex((row) => row.includes(from)), x = rows[y].indexOf(from);
  const filled = (row) => row.filter((one) => one.dataset.case !== undefined);
  const nearest = (row) => filled(row).sort((a, b) => Math.abs(row.indexOf(a) - x) - Math.abs(row.indexOf(b) - x))[0];
  const all = rows.flatMap(filled);
  const next = () => { const here = all.indexOf(from); return [...all.slice(here + 1), ...all.slice(0, here)].find((one) => differs(Number(one.dataset.case))); };
  const to = {
    ArrowRight: () => filled(rows[y].slice(x + 1))[0], ArrowLeft: () => filled(rows[y].slice(0, x)).at(-1),
    ArrowDown: () => rows[y + 1] && nearest(rows[y + 1]), ArrowUp: () => rows[y - 1] && nearest(rows[y - 1]),
    Home: () => (event.ctrlKey ? all[0] : filled(rows[y])[0]), End: () => (event.ctrlKey ? all.at(-1) : filled(rows[y]).at(-1)),
    n: next, N: next,
  }[event.key];
  if (event.key === "Enter" || event.key === " ") openCase(Number(from.dataset.case));
  else if (to) moveTo(to());
  else return;
  event.preventDefault();
}
