// The search page. Everything that is shown comes from the JSON API of the same server.
const $ = (id) => document.getElementById(id);
const PICTURES = [".png", ".jpg", ".jpeg", ".webp"];
let hits = [];
let viewer = null;

/** An element with attributes and children; texts are never taken for markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function say(id, text, wrong = false) {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
}

/** Send a form; the answer, or an error with what the server said. */
async function ask(path, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== null && value !== undefined && value !== "") body.append(name, value);
  }
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body });
  } catch {
    throw new Error("the server does not respond");
  }
  let value;
  try {
    value = await answer.json();
  } catch {
    throw new Error(`the server answered ${answer.status}`);
  }
  if (!answer.ok) throw new Error(value.error ?? `the server answered ${answer.status}`);
  return value;
}

/** Run a task with its button off and its status told. */
async function busy(form, status, words, task) {
  const button = form.querySelector("button.main");
  button.disabled = true;
  say(status, words);
  try {
    await task();
  } catch (error) {
    say(status, error.message, true);
  } finally {
    button.disabled = false;
  }
}

// Search.

async function search(extra = {}) {
  const form = $("query");
  const given = new FormData(form);
  const file = given.get("file");
  const kind = PICTURES.some((end) => file.name.toLowerCase().endsWith(end)) ? "image" : "shape";
  const fields = { category: given.get("category"), where: given.get("where"), k: given.get("k"), ...extra };
  if (extra.like === undefined) {
    Object.assign(fields, { text: given.get("text"), minus: given.get("minus") });
    if (file.size) fields[kind] = file;
  }
  await busy(form, "search-status", "Searching…", async () => {
    const answer = await ask("/api/search", fields);
    hits = answer.hits;
    show();
    say("search-status", hits.length ? `${hits.length} objects, best first` : "Nothing found");
  });
}

function show() {
  $("tools").hidden = !hits.length;
  $("hits").replaceChildren(...hits.map(tile));
}

function tile(hit) {
  const name = hit.category ?? hit.texts[0] ?? hit.uid;
  const image = element("img", {
    src: `/api/objects/${hit.row}/picture.png`, alt: name, loading: "lazy",
    onerror: (event) => event.target.replaceWith(element("div", { class: "none" })),
  });
  const look = hit.viewer
    ? element("button", { class: "turn", type: "button", "aria-label": `Rotate ${name}`, onclick: () => turn(hit, name) }, image)
    : image;
  return element(
    "li", {}, look, element("strong", {}, name.replaceAll("_", " ")),
    element("span", {}, hit.score.toFixed(3)),
    element("small", {}, hit.texts.at(-1) ?? "", element("br"), hit.uid),
    element("button", { class: "like", type: "button", onclick: () => search({ like: hit.row }) }, "More like this"),
  );
}

async function turn(hit, name) {
  $("viewer-title").textContent = name;
  say("viewer-status", "Loading…");
  $("viewer").showModal();
  try {
    if (!viewer) viewer = new (await import("./viewer.js")).Viewer($("canvas"));
    const shown = await viewer.show(hit.row, hit.viewer);
    say("viewer-status", shown ? `${shown === "mesh" ? "Mesh" : "Point cloud"}; drag or use arrow keys to rotate, wheel or + and - to zoom` : "");
    $("canvas").focus();
  } catch (error) {
    say("viewer-status", `Cannot be shown: ${error.message}`, true);
  }
}

function save(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function cell(value) {
  const text = String(value ?? "");
  // A cell that begins like a formula would be run by a spreadsheet.
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

$("query").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(hits.map((hit) => hit.uid).join("\n"));
  say("search-status", `${hits.length} uids copied`);
});
$("json").addEventListener("click", () => save("hits.json", "application/json", JSON.stringify(hits, null, 1)));
$("csv").addEventListener("click", () => {
  const columns = ["rank", "score", "uid", "category", "source", "texts"];
  const rows = hits.map((hit) => columns.map((c) => cell(c === "texts" ? hit.texts.join("; ") : hit[c])).join(","));
  save("hits.csv", "text/csv", [columns.join(","), ...rows].join("\n") + "\n");
});
$("viewer-close").addEventListener("click", () => $("viewer").close());
$("viewer").addEventListener("close", () => viewer?.clear());

// Score and classify.

const FIGURES = {
  shape_text: "shape and text, cosine", shape_rank: "rank of the text among others, by shape",
  view_text: "views and text, mean cosine", view_text_best: "best view and text, cosine",
  view_rank: "rank of the text among others, by views", n_distractors: "other texts",
};

$("score-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = new FormData(event.target);
  busy(event.target, "score-status", "Rendering and comparing…", async () => {
    const found = await ask("/api/score", { mesh: given.get("mesh"), text: given.get("text") });
    const rows = Object.entries(FIGURES).filter(([key]) => found[key] !== null && found[key] !== undefined);
    const told = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(3));
    $("score-answer").replaceChildren(
      element("table", {}, ...rows.map(([key, label]) => element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, told(found[key]))))),
    );
    say("score-status", `“${found.text}”`);
  });
});

$("classify-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = new FormData(event.target);
  busy(event.target, "classify-status", "Comparing…", async () => {
    const found = await ask("/api/classify", { shape: given.get("shape"), classes: given.get("classes") });
    $("classify-answer").replaceChildren(
      element("table", {}, ...found.classes.map((one) =>
        element("tr", {}, element("th", { scope: "row" }, one.name),
          element("td", {}, element("meter", { min: 0, max: 1, value: one.probability, "aria-label": one.name })),
          element("td", {}, `${(100 * one.probability).toFixed(1)} %`)))),
    );
    say("classify-status", `${found.classes.length} classes, most probable first`);
  });
});

// Tabs, drops.

const tabs = [...document.querySelectorAll("[role=tab]")];
function select(tab, focus = false) {
  for (const other of tabs) {
    const mine = other === tab;
    other.setAttribute("aria-selected", mine);
    other.tabIndex = mine ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !mine;
  }
  if (focus) tab.focus();
}
for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(tabs[(place + step + tabs.length) % tabs.length], true);
  });
}
for (const drop of document.querySelectorAll(".drop")) {
  const input = drop.querySelector("input");
  for (const kind of ["dragover", "dragenter"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    }
  });
}
$("query").elements.file.addEventListener("change", (event) => { if (event.target.files.length) search(); });

const info = await (await fetch("/api/info")).json();
document.title = `3D search: ${info.name}`;
$("about").textContent = `${info.objects.toLocaleString("en")} objects of ${info.name}; ${info.model}, teacher ${info.teacher}`;
$("columns").textContent = info.columns.join(", ");
for (const [name, count] of Object.entries(info.categories)) {
  $("query").elements.category.append(element("option", { value: name }, `${name.replaceAll("_", " ")} (${count})`));
}
if (!info.shapes) $("tab-classify").hidden = true;
document.body.dataset.ready = "yes";
