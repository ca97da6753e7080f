"use strict";
// Draws the report's charts from the numbers in the page, and lets a reader look closer. Texts reach the page through
// textContent alone. Without this script the page keeps its still pictures and tables.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const BOX = { left: 52, right: 10, top: 10, bottom: 34 };
const FEW = 12; // points that are shown one by one, and never smoothed
const state = { smooth: 0, zoom: null };
const charts = [];

const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const html = (tag, text = "", kind = "") => {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const shape = (parent, tag, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};

// --- numbers

const said = (value, share) => {
  if (value === undefined || value === null || Number.isNaN(value)) return "-";
  if (share) return `${+(100 * value).toPrecision(3)}%`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return size >= 1e-3 ? String(+value.toPrecision(4)) : value.toExponential(2);
};
const niceStep = (low, high, most) => {
  const wanted = (high - low) / most, power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].find((factor) => factor * power >= wanted * 0.999) * power;
};
const niceTicks = (low, high, most, least = 0) => {
  const step = Math.max(least, niceStep(low, high, most)), ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(n * step + 0); // + 0: no -0
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const digits = Math.min(15, Math.max(1, Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high), step) / step)) + 2));
  return ticks.map((at) => [at, decimals > 4 ? String(+at.toPrecision(digits)) : at.toLocaleString("en",
    { minimumFractionDigits: decimals, maximumFractionDigits: decimals })]);
};
const extent = (values) => {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
};
const nearest = (sorted, at) => {
  let low = 0, high = sorted.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < at) low = middle + 1; else high = middle; }
  return low > 0 && at - sorted[low - 1] <= sorted[low] - at ? low - 1 : low;
};
// An exponential moving average that does not start at 0; `weight` is that of all values before.
const smoothed = (values, weight) => {
  if (!weight) return values;
  let sum = 0, count = 0;
  return values.map((value) => { sum = sum * weight + value; count = count * weight + 1; return sum / count; });
};

