// Flights: a drone each with a policy, a target, weather, and what came of it. No pictures here.
import { DT, atRest, clamp, length, observe, step } from './physics.js';
import { makePolicy, readProbe } from './policy.js';
import { describe } from './drones.js';
import { Lead, motion } from './lead.js';
import { Commands, LOOPS, NONE, Sensors, chances, clipErrors, dragForce, dragShare, motors, withTraits } from './traits.js';

export const EIGHT = { period: 5.5, size: [1, 0.5], lead: 2 }; // s, m, s: as raptor_nb.evaluate.FigureEight
export const NOISE = [[0, 12, 1], [12, 15, 2], [15, 18, 5]];   // position and rotation, velocity twice, angular velocity five times sigma
export const POKE = { velocity: 1, spin: 3 };                  // m/s in a random horizontal direction, rad/s about a random axis
export const TRAIL = 250;                                      // steps of a path that are shown
const LOST = 8, KEEP = 1000, PAUSE = 1;                        // m from the target; steps that are remembered; s until a lost drone begins again

// A repeatable stream of numbers (mulberry32): uniform in 0..1, and normal
export function stream(seed) {
  let a = seed >>> 0;
  const uniform = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return { uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()) };
}

// Where the target of a figure eight is after t seconds, and how fast; it grows from nothing over `lead`
export function figureEight(t) {
  const w = 2 * Math.PI / EIGHT.period, [a, b] = EIGHT.size, s = clamp(t / EIGHT.lead, 0, 1);
  const grown = s * s * (3 - 2 * s), rate = 6 * s * (1 - s) / EIGHT.lead;
  const at = [a * Math.sin(w * t), b * Math.sin(2 * w * t), 0], speed = [a * w * Math.cos(w * t), 2 * b * w * Math.cos(2 * w * t), 0];
  return [at.map((x) => grown * x), at.map((x, i) => rate * x + grown * speed[i])];
}

const hash = (text) => [...text].reduce((h, c) => Math.imul(h ^ c.codePointAt(0), 0x01000193) >>> 0, 0x811c9dc5);

export class Flight {
  constructor(drone, name, policy, home, traits = NONE) {
    Object.assign(this, { name, policy, home, traits, lost: 0, distance: [], belief: [], path: [], chance: chances(stream(hash(name))) });
    this.change(drone);
    this.begin([0, 0, 0]);
  }

  change(drone) { // in the air: the state and the memory stay
    this.bare = drone;
    this.equip(this.traits);
  }

  equip(traits) { // the same; another loop begins with an empty memory, as a flight stack does when it is switched on
    const loop = traits.loop !== this.traits.loop;
    this.traits = traits;
    this.drone = withTraits(this.bare, traits, this.chance);
    this.about = describe(this.bare);
    this.reach = Math.max(10 * this.about.arm, 0.4);
    this.about.thrustToWeight = describe(this.drone).thrustToWeight * (1 - traits.sag);
    this.about.mass = this.drone.mass;
    if (loop) this.awake();
  }

  awake() { // the policy has just been switched on
    this.hidden = this.policy.network.initial();
    this.sensors = new Sensors();
    this.commands = new Commands(LOOPS[this.traits.loop]);
  }

  begin(target, offset = [0, 0, 0]) {
    this.state = atRest(this.drone, target.map((x, i) => x + offset[i]));
    this.awake();
    this.lead = new Lead(this.policy.lead);
    this.over = 0;
    this.path = [];
    this.error = length(offset);
  }

  // The 22 values that the policy sees: noise, then sensors, then the target, then what a flight stack limits
  see(target, speed, noise, random, dt) {
    const seen = observe(this.state), { loop } = this.commands;
    if (noise) for (const [from, to, by] of NOISE) for (let i = from; i < to; i++) seen[i] += noise * by * random.normal();
    this.sensors.show(seen, this.traits, this.chance, random, dt);
    for (let i = 0; i < 3; i++) { seen[i] -= target[i]; seen[12 + i] -= speed[i]; }
    clipErrors(seen, loop, this.reach);
    this.commands.previous(seen.slice(18)).forEach((x, i) => { seen[18 + i] = x; });
    return seen;
  }

  // 10 ms, in which the hidden state moves once and a flight stack calls the policy several times;
  // target as position and velocity relative to where this drone is at home, led: the same as the policy is shown it, force as share of the weight, air in m/s
  fly(target, speed, { noise, force, air }, random, led = [target, speed]) {
    if (this.over > 0) { this.over -= DT; if (this.over <= 0) this.begin(target); return; }
    const calls = this.commands.loop.rate / 100, dt = DT / calls;
    for (let call = 0; call < calls; call++) {
      this.seen = this.see(led[0].map((x, i) => x + led[1][i] * call * dt), led[1], noise, random, dt);
      const [action, hidden] = this.policy.network.act(this.seen, this.hidden);
      if (!call) this.hidden = hidden;
      const command = motors(this.commands.give(action, !call), this.drone, this.traits);
      const drag = dragForce(this.bare.mass, this.state.velocity, air, this.traits);
      this.state = step(this.state, command, this.drone, force.map((x, i) => x * this.about.weight + drag[i]), [0, 0, 0], dt);
    }
    this.error = length(this.state.position.map((x, i) => x - target[i]));
    this.path.push(this.state.position);
    if (this.path.length > TRAIL) this.path.shift();
    this.distance.push(this.error);
    this.belief.push(readProbe(this.policy.probe, this.hidden));
    if (this.distance.length > KEEP) { this.distance.shift(); this.belief.shift(); }
    if (!(this.error < LOST)) { this.lost += 1; this.over = PAUSE; }
  }

