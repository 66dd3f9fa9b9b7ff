// The page: controls, keys, and the loop that lets simulated time keep up with the clock
import { DT, length, observe, prepare, step } from './physics.js';
import { makePolicy, readProbe } from './policy.js';
import { describe, like } from './drones.js';
import { World } from './world.js';
import { Picture } from './scene.js';
import { drawBelief, drawDistance, drawReturn } from './charts.js';
import { Panel } from './panel.js';
import { Real } from './real.js';
import { readDrone } from './drone_file.js';

const $ = (id) => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const SLIDERS = { // lowest, highest, text; logarithmic where it spans decades
  mass: { low: 0.02, high: 5, log: true, text: (v) => (v < 1 ? `${(1000 * v).toPrecision(3)} g` : `${v.toPrecision(3)} kg`) },
  thrustToWeight: { low: 1.3, high: 5, text: (v) => v.toFixed(2) },
  arm: { low: 0.03, high: 0.5, log: true, text: (v) => `${(100 * v).toPrecision(3)} cm` },
  lag: { low: 0.015, high: 0.12, text: (v) => `${(1000 * v).toFixed(0)} ms` },
};
const WEATHER = { noise: { low: 0, high: 0.05, text: (v) => `${(100 * v).toFixed(1)} cm` }, wind: { low: 0, high: 0.3, text: (v) => `${(100 * v).toFixed(0)} % of weight` } };
const DEFAULT = { mass: 0.5, thrustToWeight: 2.5, arm: 0.12, lag: 0.05 };
const CATCH_UP = 0.25; // s of flight at most between two pictures
const BUSY = 60;       // ms of computing at most between two pictures: slower than that, time passes more slowly

const world = new World(data);
let panel = null, real = null;
const registry = Object.fromEntries(Object.entries(data.drones).map(([name, d]) => [name, prepare(d.dynamics)]));
const app = { choice: 'own', base: registry[data.template], values: { ...DEFAULT }, policies: ['student'], paused: false, speed: 1, eights: 0, frames: 0 };

// ---- drones -------------------------------------------------------------------------------------------------------
const settle = (v, [low, high]) => Math.min(Math.max(v, low), high);
const position = (s, v) => (s.log ? Math.log(v / s.low) / Math.log(s.high / s.low) : (v - s.low) / (s.high - s.low));
const value = (s, p) => (s.log ? s.low * (s.high / s.low) ** p : s.low + p * (s.high - s.low));

function chosen() { // [{ name, drone }]
  if (app.choice !== 'eight') return [{ name: app.choice, drone: like(app.base, app.values) }];
  const from = (8 * app.eights) % data.sampled.length;
  return data.sampled.slice(from, from + 8).map((d) => ({ name: `drone ${d.name}`, drone: prepare(d.dynamics) }));
}

function put(look = true) {
  world.put(chosen(), app.policies);
  real?.judge();
  picture?.rebuild(look);
  draw();
}

function choose(name, look = true) {
  if (name === 'eight' && app.choice === 'eight') app.eights += 1;
  app.choice = name;
  app.base = registry[name] ?? registry[data.template];
  app.values = name === 'own' ? { ...DEFAULT } : name === 'eight' ? {} : (({ mass, thrustToWeight, arm, lag }) => ({ mass, thrustToWeight, arm, lag }))(describe(app.base));
  $('drone').value = name;
  for (const [key, s] of Object.entries(SLIDERS)) {
    $(key).disabled = name === 'eight';
    if (name !== 'eight') { $(key).value = position(s, settle(app.values[key], [s.low, s.high])); $(`${key}-text`).textContent = s.text(app.values[key]); } else $(`${key}-text`).textContent = 'each its own';
  }
  put(look);
}

function change(key, p) { // a slider of the drone moved: in the air, so that the memory has to notice
  app.values[key] = value(SLIDERS[key], p);
  $(`${key}-text`).textContent = SLIDERS[key].text(app.values[key]);
  for (const flight of world.flights) flight.change(like(app.base, app.values));
  changed();
}

function changed() { // the drones in the air are others now
  real.judge();
  picture?.rebuild(false);
  draw();
}

