// A training as the page does it, in one worker's place: settings by name -> weights and costs of each update
import { readFileSync } from 'node:fs';
import { prepare } from '../web/src/physics.js';
import { sampleDrone, trainingFleet } from '../web/src/fleet.js';
import { Judge, Kernels, pack, randomPolicy } from '../web/src/kernels.js';
import { Learner } from '../web/src/learner.js';
import { starts } from '../web/src/starts.js';
import { stream } from '../web/src/world.js';

const [, , wasm, page, wish] = process.argv, { updates, flights, seed = 3, drones = 200, split = 1, judge = 0 } = JSON.parse(wish);
const data = JSON.parse(readFileSync(page, 'utf8').match(/<script id="data" type="application\/json">(.*?)<\/script>/s)[1]);
const module = new WebAssembly.Module(readFileSync(wasm)), random = stream(seed), template = prepare(data.drones[data.template].dynamics);
const fleet = trainingFleet(Array.from({ length: drones }, () => sampleDrone(template, data.trained_on, random)), data.training);
const settings = { ...data.training, hidden: 16, seed, updates: Math.max(updates, 20), flights: flights ?? data.training.flights, fleet, weights: randomPolicy(16, random) };
const learners = Array.from({ length: split }, () => new Learner(new Kernels(module), settings)), main = learners[0], log = [];
const share = (k) => [Math.floor(main.blocks * k / split), Math.floor(main.blocks * (k + 1) / split)];
for (let i = 0; i < updates; i++) {
  for (const [k, learner] of learners.entries()) {
    if (k) learner.load(main.state());
    learner.segment(...share(k));
    if (k) main.take(share(k), learner.results(...share(k)));
  }
  log.push({ ...main.step(), weights: Array.from(main.weights()) });
}
const out = { log, settings: { ...settings, weights: Array.from(settings.weights), fleet: Object.fromEntries(Object.entries(fleet).map(([k, v]) => [k, Array.from(v)])) } };
if (judge) {
  const held = data.sampled.slice(0, judge).map((d) => prepare(d.dynamics)), from = starts(held, stream(5)), court = new Judge(new Kernels(module), held, from);
  const able = Object.entries(data.policies).filter(([, p]) => p.weights['gru.initial_hidden_state'].length === 16); // a judge's size
  out.judged = Object.fromEntries(able.map(([name, p]) => [name, court.score(pack(p.weights))]));
  out.starts = Array.from(from);
  out.flights = ['total', 'alive', 'error'].map((name) => Array.from(court.kernels.of(court.out[name])));
}
console.log(JSON.stringify(out));
