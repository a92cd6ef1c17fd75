"use strict";
(() => {
const HEIGHT = 240, NUM_COLOURS = 8;
const {find, colour, make} = common;
const data = JSON.parse(find("#data").textContent);
const several = data.machines.length > 1;

const short = value => common.short(value, 3);
const percent = value => short(100 * value) + " %";
const bytes = value => {
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6]]) if (value >= size) return short(value / size) + " " + unit;
  return short(value) + " B";
};
const dollars = value => "$" + (value >= 1 ? value.toLocaleString("en", {maximumFractionDigits: 2}) : short(value));

// In this order; those that no cell has are not offered.
const FIGURES = {
  samples: {text: "samples per second", says: short},
  tokens: {text: "tokens per second", says: short},
  images: {text: "images per second", says: short},
  mfu: {text: "MFU", says: percent},
  efficiency: {text: "scaling efficiency", says: percent},
  memory: {text: "peak memory", says: bytes, isLowGood: true},
  joules: {text: "joules per sample", says: short, isLowGood: true},
  cost: {text: "US dollars per million samples", says: dollars, isLowGood: true},
};
const offered = Object.keys(FIGURES).filter(name => data.cells.some(cell => cell[name]));
const distinct = name => [...new Set(data.cells.map(cell => cell[name]))];
const models = distinct("model"), precisions = distinct("precision"), strategies = distinct("strategy");
const colourOf = cell => "c" + precisions.indexOf(cell.precision) % NUM_COLOURS;
const state = {figure: offered[0], isSorted: false, hidden: new Set()};
const isShown = cell => !["precision", "strategy", "processes", "machine"].some(name => state.hidden.has(name + cell[name]));
const plural = number => `${number} process${number > 1 ? "es" : ""}`;
const nameOf = cell => [several ? data.machines[cell.machine].name : null, cell.precision, cell.strategy,
  plural(cell.processes)].filter(Boolean).join(" · ");

// -- bars ------------------------------------------------------------------------------------------------------------

const describe = cell => offered.filter(name => cell[name]).map(name => {
  const {median, low, high} = cell[name], says = FIGURES[name].says;
  return `${FIGURES[name].text} ${says(median)}` + (low == null || low === high ? "" : ` (${says(low)} to ${says(high)})`);
}).join(", ") + `, batch ${cell.batch_size}`;

const bar = (cell, most, say) => {
  const {median, low, high} = cell[state.figure], value = make("strong", {text: FIGURES[state.figure].says(median)});
  const fill = make("i", {class: colourOf(cell)});
  fill.style.width = 100 * median / most + "%";
  const track = make("div", {class: "track"}, fill);
  if (low != null && high > low) {
    const spread = make("b");
    spread.style.left = 100 * low / most + "%";
    spread.style.width = 100 * (high - low) / most + "%";
    track.append(spread);
  }
  const tell = () => say(`${nameOf(cell)}: ${describe(cell)}`);
  return make("li", {tabindex: 0, "aria-label": `${nameOf(cell)}: ${describe(cell)}`, onmouseenter: tell, onfocus: tell, onclick: tell},
    make("div", {class: "what"}, make("span", {text: nameOf(cell)}), value), track);
};

const drawBars = () => {
  const figure = FIGURES[state.figure];
  find("#bars").replaceChildren(...models.map(model => {
    const cells = data.cells.filter(cell => cell.model === model && cell[state.figure] && isShown(cell));
    if (state.isSorted) cells.sort((a, b) => (figure.isLowGood ? 1 : -1) * (a[state.figure].median - b[state.figure].median));
    const most = Math.max(...cells.map(cell => cell[state.figure].high ?? cell[state.figure].median), 0) || 1;
    const said = make("p", {class: "said", role: "status", text: cells.length ? "Point at a bar for all its figures." : "Nothing of it is shown."});
    const list = make("ul", {class: "bars"}, ...cells.map(cell => bar(cell, most, text => { said.textContent = text; })));
    return make("figure", {class: "card", "data-model": model}, make("figcaption", {text: model + " "},
      make("small", {text: figure.text + (figure.isLowGood ? ", lower is better" : "")})), list, said);
  }));
  document.documentElement.dataset.bars = document.querySelectorAll(".bars li").length;
};

// -- scaling ---------------------------------------------------------------------------------------------------------

let plots = [];
const curvesOf = model => {
  const groups = new Map();
  for (const cell of data.cells) {
    if (cell.model !== model || !isShown(cell)) continue;
    const key = [several ? data.machines[cell.machine].name : null, cell.precision, cell.strategy].filter(Boolean).join(" · ");
    groups.set(key, [...(groups.get(key) || []), cell]);
  }
  return [...groups].filter(([, cells]) => cells.length > 1 && cells.some(cell => cell.processes === 1));
};