async function open(files) { // drone files: the last one that is a drone flies
  for (const file of files) {
    try {
      const { name, dynamics } = readDrone(await file.text(), file.name), key = `file ${name}`;
      registry[key] = prepare(dynamics);
      if (![...$('drone').options].some((o) => o.value === key)) $('drone').add(new Option('', key), 1);
      [...$('drone').options].find((o) => o.value === key).text = `${name} (file, ${SLIDERS.mass.text(dynamics.mass)})`;
      choose(key);
      told(`${file.name}: ${name}, thrust-to-weight ${describe(app.base).thrustToWeight.toFixed(2)}, is in the air.`);
    } catch (error) { told(`${file.name} was not opened: ${error.message}.`, true); }
  }
}

function told(sentence, wrong = false) {
  $('file-says').textContent = sentence;
  $('file-says').classList.toggle('wrong', wrong);
}

function fly(which) { // a policy's name, 'both' (the last one and the published) or 'all'
  const [last] = app.policies, own = last !== 'published' ? last : world.policies.trained ? 'trained' : 'student';
  app.policies = which === 'both' ? [own, 'published'] : which === 'all' ? Object.keys(data.policies) : [which];
  for (const b of document.querySelectorAll('[data-policy]')) b.setAttribute('aria-pressed', b.dataset.policy === which);
  $('numbers').textContent = Math.max(...app.policies.map((name) => world.policies[name].network.size));
  put();
}

function trainee() { // eight drones under the weights of the moment, beginning with random ones
  document.querySelector('[data-policy="trained"]').hidden = false;
  if (app.choice !== 'eight') choose('eight');
  fly('trained');
}

// ---- what one can do to them --------------------------------------------------------------------------------------
function eight(on) { world.eight(on); $('eight').setAttribute('aria-pressed', on); if (on) picture?.look(); }
function lead(on) { world.leads = on; $('lead').setAttribute('aria-pressed', on); if (on && world.eightSince === null) eight(true); }
function pause(on) { app.paused = on; show(); $('pause').setAttribute('aria-pressed', on); $('pause').firstChild.textContent = on ? 'Resume' : 'Pause'; }
function slow(on) { app.speed = on ? 0.25 : 1; $('slow').setAttribute('aria-pressed', on); }
function aim(target) { if (world.eightSince !== null) eight(false); world.target = target.map((x, i) => settle(x, i === 2 && picture ? [picture.floor + 0.05, 3] : [-3, 3])); show(); }
function nudge(...by) { aim(world.goal()[0].map((x, i) => x + by[i])); }
const restart = () => { world.restart(); show(); };
const act = { drag: aim, poke: (flights) => world.poke(flights) };

// ---- reading ------------------------------------------------------------------------------------------------------
const far = (x) => (x < 0.1 ? `${(100 * x).toFixed(1)} cm` : `${x.toFixed(2)} m`);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const recent = (flight, n = 100) => mean(flight.distance.slice(-n));

function style() {
  const css = getComputedStyle(document.documentElement), get = (name) => css.getPropertyValue(name).trim();
  return { text: get('--text'), line: get('--line'), student: '#1f77b4', real: '#d62728', real64: '#9467bd', published: '#ff7f0e', trained: '#2ca02c' };
}

function readout() {
  for (const name of [...Object.keys(data.policies), 'trained']) {
    const flights = world.flights.filter((f) => f.policy.name === name), row = $(`row-${name}`);
    row.hidden = !flights.length;
    if (!flights.length) continue;
    const [distance, believed, lost] = row.querySelectorAll('output');
    const up = flights.filter((f) => f.distance.length && f.over <= 0);
    distance.textContent = up.length ? far(mean(up.map((f) => recent(f)))) : '–';
    believed.textContent = flights.length === 1 ? (Number.isFinite(flights[0].believed) ? flights[0].believed.toFixed(2) : '–') : gap(flights);
    lost.textContent = flights.reduce((sum, f) => sum + f.lost, 0);
  }
  const about = world.flights[0].about, one = app.choice !== 'eight';
  $('truth').textContent = about.thrustToWeight.toFixed(2);
  $('row-truth').hidden = !one;
  $('belief-title').textContent = one ? 'Thrust-to-weight read from the hidden state (dashed: true)' : 'Thrust-to-weight: read from the hidden state, against the true one';
  $('about').textContent = one ? `${about.mass < 1 ? `${(1000 * about.mass).toPrecision(3)} g` : `${about.mass.toPrecision(3)} kg`}, arm ${(100 * about.arm).toPrecision(3)} cm, torque-to-inertia ${about.torqueToInertia.toPrecision(3)} rad/s²${app.policies[0] === 'trained' ? '' : outside(about)}` : `eight of ${data.sampled.length} drones that no policy was trained on`;
  $('drawn').textContent = picture && picture.bodies[0].scale > 1.01 && one ? `drawn ${picture.bodies[0].scale.toFixed(1)} times its size` : '';
}
function gap(flights) {
  const read = flights.filter((f) => Number.isFinite(f.believed));
  return read.length ? `± ${mean(read.map((f) => Math.abs(f.believed - f.about.thrustToWeight))).toFixed(2)}` : '–';
}

