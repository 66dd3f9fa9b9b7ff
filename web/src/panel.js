// The panel on which one trains: sliders of the fleet, what the training says, its curve and its files
import { prepare } from './physics.js';
import { checkDistribution, sampleDrone, trainingFleet } from './fleet.js';
import { HIDDEN, Training, support } from './training.js';
import { pack, randomPolicy, unpack } from './kernels.js';
import { stream } from './world.js';
import { download } from './files.js';

const $ = (id) => document.getElementById(id);
const SAMPLED = 2000; // drones of the fleet
const JUDGED = ['student', 'published']; // beside the one that is trained
const grams = (v) => (v < 1 ? `${(1000 * v).toPrecision(3)} g` : `${v.toPrecision(3)} kg`), ms = (v) => `${(1000 * v).toFixed(0)} ms`;
const whole = (v) => Math.max(50, Math.round(v / 50) * 50);
const PAIRS = {
  mass: { low: 0.01, high: 10, log: true, from: [0.02, 5], text: grams, key: 'mass' },
  thrustToWeight: { low: 1.2, high: 8, from: [1.5, 5], text: (v) => v.toFixed(2), key: 'thrust_to_weight' },
  lag: { low: 0.01, high: 0.2, from: [0.03, 0.1], text: ms, key: 'rotor_time_constant_rising' },
};
const SINGLES = {
  noise: { low: 0, high: 0.1, from: 0.02, text: (v) => `${(100 * v).toFixed(1)} cm` },
  wind: { low: 0, high: 0.5, from: 0.15, text: (v) => `${(100 * v).toFixed(0)} % of weight` },
  updates: { low: 100, high: 20000, log: true, from: 1000, text: (v) => String(whole(v)) },
};
const position = (s, v) => (s.log ? Math.log(v / s.low) / Math.log(s.high / s.low) : (v - s.low) / (s.high - s.low));
const value = (s, p) => (s.log ? s.low * (s.high / s.low) ** p : s.low + p * (s.high - s.low));
const cores = Math.max(1, navigator.hardwareConcurrency || 1);

export class Panel {
  constructor({ data, world, show, changed }) { // show: once there is something to fly; changed: there is something to draw
    Object.assign(this, { data, world, show, changed, points: [], bars: {}, seed: 1, training: null, running: false });
    SINGLES.updates.from = data.training.updates;
    this.wanted = { workers: Math.min(cores, 8), ...Object.fromEntries(Object.entries(SINGLES).map(([k, s]) => [k, s.from])) };
    this.ranges = Object.fromEntries(Object.entries(PAIRS).map(([k, s]) => [k, [...s.from]]));
    this.listen();
  }

  listen() {
    for (const [name, s] of Object.entries(PAIRS)) for (const [i, end] of ['low', 'high'].entries()) {
      const slider = $(`fleet-${name}-${end}`);
      slider.value = position(s, s.from[i]);
      slider.addEventListener('input', () => { this.ranges[name][i] = value(s, Number(slider.value)); this.told(); });
    }
    for (const [name, s] of Object.entries(SINGLES)) {
      const slider = $(`fleet-${name}`);
      slider.value = position(s, s.from);
      slider.addEventListener('input', () => { this.wanted[name] = value(s, Number(slider.value)); this.told(); });
    }
    $('fleet-workers').value = this.wanted.workers;
    $('fleet-workers').addEventListener('input', () => { this.wanted.workers = Number($('fleet-workers').value); this.told(); });
    $('train').addEventListener('click', () => (this.running ? this.training.stop() : this.begin()));
    for (const b of document.querySelectorAll('[data-file]')) b.addEventListener('click', () => this.hand(b.dataset.file));
    if (!support()) { $('train').disabled = true; this.say('This browser cannot compute on four numbers at once (WebAssembly SIMD), which training needs.', true); }
    this.told();
  }

  told() { // what the sliders say
    for (const [name, s] of Object.entries(PAIRS)) $(`fleet-${name}-text`).textContent = this.ranges[name].map(s.text).join(' to ');
    for (const [name, s] of Object.entries(SINGLES)) $(`fleet-${name}-text`).textContent = s.text(this.wanted[name]);
    $('fleet-workers-text').textContent = this.wanted.workers;
  }

