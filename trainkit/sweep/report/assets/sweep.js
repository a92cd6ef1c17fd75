"use strict";
(() => {
const HEIGHT = 280, NUM_SHADES = 16, PAGE = 50, NEAR = 40, MANY = 2000;
const BEST_SHARE_SHOWN = 0.9, LEAST_TO_CUT = 10;
const {find, colour, make, lasting} = common;
const data = JSON.parse(find("#data").textContent);
const {metrics, keys} = data;
const size = data.number.length;
const best = new Set(data.best);
const state = {isLog: false, hasOthers: true, at: null, chosen: null, sort: null, descending: false, page: 0, shown: ""};
let charts = [];

// -- numbers ---------------------------------------------------------------------------------------------------------

const short = value => common.short(value, 5);

// The lowest tick of a logarithmic axis is where the axis begins, with all its digits.
const marked = tick => tick == null ? "" : short(Number.isInteger(tick) ? tick : +tick.toPrecision(3));
const counted = number => number.toLocaleString("en");
const clipped = (text, length) => text.length > length ? text.slice(0, Math.max(1, length - 1)) + "\u2026" : text;

const isFinished = place => data.values[0][place] != null;
// What a trial ended with; the first metric of one that did not, as it was last.
const valueOf = (place, metric = 0) => data.values[metric][place] ?? (metric ? null : data.last[place]);
const paramOf = (place, key) => {
  const value = data.params[key][place];
  return value == null ? "" : keys[key].choices ? keys[key].choices[value] : short(value);
};
const placesOf = metric => {
  const found = [];
  for (let place = 0; place < size; place++)
    if (valueOf(place, metric) != null && (state.hasOthers || isFinished(place))) found.push(place);
  return found;
};

const described = place => {
  const words = [`trial ${data.number[place]}`, data.states[data.state[place]]];
  metrics.forEach((metric, i) => { if (valueOf(place, i) != null) words.push(`${metric.name} ${short(valueOf(place, i))}`); });
  if (!isFinished(place) && data.evaluations[place]) words.push(`after ${data.evaluations[place]} evaluations`);
  keys.forEach((key, i) => words.push(`${key.name} ${paramOf(place, i)}`));
  return words.join(" \u00b7 ");
};

// The range of values worth seeing: without a tail of bad ones, unless all are shown by their logarithms.
const span = (values, sign, isLog = state.isLog) => {
  let known = values.filter(value => value != null && (!isLog || value > 0));
  if (!known.length) return {low: isLog ? 0.1 : 0, high: 1, beyond: 0};
  known = known.map(value => sign * value).sort((a, b) => a - b);
  const first = known[0], last = known[known.length - 1];
  const most = known[Math.floor(BEST_SHARE_SHOWN * (known.length - 1))];
  let limit = most + 0.5 * (most - first), beyond = 0;
  if (isLog || known.length < LEAST_TO_CUT || last <= limit || limit === first) limit = last;
  else beyond = known.filter(value => value > limit).length;
  let [low, high] = sign > 0 ? [first, limit] : [-limit, -first];
  if (isLog) return {low: low / 1.15, high: high * 1.15, beyond};
  const pad = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return {low: low - pad, high: high + pad, beyond};
};

const padded = (low, high) => low == null ? [0, 1] : low === high ? [low - 1, high + 1] : [low - 0.015 * (high - low), high + 0.015 * (high - low)];

const beyondText = number => number ? `${counted(number)} worse values are outside of the chart; "logarithmic" shows all` : "";

// -- colours by rank ---------------------------------------------------------------------------------------------------

const hex = text => [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16));
const shadesNow = () => {
  const [from, to] = [hex(colour("faint")), hex(colour("key"))];
  return [...Array(NUM_SHADES).keys()].map(i => {
    const share = (i / (NUM_SHADES - 1)) ** 1.5;
    return `rgb(${from.map((value, j) => Math.round(value + share * (to[j] - value))).join(",")})`;
  });
};
let shades = shadesNow();
// Trials are in the order of their values: the place is the rank.
const shadeOf = (rank, number) => NUM_SHADES - 1 - Math.floor(NUM_SHADES * rank / Math.max(1, number) * 0.9999);

// -- charts ------------------------------------------------------------------------------------------------------------

class Figure {
  constructor(box, title, words, wide) {
    this.plot = make("div", {class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart", onkeydown: event => step(event)});
    this.said = make("p", {class: "said", role: "status"});
    this.note = make("p", {class: "note", hidden: true});
    this.title = title;
    this.figure = make("figure", {class: "chart" + (wide ? " whole" : ""), "data-chart": title},
      make("figcaption", {text: title}, make("small", {text: words ? ` ${words}` : ""})), this.plot, this.said, this.note);
    box.append(this.figure);
    this.plot.addEventListener("mouseleave", () => pick(null));
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  tell(text) { this.note.textContent = text; this.note.hidden = !text; }
  label(text) { this.plot.setAttribute("aria-label", `${this.title}: ${text}. Left and right go through the trials`); }
  say(place) { this.said.textContent = place == null ? "" : described(place); }
  get width() { return this.plot.clientWidth || 300; }
}

const axisStyle = () => ({stroke: colour("soft"), grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1},
  font: "12px system-ui, sans-serif"});

// Points as one path: arcs of thousands of points take too long.
const dots = radius => (u, index, first, last) => {
  const path = new Path2D(), ratio = devicePixelRatio || 1, [xs, ys] = [u.data[0], u.data[index]];
  const r = radius * ratio, many = xs.length > MANY, {left, top, width, height} = u.bbox;
  for (let i = first; i <= last; i++) {
    if (ys[i] == null) continue;
    const x = u.valToPos(xs[i], u.series[0].scale, true), y = u.valToPos(ys[i], u.series[index].scale, true);
    if (x < left - r || x > left + width + r || y < top - r || y > top + height + r) continue;
    if (many) path.rect(x - r * 0.8, y - r * 0.8, 1.6 * r, 1.6 * r);
    else { path.moveTo(x + r, y); path.arc(x, y, r, 0, 7); }
  }
  return {stroke: null, fill: path, clip: null, band: null, gaps: null, flags: 1};
};

// One point for each trial: {places, x, y} with axes of either kind.
class Scatter extends Figure {
  constructor(box, given) {
    super(box, given.title, given.words);
    this.given = given;
    this.ring = make("i", {class: "ring", "aria-hidden": "true", hidden: true});
    this.draw();
  }

  draw() {
    const {given} = this, axis = axisStyle();
    const found = given.points().filter(([, x, y]) => x != null && y != null && (!state.isLog || (y > 0 && (!given.xMetric || x > 0))));
    found.sort((a, b) => a[1] - b[1] || a[0] - b[0]);
    this.places = found.map(one => one[0]);
    const xs = found.map(one => one[1]), ys = found.map(one => one[2]);
    const ranges = {y: span(ys, given.sign), x: given.xRange || (given.xMetric ? span(xs, given.xMetric.sign) : null)};
    const isTop = this.places.map(place => best.has(place));
    const series = [{}, {label: "stopped early", fill: colour("faint"), paths: dots(2.5), points: {show: false}},
      {label: "finished", fill: colour("key") + (xs.length > MANY ? "60" : "a0"), paths: dots(xs.length > MANY ? 2 : 3), points: {show: false}}];
    const columns = [xs, ys.map((y, i) => isFinished(this.places[i]) ? null : y), ys.map((y, i) => isFinished(this.places[i]) ? y : null)];
    if (given.line) {
      series.push({label: "best so far", stroke: colour("c1"), width: 2, spanGaps: true, points: {show: false},
        ...(given.isFront ? {dash: [5, 4]} : {paths: uPlot.paths.stepped({align: 1})})});
      columns.push(given.line(xs, ys, this.places));
    }
    series.push({label: "best", fill: colour("c1"), paths: dots(4.5), points: {show: false}});
    columns.push(ys.map((y, i) => isTop[i] ? y : null));
    if (this.u) this.u.destroy();
    this.u = new uPlot({
      width: this.width, height: HEIGHT, legend: {show: false}, padding: [12, 24, 0, 0],
      cursor: {drag: {x: !!given.zooms, y: false}, points: {show: false}, y: false},
      scales: {
        x: {time: false, ...(given.isLog || (given.xMetric && state.isLog) ? {distr: 3} : {}),
          range: ranges.x ? () => [ranges.x.low, ranges.x.high] : (u, low, high) => padded(low, high)},
        y: {...(state.isLog ? {distr: 3} : {}), range: () => [ranges.y.low, ranges.y.high]},
      },
      axes: [
        {...axis, size: 32, space: 70, values: (u, ticks) => ticks.map(tick => given.seconds ? lasting(tick ?? NaN) : marked(tick)),
          ...(given.seconds ? {incrs: [1e-3, 1e-2, 0.1, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
            86400, 172800, 432000, 864000, 2592000, 8640000]} : {}), ...(given.ticks ? given.ticks(this.width) : {})},
        {...axis, size: 62, values: (u, ticks) => ticks.map(marked)},
      ],
      series,
    }, columns, this.plot);
    this.u.over.setAttribute("aria-hidden", "true");
    this.u.over.append(this.ring);
    this.u.over.addEventListener("mousemove", event => this.hover(event.offsetX, event.offsetY));
    this.tell(beyondText(Math.max(ranges.y.beyond, given.xMetric ? ranges.x.beyond : 0)));
    this.label(`${counted(found.length)} trials${best.size && size ? `; best: ${described(data.best[0])}` : ""}`);
  }

  hover(x, y) {
    const {u} = this;
    let near = NEAR * NEAR, place = null;
    for (let i = 0; i < this.places.length; i++) {
      const dx = u.valToPos(u.data[0][i], "x") - x;
      if (dx * dx > near) continue;
      const dy = u.valToPos(u.data[1][i] ?? u.data[2][i], "y") - y;
      if (dx * dx + dy * dy < near) { near = dx * dx + dy * dy; place = this.places[i]; }
    }
    pick(place, this);
  }

  mark(place, source) {
    const i = place == null ? -1 : this.places.indexOf(place), {u} = this;
    this.ring.hidden = i < 0;
    this.say(source === this ? place : null);
    if (i < 0) return;
    const y = u.valToPos(u.data[1][i] ?? u.data[2][i], "y");
    this.ring.hidden = y < 0 || y > u.over.clientHeight;
    this.ring.style.left = `${u.valToPos(u.data[0][i], "x")}px`;
    this.ring.style.top = `${y}px`;
  }

  resize() { if (this.u && this.u.width !== this.width) this.draw(); }
}

// The evaluations of each trial as a line; the best one is drawn last.
class Curves extends Figure {
  constructor(box) {
    super(box, metrics[0].name, "at each evaluation", true);
    this.draw();
  }

  draw() {
    const axis = axisStyle(), {sign} = metrics[0];
    this.curves = [...data.curves].filter(one => state.hasOthers || isFinished(one.trial)).reverse();
    const number = this.curves.length;
    const range = span(this.curves.flatMap(one => one.y), sign);
    const tables = this.curves.map(one => [one.x, one.y.map(y => state.isLog && !(y > 0) ? null : y)]);
    const series = this.curves.map((one, i) => best.has(one.trial) && best.size === 1
      ? {stroke: colour("c1"), width: 3, spanGaps: true, points: {show: one.x.length < 60, size: 6, fill: colour("c1")}}
      : {stroke: shades[shadeOf(number - 1 - i, number)], width: 1.25, spanGaps: true, points: {show: one.x.length === 1, size: 4}});
    if (this.u) this.u.destroy();
    this.u = new uPlot({
      width: this.width, height: HEIGHT + 60, legend: {show: false}, padding: [12, 24, 0, 0],
      cursor: {drag: {x: true, y: false}, points: {show: false}, y: false},
      scales: {x: {time: false}, y: {...(state.isLog ? {distr: 3} : {}), range: () => [range.low, range.high]}},
      axes: [{...axis, size: 44, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000], label: "evaluations",
          labelSize: 16, labelFont: "12px system-ui, sans-serif"},
        {...axis, size: 62, values: (u, ticks) => ticks.map(marked)}],
      series: [{}, ...series],
      hooks: {draw: [u => this.emphasize(u)]},
    }, tables.length ? uPlot.join(tables) : [[]], this.plot);
    this.u.over.setAttribute("aria-hidden", "true");
    this.u.over.addEventListener("mousemove", event => this.hover(event.offsetX, event.offsetY));
    this.tell(beyondText(range.beyond));
    this.label(`${counted(number)} curves`);
  }

  hover(x, y) {
    const {u} = this, at = u.posToIdx(x);
    let near = NEAR, place = null;
    for (let i = 1; i < u.data.length; i++) {
      if (u.data[i][at] == null) continue;
      const off = Math.abs(u.valToPos(u.data[i][at], "y") - y);
      if (off <= near) { near = off; place = this.curves[i - 1].trial; }
    }
    pick(place, this);
  }

  emphasize(u) {
    const one = this.curves.find(curve => curve.trial === state.at);
    if (!one) return;
    const {ctx, bbox} = u, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.beginPath();
    one.x.forEach((x, i) => { if (one.y[i] != null) ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(one.y[i], "y", true)); });
    for (const [width, name] of [[6, "paper"], [3, "ink"]]) {
      ctx.lineWidth = width * ratio;
      ctx.strokeStyle = colour(name);
      ctx.stroke();
    }
    ctx.restore();
  }

  mark(place, source) { this.say(source === this ? place : null); this.u.redraw(false); }
  resize() { if (this.u && this.u.width !== this.width) this.draw(); }
}

// Parallel coordinates: an axis for each key and metric, and a line for each trial, by two canvases, one over the other.
class Parallel extends Figure {
  constructor(box) {
    super(box, "a line for each trial", "from key to key; drag along an axis to choose some, click it to let go", true);
    this.plot.classList.add("parallel");
    this.sheet = make("div", {class: "sheet"});
    this.base = make("canvas", {"aria-hidden": "true"});
    this.over = make("canvas", {"aria-hidden": "true", class: "over"});
    this.sheet.append(this.base, this.over);
    this.plot.append(this.sheet);
    this.figure.insertBefore(make("p", {class: "scale"}, "worst", make("i"), "best"), this.note);
    this.brushes = new Map();
    this.over.addEventListener("mousemove", event => this.hover(event.offsetX, event.offsetY));
    this.over.addEventListener("pointerdown", event => this.press(event));
    this.over.addEventListener("pointermove", event => this.drag(event));
    this.over.addEventListener("pointerup", event => this.release(event));
    this.draw();
  }

  axes() {
    const ofKeys = keys.map((key, i) => ({name: key.name, of: place => data.params[i][place], choices: key.choices, isLog: key.log,
      low: key.choices ? 0 : key.low, high: key.choices ? key.choices.length - 1 : key.high}));
    const ofMetrics = metrics.map((metric, i) => {
      const range = span(this.places.map(place => valueOf(place, i)), metric.sign);
      return {name: metric.name, of: place => valueOf(place, i), isLog: state.isLog, ...range, turned: metric.sign > 0};
    });
    return [...ofKeys, ...ofMetrics];
  }

  draw() {
    this.places = placesOf(0);
    this.all = this.axes();
    const number = this.all.length, ratio = devicePixelRatio || 1;
    const width = this.drawn = this.width;
    this.w = Math.max(width, 60 + 96 * number);
    this.h = 340;
    for (const canvas of [this.base, this.over]) {
      canvas.width = this.w * ratio;
      canvas.height = this.h * ratio;
      canvas.style.width = `${this.w}px`;
      canvas.style.height = `${this.h}px`;
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    const left = 64, right = this.w - 84;
    this.x = this.all.map((_, i) => number < 2 ? left : left + (right - left) * i / (number - 1));
    this.top = 40;
    this.bottom = this.h - 16;
    this.ys = this.all.map(axis => this.places.map(place => this.y(axis, axis.of(place), place)));
    this.filter(false);
    this.paint();
    this.label(`${counted(this.places.length)} trials over ${this.all.map(axis => axis.name).join(", ")}; the table below has the same values`);
  }

  y(axis, value, place = 0) {
    if (value == null) return null;
    const {low, high} = axis, scale = v => axis.isLog ? Math.log(Math.max(v, 1e-300)) : v;
    let share = high === low ? 0.5 : (scale(value) - scale(low)) / (scale(high) - scale(low));
    share = Math.min(1, Math.max(0, share));
    if (axis.turned) share = 1 - share;
    // Lines through one choice are spread a little, so that their number is seen.
    const spread = axis.choices ? ((place * 0.618034) % 1 - 0.5) * Math.min(16, 60 / axis.choices.length) : 0;
    const inner = axis.choices ? 12 : 0;
    return this.bottom - inner - share * (this.bottom - this.top - 2 * inner) + spread;
  }

  path(ctx, i) {
    let isDown = false;
    for (let a = 0; a < this.x.length; a++) {
      const y = this.ys[a][i];
      if (y == null) { isDown = false; continue; }
      isDown ? ctx.lineTo(this.x[a], y) : ctx.moveTo(this.x[a], y);
      isDown = true;
    }
  }

  paint() {
    const ctx = this.base.getContext("2d"), number = this.places.length;
    ctx.clearRect(0, 0, this.w, this.h);
    ctx.lineWidth = number > MANY ? 0.8 : 1.3;
    const faint = Math.min(0.85, Math.max(0.06, 400 / number)); // so many lines over one another would be one area
    const groups = Array.from({length: NUM_SHADES + 1}, () => []);
    for (let i = 0; i < number; i++)
      groups[state.chosen && !state.chosen.has(this.places[i]) ? 0 : 1 + shadeOf(i, number)].push(i);
    groups.forEach((group, shade) => {
      ctx.globalAlpha = shade === NUM_SHADES ? Math.max(faint, 0.25) : shade ? faint : 0.15 * faint;
      ctx.strokeStyle = shade ? shades[shade - 1] : colour("faint");
      for (let start = 0; start < group.length; start += 250) {
        ctx.beginPath();
        for (const i of group.slice(start, start + 250)) this.path(ctx, i);
        ctx.stroke();
      }
    });
    ctx.globalAlpha = 1;
    this.places.forEach((place, i) => {
      if (!best.has(place) || best.size > 1 || (state.chosen && !state.chosen.has(place))) return;
      ctx.beginPath();
      this.path(ctx, i);
      ctx.lineWidth = 3;
      ctx.strokeStyle = colour("c1");
      ctx.stroke();
    });
    this.all.forEach((axis, a) => this.scale(ctx, axis, this.x[a], a));
  }

  scale(ctx, axis, x, a) {
    ctx.font = "600 12px system-ui, sans-serif";
    ctx.fillStyle = colour("ink");
    ctx.textAlign = a ? (a === this.all.length - 1 ? "right" : "center") : "left";
    const room = (this.x[1] - this.x[0] || this.w) / 7.2;
    const name = clipped(axis.name.length > room ? axis.name.split(".").pop() : axis.name, room);
    ctx.fillText(name, a ? (a === this.all.length - 1 ? this.w - 6 : x) : 6, 18);
    ctx.strokeStyle = colour("soft");
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(x, this.top);
    ctx.lineTo(x, this.bottom);
    ctx.stroke();
    ctx.font = "11px system-ui, sans-serif";
    ctx.textAlign = "left";
    const ticks = axis.choices ? axis.choices.slice(0, 24).map((choice, i) => [i, clipped(choice, room - 2)]) : this.ticks(axis);
    for (const [value, text] of ticks) {
      const y = this.y(axis, value, 0) + (axis.choices ? Math.min(16, 60 / axis.choices.length) / 2 : 0);
      ctx.lineWidth = 3;
      ctx.strokeStyle = colour("paper");
      ctx.strokeText(text, x + 6, y + 4);
      ctx.fillStyle = colour("soft");
      ctx.fillText(text, x + 6, y + 4);
      ctx.fillRect(x - 3, y, 6, 1);
    }
    const brush = this.brushes.get(a);
    if (brush) {
      ctx.fillStyle = colour("key") + "50";
      ctx.fillRect(x - 8, brush[0], 16, brush[1] - brush[0]);
    }
  }

  ticks(axis) {
    const {low, high} = axis;
    if (axis.isLog && low > 0) {
      const found = [];
      for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.floor(Math.log10(high) + 1e-9); e++) found.push([10 ** e, short(10 ** e)]);
      if (found.length > 1) return found.length < 8 ? found : found.filter((_, i) => i % Math.ceil(found.length / 7) === 0);
      return [0, 0.5, 1].map(share => low * (high / low) ** share).map(value => [value, short(+value.toPrecision(3))]);
    }
    const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 5, 10].map(factor => factor * power).find(amount => amount >= rough);
    const found = [];
    for (let value = Math.ceil(low / size) * size; value <= high + 1e-9 * size; value += size) found.push([value, short(+value.toPrecision(8))]);
    return found;
  }

  hover(x, y) {
    if (this.dragging) return;
    let a = this.x.findIndex(at => at > x) - 1;
    if (a < 0) a = x < this.x[0] ? 0 : Math.max(0, this.x.length - 2);
    const share = Math.min(1, Math.max(0, (x - this.x[a]) / (this.x[a + 1] - this.x[a] || 1)));
    let near = 14, place = null;
    for (let i = 0; i < this.places.length; i++) {
      if (state.chosen && !state.chosen.has(this.places[i])) continue;
      const from = this.ys[a][i], to = (this.ys[a + 1] || this.ys[a])[i];
      const off = from == null || to == null ? Infinity : Math.abs(from + share * (to - from) - y);
      if (off < near) { near = off; place = this.places[i]; }
    }
    pick(place, this);
  }

  mark(place, source) {
    this.say(source === this ? place : null);
    const ctx = this.over.getContext("2d"), i = place == null ? -1 : this.places.indexOf(place);
    ctx.clearRect(0, 0, this.w, this.h);
    if (i < 0) return;
    ctx.beginPath();
    this.path(ctx, i);
    for (const [width, name] of [[6, "paper"], [3, "ink"]]) {
      ctx.lineWidth = width;
      ctx.strokeStyle = colour(name);
      ctx.stroke();
    }
  }

  press(event) {
    const a = this.x.findIndex(at => Math.abs(at - event.offsetX) < 18);
    if (a < 0 || event.button) return;
    this.dragging = {a, from: event.offsetY};
    this.over.setPointerCapture(event.pointerId);
  }

  drag(event) {
    if (!this.dragging) return;
    const {a, from} = this.dragging, ends = [from, event.offsetY].map(y => Math.min(this.bottom + 2, Math.max(this.top - 2, y)));
    if (Math.abs(ends[0] - ends[1]) < 4) this.brushes.delete(a);
    else this.brushes.set(a, [Math.min(...ends), Math.max(...ends)]);
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => { this.filter(true); this.paint(); });
  }

  release(event) {
    if (!this.dragging) return;
    this.drag(event);
    this.dragging = null;
  }

  filter(isNew) {
    if (!isNew && !this.brushes.size) return;
    const chosen = this.places.filter((place, i) => [...this.brushes].every(([a, [low, high]]) => this.ys[a][i] >= low && this.ys[a][i] <= high));
    state.chosen = this.brushes.size ? new Set(chosen) : null;
    this.tell(state.chosen ? `${counted(chosen.length)} of ${counted(this.places.length)} trials are chosen, and in the table` : "");
    state.page = 0;
    list();
  }

  resize() { if (this.drawn && this.drawn !== this.width) { this.brushes.clear(); this.draw(); this.filter(true); } }
}