function outside(about) { // of what the policies were trained on
  const given = { mass: about.mass, thrust_to_weight: about.thrustToWeight, torque_to_inertia: about.torqueToInertia, rotor_time_constant_rising: about.lag, rotor_time_constant_falling: about.falling };
  const words = { mass: 'mass', thrust_to_weight: 'thrust-to-weight', torque_to_inertia: 'torque-to-inertia', rotor_time_constant_rising: 'rotor lag', rotor_time_constant_falling: 'rotor lag' };
  const beyond = new Set(Object.entries(given).filter(([k, v]) => v < data.trained_on[k][0] * 0.999 || v > data.trained_on[k][1] * 1.001).map(([k]) => words[k]));
  return beyond.size ? `; not trained for such ${[...beyond].join(' and ')}` : '';
}

// ---- the loop -----------------------------------------------------------------------------------------------------
let picture = null, before = null, owed = 0, look = style(), plotted = 0, stale = true, seen = true;
const show = () => { stale = true; }; // a pause draws nothing unless something moved

function plot() {
  readout();
  drawDistance($('distance'), world.flights, look);
  const trains = world.policies.trained !== undefined && app.policies.includes('trained'), read = world.flights.some((f) => f.policy.probe);
  $('return-figure').hidden = !trains;
  $('belief-figure').hidden = !read;
  if (read) drawBelief($('belief'), world.flights, look);
  if (trains) { $('return-title').textContent = panel.title; drawReturn($('return'), panel.points, panel.bars.published === undefined ? {} : { published: panel.bars.published }, look); }
}

function draw() { // at once
  picture?.draw(0);
  plot();
}

function frame(now) {
  requestAnimationFrame(frame);
  const passed = before === null ? 0 : Math.min((now - before) / 1000, CATCH_UP);
  before = now;
  if (document.hidden || !seen || (app.paused && !stale)) return;
  if (!app.paused) {
    owed += passed * app.speed;
    const began = performance.now();
    for (; owed >= DT; owed -= DT) {
      world.step();
      if (performance.now() - began > BUSY) owed = 0;
    }
  }
  app.frames += 1;
  picture?.draw(app.paused ? 0 : passed * app.speed);
  if (stale || now - plotted > 66) { plotted = now; plot(); }
  stale = false;
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  $('theme').setAttribute('aria-pressed', dark);
  look = style();
  picture?.theme(dark);
  show();
}

// ---- keys and controls --------------------------------------------------------------------------------------------
const KEYS = {
  ArrowUp: () => nudge(0.1, 0, 0), ArrowDown: () => nudge(-0.1, 0, 0), ArrowLeft: () => nudge(0, 0.1, 0), ArrowRight: () => nudge(0, -0.1, 0),
  PageUp: () => nudge(0, 0, 0.1), PageDown: () => nudge(0, 0, -0.1), ' ': () => world.poke(), f: () => eight(world.eightSince === null), l: () => lead(!world.leads), r: restart,
  p: () => pause(!app.paused), s: () => slow(app.speed === 1), c: () => { const [one, two] = app.policies, order = [...Object.keys(data.policies), 'both']; fly(order[(order.indexOf(two ? 'both' : one) + 1) % order.length]); },
  0: () => choose('own'), 8: () => choose('eight'), v: () => picture?.look(),
};
Object.keys(data.drones).forEach((name, i) => { KEYS[i + 1] = () => choose(name); });

