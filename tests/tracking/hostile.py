"""A run directory of somebody who would like to run a script in the browser of whoever looks at it."""

import json

from PIL import Image

SCRIPT = "<script>document.documentElement.dataset.hit=1</script>"
IMAGE = '<img src=x onerror="document.documentElement.dataset.hit=2">'
ENDS = "</script></style></title></textarea><!-- --!>"
NASTY = f"'\"`{ENDS}{SCRIPT}{IMAGE}<svg onload='document.documentElement.dataset.hit=3'>\u2028javascript:alert(1)&lt;"


def hostile_run(parent):
    """Writes it, with markup in every name and text; returns its path."""
    run_dir = parent / f"run {IMAGE}".replace("/", "_")
    (run_dir / "media").mkdir(parents=True)
    step = {"step": 1, "time": 1.0}
    lines = [
        {**step, "kind": "milestones", "milestones": [[0, NASTY], [8, NASTY]]},
        {**step, "kind": "training", f"{NASTY} loss": 1.0, "position": 8, "samples_per_s": 2.0, "data_wait": 0.5},
        {**step, "kind": "training", "nonfinite": {NASTY: NASTY}, f"{NASTY} loss": None, NASTY: NASTY},
        {**step, "kind": "evaluation", NASTY: 1.0},
        {**step, "kind": "interval", NASTY: [0.5, 1.5]},
        {**step, "kind": "baseline", NASTY: {NASTY: 1.0}},
        {**step, "kind": "message", "text": NASTY},
        {**step, "kind": NASTY},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "config.yaml").write_text(NASTY)
    memory = "on each rank, predicted: parameters 4.0 kB, gradients 2.0 kB, optimizer ?"
    (run_dir / "summary.txt").write_text(f"{NASTY}\nnext: {NASTY}\n{SCRIPT}: {memory}\n")
    plan = {"kind": "flat", "groups": [[0, 1]], "wire_dtype": "exact", "chunk_bytes": None}
    links = {"hosts": [{"name": NASTY, "ranks": [0, 1]}], "plan": plan, "why": [NASTY], "transport": NASTY}
    verdict = {"text": NASTY, "beats_baseline": NASTY}
    files = {"manifest": {NASTY: [NASTY]}, "audit": NASTY, "links": links, "result": {"verdict": verdict, NASTY: NASTY}}
    for name, value in files.items():
        (run_dir / f"{name}.json").write_text(json.dumps(value))
    media = run_dir / "media" / f"a {IMAGE}".replace("/", "_")
    media.mkdir()
    (media / "00000001.txt").write_text(NASTY)
    (media / "00000001.csv").write_text(f'"{SCRIPT}",b\n{IMAGE},2\n')
    (media / "00000002.png").write_text(NASTY)
    Image.new("RGB", (4, 4), "red").save(media / "00000001.png")
    (media / "00000003.txt").symlink_to("/etc/passwd")
    return run_dir
