"use strict";
// What the scripts of all pages use.
const common = (() => {
const find = (selector, root = document) => root.querySelector(selector);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

const make = (name, given = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
};

// Of a number, so many digits.
const short = (value, digits) => {
  if (value == null || !isFinite(value)) return "";
  const size = Math.abs(value);
  if (size >= 1e15 || (size && size < 1e-4)) return value.toExponential(2).replace(/\.?0+e/, "e");
  if (size >= 1e6) return new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 2}).format(value);
  return (+value.toPrecision(digits)).toLocaleString("en", {maximumFractionDigits: 8});
};

const lasting = seconds => {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]])
    if (Math.abs(seconds) >= 2 * size) return short(seconds / size, 3) + " " + unit;
  return short(seconds, 3) + " s";
};

return {find, colour, make, short, lasting};
})();
