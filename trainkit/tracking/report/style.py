"""The style sheet and the script of a report."""

CSS = """
:root{--ink:#1d2433;--soft:#5c667a;--line:#dfe3ea;--paper:#fff;--back:#f4f6f9;--key:#2f6fde}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9f0;--soft:#9aa4b8;--line:#333b4b;--paper:#1b212d;--back:#12161f}}
*{box-sizing:border-box}
[hidden]{display:none!important}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1220px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:34px 0 12px}
.sub{color:var(--soft);margin:4px 0 18px}
.card,.chart{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:14px 16px;margin:0}
.row{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(200px,1fr))}
.wide{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr))}
.fact b{display:block;font-size:22px}.fact span{color:var(--soft);font-size:13px}
.fact small{display:block;color:var(--soft)}
.parts{display:flex;height:26px;border-radius:6px;overflow:hidden;border:1px solid var(--line);background:var(--paper)}
.parts i{display:block;height:100%;overflow:hidden;white-space:nowrap;font:11px/26px system-ui;padding-left:5px;
border-right:1px solid var(--paper);color:#fff}
.parts i.todo{background:var(--line)!important;color:var(--soft)}
.steps{position:sticky;top:0;z-index:2;display:flex;gap:12px;align-items:center;padding:10px 0;background:var(--back)}
.steps input{flex:1;accent-color:var(--key)}.steps output{min-width:12em}
button{font:inherit;border:1px solid var(--line);background:var(--paper);color:inherit;border-radius:7px;
padding:3px 12px}
figure{margin:0}figcaption{font-weight:600;margin-bottom:6px}figcaption small{color:var(--soft);font-weight:400}
.picture img{width:100%;image-rendering:pixelated;border-radius:4px;display:block}
svg{width:100%;height:auto;display:block}
.tick{font-size:11px;fill:var(--soft)}.name{font-size:10px;fill:var(--soft)}
.grid{stroke:var(--line)}.mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:1 3}
.legend{margin:6px 0 0;font-size:13px;color:var(--soft);display:flex;flex-wrap:wrap;gap:4px 16px}
.legend i{display:inline-block;width:20px;border-top:3px solid;margin-right:6px;vertical-align:4px}
.legend i.dashed{border-top-style:dashed;border-top-width:2px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:4px 10px;text-align:right;border-bottom:1px solid var(--line)}
td:first-child,th:first-child{text-align:left}
.scroll{overflow:auto;max-height:420px}
pre{overflow:auto;margin:0;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap}
pre.command{white-space:pre;background:var(--paper);border:1px solid var(--line);border-radius:7px;padding:8px 12px;
margin:0 0 8px}
details{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:10px 16px;margin:10px 0}
summary{cursor:pointer;font-weight:600}
"""

SCRIPT = """
const slider=document.querySelector('.steps input');
if(slider){
  const steps=JSON.parse(slider.dataset.steps),names=JSON.parse(slider.dataset.names);
  const show=()=>{
    const step=steps[slider.value];
    document.querySelector('.steps output').textContent='step '+step.toLocaleString('en')+names[slider.value];
    for(const shown of document.querySelectorAll('[data-through]')){
      let last=null;
      for(const one of shown.children){
        if(!one.dataset.step)continue;
        if(last===null||+one.dataset.step<=step)last=one;
        one.hidden=true;
      }
      last.hidden=false;
      shown.querySelector('small').textContent=' step '+(+last.dataset.step).toLocaleString('en');
    }
  };
  slider.addEventListener('input',show);
  let playing=null;
  const button=document.querySelector('.steps button');
  button.addEventListener('click',()=>{
    if(playing){clearInterval(playing);playing=null;button.textContent='play';return}
    if(+slider.value===+slider.max)slider.value=0;
    button.textContent='stop';
    playing=setInterval(()=>{
      if(+slider.value===+slider.max){button.click();return}
      slider.value=+slider.value+1;show();
    },350);
  });
  show();
}
"""