// -- the trial that is pointed at --------------------------------------------------------------------------------------

const pick = (place, source) => {
  if (place === state.at && place == null) return;
  state.at = place;
  document.documentElement.dataset.at = place == null ? "" : data.number[place];
  for (const chart of charts) chart.mark(place, source);
};

const step = event => {
  const move = {ArrowRight: 1, ArrowLeft: -1}[event.key], chart = charts.find(one => one.plot === event.target);
  if (!chart || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return pick(null, chart);
  if (!move) return;
  event.preventDefault();
  const places = chart.places || chart.curves.map(curve => curve.trial).sort((a, b) => a - b);
  const order = [...places].sort((a, b) => a - b), at = order.indexOf(state.at);
  if (order.length) pick(order[at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + move))], chart);
};

// -- which charts --------------------------------------------------------------------------------------------------------

const boxOf = name => {
  const place = find(`#charts-${name}`);
  if (place) place.hidden = false;
  return place && find(".wide", place);
};

const bestSoFar = sign => (xs, ys, places) => {
  let top = null;
  return ys.map((y, i) => {
    if (isFinished(places[i]) && (top == null || sign * y < sign * top)) top = y;
    return top;
  });
};

const build = () => {
  metrics.forEach((metric, m) => {
    const box = boxOf("history"), common = {sign: metric.sign, zooms: true, line: bestSoFar(metric.sign)};
    if (!box) return;
    charts.push(new Scatter(box, {...common, title: `${metric.name} over trials`, words: "line: the best so far",
      points: () => placesOf(m).map(place => [place, data.number[place], valueOf(place, m)])}));
    charts.push(new Scatter(box, {...common, title: `${metric.name} over time`, words: "line: the best so far", seconds: true,
      points: () => placesOf(m).map(place => [place, data.ended[place], valueOf(place, m)])}));
  });
  const front = boxOf("front");
  if (front) metrics.forEach((a, i) => metrics.slice(i + 1).forEach((b, j) => charts.push(new Scatter(front, {
    title: `${b.name} over ${a.name}`, words: metrics.length === 2 ? "line: trials that no other one beats" : "", sign: b.sign, xMetric: a,
    ...(metrics.length === 2 ? {isFront: true, line: (xs, ys, places) => ys.map((y, k) => best.has(places[k]) ? y : null)} : {}),
    points: () => placesOf(i).map(place => [place, data.values[i][place], data.values[i + j + 1][place]]),
  }))));
  const curves = find("#charts-curves") && boxOf("curves");
  if (curves) charts.push(new Curves(curves));
  const parallel = boxOf("parallel");
  if (parallel) charts.push(new Parallel(parallel));
  const slices = boxOf("slices");
  if (slices) metrics.forEach((metric, m) => keys.forEach((key, k) => charts.push(new Scatter(slices, slice(key, k, metric, m)))));
  document.documentElement.dataset.charts = charts.length;
};