// --- charts

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.about = data.charts[+figure.dataset.chart];
    this.plot = figure.querySelector(".plot");
    this.log = this.about.log;
    this.hidden = new Set();
    this.frame = this.about.frames.length - 1;
    this.overSteps = this.about.kind === "line";
    this.plot.replaceChildren();
    this.tip = html("div", "", "tip");
    this.tip.hidden = true;
    this.plot.append(this.tip);
    this.keys();
    this.tools();
    this.pointer();
    new ResizeObserver(() => this.plot.clientWidth !== this.width && this.draw()).observe(this.plot);
  }

  lines() { return this.about.lines.filter((_, place) => !this.hidden.has(place)); }

  keys() {
    for (const key of all(".key", this.figure)) {
      const place = +key.dataset.line;
      const toggle = () => {
        this.hidden.has(place) ? this.hidden.delete(place) : this.hidden.add(place);
        if (this.hidden.size === this.about.lines.length) this.hidden.clear();
        for (const other of all(".key", this.figure)) other.setAttribute("aria-pressed", !this.hidden.has(+other.dataset.line));
        this.draw();
      };
      key.setAttribute("role", "button");
      key.setAttribute("aria-pressed", "true");
      key.tabIndex = 0;
      key.addEventListener("click", toggle);
      key.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
    }
  }

  tools() {
    const place = this.figure.querySelector(".tools");
    const button = (text, about, kind, act) => {
      const made = html("button", text, kind);
      made.type = "button"; made.title = about;
      made.addEventListener("click", () => { made.setAttribute("aria-pressed", act()); this.draw(); });
      place.append(made);
      return made;
    };
    const positive = this.about.lines.some((line) => line.y.some((value) => value > 0));
    if (this.overSteps && positive)
      button("log", "logarithmic axis", "", () => (this.log = !this.log)).setAttribute("aria-pressed", this.log);
    button("⤢", "whole width", "grow", () => this.figure.classList.toggle("wide-card"));
    const slider = this.figure.querySelector(".frame input");
    if (!slider) return;
    slider.closest(".frame").hidden = false;
    slider.addEventListener("input", () => {
      this.frame = +slider.value;
      slider.nextElementSibling.textContent = `step ${this.about.frames[this.frame].step}`;
      this.draw();
    });
  }

  draw() {
    this.width = this.plot.clientWidth;
    if (!this.width) return;
    this.height = this.figure.classList.contains("wide-card") ? 380 : Math.round(Math.min(250, Math.max(190, this.width * 0.58)));
    this.svg?.remove();
    this.svg = shape(this.plot, "svg", { viewBox: `0 0 ${this.width} ${this.height}`, "aria-hidden": "true" });
    this.plot.prepend(this.svg);
    this.right = this.width - BOX.right; this.bottom = this.height - BOX.bottom;
    this.about.kind === "histogram" ? this.drawBins() : this.drawLines();
    this.over = shape(this.svg, "g", {});
  }

  scale(xs, ys, yTicks) {
    let [x0, x1] = xs, [y0, y1] = ys;
    if (!(x1 > x0)) { x0 -= 0.5; x1 += 0.5; }
    if (this.log) { y0 = Math.log10(y0); y1 = Math.log10(y1); }
    if (!(y1 - y0 > 1e-9 * Math.max(1, Math.abs(y1)))) { const room = this.about.share ? 0.1 : Math.max(1e-3, Math.abs(y1)) / 2; y0 -= room; y1 += room; }
    const room = 0.05 * (y1 - y0);
    y0 -= room; y1 += room;
    this.x = (value) => BOX.left + ((value - x0) / (x1 - x0)) * (this.right - BOX.left);
    this.xBack = (pixel) => x0 + ((pixel - BOX.left) / (this.right - BOX.left)) * (x1 - x0);
    this.y = (value) => {
      const at = this.log ? Math.log10(Math.max(value, 10 ** y0)) : value;
      return this.bottom - ((at - y0) / (y1 - y0)) * (this.bottom - BOX.top);
    };
    if (yTicks) for (const [at, text] of this.yTicks(y0, y1)) {
      shape(this.svg, "line", { class: "grid", x1: BOX.left, x2: this.right, y1: this.y(at), y2: this.y(at) });
      shape(this.svg, "text", { x: BOX.left - 6, y: this.y(at) + 4, "text-anchor": "end" }, text);
    }
    for (const [at, text] of niceTicks(x0, x1, Math.max(3, Math.floor(this.width / 80)), this.overSteps ? 1 : 0)) {
      shape(this.svg, "line", { class: "axis", x1: this.x(at), x2: this.x(at), y1: this.bottom, y2: this.bottom + 4 });
      shape(this.svg, "text", { x: this.x(at), y: this.bottom + 16, "text-anchor": "middle" }, text);
    }
    shape(this.svg, "line", { class: "axis", x1: BOX.left, x2: this.right, y1: this.bottom, y2: this.bottom });
    shape(this.svg, "text", { x: (BOX.left + this.right) / 2, y: this.height - 4, "text-anchor": "middle" }, this.about.x);
  }

  yTicks(low, high) {
    if (this.log) {
      const ticks = [], powers = Math.floor(high) - Math.ceil(low) + 1;
      for (let power = Math.floor(low); power <= high; power++) for (const factor of powers > 2 ? [1] : [1, 2, 5]) {
        const at = factor * 10 ** power;
        if (Math.log10(at) >= low && Math.log10(at) <= high) ticks.push([at, said(at, this.about.share)]);
      }
      if (ticks.length > 1) return ticks;
      return niceTicks(10 ** low, 10 ** high, 4).map(([at, text]) => [at, this.about.share ? said(at, true) : text]);
    }
    const scale = this.about.share ? 100 : 1;
    const ticks = niceTicks(low * scale, high * scale, 4).map(([at, text]) => [at / scale, text + (this.about.share ? "%" : "")]);
    return this.about.share ? ticks.filter(([at]) => at <= Math.max(1, this.most)) : ticks; // no share is above 100%
  }

  drawLines() {
    const zoom = this.overSteps ? state.zoom : null, weight = this.overSteps ? state.smooth : 0;
    const shown = this.lines().filter((line) => line.x.length).map((line) => {
      let from = 0, to = line.x.length;
      if (zoom) {
        while (from < to - 1 && line.x[from + 1] < zoom[0]) from++;
        while (to > from + 1 && line.x[to - 2] > zoom[1]) to--;
      }
      const cut = (values) => values && values.slice(from, to);
      return { line, x: cut(line.x), raw: cut(line.y), y: cut(smoothed(line.y, line.y.length > FEW ? weight : 0)), low: cut(line.low), high: cut(line.high), steps: cut(line.steps) };
    });
    this.shown = shown;
    const bad = this.about.lines.flatMap((line) => line.bad || []);
    if (!shown.length && !bad.length) return;
    let ys = shown.flatMap((each) => [...each.y, ...each.raw, ...(each.low || []), ...(each.high || [])]);
    if (this.log) ys = ys.filter((value) => value > 0);
    else if (!zoom) ys.push(...this.about.marks.map((mark) => mark.at));
    if (!ys.length) ys = [this.log ? 1 : 0];
    const xs = zoom || extent([...shown.flatMap((each) => each.x), ...bad]);
    this.most = extent(ys)[1];
    this.scale(xs, extent(ys), true);
    const id = `clip-${this.figure.dataset.chart}`;
    const clip = shape(shape(this.svg, "defs", {}), "clipPath", { id });
    shape(clip, "rect", { x: BOX.left - 4, y: 0, width: this.right - BOX.left + 8, height: this.bottom + 2 });
    const inside = shape(this.svg, "g", { "clip-path": `url(#${id})` });
    for (const mark of this.about.marks) {
      const at = this.y(mark.at);
      if (at < BOX.top - 1 || at > this.bottom + 1) continue;
      shape(inside, "line", { class: "mark", x1: BOX.left, x2: this.right, y1: at, y2: at });
      shape(inside, "text", { x: this.right - 2, y: at - 4, "text-anchor": "end" }, mark.text);
    }
    if (this.overSteps) for (const found of data.findings) {
      const line = shape(inside, "line", { class: `found ${found.outcome}`, x1: this.x(found.step), x2: this.x(found.step), y1: BOX.top, y2: this.bottom });
      shape(line, "title", {}, `step ${found.step}: ${found.name}`);
    }
    for (const { line, x, y, raw, low, high } of shown) {
      const kind = `c${line.colour} d${line.dash || 0}`;
      const points = (values) => values.map((value, i) => `${this.x(x[i]).toFixed(1)},${this.y(value).toFixed(1)}`);
      if (low) shape(inside, "polygon", { class: `band ${kind}`, points: [...points(high), ...points(low).reverse()].join(" ") });
      if (weight && y !== raw) shape(inside, "polyline", { class: `line raw ${kind}`, points: points(raw).join(" ") });
      shape(inside, "polyline", { class: `line ${kind}`, points: points(y).join(" ") });
      if (this.about.kind === "scatter" || x.length <= FEW)
        x.forEach((at, i) => shape(inside, "circle", { class: `dot ${kind}`, cx: this.x(at), cy: this.y(y[i]), r: this.about.kind === "scatter" ? 3 : 2.5 }));
    }
    for (const step of bad) {
      const mark = shape(inside, "path", { class: "bad", d: `M${this.x(step) - 4} ${this.bottom}l4 -8l4 8z` });
      shape(mark, "title", {}, `step ${step}: not a finite number`);
    }
  }

  drawBins() {
    const frame = this.about.frames[this.frame], first = this.about.frames[0];
    const bins = [];
    if (this.about.lines.length === 1 && this.frame > 0) bins.push(["bins before", first.lines[0]]);
    this.about.lines.forEach((line, place) => { if (!this.hidden.has(place) && frame.lines[place]) bins.push([`bins c${line.colour}`, frame.lines[place]]); });
    if (!bins.length) return;
    const density = ({ edges, counts }) => {
      const total = counts.reduce((sum, count) => sum + count, 0) || 1;
      return counts.map((count, i) => count / total / Math.max(1e-12, edges[i + 1] - edges[i]));
    };
    // One scale for all steps, so that a change is a change of the histogram and not of the axis.
    const every = this.about.frames.flatMap((each) => Object.values(each.lines));
    const xs = extent(every.flatMap(({ edges }) => [edges[0], edges[edges.length - 1]]));
    const log = this.log; this.log = false;
    this.scale(xs, [0, extent(bins.flatMap(([, each]) => density(each)))[1]], false);
    this.log = log;
    this.bins = bins.filter(([kind]) => !kind.includes("before")).map(([, each]) => each);
    for (const [kind, each] of bins) {
      const heights = density(each), points = [`${this.x(each.edges[0])},${this.bottom}`];
      heights.forEach((height, i) => {
        const top = this.bottom - (this.y(0) - this.y(height));
        points.push(`${this.x(each.edges[i]).toFixed(1)},${top.toFixed(1)}`, `${this.x(each.edges[i + 1]).toFixed(1)},${top.toFixed(1)}`);
      });
      points.push(`${this.x(each.edges[each.edges.length - 1])},${this.bottom}`);
      shape(this.svg, "polygon", { class: kind, points: points.join(" ") });
    }
  }

  // --- looking closer

  pointer() {
    let from = null, area = null;
    const at = (event) => {
      const box = this.plot.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.plot.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (from !== null && this.overSteps && event.pointerType === "mouse") {
        area?.remove();
        const [left, right] = [Math.max(BOX.left, Math.min(from, x)), Math.min(this.right, Math.max(from, x))];
        area = right - left > 5 ? shape(this.svg, "rect", { class: "area", x: left, y: BOX.top, width: right - left, height: this.bottom - BOX.top }) : null;
      }
      this.look(x, y);
    });
    this.plot.addEventListener("pointerdown", (event) => { from = at(event)[0]; if (event.pointerType === "mouse") this.plot.setPointerCapture(event.pointerId); });
    this.plot.addEventListener("pointerup", (event) => {
      const to = at(event)[0];
      if (area && this.xBack) zoomTo([this.xBack(Math.max(BOX.left, Math.min(from, to))), this.xBack(Math.min(this.right, Math.max(from, to)))]);
      area?.remove(); area = null; from = null;
    });
    this.plot.addEventListener("dblclick", () => zoomTo(null));
    for (const end of ["pointerleave", "blur"]) this.plot.addEventListener(end, () => { from = null; unlook(); });
    this.plot.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      const xs = (this.shown || []).flatMap((each) => each.x).sort((a, b) => a - b);
      if (!xs.length) return;
      const now = this.at === undefined ? (event.key === "ArrowLeft" ? 0 : -1) : nearest(xs, this.at);
      this.at = xs[Math.min(xs.length - 1, Math.max(0, now + (event.key === "ArrowLeft" ? -1 : 1)))];
      this.look(this.x(this.at), this.height / 2);
    });
  }

  look(x, y) {
    if (!this.x || x < BOX.left - 8 || x > this.right + 8) return unlook();
    if (this.about.kind === "scatter") return this.lookAtPoint(x, y);
    if (this.about.kind === "histogram") return this.lookAtBin(x, y);
    const step = this.xBack(x);
    for (const chart of charts) if (chart.overSteps) chart.cross(step, chart === this);
  }

  cross(step, tell) {
    if (!this.over || !this.shown?.length) return;
    this.over.replaceChildren();
    const rows = [];
    let found = null;
    for (const { line, x, y, raw, low, high } of this.shown) {
      const i = nearest(x, step);
      if (found === null || Math.abs(x[i] - step) < Math.abs(found - step)) found = x[i];
      shape(this.over, "circle", { class: `dot c${line.colour}`, cx: this.x(x[i]), cy: this.y(y[i]), r: 4 });
      let text = `${line.name} ${said(y[i], this.about.share)}`;
      if (y[i] !== raw[i]) text += ` (${said(raw[i], this.about.share)})`;
      if (low) text += `, ${said(low[i], this.about.share)} to ${said(high[i], this.about.share)}`;
      rows.push([line.colour, text]);
    }
    const at = this.x(found);
    if (at < BOX.left - 1 || at > this.right + 1) return;
    shape(this.over, "line", { class: "cross", x1: at, x2: at, y1: BOX.top, y2: this.bottom });
    if (!tell) return;
    this.at = found;
    for (const each of data.findings) if (Math.abs(this.x(each.step) - at) < 5) rows.push([each.outcome, each.name]);
    this.say(at, `step ${said(Math.round(found))}`, rows);
  }

  lookAtPoint(x, y) {
    let best = null;
    for (const each of this.shown || []) each.x.forEach((at, i) => {
      const far = Math.hypot(this.x(at) - x, this.y(each.y[i]) - y);
      if (!best || far < best.far) best = { far, each, i };
    });
    if (!best) return;
    const { each, i } = best;
    this.over.replaceChildren();
    shape(this.over, "circle", { class: `dot c${each.line.colour}`, cx: this.x(each.x[i]), cy: this.y(each.y[i]), r: 6 });
    this.say(this.x(each.x[i]), `step ${each.steps ? each.steps[i] : "-"}`, [[each.line.colour, `${each.line.name} ${said(each.y[i], this.about.share)}`], [7, `${this.about.x} ${said(each.x[i])}`]]);
  }

  lookAtBin(x) {
    const value = this.xBack(x);
    const rows = this.lines().flatMap((line, place) => {
      const each = this.bins[place], i = each ? each.edges.findIndex((edge, n) => n + 1 < each.edges.length && value >= edge && value < each.edges[n + 1]) : -1;
      return i < 0 ? [] : [[line.colour, `${line.name} ${said(each.edges[i])} to ${said(each.edges[i + 1])}: ${each.counts[i].toLocaleString("en")}`]];
    });
    rows.length ? this.say(x, `step ${this.about.frames[this.frame].step}`, rows) : unlook();
  }

  say(x, head, rows) {
    this.tip.replaceChildren(html("b", head));
    for (const [colour, text] of rows) {
      const row = html("div");
      row.append(html("i", "", typeof colour === "number" ? `c${colour}` : colour), text);
      this.tip.append(row);
    }
    this.tip.hidden = false;
    const left = x + 14 + this.tip.offsetWidth > this.width ? x - 14 - this.tip.offsetWidth : x + 14;
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = "4px";
  }
}

