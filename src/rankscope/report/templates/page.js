"use strict";
// The page's only script: draws the plots, and keeps what the reader picked the same in all of them.
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const parse = (id) => JSON.parse(byId(id).textContent);

const state = { ...parse("page-state"), arms: new Set() };
const views = new Map();
const FIRST_MAPS = 6;
const FLIPS_AT_ONCE = 12;

// Data and expressions never become code: `ast` parses them for Vega's interpreter, which the page's policy asks for.
const options = {
  ast: true,
  actions: false,
  renderer: "svg",
  defaultStyle: false,
  config: parse("plot-config"),
  tooltip: { disableDefaultStyle: true },
};

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

// What the reader picked

const isPicked = (arm) => state.arms.size === 0 || state.arms.has(arm);

// A panel of one training set keeps to it.
function apply({ view, group, groups }) {
  // A plot that is not shown would have no rows, of which Vega warns.
  if (groups && !groups.includes(state.group)) return Promise.resolve();
  return view.signal("group", group ?? state.group).signal("task", state.task).signal("arms", [...state.arms]).runAsync();
}

function showChoices() {
  all("[data-group]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.group === state.group)));
  all("[data-arm-choice]").forEach((b) => b.setAttribute("aria-pressed", String(state.arms.has(b.dataset.armChoice))));
  all("[data-clear]").forEach((b) => { b.hidden = state.arms.size === 0; });
  all("[data-only-group]").forEach((part) => { part.hidden = part.dataset.onlyGroup !== state.group; });
  all("[data-arm]").forEach((row) => row.classList.toggle("faded", !isPicked(row.dataset.arm)));
  showFigures();
  all(".table-of-plot:not([hidden])").forEach(fillTable);
  all("[data-flips]").forEach((list) => showFlips(list, FLIPS_AT_ONCE));
}

// A panel with nothing of the picked training set would be an empty frame.
const groupsOf = (panel) => (panel.dataset.groups ? JSON.parse(panel.dataset.groups) : null);
const isOfGroup = (panel) => !groupsOf(panel) || groupsOf(panel).includes(state.group);

function showFigures() {
  all("[data-groups]:not([data-panel-arm])").forEach((panel) => { panel.hidden = !isOfGroup(panel); });
  all(".panels").forEach(showPanels);
}

// A panel about one arm is there where its arm is picked; with none picked the first few are, until all are asked for.
function showPanels(panels) {
  const own = all("[data-panel-arm]", panels).filter(isOfGroup);
  const isAll = panels.dataset.all === "true";
  all("[data-panel-arm]", panels).forEach((panel) => { panel.hidden = true; });
  own.forEach((panel, index) => {
    const isFirst = isAll || index < FIRST_MAPS;
    panel.hidden = state.arms.size > 0 ? !state.arms.has(panel.dataset.panelArm) : !isFirst;
  });
  const more = panels.parentElement.querySelector("[data-show-all]");
  if (more) more.hidden = isAll || state.arms.size > 0 || own.length <= FIRST_MAPS;
}

function update() {
  showChoices();
  return Promise.all([...views.values()].map(apply));
}

// The numbers behind a plot: the longest of its tables, without what only says where things are drawn

function tableOf(key) {
  const tables = Object.values(parse(`spec-${key}`).datasets);
  const rows = tables.reduce((most, table) => (table.length > most.length ? table : most));
  return { columns: Object.keys(rows[0]).filter((name) => !name.startsWith("_")), rows };
}

const asText = (value) => (value === null || value === undefined ? "" : String(value));

function download(key) {
  const { columns, rows } = tableOf(key);
  const cell = (value) => (/[",\r\n]/.test(asText(value)) ? `"${asText(value).replaceAll('"', '""')}"` : asText(value));
  const lines = [columns.map(cell), ...rows.map((row) => columns.map((name) => cell(row[name])))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\r\n")], { type: "text/csv" }));
  link.download = `${key}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function fillTable(place) {
  const { columns, rows } = tableOf(place.dataset.of);
  const isShown = (row) =>
    (!("group" in row) || row.group === state.group || place.closest("[data-panel-group]")) &&
    (!("task" in row) || !place.closest(".figure").querySelector("[data-task-choice]") || row.task === state.task) &&
    (!("arm" in row) || isPicked(row.arm));
  const shown = rows.filter(isShown);
  const isNumber = (name) => shown.every((row) => row[name] === null || typeof row[name] === "number");
  const kinds = columns.map((name) => (isNumber(name) ? "number" : ""));
  const table = element("table");
  const head = table.createTHead().insertRow();
  columns.forEach((name, index) => {
    const cell = element("th", kinds[index], name.replaceAll("_", " "));
    cell.scope = "col";
    head.append(cell);
  });
  const body = table.createTBody();
  for (const row of shown) {
    const line = body.insertRow();
    columns.forEach((name, index) => line.append(element("td", kinds[index], asText(row[name]))));
  }
  place.replaceChildren(table);
}

function toggleTable(button) {
  const place = byId(`table-${button.dataset.table}`);
  place.hidden = !place.hidden;
  button.setAttribute("aria-expanded", String(!place.hidden));
  if (!place.hidden) fillTable(place);
}

// Items that flipped: all that the page holds can be searched, some are shown at a time

function flipCard(flip) {
  const card = element("li", `flip ${flip.change}`);
  const head = element("p", "flip-head");
  head.append(element("span", "change", flip.change), ` ${flip.task} `, element("span", "tag", flip.place));
  const facts = element("dl");
  const fact = (name, ...values) => {
    const line = element("div");
    const value = element("dd");
    value.append(...values);
    line.append(typeof name === "string" ? element("dt", "", name) : name, value);
    facts.append(line);
    return line;
  };
  if (flip.options.length) {
    fact("Options", ...flip.options.flatMap(([text, isTarget]) => {
      return [element("span", isTarget ? "option target" : "option", isTarget ? `${text} \u2713` : text), " "];
    }));
  } else fact("Right", flip.target);
  fact("Before", flip.before);
  for (const [arm, after, seeds] of flip.answers) {
    const name = element("dt");
    name.append(element("span", `swatch ${state.classes[arm] ?? ""}`), element("span", "arm-name", arm));
    name.firstChild.setAttribute("aria-hidden", "true");
    const line = fact(name, `${after} `, element("span", "tag", seeds));
    line.classList.toggle("faded", !isPicked(arm));
  }
  card.append(head, element("p", "prompt", flip.prompt), facts);
  return card;
}

const flipsOf = new Map();

function showFlips(list, most) {
  if (!flipsOf.has(list.id)) {
    const flips = parse(list.dataset.flips);
    flipsOf.set(list.id, flips.map((flip) => ({ ...flip, text: JSON.stringify(Object.values(flip)).toLowerCase() })));
  }
  const part = list.parentElement;
  const words = part.querySelector("[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const change = part.querySelector("[data-change]").value;
  const found = flipsOf.get(list.id).filter((flip) =>
    words.every((word) => flip.text.includes(word)) && (change === "" || flip.change === change) &&
    flip.answers.some(([arm]) => isPicked(arm)));
  list.replaceChildren(...found.slice(0, most).map(flipCard));
  list.dataset.shown = String(most);
  part.querySelector(".found").textContent = `${Math.min(most, found.length)} of ${found.length} shown`;
  part.querySelector("[data-more]").hidden = found.length <= most;
}

// A number's note, for those who cannot point at it: the title of what was touched or reached by keyboard

const NOTED = 'table [title]:not([title=""])';
let noteOf = null;

function showNote(event) {
  const note = byId("note");
  noteOf = event.target.closest(NOTED);
  note.hidden = !noteOf;
  if (noteOf) note.textContent = noteOf.title;
  placeNote();
}

function placeNote() {
  if (!noteOf) return;
  const note = byId("note");
  const place = noteOf.getBoundingClientRect();
  note.style.left = `${Math.max(8, Math.min(place.left, innerWidth - note.offsetWidth - 8))}px`;
  const isRoomBelow = place.bottom + note.offsetHeight + 8 <= innerHeight;
  note.style.top = `${isRoomBelow ? place.bottom + 4 : Math.max(8, place.top - note.offsetHeight - 4)}px`;
}

function hideNote() {
  noteOf = null;
  byId("note").hidden = true;
}

// A table is one stop of the Tab key; in it the arrow keys go from number to number, or to the same column's next.
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

function moveNote(event) {
  const here = event.target.closest(NOTED);
  if (!here || !(event.key in STEPS)) return;
  event.preventDefault();
  const isUpright = event.key === "ArrowUp" || event.key === "ArrowDown";
  const cells = all(NOTED, here.closest("table")).filter((cell) => !isUpright || cell.cellIndex === here.cellIndex);
  const next = cells[cells.indexOf(here) + STEPS[event.key]];
  if (!next) return;
  here.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function press(button) {
  const { group, armChoice, download: key, table, showAll, more, clear } = button.dataset;
  if (key) return download(key);
  if (table) return toggleTable(button);
  if (more) {
    const list = byId(more);
    return showFlips(list, Number(list.dataset.shown) + FLIPS_AT_ONCE);
  }
  if (showAll !== undefined) button.closest(".figure").querySelector(".panels").dataset.all = "true";
  if (group) state.group = group;
  if (clear !== undefined) state.arms.clear();
  if (armChoice && !state.arms.delete(armChoice)) state.arms.add(armChoice);
  if (showAll !== undefined || group || armChoice || clear !== undefined) update();
}

function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) press(button);
    showNote(event);
  });
  document.addEventListener("focusin", showNote);
  document.addEventListener("keydown", (event) => (event.key === "Escape" ? hideNote() : moveNote(event)));
  addEventListener("scroll", placeNote, { passive: true, capture: true });
  all("table").forEach((table) => { (table.querySelector(NOTED) ?? {}).tabIndex = 0; });
  all("[data-task-choice]").forEach((choice) => {
    choice.addEventListener("change", () => { state.task = choice.value; update(); });
  });
  for (const list of all("[data-flips]")) {
    all("input, select", list.parentElement).forEach((field) =>
      field.addEventListener("input", () => showFlips(list, FLIPS_AT_ONCE)));
  }
  // Paper cannot be opened: what is folded away is printed, and folded again.
  const folded = () => all("details");
  addEventListener("beforeprint", () => folded().forEach((part) => {
    part.dataset.was = String(part.open);
    part.open = true;
  }));
  addEventListener("afterprint", () => folded().forEach((part) => { part.open = part.dataset.was === "true"; }));
}

// Plots come one after another in reading order, so that the first can be read while the last is drawn.
async function draw() {
  all("[data-min-width]").forEach((plot) => { plot.style.minWidth = `${plot.dataset.minWidth}px`; });
  const hidden = all("figure[hidden]");
  hidden.forEach((panel) => { panel.hidden = false; });  // a plot that is not laid out has no width to be drawn in
  for (const block of all("script.spec")) {
    const key = block.id.slice("spec-".length);
    const { view } = await vegaEmbed(byId(`plot-${key}`), JSON.parse(block.textContent), options);
    const panel = block.closest("figure");
    const drawn = { view, group: panel.dataset.panelGroup, groups: groupsOf(panel) };
    views.set(key, drawn);
    await apply(drawn);
  }
  showFigures();
  document.documentElement.dataset.drawn = String(views.size);
}

listen();
showChoices();
draw();