const slice = (key, k, metric, m) => {
  const common = {title: `${metric.name} over ${key.name}`, sign: metric.sign};
  if (!key.choices) {
    const pad = 0.03 * (key.high - key.low), factor = (key.high / key.low) ** 0.03;
    return {...common, isLog: key.log, words: key.log ? "logarithmic" : "",
      xRange: key.log ? {low: key.low / factor, high: key.high * factor} : {low: key.low - pad, high: key.high + pad},
      points: () => placesOf(m).map(place => [place, data.params[k][place], valueOf(place, m)])};
  }
  const number = key.choices.length;
  return {...common, xRange: {low: -0.5, high: number - 0.5}, words: "spread sideways within each choice",
    ticks: width => ({
      splits: () => [...key.choices.keys()], grid: {show: false},
      values: (u, ticks) => ticks.map(tick => clipped(key.choices[tick] ?? "", Math.max(3, Math.floor((width - 80) / number / 7)))),
    }),
    points: () => placesOf(m).map(place => {
      const value = data.params[k][place];
      return [place, value == null ? null : value + ((place * 0.618034) % 1 - 0.5) * 0.5, valueOf(place, m)];
    })};
};

const controls = () => {
  const box = find("#controls");
  if (!box) return;
  const check = (text, name) => {
    const input = make("input", {type: "checkbox", onchange: event => { state[name] = event.target.checked; redraw(); }});
    input.checked = state[name];
    return make("label", {}, input, text);
  };
  box.replaceChildren(check("logarithmic", "isLog"));
  if (data.last.some(value => value != null)) box.append(check("with trials that were stopped early or go on", "hasOthers"));
};

