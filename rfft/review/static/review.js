// The review page. A vote is answered by what comes next, whose pictures have been loaded meanwhile, so that
// the next picture is there at once.

import { fillGuide, showFigures } from "/static/figures.js";
import { $, call, make, tell, words } from "/static/page.js";

const state = { setup: null, question: null, since: 0, ticked: new Set(), chosen: {}, point: null, busy: false };
const CODES = ["1", "2", "3", "4", "5", "6"];
const ORDER = ["available", "unsuitable", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination"];
const TITLES = { labels: "What is wrong?", pairs: "Which is better?", gsb: "Good, same or bad?", scores: "How good, 1 to 5?" };
const SIDES = [["left", "Left is better", "1", "ArrowLeft"], ["same", "The same", "2", "ArrowDown"], ["right", "Right is better", "3", "ArrowRight"]];
const SCORES = ["useless", "bad", "usable", "good", "publish"];
const DEFECT_KEYS = "asdfghjk";
const LARGEST_ZOOM = 9; // small pictures stay legible

async function guarded(work) {
  if (state.busy) return;
  state.busy = true;
  try { await work(); } catch (problem) {
    tell(problem instanceof TypeError ? "The server cannot be reached. Your last vote may not be counted: reload the page." : problem.message, true);
  } finally { state.busy = false; }
}

// ---- questions ----

function show(reply) {
  state.question = reply.question;
  state.ticked.clear();
  state.chosen = {};
  state.point = null;
  const { mine, there, wanted } = reply.progress;
  $("counts").textContent = `you ${mine}, team ${there} of ${wanted}`;
  $("bar").style.width = `${wanted ? (100 * there) / wanted : 0}%`;
  $("progress").setAttribute("aria-valuenow", there);
  $("progress").setAttribute("aria-valuemax", wanted);
  const there_is = state.question !== null;
  $("stage").hidden = $("answers").hidden = !there_is;
  $("others").hidden = true;
  if (!there_is) return tell(mine ? "All done, thank you. There is nothing more to ask you." : "There is nothing to ask you: others have done it all.");
  tell("");
  $("note").value = "";
  $("caption").textContent = state.question.caption || "(not known)";
  $("prompt").textContent = state.question.prompt || "(not known)";
  $("product-box").hidden = !state.question.product;
  if (state.question.product) $("product").src = `/product/${state.question.product}`;
  showPictures();
  showAnswers();
  for (const id of reply.soon || []) new Image().src = `/picture/${id}`;
  state.since = performance.now();
}

function showPictures() {
  const two = state.question.pictures.length === 2;
  $("pictures").classList.toggle("two", two);
  $("point-hint").hidden = state.setup.task !== "labels";
  $("pictures").replaceChildren(...state.question.pictures.map((id, side) => {
    const name = two ? ["left picture", "right picture"][side] : "the picture to judge";
    const image = make("img", { src: `/picture/${id}`, alt: name, draggable: "false" });
    image.addEventListener("load", () => image.style.setProperty("--widest", `${LARGEST_ZOOM * image.naturalWidth}px`));
    const frame = make("div", { class: "picture" }, image);
    if (state.setup.task === "labels") image.addEventListener("click", (event) => pointAt(event, image, frame));
    if (state.setup.task === "pairs") {
      frame.classList.add("choice");
      frame.addEventListener("click", () => vote({ better: side ? "right" : "left" }));
    }
    return frame;
  }));
}

function pointAt(event, image, frame) {
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const x = (event.clientX - box.left - (box.width - width) / 2) / width;
  const y = (event.clientY - box.top - (box.height - height) / 2) / height;
  if (x < 0 || x > 1 || y < 0 || y > 1) return;
  state.point = { x, y };
  frame.querySelector(".dot")?.remove();
  const around = frame.getBoundingClientRect();
  const dot = make("div", { class: "dot" });
  dot.style.left = `${event.clientX - around.left}px`;
  dot.style.top = `${event.clientY - around.top}px`;
  frame.append(dot);
}

async function vote(answer) {
  await guarded(async () => {
    const [left, right] = state.question.pictures;
    const body = { left, right: right ?? null, answer, note: $("note").value, x: null, y: null, ...state.point };
    body.seconds = (performance.now() - state.since) / 1000;
    $("note").blur();
    const reply = await call("/api/vote", body);
    show(reply);
    showOthers(reply.others || []);
  });
}

function showOthers(others) {
  if (!others.length) return;
  const said = others.map(({ answer, note }) => make("div", { text: Object.values(answer).flat().map(String).map(words).join(", ") + (note ? `: ${note}` : "") }));
  $("others").replaceChildren(make("strong", { text: "Of the last one others said" }), ...said);
  $("others").hidden = false;
}

// ---- answers ----

function button(text, key, click, options = {}) {
  return make("button", { type: "button", class: "answer", click, ...options }, make("kbd", { text: key }), text);
}

const ANSWERS = {
  labels() {
    return ORDER.map((name, i) => {
      const label = button(words(name), CODES[i], () => answerLabel(name));
      if (i === 0) label.classList.add("good");
      if (i < 2) return label;
      const tick = make("button", {
        type: "button", class: "tick", role: "checkbox", "aria-checked": "false", "data-tick": name,
        "aria-label": `tick ${words(name)} and go on looking`, click: () => tickLabel(name),
      });
      return make("span", { class: "group" }, tick, label);
    });
  },
  pairs() {
    return [...SIDES.map(([side, text, key]) => button(text, key, () => vote({ better: side }))), button("Next product", "Space", moveOn)];
  },
  gsb() {
    return state.setup.dimensions.map((name) => make("div", { class: "dimension", "data-dimension": name }, make("span", { text: words(name) }),
      ...SIDES.map(([side, text, key]) => button(side, key, () => choose(name, side), { "data-side": side, "aria-label": `${words(name)}: ${text}` }))));
  },
  scores() {
    const defects = state.setup.defects.map((name, i) => button(name, DEFECT_KEYS[i].toUpperCase(), () => tickDefect(name), { "aria-pressed": "false", "data-tick": name }));
    const scores = SCORES.map((text, i) => button(text, String(i + 1), () => vote({ score: i + 1, defects: [...state.ticked] })));
    return [make("div", { class: "row", role: "group", "aria-label": "what is wrong" }, ...defects), make("div", { class: "row scores", role: "group", "aria-label": "score" }, ...scores)];
  },
};

function showAnswers() {
  $("answers").replaceChildren(...ANSWERS[state.setup.task]());
  $("answers").className = state.setup.task;
  markCurrent();
}

const answerLabel = (name) => vote({ labels: name === "available" || name === "unsuitable" ? [name] : [...state.ticked, name] });

function tickLabel(name) {
  state.ticked.has(name) ? state.ticked.delete(name) : state.ticked.add(name);
  const tick = document.querySelector(`[data-tick="${name}"]`);
  tick.setAttribute("aria-checked", state.ticked.has(name));
  if (state.ticked.size) tell("Ticked faults go with the answer; Enter sends them as they are.");
}

function tickDefect(name) {
  state.ticked.has(name) ? state.ticked.delete(name) : state.ticked.add(name);
  document.querySelector(`[data-tick="${name}"]`).setAttribute("aria-pressed", state.ticked.has(name));
}

function currentDimension() {
  return state.setup.dimensions.find((name) => !(name in state.chosen));
}

function markCurrent() {
  if (state.setup.task !== "gsb") return;
  for (const row of document.querySelectorAll(".dimension")) row.classList.toggle("current", row.dataset.dimension === currentDimension());
}

function choose(name, side) {
  state.chosen[name] = { left: "good", same: "same", right: "bad" }[side];
  for (const side_button of document.querySelectorAll(`[data-dimension="${name}"] .answer`)) side_button.setAttribute("aria-pressed", side_button.dataset.side === side);
  markCurrent();
  if (!currentDimension()) vote({ ...state.chosen });
}

const undo = () => guarded(async () => show(await call("/api/undo", {})));
const moveOn = () => guarded(async () => {
  const before = String(state.question.pictures);
  show(await call("/api/move-on", {}));
  if (String(state.question?.pictures) === before) tell("Compare these two first: then on to the next product.");
});
const openFigures = () => guarded(() => showFigures(state.setup.labels));

// ---- keys ----

const KEYS = {
  labels(event, key) {
    const index = CODES.indexOf(event.code.replace(/^(Digit|Numpad)/, ""));
    if (index >= 2 && event.shiftKey) return tickLabel(ORDER[index]);
    if (index >= 0) return answerLabel(ORDER[index]);
    if (key === "Enter" && state.ticked.size) return vote({ labels: [...state.ticked] });
    return undefined;
  },
  pairs(event, key) {
    if (key === " ") return moveOn();
    const found = SIDES.find((side) => side.slice(2).includes(key));
    return found && vote({ better: found[0] });
  },
  gsb(event, key) {
    const found = SIDES.find((side) => side.slice(2).includes(key));
    return found && choose(currentDimension(), found[0]);
  },
  scores(event, key) {
    if ("12345".includes(key)) return vote({ score: Number(key), defects: [...state.ticked] });
    const defect = DEFECT_KEYS.indexOf(key.toLowerCase());
    return defect >= 0 ? tickDefect(state.setup.defects[defect]) : undefined;
  },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("textarea, input")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.target.matches("button") && ["Enter", " "].includes(event.key)) return;
  const key = event.key;
  if (key === "?") $("guide").showModal();
  else if (key.toLowerCase() === "p") openFigures();
  else if (key === "Backspace") undo();
  else if (state.question === null || event.repeat) return;
  else if (key.toLowerCase() === "n") $("note").focus();
  else KEYS[state.setup.task](event, key);
  event.preventDefault();
}

// ---- beginning ----

async function begin() {
  state.setup = await call("/api/setup");
  document.title = `RFFT review: ${TITLES[state.setup.task]}`;
  $("task").textContent = TITLES[state.setup.task] + (state.setup.round > 1 ? ` (round ${state.setup.round})` : "");
  if (!state.setup.rater) {
    if (state.setup.needs_token) return tell("Open the link that you were given.", true);
    $("enter").hidden = false;
    return $("name").focus();
  }
  $("enter").hidden = true;
  fillGuide(state.setup.guide);
  return show(await call("/api/question"));
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(async () => { await call("/api/enter", { name: $("name").value }); await begin(); });
});
$("open-guide").addEventListener("click", () => $("guide").showModal());
$("open-figures").addEventListener("click", openFigures);
$("undo").addEventListener("click", undo);
document.addEventListener("keydown", onKey);
guarded(begin);