  // What its policy is shown of a target that moves
  ahead(target, speed, acceleration, jerk) {
    if (this.over <= 0) this.lead.learn(speed, acceleration, this.state.position.map((x, i) => x - target[i]));
    return this.lead.shown(target, speed, acceleration, jerk);
  }

  // An impulse that changes velocity and turning, the same for every mass
  poke(direction, axis) {
    if (this.over > 0) return;
    this.state.velocity = this.state.velocity.map((x, i) => x + POKE.velocity * direction[i]);
    this.state.omega = this.state.omega.map((x, i) => x + POKE.spin * axis[i]);
  }

  // What the memory believes, smoothed over half a second
  get believed() { const last = this.belief.slice(-50); return last.length ? last.reduce((a, b) => a + b) / last.length : NaN; }
}

export class World {
  constructor(data) {
    this.policies = Object.fromEntries(Object.entries(data.policies).map(([name, p]) => [name, { name, label: p.label, network: makePolicy(p.weights), probe: p.probe, lead: p.lead }]));
    Object.assign(this, { time: 0, flights: [], target: [0, 0, 0], eightSince: null, leads: false, noise: 0, wind: 0, traits: NONE, heading: Math.PI / 2 });
    this.seed(1);
  }

  seed(seed) { this.random = stream(seed); }

  // A policy under a name, new or in the place of one that is flying: hidden states stay
  learn(name, label, weights) {
    this.policies[name] ??= { name, label };
    this.policies[name].network = makePolicy(weights);
  }

  // `drones`: [{ name, drone }], flown by each of the policies named
  put(drones, policies) {
    const several = drones.length > 1;
    const size = Math.max(...drones.map(({ drone }) => describe(drone).arm)), gap = Math.max(several ? 1 : 0.7, 4 * size);
    const columns = several ? 4 : 1, rows = Math.ceil(drones.length / columns);
    this.flights = policies.flatMap((policy, p) => drones.map(({ name, drone }, i) => {
      const across = several ? (columns - 1) / 2 - i % columns : (policies.length - 1) / 2 - p;
      const along = several ? (policies.length - 1 - p) * (rows + 0.5) + Math.floor(i / columns) - (policies.length * (rows + 0.5) - 1.5) / 2 : 0;
      return new Flight(drone, name, this.policies[policy], [along * gap, across * gap, 0], this.traits);
    }));
    this.restart();
  }

  restart() { // from a little beside the target
    this.target = [0, 0, 0];
    this.eightSince = this.eightSince === null ? null : this.time;
    for (const f of this.flights) {
      const start = Math.min(f.reach, 0.6) * 0.6;
      f.begin([0, 0, 0], [-start, start / 2, -start / 2]);
      f.distance.length = f.belief.length = 0;
    }
  }

  equip(changes) { // of the traits, in the air
    this.traits = { ...this.traits, ...changes };
    for (const f of this.flights) f.equip(this.traits);
  }

  eight(on) {
    this.eightSince = on ? this.time : null;
    if (on) this.target = [0, 0, 0];
  }

  goal() {
    if (this.eightSince === null) return [this.target, [0, 0, 0]];
    const [at, speed] = figureEight(this.time - this.eightSince);
    return [at.map((x, i) => x + this.target[i]), speed];
  }

  along(size) { return [size * Math.cos(this.heading), size * Math.sin(this.heading), 0]; }
  get force() { return this.along(this.wind); } // in weights
  get blowing() { return this.along(this.wind + this.traits.drag * dragShare(this.traits.wind)); } // the same, with the wind on a drone at rest

  step() {
    this.time += DT;
    const [target, speed] = this.goal(), weather = { noise: this.noise, force: this.force, air: this.along(this.traits.wind) };
    const moves = this.leads && this.eightSince !== null ? motion(figureEight, this.time - this.eightSince) : null;
    for (const f of this.flights) f.fly(target, speed, weather, this.random, moves ? f.ahead(target, speed, ...moves) : [target, speed]);
  }

  poke(flights = this.flights) {
    const angle = 2 * Math.PI * this.random.uniform(), axis = [this.random.normal(), this.random.normal(), this.random.normal()], size = length(axis);
    for (const f of flights) f.poke([Math.cos(angle), Math.sin(angle), 0], axis.map((x) => x / size));
  }
}
