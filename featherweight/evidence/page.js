"use strict";
// The browser of examples. All data is in the page; nothing is asked of anywhere.
(function () {
  const held = document.getElementById("data");
  const browser = document.getElementById("browser");
  if (!held || !browser) return;
  const data = JSON.parse(held.textContent);
  const stage = document.getElementById("stage");
  const facts = document.getElementById("facts");
  const filter = document.getElementById("filter");
  const pick = document.getElementById("pick");
  const NS = "http://www.w3.org/2000/svg";
  const LETTERS = "ACGTN";
  const STEP = 9.5, LEFT = 92, HEIGHT = 62;
  let shown = [], at = 0;

  function bytes(text, signed) {
    const raw = atob(text), made = signed ? new Int8Array(raw.length) : new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) made[i] = raw.charCodeAt(i);
    return made;
  }
  function add(parent, name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }
  function drawing(width, height, label) {
    const made = add(stage, "svg", { viewBox: "0 0 " + width + " " + height, width: width, height: height, role: "img" });
    add(made, "title", {}, label);
    return made;
  }
  function colour(p) { // blue below one half, orange above it, white at it
    const far = Math.min(1, Math.abs(p - 0.5) * 2), to = p < 0.5 ? [0, 114, 178] : [213, 94, 0];
    return "rgb(" + to.map(function (c) { return Math.round(255 + (c - 255) * far); }).join(",") + ")";
  }
  function letters(svg, example, values, top, name) {
    const middle = top + HEIGHT / 2;
    add(svg, "text", { x: 0, y: middle + 4 }, name);
    add(svg, "line", { x1: LEFT, x2: LEFT + STEP * example.letters.length, y1: middle, y2: middle, class: "axis" });
    for (let i = 0; i < example.letters.length; i++) {
      const size = Math.abs(values[i]) / 127 * HEIGHT / 2, letter = example.letters[i];
      if (size < 0.6) continue;
      const up = values[i] > 0, y = up ? middle - size : middle;
      const x = LEFT + STEP * i, flip = up ? "" : " translate(0 1) scale(1 -1)";
      if (letter === "N") continue;
      add(svg, "use", { href: "#base-" + letter, class: letter,
        transform: "translate(" + x + " " + y + ") scale(" + STEP * 0.92 + " " + size + ")" + flip });
    }
  }
  function bars(svg, values, top, name, step) {
    const middle = top + HEIGHT / 2;
    add(svg, "text", { x: 0, y: middle + 4 }, name);
    add(svg, "line", { x1: LEFT, x2: LEFT + step * values.length, y1: middle, y2: middle, class: "axis" });
    for (let i = 0; i < values.length; i++) {
      const size = Math.min(HEIGHT / 2, Math.abs(values[i]) / 127 * HEIGHT / 2);
      add(svg, "rect", { x: LEFT + step * i, y: values[i] > 0 ? middle - size : middle, width: step * 0.8, height: size, class: "other" });
    }
  }
  function minus(a, b) { return Array.from(a, function (value, i) { return value - b[i]; }); }

  function sequence(example) {
    const n = example.letters.length, strips = example.strips || {}, names = Object.keys(strips);
    const marks = example.marks || [];
    const height = 3 * HEIGHT + 26 + 20 * marks.length + 18 * names.length + 8;
    const svg = drawing(LEFT + STEP * n + 4, height, "attributions of " + example.name);
    letters(svg, example, bytes(example.dense, true), 0, "dense");
    letters(svg, example, bytes(example.small, true), HEIGHT, "small");
    bars(svg, minus(bytes(example.dense, true), bytes(example.small, true)), 2 * HEIGHT, "dense - small", STEP);
    let y = 3 * HEIGHT + 14;
    for (let i = 0; i < n; i++) add(svg, "text", { x: LEFT + STEP * i + 1, y: y, class: example.letters[i] }, example.letters[i]);
    y += 8;
    for (const mark of marks) {
      add(svg, "text", { x: 0, y: y + 10 }, mark.name);
      add(svg, "rect", { x: LEFT + STEP * mark.start, y: y + 2, width: STEP * (mark.end - mark.start), height: 8, class: "other hollow" });
      add(svg, "text", { x: LEFT + STEP * mark.end + 4, y: y + 10 }, mark.text);
      y += 20;
    }
    for (const name of names) {
      const values = bytes(strips[name], false);
      add(svg, "text", { x: 0, y: y + 11 }, name);
      for (let i = 0; i < n; i++) {
        const p = values[i] / 255;
        const cell = add(svg, "rect", { x: LEFT + STEP * i, y: y, width: STEP, height: 14, fill: colour(p) });
        add(cell, "title", {}, name + " " + (i + 1) + ": " + p.toFixed(2));
      }
      y += 18;
    }
  }
  function picture(example) {
    const row = document.createElement("div");
    row.className = "pictures";
    stage.appendChild(row);
    const dense = bytes(example.dense, true), small = bytes(example.small, true);
    const views = [["image", null], ["dense", dense], ["small", small], ["dense - small", minus(dense, small)]];
    for (const view of views) {
      const figure = document.createElement("figure");
      figure.className = "small";
      const svg = add(figure, "svg", { viewBox: "0 0 1 1", role: "img" });
      add(svg, "title", {}, view[0] + " of " + example.name);
      add(svg, "image", { href: example.picture, width: 1, height: 1, preserveAspectRatio: "none" });
      if (view[1]) {
        const side = Math.round(Math.sqrt(view[1].length));
        add(svg, "rect", { width: 1, height: 1, fill: "#000", opacity: 0.45 });
        for (let i = 0; i < view[1].length; i++) {
          const value = view[1][i];
          add(svg, "rect", { x: (i % side) / side, y: Math.floor(i / side) / side, width: 1 / side, height: 1 / side,
            fill: value < 0 ? "#56b4e9" : "#f0a35e", opacity: Math.min(0.95, Math.abs(value) / 127 * 0.95) });
        }
      }
      const caption = document.createElement("figcaption");
      caption.textContent = view[0];
      figure.appendChild(caption);
      row.appendChild(figure);
    }
  }
  function other(example) {
    const n = bytes(example.dense, true).length, step = Math.max(2, Math.min(STEP, 900 / n));
    const svg = drawing(LEFT + step * n + 4, 3 * HEIGHT, "attributions of " + example.name);
    bars(svg, bytes(example.dense, true), 0, "dense", step);
    bars(svg, bytes(example.small, true), HEIGHT, "small", step);
    bars(svg, minus(bytes(example.dense, true), bytes(example.small, true)), 2 * HEIGHT, "dense - small", step);
  }
  function show() {
    stage.replaceChildren();
    if (!shown.length) { facts.textContent = "No example is of this kind."; return; }
    const example = shown[at];
    facts.textContent = (at + 1) + " of " + shown.length + ": " + example.name + ". " + example.says;
    pick.value = String(at);
    if (example.letters) sequence(example); else if (example.picture) picture(example); else other(example);
  }
  function list() {
    shown = data.examples.filter(function (example) { return filter.value === "all" || example.kinds.includes(filter.value); });
    at = 0;
    pick.replaceChildren();
    shown.forEach(function (example, number) {
      const option = document.createElement("option");
      option.value = String(number);
      option.textContent = example.name;
      pick.appendChild(option);
    });
    show();
  }
  function go(by) {
    if (!shown.length) return;
    at = (at + by + shown.length) % shown.length;
    show();
  }
  document.getElementById("before").addEventListener("click", function () { go(-1); });
  document.getElementById("after").addEventListener("click", function () { go(1); });
  filter.addEventListener("change", list);
  pick.addEventListener("change", function () { at = Number(pick.value); show(); });
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "ArrowRight") go(1);
    else if (event.key === "Home") go(-at);
    else if (event.key === "End") go(shown.length - 1 - at);
    else return;
    event.preventDefault();
  });
  list();
})();