const redraw = () => { shades = shadesNow(); charts.forEach(chart => chart.draw()); };

// -- the table of all trials -----------------------------------------------------------------------------------------------

const columns = [
  {name: "trial", of: place => data.number[place], cell: trialCell},
  {name: "state", of: place => data.states[data.state[place]], cell: place => {
    const name = data.states[data.state[place]];
    return make("span", {class: `state-${name}`, text: name});
  }},
  ...metrics.map((metric, i) => ({name: metric.name, of: place => valueOf(place, i)})),
  {name: "evaluations", of: place => data.evaluations[place] || null},
  ...keys.map((key, i) => ({name: key.name, of: place => data.params[i][place], cell: place => paramOf(place, i)})),
  {name: "time", of: place => data.seconds[place], cell: place => lasting(data.seconds[place] || 0)},
  {name: "starts", of: place => data.starts[place]},
];

function trialCell(place) {
  const number = data.number[place], text = (best.has(place) ? "\u2605 " : "") + number;
  if (!data.links[place]) return text;
  const directory = `${data.trials}/${String(number).padStart(5, "0")}/`;
  const cell = make("span", {}, make("a", {text, href: directory, title: "its run directory"}));
  if (data.links[place] === 2) cell.append(" ", make("a", {text: "report", href: directory + data.run_report, "aria-label": `report of trial ${number}`}));
  return cell;
}

