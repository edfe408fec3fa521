"use strict";
// Points of [x, y, group, id, classes, image]; x and y from 0 to 1.
const { points, groups } = JSON.parse(document.getElementById("data").textContent);
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
const card = document.querySelector(".map figure"), [picture, caption] = card.children;
const list = document.querySelector("textarea"), count = document.querySelector("output");
// Hues a golden angle apart: neighbours in the legend differ most. On a dark ground, violet and red must be lighter.
const lift = matchMedia("(prefers-color-scheme: dark)").matches ? 15 : 0;
const colour = (group) => `hsl(${(group * 137.5) % 360} 65% ${(group % 2 ? 58 : 45) + lift}%)`;
document.querySelectorAll(".legend .key").forEach((key, group) => { key.style.background = colour(group); });
const MARGIN = 12, RADIUS = 3.5, REACH = 12;
let size = 0, height = 0, chosen = new Set(), drag = null;
const place = ([x, y]) => [MARGIN + x * size, MARGIN + y * size];

function draw() {
  const width = canvas.clientWidth, ratio = devicePixelRatio;
  size = Math.max(1, width - 2 * MARGIN);
  height = Math.max(...points.map((point) => point[1])) * size + 2 * MARGIN;
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  pen.scale(ratio, ratio);
  points.forEach((point, number) => {
    pen.globalAlpha = !chosen.size || chosen.has(number) ? 0.85 : 0.2;
    pen.fillStyle = colour(point[2]);
    pen.beginPath();
    pen.arc(...place(point), RADIUS, 0, 2 * Math.PI);
    pen.fill();
  });
  if (drag) {
    pen.globalAlpha = 1;
    pen.strokeStyle = getComputedStyle(document.body).color;
    pen.strokeRect(drag.x, drag.y, drag.toX - drag.x, drag.toY - drag.y);
  }
}

function nearest(x, y) {
  let best = null, least = REACH ** 2;
  points.forEach((point) => {
    const [a, b] = place(point), distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  });
  return best;
}

function show(x, y) {
  const point = nearest(x, y);
  card.hidden = !point;
  if (!point) return;
  picture.hidden = !point[5];
  if (point[5]) picture.src = point[5];
  caption.textContent = [point[3], point[4], groups[point[2]]].filter((text, at, all) => text && all.indexOf(text) === at).join("\n");
  card.style.top = `${y + 14}px`;
  card.style.left = `${Math.max(0, Math.min(x + 14, canvas.clientWidth - card.offsetWidth))}px`;
}

function select() {
  const [left, right] = [drag.x, drag.toX].sort((a, b) => a - b), [top, bottom] = [drag.y, drag.toY].sort((a, b) => a - b);
  const inside = points.map(place).map(([x, y]) => left <= x && x <= right && top <= y && y <= bottom);
  chosen = new Set(inside.flatMap((is, number) => (is ? [number] : [])));
  list.value = [...chosen].map((number) => points[number][3]).join("\n");
  count.textContent = String(chosen.size);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drag = { x: event.offsetX, y: event.offsetY, toX: event.offsetX, toY: event.offsetY };
});
canvas.addEventListener("pointermove", (event) => {
  show(event.offsetX, event.offsetY);
  if (!drag) return;
  [drag.toX, drag.toY] = [event.offsetX, event.offsetY];
  draw();
});
canvas.addEventListener("pointerup", () => {
  if (drag) select();
  drag = null;
  draw();
});
canvas.addEventListener("pointerleave", () => { card.hidden = true; });
addEventListener("resize", draw);
draw();
