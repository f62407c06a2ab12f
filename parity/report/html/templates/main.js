// Switches, and what starts when the page is there.

const stateAt = (pair, inputs, lora) => index.states.findIndex((s) => s.pair === pair && s.inputs === inputs && s.lora === lora);
const choose = (select, values, named) => select.replaceChildren(...values.map((value) => make("option", { value, text: named(value) })));

function buildTools() {
  const pairs = [...new Set(index.states.map((s) => s.pair))];
  choose(byId("pair"), pairs, (name) => name);
  byId("pair-field").hidden = pairs.length < 2;
  for (const [name, [label]] of Object.entries(words.modes)) {
    byId("mode").append(make("label", {}, make("input", { type: "radio", name: "mode", value: name }), make("span", { text: label })));
  }
  byId("tools").hidden = byId("map-hint").hidden = false;
}

// Show the switches as the state has them; what another choice would not have is off.
function showTools() {
  const state = index.states[view.state];
  byId("pair").value = state.pair;
  const inputs = [...new Set(index.states.filter((s) => s.pair === state.pair).map((s) => s.inputs))];
  choose(byId("inputs"), inputs, (name) => name || "default");
  byId("inputs").value = state.inputs;
  byId("inputs-field").hidden = inputs.length < 2;
  for (const radio of document.querySelectorAll("input[name=lora]")) {
    radio.checked = (radio.value === "on") === state.lora;
    radio.disabled = stateAt(state.pair, state.inputs, radio.value === "on") < 0;
  }
  document.querySelector(`input[name=mode][value=${view.mode}]`).checked = true;
}

function turn(pair, inputs, lora) {
  const wanted = [stateAt(pair, inputs, lora), stateAt(pair, inputs, !lora), index.states.findIndex((s) => s.pair === pair)];
  const found = wanted.find((n) => n >= 0);
  const other = index.states[found].pair !== index.states[view.state].pair;
  view.state = found;
  showTools();
  drawMap();
  if (other) drawDrift();
  say(`${index.states[found].pair} ${index.states[found].state}`);
}

function themed(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  stored("parity-theme", name);
  if (plotly) { drawDrift(); drawCurves(); }
}

function listen() {
  const state = () => index.states[view.state];
  byId("pair").addEventListener("change", (event) => turn(event.target.value, "", state().lora));
  byId("inputs").addEventListener("change", (event) => turn(state().pair, event.target.value, state().lora));
  byId("lora-switch").addEventListener("change", (event) => turn(state().pair, state().inputs, event.target.value === "on"));
  byId("mode").addEventListener("change", (event) => { view.mode = event.target.value; drawMap(); });
  byId("theme").addEventListener("change", (event) => themed(event.target.value));
  byId("map").addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    const copy = event.target.closest("[data-copy]"), at = event.target.closest("[data-case]");
    if (copy) copied(copy);
    else if (at) { if (at.matches("td")) moveTo(at); openCase(Number(at.dataset.case)); }
  });
  byId("case").addEventListener("close", closed);
  byId("case").addEventListener("click", (event) => { if (event.target === byId("case")) byId("case").close(); });
  byId("case-close").addEventListener("click", () => byId("case").close());
  byId("case-next").addEventListener("click", () => openCase(neighbours(current).next));
  byId("case-before").addEventListener("click", () => openCase(neighbours(current).before));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => themed(document.documentElement.dataset.theme ?? "auto"));
}

// Curves are drawn when they come into sight: the page is there before Plotly is.
function watchDrift() {
  const target = byId("drift-plot");
  if (!target) return;
  byId("drift-table").replaceChildren(driftTable(drifting()));
  const seen = new IntersectionObserver((entries) => { if (entries.some((e) => e.isIntersecting)) { seen.disconnect(); drawDrift(); } }, { rootMargin: "200px" });
  seen.observe(target);
}

async function openLinked() {
  const wanted = location.hash.startsWith("#case=") ? decodeURIComponent(location.hash.slice(6)) : "";
  for (let at = 0; wanted && at < index.cases.state.length; at++) {
    if (wanted.includes(index.states[index.cases.state[at]].state) && (await detailsOf(at)).id === wanted) return openCase(at);
  }
}

function begin() {
  const theme = stored("parity-theme");
  const radio = document.querySelector(`input[name=theme][value="${["light", "dark"].includes(theme) ? theme : "auto"}"]`);
  radio.checked = true;
  themed(radio.value);
  const broken = index.states.findIndex((state) => state.first !== null && state.first !== undefined);
  view.state = Math.max(0, broken);
  buildTools();
  showTools();
  drawMap();
  listen();
  watchDrift();
  openLinked().catch(() => say("The case this address names is not here"));
}

begin();
