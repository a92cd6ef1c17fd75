"""The HTML of `page`, with @@TITLE@@, @@FACTS@@ and @@DATA@@ to be replaced."""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@@TITLE@@</title>
<style>
:root { --ground: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #5f6b7e; --line: #dfe3ea; --accent: #2f6fdf; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12151b; --card: #1b2029; --ink: #e8ebf1; --soft: #95a0b3; --line: #2e3542; --accent: #7aa7ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 17px; margin: 0 0 14px; }
p { margin: 4px 0 0; color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px; margin-top: 20px; }
.columns { display: grid; grid-template-columns: minmax(220px, 384px) 1fr; gap: 28px; }
@media (max-width: 720px) { .columns { grid-template-columns: 1fr; } }
canvas { display: block; width: 100%; image-rendering: pixelated; border-radius: 8px; }
label { display: flex; justify-content: space-between; margin: 16px 0 4px; font-weight: 600; }
label:first-child { margin-top: 0; }
output { color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums; }
input[type=range] { width: 100%; accent-color: var(--accent); margin: 0; }
.buttons { display: flex; flex-wrap: wrap; gap: 6px; }
button { font: inherit; color: var(--ink); background: transparent; border: 1px solid var(--line); border-radius: 8px;
  padding: 4px 12px; cursor: pointer; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--card); }
button:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px; }
.strip canvas { cursor: pointer; border: 2px solid transparent; }
.strip canvas.near { border-color: var(--accent); }
#table { max-width: 640px; }
</style>
</head>
<body>
<main>
<h1>@@TITLE@@</h1>
<p>@@FACTS@@</p>
<section class="card columns">
  <div><canvas id="image" role="img" aria-label="generated image"></canvas></div>
  <div>
    <h2>Walk between latents</h2>
    <label for="place">Position <output id="place-value"></output></label>
    <input type="range" id="place" min="0" max="1000" value="0" step="1">
    <div class="buttons" style="margin: 10px 0 12px"><button id="play" aria-pressed="false">Play</button></div>
    <div class="strip" id="anchors"></div>
    <label for="psi">Truncation <output id="psi-value"></output></label>
    <input type="range" id="psi" min="0" value="0" step="1">
    <p>1: all variety. Lower: more typical images, closer to the mean.</p>
    <div id="of-classes"><label>Class</label><div class="buttons" id="classes"></div></div>
  </div>
</section>
<section class="card">
  <h2>Style by resolution</h2>
  <label for="size">Style from <output id="size-value"></output></label>
  <input type="range" id="size" min="0" value="0" step="1" style="max-width: 640px">
  <p style="margin: 8px 0 14px">Rows give the layout, columns the style: from that resolution on, each channel gets the
  mean and the deviation of the other image. Shapes do not move with it.</p>
  <canvas id="table" role="img" aria-label="table of mixed images"></canvas>
</section>
</main>
<script>
const data = @@DATA@@;
const get = id => document.getElementById(id);
const load = url => new Promise(done => {
  const image = new Image();
  image.onload = () => done(image);
  image.src = url;
});
const cut = (sheet, count, number) => {
  const columns = Math.ceil(Math.sqrt(count)), side = sheet.width / columns;
  return [sheet, (number % columns) * side, Math.floor(number / columns) * side, side, side];
};
let chosen = 0, playing = null;

async function start() {
  const walks = await Promise.all(data.walks.map(load));
  const sizes = Object.keys(data.styles).filter(name => name !== "own").sort((a, b) => a - b);
  const styles = {};
  for (const name in data.styles) styles[name] = await load(data.styles[name]);
  const side = walks[0].width / Math.ceil(Math.sqrt(data.frames));
  const view = get("image");
  view.width = view.height = side;
  get("psi").max = data.psis.length - 1;
  get("size").max = sizes.length - 1;
  get("size").value = Math.floor(sizes.length / 2);

  const sheet = () => walks[chosen * data.psis.length + Number(get("psi").value)];
  function draw() {
    const place = get("place").value / 1000 * data.frames, first = Math.floor(place) % data.frames;
    const brush = view.getContext("2d");
    brush.globalAlpha = 1;
    brush.drawImage(...cut(sheet(), data.frames, first), 0, 0, side, side);
    brush.globalAlpha = place - Math.floor(place);
    brush.drawImage(...cut(sheet(), data.frames, (first + 1) % data.frames), 0, 0, side, side);
    const along = place / data.frames * data.anchors, near = Math.round(along) % data.anchors;
    get("place-value").textContent = `latent ${Math.floor(along) % data.anchors + 1} + ${(along % 1).toFixed(2)}`;
    get("psi-value").textContent = data.psis[get("psi").value];
    [...get("anchors").children].forEach((canvas, number) => {
      canvas.width = canvas.height = side;
      canvas.classList.toggle("near", number === near);
      const frame = number * data.frames / data.anchors;
      canvas.getContext("2d").drawImage(...cut(sheet(), data.frames, frame), 0, 0, side, side);
    });
    [...get("classes").children].forEach((button, number) => button.setAttribute("aria-pressed", number === chosen));
  }
  function table() {
    const size = sizes[get("size").value], num = data.numStyles, canvas = get("table"), gap = Math.ceil(side / 16);
    canvas.width = canvas.height = (num + 1) * side + num * gap;
    const brush = canvas.getContext("2d"), at = number => number * (side + gap);
    for (let a = 0; a < num; a++) {
      brush.drawImage(...cut(styles.own, num, a), at(a + 1), 0, side, side);
      brush.drawImage(...cut(styles.own, num, a), 0, at(a + 1), side, side);
      for (let b = 0; b < num; b++)
        brush.drawImage(...cut(styles[size], num * num, a * num + b), at(b + 1), at(a + 1), side, side);
    }
    get("size-value").textContent = `${size}x${size} on`;
  }
  for (let number = 0; number < data.anchors; number++) {
    const canvas = document.createElement("canvas");
    canvas.onclick = () => { get("place").value = number * 1000 / data.anchors; draw(); };
    get("anchors").append(canvas);
  }
  data.classes.forEach((name, number) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => { chosen = number; draw(); };
    get("classes").append(button);
  });
  get("of-classes").hidden = data.classes.length < 2;
  get("place").oninput = get("psi").oninput = draw;
  get("size").oninput = table;
  get("play").onclick = () => {
    get("play").setAttribute("aria-pressed", playing === null);
    if (playing !== null) { clearInterval(playing); playing = null; return; }
    playing = setInterval(() => { get("place").value = (Number(get("place").value) + 2) % 1000; draw(); }, 33);
  };
  draw();
  table();
}
start();
</script>
</body>
</html>
"""
