// Small plots on canvases: how far from the target, what the memory believes, and how a training goes
const PAD = { left: 42, right: 8, top: 8, bottom: 22 };

function begin(canvas, style) {
  const ratio = Math.min(devicePixelRatio, 2), width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext('2d');
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = '11px system-ui, sans-serif';
  pen.fillStyle = style.text;
  pen.lineWidth = 1;
  return { pen, box: { x: PAD.left, y: PAD.top, w: width - PAD.left - PAD.right, h: height - PAD.top - PAD.bottom } };
}

function axes(pen, box, style, { x, y, xTicks, yTicks, xLabel, yText = String }) {
  pen.strokeStyle = style.line;
  pen.textAlign = 'right';
  pen.textBaseline = 'middle';
  for (const tick of yTicks) {
    pen.beginPath(); pen.moveTo(box.x, y(tick)); pen.lineTo(box.x + box.w, y(tick)); pen.stroke();
    pen.fillText(yText(tick), box.x - 5, y(tick));
  }
  pen.textAlign = 'center';
  pen.textBaseline = 'top';
  for (const tick of xTicks) pen.fillText(tick, x(tick), box.y + box.h + 5);
  pen.textAlign = 'right';
  pen.fillText(xLabel, box.x + box.w, box.y + box.h + 5);
}

function curve(pen, values, x, y, colour, width = 1.6) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.beginPath();
  values.forEach((v, i) => (i ? pen.lineTo(x(i - values.length + 1), y(v)) : pen.moveTo(x(i - values.length + 1), y(v))));
  pen.stroke();
  pen.lineWidth = 1;
}

const within = (box, low, high, log) => {
  const f = log ? Math.log10 : (v) => v;
  return (v) => box.y + box.h * (1 - (f(Math.min(Math.max(v, low), high)) - f(low)) / (f(high) - f(low)));
};
const past = (box) => (step) => box.x + box.w * (1 + step / 1000); // the last ten seconds
const colourOf = (flight, style) => style[flight.policy.name];

export function drawDistance(canvas, flights, style) {
  const { pen, box } = begin(canvas, style), x = past(box), y = within(box, 0.001, 2, true);
  axes(pen, box, style, { x: (s) => x(100 * s), y, xTicks: [-10, -8, -6, -4, -2], yTicks: [0.001, 0.01, 0.1, 1], xLabel: '0 s', yText: (v) => (v < 0.01 ? `${v * 1000} mm` : v < 1 ? `${v * 100} cm` : `${v} m`) });
  for (const f of flights) curve(pen, f.distance, x, y, colourOf(f, style), flights.length > 2 ? 1 : 1.6);
}

export function drawBelief(canvas, flights, style) {
  const { pen, box } = begin(canvas, style), y = within(box, 1, 6);
  const yTicks = [1, 2, 3, 4, 5, 6], drones = new Set(flights.map((f) => f.name)).size;
  if (drones === 1) {
    const x = past(box), truth = flights[0].about.thrustToWeight;
    axes(pen, box, style, { x: (s) => x(100 * s), y, xTicks: [-10, -8, -6, -4, -2], yTicks, xLabel: '0 s' });
    for (const f of flights) curve(pen, f.belief, x, y, colourOf(f, style));
    pen.setLineDash([5, 4]);
    curve(pen, [truth, truth], (i) => box.x + box.w * (i + 1), y, style.text, 1.4);
    pen.setLineDash([]);
    return;
  }
  const x = (v) => box.x + box.w * (v - 1) / 5;
  axes(pen, box, style, { x, y, xTicks: [1, 2, 3, 4, 5], yTicks, xLabel: 'true' });
  pen.setLineDash([5, 4]);
  pen.strokeStyle = style.text;
  pen.beginPath(); pen.moveTo(x(1), y(1)); pen.lineTo(x(6), y(6)); pen.stroke();
  pen.setLineDash([]);
  for (const f of flights) {
    if (!Number.isFinite(f.believed)) continue;
    pen.fillStyle = colourOf(f, style);
    pen.beginPath(); pen.arc(x(Math.min(f.about.thrustToWeight, 6)), y(f.believed), 4, 0, 7); pen.fill();
  }
}

// Return over the seconds of a training; `bars`: what others reach, dashed
export function drawReturn(canvas, points, bars, style) {
  const { pen, box } = begin(canvas, style), end = nice(Math.max(10, ...points.map((p) => p.seconds))), y = within(box, -200, 700);
  const x = (s) => box.x + box.w * s / end;
  axes(pen, box, style, { x, y, xTicks: [0, end / 2], yTicks: [0, 200, 400, 600], xLabel: `${end} s` });
  pen.setLineDash([5, 4]);
  for (const [name, value] of Object.entries(bars)) {
    pen.strokeStyle = style[name];
    pen.beginPath(); pen.moveTo(box.x, y(value)); pen.lineTo(box.x + box.w, y(value)); pen.stroke();
  }
  pen.setLineDash([]);
  pen.strokeStyle = style.trained;
  pen.lineWidth = 1.8;
  pen.beginPath();
  points.forEach((p, i) => (i ? pen.lineTo(x(p.seconds), y(p.return)) : pen.moveTo(x(p.seconds), y(p.return))));
  pen.stroke();
  const last = points[points.length - 1];
  if (last) { pen.fillStyle = style.trained; pen.beginPath(); pen.arc(x(last.seconds), y(last.return), 3, 0, 7); pen.fill(); }
}

function nice(x) { // the next 1, 2, 4 or 6 of a power of ten
  const ten = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 4, 6, 10].map((n) => n * ten).find((n) => n >= x);
}