const listed = () => {
  let found = [...Array(size).keys()];
  if (state.chosen) found = found.filter(place => state.chosen.has(place));
  if (state.shown) found = found.filter(place => data.states[data.state[place]] === state.shown);
  if (state.sort == null) return found;
  const {of} = columns[state.sort], sign = state.descending ? -1 : 1;
  return found.sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (x == null || y == null) return (x == null) - (y == null) || a - b;
    return (x < y ? -sign : x > y ? sign : 0) || a - b;
  });
};

const list = () => {
  const table = find("#table");
  if (!table) return;
  const found = listed(), last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  state.page = Math.min(state.page, last);
  const rows = found.slice(state.page * PAGE, (state.page + 1) * PAGE).map(place => make("tr", best.has(place) ? {class: "top"} : {},
    ...columns.map(column => make("td", {}, column.cell ? column.cell(place) : short(column.of(place))))));
  find("tbody", table).replaceChildren(...rows);
  columns.forEach((column, i) => {
    const head = table.tHead.rows[0].cells[i];
    head.setAttribute("aria-sort", state.sort !== i ? "none" : state.descending ? "descending" : "ascending");
    find("span", head).textContent = state.sort !== i ? "" : state.descending ? " \u2193" : " \u2191";
  });
  const from = found.length ? state.page * PAGE + 1 : 0;
  find("#pages output").textContent = `${counted(from)} to ${counted(Math.min(found.length, from + PAGE - 1))} of ${counted(found.length)}`;
  find("#pages .before").disabled = state.page === 0;
  find("#pages .after").disabled = state.page === last;
};