function unlook() { for (const chart of charts) { chart.tip.hidden = true; chart.over?.replaceChildren(); } }
function zoomTo(range) {
  state.zoom = range && range[1] > range[0] ? range : null;
  const button = document.getElementById("whole");
  if (button) button.hidden = !state.zoom;
  for (const chart of charts) if (chart.overSteps) chart.draw();
}

for (const figure of all("figure.chart")) charts.push(new Chart(figure));
for (const chart of charts) chart.draw();
const smooth = document.getElementById("smooth");
if (smooth) {
  smooth.closest(".controls").hidden = false;
  smooth.addEventListener("input", () => {
    state.smooth = +smooth.value;
    document.getElementById("smooth-said").textContent = state.smooth ? state.smooth.toFixed(2) : "off";
    for (const chart of charts) if (chart.overSteps) chart.draw();
  });
  document.getElementById("whole").addEventListener("click", () => zoomTo(null));
}

// --- samples

const samples = data.samples, choose = document.getElementById("choose");
if (samples && choose) {
  choose.hidden = false;
  const list = document.getElementById("samples"), cards = all(".sample", list);
  const slider = document.getElementById("at"), order = document.getElementById("order");
  const show = () => {
    const step = samples.steps[slider ? +slider.value : samples.steps.length - 1];
    if (slider) document.getElementById("at-said").textContent = step;
    for (const card of cards) {
      const now = samples.items[+card.dataset.item].at[step];
      card.hidden = !now;
      if (!now) continue;
      all(".sides > div", card).forEach((side, place) => {
        side.querySelector(".who").textContent = place ? now.right : now.left;
        side.querySelector(".text").replaceChildren(...now.parts.filter(([kind]) => kind === "=" || kind === "-+"[place])
          .map(([kind, text]) => (kind === "=" || !now.marked ? document.createTextNode(text) : html(place ? "ins" : "del", text))));
      });
    }
  };
  const sort = () => {
    const by = { number: (item) => item.number, changed: (item) => -item.changed, score: (item) => -(item.score ?? 0), worst: (item) => item.score ?? 0 }[order.value];
    list.append(...cards.sort((a, b) => by(samples.items[+a.dataset.item]) - by(samples.items[+b.dataset.item])));
  };
  slider?.addEventListener("input", show);
  order.addEventListener("change", sort);
}
})();
