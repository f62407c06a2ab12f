// Curves, by Plotly: unpacked when the first is drawn, its only data what this file carries.

let plotly = null;

function loaded() {
  plotly ??= unpacked(byId("plotly").textContent).then((code) => {
    document.body.append(make("script", { text: code }));
    return window.Plotly;
  });
  return plotly;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function layout(given) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 12, color: css("--soft") },
    margin: { l: 52, r: 12, t: 8, b: 40 }, hovermode: "x unified", hoverlabel: { bgcolor: css("--card"), font: { color: css("--ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, showlegend: true, ...given,
    xaxis: { ...axis, ...given.xaxis }, yaxis: { ...axis, ...given.yaxis },
  };
}

async function plot(target, traces, given) {
  const drawn = await loaded();
  if (target.isConnected) await drawn.react(target, traces, layout(given), { displayModeBar: false, responsive: true, displaylogo: false });
}

// A logarithmic axis over whole decades, a label each.
function decades(values) {
  const sizes = values.filter((one) => one > 0).map(Math.log10);
  const low = Math.floor(Math.min(...sizes)), high = Math.ceil(Math.max(...sizes));
  return { type: "log", dtick: Math.max(1, Math.ceil((high - low) / 6)), exponentformat: "power", range: sizes.length ? [low, Math.max(high, low + 1)] : undefined };
}

const line = (name, y, color, x, dash = "solid") => ({ type: "scatter", mode: "lines+markers", name, x, y, line: { color: css(color), width: 2, dash }, marker: { size: 4 } });

// Middle of each group of neighbours, as a number of a token or channel.
const middles = (held) => held.native.map((_, n) => Math.round(((n + 0.5) * held.count) / held.native.length));

function drawResidual(residual, targets) {
  const { tokens, channels, histogram } = residual;
  const log = (...lists) => ({ ...decades(lists.flat()) });
  const both = (held, name) => [line("native", held.native, "--hot", middles(held)), line("reference's rounding", held.reference, "--cool", middles(held), "dot")].map((t) => ({ ...t, hovertemplate: `${name} %{x}: %{y:.3g}` }));
  plot(targets[0], both(tokens, "token"), { xaxis: { title: { text: "token" } }, yaxis: log(tokens.native, tokens.reference), height: 230 });
  plot(targets[1], both(channels, "channel"), { xaxis: { title: { text: "channel" } }, yaxis: log(channels.native, channels.reference), height: 230 });
  const mean = { ...channels, native: channels.mean, reference: channels.reference_mean };
  plot(targets[2], both(mean, "channel"), { xaxis: { title: { text: "channel" } }, yaxis: {}, height: 230 });
  const width = (2 * histogram.edge) / Math.max(1, histogram.native.length);
  const at = histogram.native.map((_, n) => -histogram.edge + (n + 0.5) * width);
  const bars = (name, y, color, opacity) => ({ type: "bar", name, x: at, y, width, opacity, marker: { color: css(color) }, hovertemplate: "%{y:,} values" });
  plot(targets[3], [bars("native", histogram.native, "--hot", 0.75), bars("reference's rounding", histogram.reference, "--cool", 0.55)], {
    barmode: "overlay", bargap: 0, xaxis: { title: { text: "size, over the value's own" } }, yaxis: { type: "log", title: { text: "values" } }, height: 230,
  });
}

function drifting() {
  const pair = index.states[view.state].pair;
  const shownStates = index.states.map((state, n) => [state, n]).filter(([state]) => state.pair === pair);
  return shownStates.map(([state, n]) => ({ state, cases: byState[n].filter((at) => isNumber(index.cases.drift[at])) })).filter((one) => one.cases.length);
}

function drawDrift() {
  const target = byId("drift-plot");
  if (!target) return;
  const found = drifting();
  const colors = ["--cool", "--hot", "--passed", "--known", "--warned", "--open"], dashes = ["solid", "dash", "dot", "dashdot"];
  const traces = found.map(({ state, cases }, n) => ({
    ...line(plain(state.state), cases.map((at) => index.cases.drift[at] || null), colors[n % colors.length], cases.map((at) => plain(nameOf(at))), dashes[n % dashes.length]),
    hovertemplate: "%{y:.2e}", connectgaps: false,
  }));
  const first = index.states[view.state].first, names = found.flatMap(({ cases }) => cases.map((at) => plain(nameOf(at))));
  const mark = first === null ? {} : {
    shapes: [{ type: "line", xref: "x", yref: "paper", x0: plain(nameOf(first)), x1: plain(nameOf(first)), y0: 0, y1: 1, line: { color: css("--ink"), width: 1, dash: "dot" } }],
    annotations: [{ x: plain(nameOf(first)), y: 1, yref: "paper", text: "first divergence", showarrow: false, xanchor: "right", xshift: -5, font: { color: css("--ink") } }],
  };
  plot(target, traces, { ...mark, yaxis: { ...decades(traces.flatMap((t) => t.y)), title: { text: "relative L2" } }, xaxis: { type: "category", categoryarray: [...new Set(names)], tickangle: -50, nticks: 40, tickfont: { size: 10 } }, height: 360, margin: { l: 60, r: 12, t: 8, b: 110 } });
  byId("drift-table").replaceChildren(driftTable(found));
}

function driftTable(found) {
  const names = [...new Set(found.flatMap(({ cases }) => cases.map(nameOf)))];
  const of = found.map(({ cases }) => new Map(cases.map((at) => [nameOf(at), index.cases.drift[at]])));
  const head = make("tr", {}, make("th", { scope: "col", text: "Tap" }), ...found.map(({ state }) => make("th", { scope: "col", text: state.state })));
  const rows = names.map((name) => make("tr", {}, make("th", { scope: "row", text: name }), ...of.map((held) => make("td", { class: "num", text: num(held.get(name)) }))));
  const table = make("table", { class: "numbers" }, make("thead", {}, head), make("tbody", {}, ...rows));
  return make("details", {}, make("summary", { text: `The numbers of ${found[0]?.state.pair ?? ""}` }), make("div", { class: "scroll inner", tabindex: "0", role: "region", "aria-label": "Drift, tap by tap" }, table));
}