const tabulate = () => {
  const table = find("#table");
  if (!table) return;
  table.tHead.rows[0].replaceChildren(...columns.map((column, i) => make("th", {scope: "col"}, make("button", {type: "button",
    onclick: () => {
      if (state.sort === i && state.descending) { state.sort = null; state.descending = false; }
      else { state.descending = state.sort === i; state.sort = i; }
      state.page = 0;
      list();
    }}, column.name, make("span", {"aria-hidden": "true"})))));
  const turn = by => () => { state.page += by; list(); };
  const pages = make("div", {class: "pages", id: "pages"}, make("button", {type: "button", class: "before", text: "before", onclick: turn(-1)}),
    make("output"), make("button", {type: "button", class: "after", text: "after", onclick: turn(1)}));
  table.closest(".across").after(pages);
  const present = data.states.filter((_, i) => data.state.includes(i));
  const select = make("select", {onchange: event => { state.shown = event.target.value; state.page = 0; list(); }},
    make("option", {value: "", text: "all"}), ...present.map(name => make("option", {value: name, text: name})));
  find("#filter").append(make("label", {}, "state", select), make("span", {text: "the best first; a click on a heading sorts by it"}));
  list();
};

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
controls();
tabulate();
build();
document.documentElement.dataset.ready = "yes";
})();
