// The guide and the figures, in dialogs.

import { $, call, make, words } from "/static/page.js";

export function fillGuide(entries) {
  $("guide-entries").replaceChildren(...entries.map((entry, i) => {
    const parts = entry.picture ? [make("img", { src: `/guide/${i}`, alt: `an example: ${words(entry.name)}` })] : [];
    return make("section", {}, ...parts, make("h3", { text: words(entry.name) }), make("p", { text: entry.text }));
  }));
}

const percent = (found) => (found ? `${(100 * found.share).toFixed(0)} % of ${found.of}` : "–");
const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

function table(caption, head, body) {
  const row = (cells, tag) => make("tr", {}, ...cells.map((text) => make(tag, { text: String(text) })));
  const parts = [make("caption", { text: caption }), make("thead", {}, row(head, "th")), make("tbody", {}, ...body.map((cells) => row(cells, "td")))];
  return make("div", { class: "table" }, make("table", {}, ...parts));
}

function raters(found) {
  const head = ["rater", "votes", "seconds a vote", "with the majority", "with gold", "with themselves"];
  return table("Raters", head, Object.entries(found.raters).map(([name, of]) =>
    [name, of.votes, number(of.seconds_per_vote), percent(of.with_majority), percent(of.with_gold), percent(of.with_self)]));
}

function confusion({ agree, confusion: rows }, labels) {
  const names = labels.slice(0, rows.length).map(words);
  const caption = `RFNet says what most people say: ${percent(agree)} (rows: people, columns: RFNet)`;
  return table(caption, ["", ...names], rows.map((row, i) => [names[i], ...row]));
}

function goodSameBad(found) {
  const caption = `${found.sources[0]} against ${found.sources[1]}`;
  const rows = Object.entries(found.gsb).filter(([, of]) => of).map(([name, of]) =>
    [name, of.good, of.same, of.bad, `${number(of.score)} (${of.interval.map(number).join(" to ")})`, of.sign_test_p.toPrecision(2)]);
  return table(caption, ["", "good", "same", "bad", "score, 95 %", "sign test's p"], rows);
}

export async function showFigures(labels) {
  const found = await call("/api/figures");
  const parts = [
    table("Agreement", ["votes", "Fleiss' kappa", "Krippendorff's alpha", "seconds a vote"],
      [[found.votes, number(found.fleiss_kappa), number(found.krippendorff_alpha), number(found.seconds_per_vote)]]),
    table("Answers", ["answer", "votes"], Object.entries(found.answers).map(([name, count]) => [words(name), count])),
    raters(found),
  ];
  if (found.rfnet) parts.push(confusion(found.rfnet, labels));
  if (found.gsb && found.sources) parts.push(goodSameBad(found));
  $("figures-body").replaceChildren(...parts);
  $("figures").showModal();
}
