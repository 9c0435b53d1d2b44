"use strict";
// The page's only script: draws the plots, and keeps what the reader picked the same in all of them.
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const parse = (id) => JSON.parse(byId(id).textContent);

const state = { ...parse("page-state"), arms: new Set() };
const views = new Map();

// Data and expressions never become code: `ast` parses them for Vega's interpreter, which the page's policy asks for.
const options = {
  ast: true,
  actions: false,
  renderer: "svg",
  defaultStyle: false,
  config: parse("plot-config"),
  tooltip: { disableDefaultStyle: true },
};

function apply(view) {
  return view.signal("group", state.group).signal("task", state.task).signal("arms", [...state.arms]).runAsync();
}

function showChoices() {
  all("[data-group]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.group === state.group)));
  all("[data-arm-choice]").forEach((b) => b.setAttribute("aria-pressed", String(state.arms.has(b.dataset.armChoice))));
  all("[data-only-group]").forEach((part) => { part.hidden = part.dataset.onlyGroup !== state.group; });
  all("[data-arm]").forEach((row) => {
    row.classList.toggle("faded", state.arms.size > 0 && !state.arms.has(row.dataset.arm));
  });
}

function update() {
  showChoices();
  return Promise.all([...views.values()].map(apply));
}

// What a reader can download of a plot is the table it was drawn from, with its column names.
function download(key) {
  const spec = parse(`spec-${key}`);
  const tables = Object.values(spec.datasets);
  const rows = tables.reduce((most, table) => (table.length > most.length ? table : most));
  const columns = Object.keys(rows[0]);
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map(cell), ...rows.map((row) => columns.map((name) => cell(row[name])))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\r\n")], { type: "text/csv" }));
  link.download = `${key}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function search(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const items = all("li", byId(input.dataset.search));
  let found = 0;
  for (const item of items) {
    const text = item.textContent.toLowerCase();
    item.hidden = !words.every((word) => text.includes(word));
    found += item.hidden ? 0 : 1;
  }
  input.closest("p").querySelector(".found").textContent = words.length ? `${found} of ${items.length}` : "";
}

function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.group) state.group = button.dataset.group;
    else if (button.dataset.armChoice) {
      const arm = button.dataset.armChoice;
      if (!state.arms.delete(arm)) state.arms.add(arm);
    } else if (button.dataset.download) return download(button.dataset.download);
    update();
  });
  all("[data-task-choice]").forEach((choice) => {
    choice.addEventListener("change", () => { state.task = choice.value; update(); });
  });
  all("[data-search]").forEach((input) => input.addEventListener("input", () => search(input)));
}

// Plots come one after another in reading order, so that the first can be read while the last is drawn.
async function draw() {
  for (const block of all("script.spec")) {
    const key = block.id.slice("spec-".length);
    const { view } = await vegaEmbed(byId(`plot-${key}`), JSON.parse(block.textContent), options);
    views.set(key, view);
    await apply(view);
  }
  document.documentElement.dataset.drawn = String(views.size);
}

listen();
showChoices();
draw();