function listen() {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const tag = event.target.tagName, typing = tag === 'SELECT' || tag === 'INPUT' || (event.key === ' ' && (tag === 'BUTTON' || tag === 'SUMMARY'));
    const key = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
    if (!key || typing) return;
    event.preventDefault();
    key();
  });
  $('drone').addEventListener('change', (event) => choose(event.target.value));
  for (const key of Object.keys(SLIDERS)) $(key).addEventListener('input', (event) => change(key, Number(event.target.value)));
  for (const [key, s] of Object.entries(WEATHER)) {
    const set = () => { world[key] = value(s, Number($(key).value)); $(`${key}-text`).textContent = s.text(world[key]); };
    $(key).addEventListener('input', set);
    set();
  }
  for (const b of document.querySelectorAll('[data-policy]')) b.addEventListener('click', () => fly(b.dataset.policy));
  $('open').addEventListener('click', () => $('file').click());
  $('file').addEventListener('change', () => { open([...$('file').files]); $('file').value = ''; });
  const drop = (event, over) => {
    if (![...(event.dataTransfer?.types ?? [])].includes('Files')) return;
    event.preventDefault();
    document.body.classList.toggle('dropping', over);
  };
  addEventListener('dragover', (event) => drop(event, true));
  addEventListener('dragleave', (event) => drop(event, false));
  addEventListener('drop', (event) => { drop(event, false); open([...(event.dataTransfer?.files ?? [])]); });
  const press = { poke: () => world.poke(), eight: () => eight(world.eightSince === null), lead: () => lead(!world.leads), restart, pause: () => pause(!app.paused), slow: () => slow(app.speed === 1), another: () => choose('eight'), view: () => picture?.look() };
  for (const [id, does] of Object.entries(press)) $(id).addEventListener('click', does);
  $('theme').addEventListener('click', () => { const dark = document.documentElement.dataset.theme !== 'dark'; theme(dark); try { localStorage.setItem('mode', dark ? 'dark' : 'light'); localStorage.setItem('theme', dark ? 'dark' : 'light'); } catch { /* pages without storage */ } });
  addEventListener('storage', (event) => { if (event.key === 'theme' && event.newValue) theme(event.newValue === 'dark'); });
}

function begin() {
  const select = $('drone');
  select.add(new Option('your own (sliders)', 'own'));
  for (const [name, d] of Object.entries(data.drones)) select.add(new Option(`${name} (real, ${SLIDERS.mass.text(d.dynamics.mass)})`, name));
  select.add(new Option('eight random drones', 'eight'));
  if (new URLSearchParams(location.search).has('embed')) document.documentElement.classList.add('embed');
  try { picture = new Picture($('scene'), world, act); } catch (error) {
    $('no-webgl').hidden = false;
    console.info(`no WebGL: ${error.message}`);
  }
  let kept = null;
  try { kept = localStorage.getItem('theme'); } catch { /* pages without storage */ }
  theme(kept === 'dark' || (kept !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches));
  listen();
  panel = new Panel({ data, world, show: trainee, changed: show });
  real = new Real({ data, world, changed });
  addEventListener('resize', show);
  new IntersectionObserver(([entry]) => { seen = entry.isIntersecting; }).observe($('scene')); // scrolled away, it rests
  picture?.controls.addEventListener('change', show);
  choose('own');
  const wish = new URLSearchParams(location.search);
  if (wish.get('policy')) fly(['both', 'all', ...Object.keys(data.policies)].includes(wish.get('policy')) ? wish.get('policy') : 'student');
  if (wish.get('drone') && [...select.options].some((o) => o.value === wish.get('drone'))) choose(wish.get('drone'));
  if (wish.get('condition') in real.conditions) real.choose(wish.get('condition'));
  if (wish.has('eight')) eight(true);
  requestAnimationFrame(frame);
}

begin();

// For the tests, and for whoever wants to play from the console: let simulated time pass without pictures, look at anything
window.raptor = { app, world, data, choose, fly, eight, aim, observe, step, prepare, like, describe, makePolicy, readProbe, length,
                  get picture() { return picture; }, get panel() { return panel; }, get real() { return real; }, advance(seconds) { for (let i = 0; i < seconds / DT; i++) world.step(); draw(); } };