  distribution() { // of the fleet, checked
    const out = { ...this.data.trained_on };
    for (const [name, s] of Object.entries(PAIRS)) out[s.key] = this.ranges[name];
    const [low, high] = this.data.trained_on.rotor_time_constant_falling, [least, most] = this.data.trained_on.rotor_time_constant_rising;
    out.rotor_time_constant_falling = [low * this.ranges.lag[0] / least, high * this.ranges.lag[1] / most]; // in proportion
    checkDistribution(out);
    return out;
  }

  settings(seed = this.seed) {
    const distribution = this.distribution(), random = stream(1000 + seed), template = prepare(this.data.drones[this.data.template].dynamics);
    const drones = Array.from({ length: SAMPLED }, () => sampleDrone(template, distribution, random));
    const { draws, ...how } = this.data.training, { noise, wind } = this.wanted;
    return { ...how, draws: { ...draws, noise, force: wind, gust: wind * draws.gust / draws.force }, hidden: HIDDEN, seed, updates: whole(this.wanted.updates),
             fleet: trainingFleet(drones, how), weights: randomPolicy(HIDDEN, stream(2000 + seed)) };
  }

  begin({ seed = this.seed++, updates, workers = this.wanted.workers, log = false } = {}) {
    let settings;
    try { settings = { ...this.settings(seed), ...(updates ? { updates } : {}) }; } catch (error) { this.say(`Not trained: ${error.message}.`, true); return; }
    this.training?.close();
    Object.assign(this, { points: [], ended: null, latest: null, running: true, begun: performance.now() });
    $('train').textContent = 'Stop';
    $('train').classList.add('running');
    $('files').hidden = true;
    this.say('Preparing ...');
    this.updates = settings.updates;
    const tell = { progress: (m) => this.progress(m), score: (m) => this.score(m), end: (m) => this.end(m), error: (sentence) => { this.stopped(); this.say(`The training stopped: ${sentence}.`, true); } };
    const bytes = Uint8Array.from(atob($('kernels').textContent), (c) => c.charCodeAt(0));
    this.training = new Training({ source: $('worker').textContent, kernels: bytes, settings, workers, drones: this.data.sampled.map((d) => d.dynamics), seed: 2026, tell, log });
    for (const name of JUDGED) this.training.score(name, { weights: pack(this.data.policies[name].weights) });
    this.training.score('trained', { weights: settings.weights, update: 0, seconds: 0 });
    this.learn(settings.weights);
    this.show('trained');
  }

  learn(flat) {
    this.weights = unpack(flat, HIDDEN);
    this.world.learn('trained', 'trained here', this.weights);
  }

  progress(message) {
    this.latest = message;
    this.learn(message.weights);
    this.describe();
  }

  score(message) {
    if (message.name !== 'trained') this.bars[message.name] = message.return;
    else this.points.push(message);
    this.describe();
  }

  end(message) {
    this.ended = message;
    this.learn(message.weights);
    this.stopped();
    this.describe();
  }

  stopped() {
    this.running = false;
    $('train').textContent = 'Train again';
    $('train').classList.remove('running');
    $('files').hidden = !this.weights || !this.latest;
  }

  describe() { // in a sentence or two
    this.changed();
    const at = this.ended ?? this.latest, judged = this.points[this.points.length - 1], bar = this.bars.published;
    if (!at) return;
    const speed = at.update / at.seconds, parts = [`${this.ended ? 'Trained' : 'Update'} ${at.update} of ${this.updates}, ${at.seconds.toFixed(0)} s, ${speed.toFixed(speed < 10 ? 1 : 0)} a second`];
    if (this.latest?.cost !== undefined) parts.push(`cost ${this.latest.cost.toFixed(2)} a step`);
    const verdict = judged && bar !== undefined ? ` Return <strong>${judged.return.toFixed(0)}</strong>: ${judged.return > bar ? `<strong>better than the published policy</strong> (${bar.toFixed(0)})` : `not yet the published policy's ${bar.toFixed(0)}`}.` : '';
    $('training-says').classList.remove('wrong');
    $('training-says').innerHTML = `${parts.join(', ')}.${verdict}`;
  }

  say(sentence, wrong = false) {
    $('training-says').textContent = sentence;
    $('training-says').classList.toggle('wrong', wrong);
  }

  hand(format) {
    try { download(format, this.weights, this.data.files); } catch (error) { this.say(`No file was made: ${error.message}.`, true); }
  }

  get title() {
    const judged = this.points[this.points.length - 1];
    return `Return on 64 other drones (dashed: published${this.bars.published === undefined ? '' : `, ${this.bars.published.toFixed(0)}`}${judged ? `; now ${judged.return.toFixed(0)}` : ''})`;
  }
}
