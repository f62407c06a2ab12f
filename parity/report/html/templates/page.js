"use strict";
// Small things: making elements without markup, wording numbers, reading what the file carries.

function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const words = index.words;

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).text();
}

const places = index.cases.state.map(() => 0);
const byState = index.states.map(() => []);
index.cases.state.forEach((state, at) => { places[at] = byState[state].push(at) - 1; });
const blobs = document.querySelectorAll("script.details");
const opened = new Map();

async function detailsOf(at) {
  const state = index.cases.state[at];
  if (!opened.has(state)) opened.set(state, unpacked(blobs[state].textContent).then(JSON.parse));
  return (await opened.get(state))[places[at]];
}

function say(text) { byId("said").textContent = text; }

async function copied(button) {
  const text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  say("Command copied");
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
}

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* files may have no storage */ }
  return null;
}
