"use strict";
(() => {
const HEIGHT = 260, MAX_POINTS_SHOWN = 150, EVERY_MS = 3000, NUM_COLOURS = 8;
const STROKES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const SIGNS = {part: "", resume: "resumed", skipped: "skipped", rewind: "rewound", straggler: "slow rank", failure: "!"};
const {find, colour, make, lasting} = common;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const still = matchMedia("(prefers-reduced-motion: reduce)");

let data = JSON.parse(find("#data").textContent);
const live = data.live;
const state = {smoothing: 0.6, isLog: false, axis: "step", view: null, hiddenRuns: new Set(), hidden: new Set()};
let charts = [];

// -- numbers ---------------------------------------------------------------------------------------------------------

const short = value => common.short(value, 4);

// Linear between the points of a curve, and beyond its ends on along its mean slope.
const interpolated = (curve, steps) => {
  const {s, v} = curve, last = s.length - 1;
  const slope = last > 0 ? (v[last] - v[0]) / (s[last] - s[0] || 1) : 0;
  let place = 0;
  return steps.map(step => {
    if (step == null || last < 0) return step;
    if (step <= s[0]) return v[0] + (step - s[0]) * slope;
    if (step >= s[last]) return v[last] + (step - s[last]) * slope;
    if (s[place] > step) place = 0;
    while (s[place + 1] < step) place++;
    return v[place] + (v[place + 1] - v[place]) * (step - s[place]) / (s[place + 1] - s[place] || 1);
  });
};

const onAxis = (run, steps) => state.axis === "step" ? steps : interpolated(run[state.axis], steps);

// A curve that seldom turns, such as a learning rate, has nothing to smooth.
const isNoisy = values => {
  let turns = 0, before = 0;
  for (let i = 1; i < values.length; i++) {
    const sign = Math.sign(values[i] - values[i - 1]);
    if (sign && before && sign !== before) turns++;
    before = sign || before;
  }
  return turns > 0.1 * values.length;
};

// uPlot takes ascending positions without repetition. A gap has no position of its own: it is put between its neighbours.
const table = (run, steps, values) => {
  const xs = onAxis(run, steps), kept = [[], []];
  let last = -Infinity;
  for (let i = 0; i < xs.length; i++) {
    let x = xs[i] ?? (isFinite(last) ? last + 1e-9 * (Math.abs(last) || 1) : null);
    if (x == null) continue;
    if (x <= last) x = last + 1e-9 * (Math.abs(last) || 1);
    kept[0].push(last = x);
    kept[1].push(values[i]);
  }
  return kept;
};

// The exponential mean of TensorBoard, which is not drawn towards zero at the beginning.
const smoothed = (values, weight) => {
  let mean = 0, number = 0;
  return values.map(value => {
    if (value == null) return value;
    mean = mean * weight + (1 - weight) * value;
    return mean / (1 - weight ** ++number);
  });
};

// -- one chart -------------------------------------------------------------------------------------------------------

const dashOf = index => STROKES[index % STROKES.length];
const several = () => data.runs.length > 1;
const isShown = (run, key) => !state.hiddenRuns.has(run) && !state.hidden.has(key);

// The curves of a family: {key, name, run, colour, dash, steps, values, style}.
const curvesOf = family => {
  const found = [];
  data.runs.forEach((run, number) => {
    const names = [...run.training, ...run.evaluation].filter(one => one.family === family);
    names.forEach((one, index) => {
      const isEvaluation = run.evaluation.includes(one);
      const base = {
        run: number, key: one.name, name: several() ? `${run.name}: ${one.name}` : one.name, leftOut: one.left_out || 0,
        colour: "c" + (several() ? number : index) % NUM_COLOURS, dash: several() ? dashOf(index) : [],
      };
      if (isEvaluation) {
        if (one.low) {
          found.push({...base, style: "low", steps: one.low_s, values: one.low});
          found.push({...base, style: "high", steps: one.high_s, values: one.high});
        }
        found.push({...base, style: "evaluation", steps: one.s, values: one.v});
      } else {
        const means = one.mv || one.v, noisy = isNoisy(means);
        found.push({...base, style: "raw", noisy, steps: one.s, values: one.v});
        found.push({...base, style: "smooth", noisy, steps: one.ms || one.s, values: means});
      }
    });
    run.baselines.filter(one => one.family === family).forEach((one, index) => {
      const steps = [0], values = [one.v[0]];
      one.s.forEach((step, i) => { if (i) { steps.push(step); values.push(one.v[i]); } });
      steps.push(Math.max(run.last, 1) + 1e-3);
      values.push(one.v[one.v.length - 1]);
      found.push({run: number, key: "baseline " + one.name, name: several() ? `${run.name}: ${one.name}` : one.name,
        style: "baseline", colour: several() ? "c" + number % NUM_COLOURS : "soft", dash: dashOf(index + 1), steps, values});
    });
  });
  return found;
};

const splitOf = number => {
  const run = data.runs[number], by = name => run.training.find(one => one.name === name);
  const [fetch, reduce] = [by("data_wait"), by("comm_wait")];
  if (!fetch) return [];
  const smooth = one => one ? smoothed(one.mv || one.v, state.smoothing) : null;
  const waits = smooth(fetch), steps = fetch.ms || fetch.s, sums = smooth(reduce);
  const both = waits.map((value, i) => value + (sums ? sums[Math.min(i, sums.length - 1)] : 0));
  const parts = [["waiting for data", waits, "c1"]];
  if (sums) parts.push(["waiting for gradients of other ranks", both, "c3"]);
  parts.push(["computing", waits.map(() => 1), "c0"]);
  return parts.map(([name, values, own], index) => ({run: number, key: name, name, style: "area", colour: own, dash: [],
    steps, values, own: values.map((value, i) => value - (index ? parts[index - 1][1][i] : 0))}));
};

// Room for the longest label of an axis, as uPlot's own demo measures it; the same for most charts, so that they line up.
const roomFor = (u, labels, index, cycle) => {
  const axis = u.axes[index];
  if (cycle > 1) return axis._size;
  u.ctx.font = axis.font[0];
  const widest = Math.max(0, ...(labels || []).map(label => u.ctx.measureText(label).width / devicePixelRatio));
  return Math.max(62, Math.ceil(widest + axis.ticks.size + axis.gap) + 4);
};

const full = () => {
  const ends = data.runs.map(run => state.axis === "step" ? run.last : Math.max(0, ...interpolated(run[state.axis], [run.last])));
  return [0, Math.max(...ends) || 1];
};

class Chart {
  constructor(given, box) {
    this.given = given;
    this.plot = make("div", {class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart",
      onkeydown: event => this.key(event)});
    this.legend = make("ul", {class: "legend"});
    this.note = make("p", {class: "note", hidden: true});
    const name = given.family + (given.run != null && several() ? ` of ${data.runs[given.run].name}` : "");
    this.title = name;
    this.figure = make("figure", {class: "chart", "data-family": given.family},
      make("figcaption", {text: name}), this.plot, this.legend, this.note);
    if (given.run != null) this.figure.dataset.run = given.run;
    box.append(this.figure);
    this.observer = new ResizeObserver(() => this.u && this.u.setSize({width: this.plot.clientWidth || 300, height: HEIGHT}));
    this.observer.observe(this.plot);
    this.draw();
  }

  draw() {
    this.curves = this.given.run != null ? splitOf(this.given.run) : curvesOf(this.given.family);
    let dropped = 0;
    const isLog = state.isLog && this.given.run == null;
    const tables = this.curves.map(curve => {
      let values = curve.style === "smooth" ? smoothed(curve.values, state.smoothing) : curve.values;
      if (isLog) values = values.map(value => {
        if (value == null || value > 0) return value;
        dropped += curve.style === "smooth" ? 0 : 1;
        return undefined;
      });
      return table(data.runs[curve.run], curve.steps, values);
    });
    if (this.u) this.u.destroy();
    const joined = tables.length ? uPlot.join(tables) : [[]];
    this.u = new uPlot(this.options(isLog), joined, this.plot);
    this.u.over.setAttribute("aria-hidden", "true");
    this.describe();
    const left = this.curves.reduce((sum, curve) => sum + (curve.style === "smooth" ? 0 : curve.leftOut || 0), 0);
    const notes = [];
    if (dropped) notes.push(`${dropped.toLocaleString("en")} points of 0 or below have no logarithm and are left out`);
    if (left) notes.push(`${left.toLocaleString("en")} values that are not finite are left out`);
    this.note.textContent = notes.join("; ");
    this.note.hidden = !notes.length;
  }

  options(isLog) {
    const axis = {stroke: colour("soft"), grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1},
      font: "12px system-ui, sans-serif"};
    const seconds = state.axis === "seconds";
    const bands = [];
    this.curves.forEach((curve, index) => {
      if (curve.style === "high") bands.push({series: [index + 1, index], fill: colour(curve.colour) + "30"});
      if (curve.style === "area" && index) bands.push({series: [index + 1, index], fill: colour(curve.colour) + "b0"});
    });
    return {
      width: this.plot.clientWidth || 300, height: HEIGHT, legend: {show: false}, bands,
      padding: [12, 30, 0, 0],  // room for half of the label below the right end
      cursor: {
        sync: {key: "all", setSeries: false, scales: ["x", null]},
        drag: {x: true, y: false, setScale: false},
        bind: {dblclick: () => () => { look(null); return null; }},
        points: {size: 6},
      },
      scales: {
        x: {time: false, range: () => state.view || full()},
        y: this.given.run != null ? {range: [0, 1]} : isLog ? {distr: 3} : {range: (u, low, high) =>
          low == null ? [0, 1] : low === high && low === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true)},
      },
      axes: [
        {...axis, values: (u, ticks) => ticks.map(tick => seconds ? lasting(tick) : short(tick)), size: 32, space: 70,
          ...(seconds ? {incrs: [1e-3, 1e-2, 0.1, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
            86400, 172800, 432000, 864000, 2592000, 8640000]} : {})},
        {...axis, size: roomFor, values: (u, ticks) => ticks.map(tick => this.given.run != null ? `${Math.round(100 * tick)} %` : short(tick))},
      ],
      series: [{}, ...this.curves.map(curve => this.series(curve))],
      hooks: {
        setSelect: [u => {
          if (u.select.width < 4) return;
          look([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
        }],
        drawAxes: [u => this.mark(u)],
        setCursor: [u => this.read(u)],
      },
    };
  }

  series(curve) {
    const own = colour(curve.colour), isRaw = curve.style === "raw";
    const few = curve.values.length < MAX_POINTS_SHOWN;
    const common = {show: isShown(curve.run, curve.key), spanGaps: false, stroke: own, dash: curve.dash, points: {show: false}};
    const isSmoothed = state.smoothing > 0 && curve.noisy;
    if (isRaw) return {...common, ...(isSmoothed ? {stroke: own + "50", width: 1, dash: []} : {width: 2}),
      points: {show: curve.values.length === 1, size: 6, fill: own}};
    if (curve.style === "smooth") return {...common, width: 2, show: common.show && isSmoothed};
    if (curve.style === "evaluation") return {...common, width: 1.5, points: {show: few, size: 6, fill: own, stroke: own}};
    if (curve.style === "baseline") return {...common, width: 1.5, paths: uPlot.paths.stepped({align: 1})};
    if (curve.style === "area") return {...common, width: 1, fill: curve.key === "waiting for data" ? own + "b0" : undefined};
    return {...common, stroke: own + "50", width: 1, dash: [2, 2]};
  }

  // Vertical lines at parts of the run and at events, with the names of the first few.
  mark(u) {
    const marks = data.runs.flatMap((run, number) => state.hiddenRuns.has(number) || (this.given.run ?? number) !== number ? [] :
      run.marks.filter(mark => mark.kind !== "checkpoint").map(mark => ({...mark, x: onAxis(run, [mark.step])[0]})));
    const {ctx, bbox} = u, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.font = `${10 * ratio}px system-ui, sans-serif`;
    let free = -Infinity;
    for (const mark of marks.sort((a, b) => a.x - b.x)) {
      const x = Math.round(u.valToPos(mark.x, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      const isBad = mark.kind !== "part" && mark.kind !== "resume";
      ctx.strokeStyle = ctx.fillStyle = colour(isBad ? "poor" : "soft");
      ctx.setLineDash(mark.kind === "part" ? [ratio, 3 * ratio] : [4 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (x - free < 12 * ratio) continue;
      free = x;
      ctx.save();
      ctx.translate(x - 3 * ratio, bbox.top + 3 * ratio);
      ctx.rotate(-Math.PI / 2);
      ctx.textAlign = "right";
      const word = (SIGNS[mark.kind] || mark.text).slice(0, 40);
      ctx.setLineDash([]);
      ctx.lineWidth = 4 * ratio;
      ctx.strokeStyle = colour("paper");
      ctx.strokeText(word, 0, 0);
      ctx.fillText(word, 0, 0);
      ctx.restore();
    }
    ctx.restore();
  }

  // The legend: what can be shown and hidden, with the value at the cursor, else the last one.
  describe() {
    const listed = this.curves.filter(curve => !["raw", "low", "high"].includes(curve.style));
    this.values = new Map();
    const rows = listed.map(curve => {
      const value = make("b", {text: this.last(curve)});
      this.values.set(curve, value);
      const line = make("i");
      line.style.borderColor = colour(curve.colour);
      line.style.borderTopStyle = !curve.dash.length ? "solid" : curve.dash[0] < 3 ? "dotted" : "dashed";
      return make("li", {}, make("button", {type: "button", "aria-pressed": String(!state.hidden.has(curve.key)), "data-run": curve.run,
        hidden: state.hiddenRuns.has(curve.run), onclick: () => toggle(curve.key)}, line, `${curve.name} `, value));
    });
    this.legend.replaceChildren(...rows);
    const said = listed.filter(curve => isShown(curve.run, curve.key)).map(curve => `${curve.name} ${this.last(curve)}`);
    const over = {step: "steps", samples: "samples", seconds: "time"}[state.axis];
    this.plot.setAttribute("aria-label", `${this.title} over ${over}; last values: ${said.join(", ") || "none shown"}`);
  }

  last(curve) {
    const values = curve.own || (curve.style === "smooth" ? this.raw(curve).values : curve.values);
    for (let i = values.length - 1; i >= 0; i--) if (values[i] != null) return short(values[i]);
    return "";
  }

  raw(curve) {
    return this.curves.find(one => one.style === "raw" && one.run === curve.run && one.key === curve.key) || curve;
  }

  read(u) {
    const {left} = u.cursor;
    for (const [curve, element] of this.values || []) {
      if (left == null || left < 0) { element.textContent = this.last(curve); continue; }
      const index = this.curves.indexOf(curve), xs = u.data[0], ys = u.data[index + 1];
      const at = u.posToVal(left, "x");
      const i = this.nearest(xs, at);
      let best = -1;
      for (let off = 0; off < 4000 && best < 0; off++) {
        if (ys[i - off] != null) best = i - off;
        else if (ys[i + off] != null) best = i + off;
      }
      const value = best < 0 ? null : ys[best];
      const below = curve.style === "area" && index ? u.data[index][best] : 0;
      element.textContent = best < 0 ? "" : short(value - (below || 0));
    }
  }

  nearest(xs, at) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; xs[middle] < at ? low = middle : high = middle; }
    return at - xs[low] < xs[high] - at ? low : high;
  }

  key(event) {
    if (event.target !== this.plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), "+": () => zoom(0.5), "=": () => zoom(0.5),
      "-": () => zoom(2), Escape: () => look(null), Home: () => look(null)}[event.key];
    if (action) { event.preventDefault(); action(); }
  }

  destroy() {
    this.observer.disconnect();
    if (this.u) this.u.destroy();
    this.figure.remove();
  }
}

// -- all charts ------------------------------------------------------------------------------------------------------

const look = view => {
  const [first, last] = full();
  if (view) {
    const width = Math.min(Math.max(view[1] - view[0], (last - first) * 1e-7), last - first);
    const start = Math.min(Math.max(view[0], first), last - width);
    view = width >= last - first ? null : [start, start + width];
  }
  state.view = view;
  document.documentElement.dataset.view = view ? view.map(value => +value.toPrecision(7)).join(" ") : "";
  for (const chart of charts) {
    chart.u.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
    chart.u.setData(chart.u.data, true);
  }
};
const zoom = factor => {
  const [low, high] = state.view || full(), middle = (low + high) / 2, half = (high - low) / 2 * factor;
  look([middle - half, middle + half]);
};
const pan = share => {
  const [low, high] = state.view || full();
  look([low + share * (high - low), high + share * (high - low)]);
};
const redraw = () => charts.forEach(chart => chart.draw());
const toggle = key => {
  state.hidden.has(key) ? state.hidden.delete(key) : state.hidden.add(key);
  const focused = document.activeElement, at = focused && focused.closest(".legend") ? [...focused.closest(".legend").children].indexOf(focused.parentElement) : -1;
  const legend = at >= 0 ? focused.closest(".legend") : null;
  redraw();
  if (legend && legend.children[at]) find("button", legend.children[at]).focus();
};

const showRuns = () => {
  for (const element of all("[data-run]")) element.hidden = state.hiddenRuns.has(+element.dataset.run);
  all("[data-shows]").forEach(box => { box.checked = !state.hiddenRuns.has(+box.dataset.shows); });
};

const build = () => {
  charts.forEach(chart => chart.destroy());
  charts = [];
  for (const section of ["curves", "other", "speed"]) {
    const box = find(`#charts-${section}`), given = data.charts.filter(chart => chart.section === section);
    if (!box) continue;
    box.hidden = !given.length;
    charts.push(...given.map(one => new Chart(one, find(".wide", box))));
  }
  document.documentElement.dataset.charts = charts.length;
};

const controls = () => {
  const box = find("#controls");
  if (!box) return;
  const amount = make("output", {text: state.smoothing.toFixed(2)});
  const slider = make("input", {type: "range", min: 0, max: 0.99, step: 0.01, value: state.smoothing, oninput: event => {
    state.smoothing = +event.target.value;
    amount.textContent = state.smoothing.toFixed(2);
    redraw();
  }});
  const axis = make("select", {onchange: event => { state.axis = event.target.value; state.view = null; redraw(); look(null); }},
    ...[["step", "steps"], ["samples", "samples"], ["seconds", "time"]].map(([value, text]) => make("option", {value, text})));
  axis.value = state.axis;
  const logarithm = make("input", {type: "checkbox", id: "log", onchange: event => { state.isLog = event.target.checked; redraw(); }});
  logarithm.checked = state.isLog;
  const button = (text, label, action) => make("button", {type: "button", text, title: label, "aria-label": label, onclick: action});
  box.replaceChildren(
    make("label", {}, "smoothing", slider, amount), make("label", {}, "over", axis), make("label", {}, logarithm, "logarithmic"),
    make("span", {}, button("+", "zoom in", () => zoom(0.5)), button("\u2212", "zoom out", () => zoom(2)),
      button("\u2190", "earlier", () => pan(-0.2)), button("\u2192", "later", () => pan(0.2)), button("reset", "show all", () => look(null))));
};

// -- pictures through time -------------------------------------------------------------------------------------------

let playing = null;
const stop = () => {
  clearInterval(playing);
  playing = null;
  const button = find(".steps button");
  if (button) button.textContent = "play";
};
const pictures = () => {
  stop();
  const slider = find(".steps input");
  if (!slider) return;
  const steps = JSON.parse(slider.dataset.steps), names = JSON.parse(slider.dataset.names), button = find(".steps button");
  const show = () => {
    const step = steps[slider.value];
    find(".steps output").textContent = "step " + step.toLocaleString("en") + names[slider.value];
    slider.setAttribute("aria-valuetext", "step " + step + names[slider.value]);
    for (const shown of all("[data-through]")) {
      const each = [...shown.children].filter(one => one.dataset.step);
      const last = each.filter(one => +one.dataset.step <= step).pop() || each[0];
      for (const one of each) one.hidden = one !== last;
      find("small", shown).textContent = " step " + (+last.dataset.step).toLocaleString("en");
    }
  };
  slider.addEventListener("input", show);
  button.addEventListener("click", () => {
    if (playing) return stop();
    if (+slider.value === +slider.max) slider.value = 0;
    button.textContent = "stop";
    show();
    playing = setInterval(() => {
      if (+slider.value === +slider.max) return stop();
      slider.value = +slider.value + 1;
      show();
    }, still.matches ? 1500 : 350);
  });
  show();
};

// -- following a run -------------------------------------------------------------------------------------------------

let seen = null;
const say = text => { const box = find("#live"); if (box && box.textContent !== text) box.textContent = text; };

// Loads those sections again that have changed; the page has them, and our server has made it.
const refresh = async sections => {
  const changed = all("section[data-digest]").filter(one => one.id !== "charts" && sections[one.id] && one.dataset.digest !== sections[one.id]);
  if (!changed.length) return;
  const answer = await fetch(location.href, {cache: "no-store"});
  if (!answer.ok) throw new Error(answer.status);
  const other = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of changed) {
    const now = other.getElementById(old.id);
    if (!now) continue;
    const open = new Map(all("details", old).map(one => [find("summary", one).textContent, one.open]));
    const slider = find(".steps input", old), at = slider && slider.value !== slider.max ? slider.value : null;
    old.replaceChildren(...[...now.childNodes].map(node => document.importNode(node, true)));
    old.dataset.digest = now.dataset.digest;
    for (const one of all("details", old)) one.open = open.get(find("summary", one).textContent) ?? one.open;
    if (at != null && find(".steps input", old)) find(".steps input", old).value = at;
    if (old.id === "media") pictures();
    if (old.id === "head") listen();
  }
  showRuns();
};
const follow = async () => {
  try {
    const answer = await fetch(live, {cache: "no-cache"});
    if (answer.status === 403) { say("not allowed any more: open the address with its token again"); return; }
    if (!answer.ok) throw new Error(answer.status);
    const tag = answer.headers.get("ETag");
    if (tag !== seen && !document.hidden) {
      const now = await answer.json();
      const isNew = seen !== null;
      seen = tag;
      if (isNew) {
        data = now;
        const held = charts.map(chart => JSON.stringify(chart.given)).join();
        held === data.charts.map(chart => JSON.stringify(chart)).join() ? redraw() : build();
      }
      await refresh(now.sections);
    }
    say("following, checked " + new Date().toLocaleTimeString());
  } catch (error) {
    say("the dashboard does not answer; trying again");
  }
  setTimeout(follow, EVERY_MS);
};

const listen = () => all("[data-shows]").forEach(box => box.addEventListener("change", () => {
  box.checked ? state.hiddenRuns.delete(+box.dataset.shows) : state.hiddenRuns.add(+box.dataset.shows);
  showRuns();
  redraw();
}));

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
listen();
controls();
build();
pictures();
if (live) follow();
})();
