// Numbers and verdicts in words.

const SYMBOLS = ["=", "≈", "▽", "✕", "?"];
const UNRUN = { error: "!", skipped: "–" };
const isNumber = (value) => typeof value === "number";

function num(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  if (value === "NaN") return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return `[${value.slice(0, 12).join(", ")}]`;
  if (!isNumber(value)) return String(value);
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 0.01 && size < 1000) return String(Number(value.toPrecision(digits + 1)));
  return value.toExponential(digits - 1).replace("+", "");
}

const outcomeOf = (at) => index.outcomes[index.cases.outcome[at]];
const verdictOf = (at) => index.verdicts[index.cases.verdict[at]];
const nameOf = (at) => index.taps[index.cases.tap[at]].name;
const differs = (at) => ["failed", "error", "warned", "known"].includes(outcomeOf(at));
const kebab = (text) => String(text).replaceAll(" ", "-");

function badge(outcome) {
  const sign = { failed: "✕", error: "!", warned: "▽", known: "◆", passed: "✓", "not judged": "?", skipped: "–" }[outcome];
  return make("span", { class: `badge ${kebab(outcome)}` }, make("span", { "aria-hidden": "true", text: sign ?? "" }), ` ${outcome}`);
}

// Text with `code` in it.
function marked(tag, text, given = {}) {
  const parts = String(text).split("`");
  return make(tag, given, ...parts.map((part, n) => (n % 2 ? make("code", { text: part }) : part)));
}

// Another function fails although it is drowned, and what is known does not: the class alone would not say so.
const also = (at) => (index.cases.verdict[at] !== 2 ? "" : { failed: " ✕", known: " ◆" }[outcomeOf(at)] ?? "");

// What one cell of the heat map shows: text, class, how far along its scale (0 to 1), whether it is over a limit.
function shown(at, mode) {
  const unrun = UNRUN[outcomeOf(at)];
  if (unrun) return { text: unrun, kind: "v4", t: 0 };
  if (mode === "verdict") return { text: SYMBOLS[index.cases.verdict[at]] + also(at), kind: `v${index.cases.verdict[at]}`, t: 0 };
  const value = index.cases[mode][at];
  if (value === null || (value === "NaN" && mode === "lora_effect")) return { text: "", kind: "", t: 0, value };
  if (!isNumber(value)) return { text: num(value).replace("Infinity", "∞"), kind: "hot strong", t: 1, over: true, value };
  return { ...scaled(mode, value), text: num(value, 1), value };
}

function scaled(mode, value) {
  const limits = index.limits;
  if (mode === "rounding_excess" || mode === "lora_effect") {
    const away = Math.abs(Math.log(Math.max(value, 1e-12)));
    const margin = mode === "lora_effect" ? Math.log(1.11) : Math.log(1 + (limits.margin ?? 0.1));
    if (away <= margin) return { kind: "cool", t: 0.15 };
    return heated(Math.min(1, Math.log(away / margin) / 4), mode === "lora_effect" || away > Math.log(limits.strong ?? 2));
  }
  if (mode === "rel_l2") return value === 0 ? { kind: "cool", t: 0 } : { kind: "cool", t: span(value, 1e-6, 1) * 1.6 };
  const limit = (mode === "impact" ? limits.impact : limits.logic_error) ?? Infinity;
  if (value <= limit) return { kind: "cool", t: value === 0 ? 0 : 0.2 + 0.6 * span(value, mode === "impact" ? 1e-3 : 1e-17, limit) };
  return heated(span(value, limit, mode === "impact" ? 30 : 1), true);
}

const heated = (t, over) => ({ kind: t > 0.7 ? "hot strong" : "hot", t, over });
const span = (value, low, high) => Math.min(1, Math.max(0, Math.log(value / low) / Math.log(high / low)));

function spoken(at, mode) {
  const parts = [nameOf(at), outcomeOf(at) === "passed" ? verdictOf(at) : `${outcomeOf(at)}, ${verdictOf(at)}`];
  if (mode !== "verdict") parts.push(`${words.modes[mode][0]} ${num(index.cases[mode][at])}`);
  if (index.states[index.cases.state[at]].first === at) parts.push("first divergence");
  return parts.join("; ");
}