const drawScaling = () => {
  plots.forEach(({plot, observer}) => { observer.disconnect(); plot.destroy(); });
  plots = [];
  const box = find("#scaling");
  box.replaceChildren();
  for (const model of models) {
    const curves = curvesOf(model);
    if (!curves.length) continue;
    const counts = [...new Set(curves.flatMap(([, cells]) => cells.map(cell => cell.processes)))].sort((a, b) => a - b);
    const ys = curves.map(([, cells]) => {
      const alone = cells.find(cell => cell.processes === 1).samples.median;
      return counts.map(num => { const cell = cells.find(one => one.processes === num); return cell ? cell.samples.median / alone : null; });
    });
    const axis = {stroke: colour("soft"), grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1},
      font: "12px system-ui, sans-serif"};
    const place = make("div", {class: "plot", role: "img", "aria-label": `${model}, times the speed of one process: ` +
      curves.map(([name], i) => `${name} ${counts.map((num, at) => ys[i][at] == null ? "" : `${num}: ${short(ys[i][at])}`).join(", ")}`).join("; ")});
    box.append(make("figure", {class: "card", "data-scaling": model}, make("figcaption", {text: model + " "},
      make("small", {text: "times the speed of one process, over processes"})), place));
    const last = counts[counts.length - 1];
    const showLast = u => u.setLegend({idx: counts.length - 1}, false);
    const plot = new uPlot({
      width: place.clientWidth || 300, height: HEIGHT, padding: [12, 14, 0, 0], cursor: {drag: {x: false, y: false}, points: {size: 7}},
      hooks: {ready: [showLast], setCursor: [u => { if (u.cursor.idx == null) showLast(u); }]},
      scales: {x: {time: false, range: [1 - 0.05 * (last - 1), last + 0.05 * (last - 1)]}, y: {range: (u, low, high) => [0, Math.max(high, 1) * 1.08]}},
      axes: [{...axis, splits: () => counts, values: (u, ticks) => ticks.map(String), size: 32},
        {...axis, size: 44, values: (u, ticks) => ticks.map(short)}],
      series: [{label: "processes", value: (u, value) => value == null ? "" : String(value)},
        {label: "ideal", stroke: colour("soft"), dash: [4, 4], width: 1, points: {show: false}, value: (u, value) => short(value)},
        ...curves.map(([name, cells], index) => ({label: name, stroke: colour(colourOf(cells[0])), width: 2,
          dash: index >= precisions.length ? [7, 4] : [], points: {show: true, size: 7, fill: colour(colourOf(cells[0]))}, spanGaps: true,
          value: (u, value) => value == null ? "" : short(value)}))],
    }, [counts, counts, ...ys], place);
    const observer = new ResizeObserver(() => plot.setSize({width: place.clientWidth || 300, height: HEIGHT}));
    observer.observe(place);
    plots.push({plot, observer});
  }
  find("#scaling-title").hidden = !plots.length;
  document.documentElement.dataset.scaling = plots.length;
};

// -- controls --------------------------------------------------------------------------------------------------------

const draw = () => { drawBars(); drawScaling(); };

const boxes = (name, values, text, isColoured) => values.length < 2 ? [] : [make("fieldset", {}, make("legend", {text}), ...values.map(value => {
  const box = make("input", {type: "checkbox", checked: true, onchange: event => {
    event.target.checked ? state.hidden.delete(name + value) : state.hidden.add(name + value);
    draw();
  }});
  const label = name === "machine" ? data.machines[value].name : String(value);
  return make("label", {}, box, ...(isColoured ? [make("i", {class: "c" + precisions.indexOf(value) % NUM_COLOURS})] : []), label);
}))];

const controls = () => {
  const figure = make("select", {id: "figure", onchange: event => { state.figure = event.target.value; drawBars(); }},
    ...offered.map(name => make("option", {value: name, text: FIGURES[name].text})));
  const sort = make("input", {type: "checkbox", id: "sort", onchange: event => { state.isSorted = event.target.checked; drawBars(); }});
  find("#controls").replaceChildren(make("label", {}, "figure", figure), make("label", {}, sort, "best first"),
    ...boxes("machine", distinct("machine"), "machines", false), ...boxes("precision", precisions, "precision", true),
    ...boxes("strategy", strategies, "strategy", false), ...boxes("processes", distinct("processes").sort((a, b) => a - b), "processes", false));
};

if (!data.cells.length) return;
controls();
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
