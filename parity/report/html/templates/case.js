// One case: what is known of it, in a dialog that the keyboard and Escape work in.

let current = null;
let residualOf = null;

const titled = (title, ...children) => make("section", {}, make("h3", { text: title }), ...children);
const list = (items) => make("ul", { class: "likely" }, ...items.map((one) => marked("li", one)));

function table(heads, rows, name) {
  const numeric = (n) => rows.length && rows[0].children[n]?.classList.contains("num");
  const head = make("tr", {}, ...heads.map((text, n) => make("th", { scope: "col", text, class: numeric(n) && "num" })));
  return make("div", { class: "scroll inner", tabindex: "0", role: "region", "aria-label": name }, make("table", { class: "numbers" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function row(name, value, limit, means, over = false) {
  return make("tr", {}, make("th", { scope: "row", text: name }), make("td", { class: `num${over ? " off" : ""}`, text: value }), make("td", { class: "num", text: limit }), make("td", { class: "means", text: means }));
}

function numbersOf(held) {
  const limits = { logic_error: held.logic_limit, impact: held.impact_limit, coherence: index.limits.coherence };
  const rows = [];
  for (const [name, [label, means]] of Object.entries(words.numbers)) {
    const value = held[name], limit = limits[name];
    if (value === null || value === undefined) continue;
    rows.push(row(label, num(value), limit == null ? "" : num(limit), means, limit != null && !(value <= limit)));
    if (name === "logic_error") rows.push(...excesses(held));
  }
  return table(["Number", "Value", "Limit", "What it means"], rows, "Numbers with their limits");
}

function excesses(held) {
  return Object.entries(held.rounding_excess).map(([name, found]) => {
    const means = words.projections[name] ?? words.projections[name.replace(/_on_.*/, "_on")] ?? "";
    const best = name === held.shown_by ? " Shows it best." : "";
    const limit = name === "identity" ? num(index.limits.strong) : "";
    const value = found.se === null ? num(found.ratio) : `${num(found.ratio)} ± ${num(found.se, 1)}`;
    return row(`Rounding excess, ${name}`, value, limit, means + best, best !== "");
  });
}

function metricsOf(held) {
  const metrics = held.metrics ?? {};
  const rows = Object.entries(words.metrics).filter(([name]) => metrics[name] !== undefined && !(/_(nan|inf)$/.test(name) && metrics[name] === 0)).map(([name, means]) => {
    const where = name === "max_abs" && metrics.max_abs_index ? ` at ${num(metrics.max_abs_index)}` : "";
    return make("tr", {}, make("th", { scope: "row", text: name }), make("td", { class: "num", text: num(metrics[name], 3) + where }), make("td", { class: "means", text: means }));
  });
  return make("details", {}, make("summary", { text: "Classic metrics" }), table(["Metric", "Value", "What it means"], rows, "Classic metrics"));
}

function findingOf(held) {
  const [claim, ...more] = held.likely, parts = [];
  if (claim) parts.push(marked("p", claim, { class: "claim" }));
  if (held.repair) parts.push(proof(`logic error ${num(held.repair.logic_error_before)} → ${num(held.repair.logic_error_after)} with ${(claim ?? "").includes(held.repair.words) ? "this change of the native" : held.repair.words}`));
  if (held.nearest?.explains) {
    const near = held.nearest.bit_exact ? "the reference with this rounding has every bit of the native" : `the reference with this rounding is at ${num(held.nearest.ratio)} of the distance`;
    parts.push(proof(near + (held.nearest.elements ? `; ${num(held.nearest.elements)} elements differed` : "")));
  }
  const told = held.likely.join(" ");
  const others = [...more, ...held.signatures.map((one) => one.at(-1)), ...(held.place?.notes ?? [])];
  const rest = others.filter((one, n) => others.indexOf(one) === n && one !== claim && !(held.repair && one.includes(held.repair.words)) && (more.includes(one) || !told.includes(one)));
  if (rest.length) parts.push(list(rest));
  if (held.place) parts.push(...placeOf(held.place));
  return parts.length ? titled("Finding", ...parts) : null;
}

const proof = (text) => { const found = marked("p", text, { class: "proof" }); found.prepend(make("span", { class: "proved", text: "Proof" }), " "); return found; };

function placeOf(place) {
  const found = [];
  const lines = ["reference", "native"].filter((side) => place.code[side].length || place[side]).map((side) => {
    const text = place.code[side].flatMap((one) => [make("span", { class: "where", text: one[0] }), `\n${one[1] ?? ""}\n`]);
    return make("figure", {}, make("figcaption", {}, marked("span", `${side}${place[side] ? `: ${place[side]}` : ""}`)), text.length ? make("pre", { class: "source" }, ...text) : null);
  });
  if (lines.length) found.push(make("div", { class: "sides" }, ...lines));
  return found;
}

function dtypesOf(held) {
  const parts = [];
  const apart = held.place?.dtypes ?? [];
  if (apart.length) {
    const rows = apart.map((one) => make("tr", {}, marked("td", one[2] ?? ""), make("td", { class: "num", text: one[3] ?? "" }), marked("td", one[0] ?? ""), make("td", { class: "num off", text: one[1] ?? "" })));
    parts.push(make("p", { class: "muted", text: "Steps of one value that the two sides run in different dtypes:" }), table(["Reference", "dtype", "Native", "dtype"], rows, "Steps in different dtypes"));
  }
  if (held.dtypes) parts.push(opsOf(held.dtypes.reference ?? {}, held.dtypes.native ?? {}));
  const values = held.reference_dtype ? make("p", {}, "The value is ", make("code", { text: held.reference_dtype }), " in the reference, ", make("code", { text: held.native_dtype }), " in the native.") : null;
  return values || parts.length ? titled("Dtype trace", values, ...parts) : null;
}

function opsOf(reference, native) {
  const names = [...new Set([...Object.keys(reference), ...Object.keys(native)])].sort();
  const rows = names.map((name) => {
    const apart = !(name in reference) !== !(name in native);
    return make("tr", {}, make("th", { scope: "row" }, make("code", { text: name })), make("td", { class: "num", text: num(reference[name] ?? 0) }), make("td", { class: `num${apart ? " off" : ""}`, text: num(native[name] ?? 0) }));
  });
  return make("details", {}, make("summary", { text: "Ops of this segment by dtype, and how often each side runs them" }), table(["Op and dtype", "Reference", "Native"], rows, "Ops by dtype"));
}

function residualSection(held) {
  if (!held.residual) return differs(current) && held.metrics ? titled("Shape of the difference", make("p", { class: "muted", text: "This record does not hold it." })) : null;
  const what = held.residual.of === "exact values" ? "the native's exact value minus the reference's" : "the native's rounding error";
  const plots = [
    ["Along tokens", "Root mean square of each token: a peak is a place, a flat line is everywhere."],
    ["Along channels", "Root mean square of each channel: a peak is a head, a chunk or an axis."],
    ["Mean of each channel over tokens", "Honest rounding averages out here; a rounded shift does not."],
    ["Histogram", "How large single differences are, beside the reference's own rounding."],
  ].map(([name, means], n) => make("div", {}, make("h4", { text: name }), make("div", { class: "plot", role: "img", "aria-label": `${name}: ${summed(held.residual, n)}`, "data-plot": n }), make("p", { text: means })));
  return titled("Shape of the difference", make("p", { class: "muted", text: `Of ${what}, relative to the value's own size (${num(held.residual.scale)}); ${num(held.residual.tokens.count)} tokens, ${num(held.residual.channels.count)} channels, neighbours put together.` }), make("div", { class: "plots" }, ...plots));
}

function summed(residual, n) {
  const held = [residual.tokens.native, residual.channels.native, residual.channels.mean][n];
  if (!held) return `edge at ${num(residual.histogram.edge)}`;
  const sizes = held.map(Math.abs);
  return `from ${num(Math.min(...sizes))} to ${num(Math.max(...sizes))}`;
}

function loraOf(held) {
  if (!held.lora_effect) return null;
  const rows = Object.entries(words.lora).filter(([name]) => held.lora_effect[name] !== undefined).map(([name, means]) => make("tr", {}, make("th", { scope: "row", text: name }), make("td", { class: "num", text: num(held.lora_effect[name]) }), make("td", { class: "means", text: means })));
  return titled("What the LoRA does here", table(["Number", "Value", "What it means"], rows, "LoRA effect"));
}

function rerunOf(held) {
  if (!held.rerun) return null;
  const button = make("button", { type: "button", class: "plain copy", text: "Copy", "data-copy": held.rerun });
  return titled("Run it again", make("div", { class: "command" }, make("code", { text: held.rerun }), button));
}

function drawCase(held, at) {
  byId("case-title").replaceChildren(held.tap, badge(held.outcome));
  byId("case-id").textContent = held.id;
  const rows = held.rows.length ? held.rows.map((n) => num(n)).join(", ") : null;
  const left = held.excluded_rows.some(Boolean) ? `, ${held.excluded_rows.map((n) => num(n)).join(", ")} left out` : "";
  const facts = [["verdict", held.verdict], ["reference", held.reference_path], ["native", held.native_path], ["accepted because", held.known], ["first divergence", held.first_different], ["rows judged", rows && rows + left]];
  const known = facts.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]);
  const why = held.outcome === "error" ? make("pre", { class: "source", text: held.reasons.join("\n") }) : list(held.reasons);
  byId("case-body").replaceChildren(...[
    titled("Verdict", make("dl", { class: "facts" }, ...known), held.reasons.length ? why : null),
    findingOf(held), rerunOf(held), titled("Numbers", numbersOf(held), metricsOf(held)), residualSection(held), dtypesOf(held), loraOf(held),
  ].filter(Boolean));
  residualOf = held.residual;
  drawCurves();
  const others = neighbours(at);
  byId("case-before").disabled = others.before === undefined;
  byId("case-next").disabled = others.next === undefined;
}

function drawCurves() {
  const targets = [...byId("case-body").querySelectorAll("[data-plot]")];
  if (residualOf && targets.length === 4) drawResidual(residualOf, targets);
}

function neighbours(at) {
  const all = index.cases.state.map((_, n) => n).filter(differs);
  return { before: all.filter((n) => n < at).at(-1), next: all.find((n) => n > at) };
}

async function openCase(at) {
  if (!Number.isInteger(at) || at < 0 || at >= index.cases.state.length) return;
  current = at;
  const dialog = byId("case");
  let held = null;
  try {
    held = await detailsOf(at);
    drawCase(held, at);
  } catch (error) {
    byId("case-title").textContent = nameOf(at);
    byId("case-body").replaceChildren(make("p", { class: "note", text: `This case cannot be shown: ${error.message}` }));
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  byId("case-title").focus({ preventScroll: true });
  if (held) history.replaceState(null, "", `#case=${encodeURIComponent(held.id)}`);
}

function closed() {
  history.replaceState(null, "", "#heatmap");
  const at = current;
  residualOf = null;
  const target = byId("map").querySelector(`td[data-case="${at}"]`);
  if (target && document.activeElement === document.body) moveTo(target);
}
