// The panel of what real drones have: conditions by name, and each trait by itself
import { ABLE, NONE, rotorLoad } from './traits.js';

const $ = (id) => document.getElementById(id);
const percent = (of) => (v) => `${(100 * v).toFixed(0)} %${of}`, ms = (v) => `${(1000 * v).toFixed(0)} ms`;
const degrees = (unit) => (v) => `${(v * 180 / Math.PI).toFixed(1)}${unit}`;
const SLIDERS = { // label, largest, step, text
  weak_rotor: ['one rotor weaker', 0.5, 0.01, percent('')],
  unequal_rotors: ['rotors unequal, up to', 0.3, 0.01, percent('')],
  off_centre: ['centre of gravity off', 0.4, 0.01, percent(' of the arm')],
  sag: ['battery sag', 0.4, 0.01, percent(' of the thrust')],
  payload: ['payload', 1, 0.01, percent(' of the weight')],
  drag: ['air drag', 2, 0.05, (v) => (v ? `${(100 * v).toFixed(0)} %` : 'none')],
  wind: ['steady wind', 10, 0.1, (v) => `${v.toFixed(1)} m/s`],
  gyro_bias: ['gyro bias', 0.35, 'any', degrees(' °/s')],
  mounting: ['tilted mounting', 0.175, 'any', degrees('°')],
  velocity_filter: ['velocity filter', 0.2, 0.005, ms],
  velocity_delay: ['velocity late', 0.06, 0.01, ms],
  repeated: ['observations dropped', 0.8, 0.01, percent('')],
};
const CHOICES = { // label, [text, value]
  loop: ['flown as', [['every 10 ms, as trained', ''], ['PX4: 400 Hz, 0.5 m, 1 m/s', 'px4'], ['Crazyflie: 1 kHz, 0.5 m, 2 m/s', 'crazyflie'], ['Betaflight: 2 kHz, 0.6 m, 2 m/s', 'betaflight']]],
  motor_curve: ['thrust over command', [["the drone's own", 0], ['linear', 1], ['to the power of 1.5', 1.5], ['squared', 2], ['cubed', 3]]],
  quantised: ['commands', [['continuous', 0], ['10 bits', 10], ['8 bits', 8], ['6 bits', 6], ['4 bits', 4]]],
};
const CLEAN = 'none', MIXED = 'as set below';
const same = (a, b) => Object.keys(NONE).every((k) => (typeof a[k] === 'number' ? Math.abs(a[k] - b[k]) < 1e-6 : a[k] === b[k]));

export class Real {
  constructor({ data, world, changed }) { // changed: the drones are others now
    Object.assign(this, { world, changed, conditions: { [CLEAN]: {}, ...data.conditions } });
    for (const name of Object.keys(this.conditions)) $('condition').add(new Option(name, name));
    const mixed = new Option(MIXED, MIXED);
    mixed.disabled = true;
    $('condition').add(mixed);
    for (const [key, [label, options]] of Object.entries(CHOICES)) this.control(key, label, 'select', (select) => options.forEach(([text, value]) => select.add(new Option(text, value))));
    for (const [key, [label, max, step]] of Object.entries(SLIDERS)) this.control(key, label, 'input', (input) => Object.assign(input, { type: 'range', min: 0, max, step }));
    $('condition').addEventListener('change', () => this.choose($('condition').value));
    this.told();
  }

  control(key, text, tag, fill) {
    const label = document.createElement('label'), input = Object.assign(document.createElement(tag), { id: `trait-${key}` });
    label.append(text, Object.assign(document.createElement('output'), { id: `trait-${key}-text` }), input);
    fill(input);
    input.addEventListener(tag === 'input' ? 'input' : 'change', () => this.set({ [key]: key === 'loop' ? input.value : Number(input.value) }));
    $('traits').append(label);
  }

  choose(name) { this.set({ ...NONE, ...this.conditions[name] }); } // a condition of the report

  set(changes) {
    if (changes.wind && !this.world.traits.drag && changes.drag === undefined) changes = { ...changes, drag: 1 }; // wind acts by drag
    this.world.equip(changes);
    this.told();
    this.changed();
  }

  told() {
    const { traits } = this.world, name = Object.keys(this.conditions).find((n) => same(traits, { ...NONE, ...this.conditions[n] }));
    $('condition').value = name ?? MIXED;
    for (const key of [...Object.keys(SLIDERS), ...Object.keys(CHOICES)]) $(`trait-${key}`).value = traits[key];
    for (const [key, [,,, text]] of Object.entries(SLIDERS)) $(`trait-${key}-text`).textContent = text(traits[key]);
  }

  judge() { // whether the drones can hover at all
    const { flights, traits } = this.world, drones = flights.filter((f) => f.policy === flights[0].policy);
    const loads = drones.map((f) => rotorLoad(f.drone, traits)), unable = loads.filter((x) => !(x <= ABLE)).length;
    const said = drones.length === 1 ? `To hover, one rotor needs ${(100 * loads[0]).toFixed(0)} % of its thrust` : `${unable} of ${drones.length} drones need more than ${100 * ABLE} % of a rotor's thrust to hover`;
    $('able').hidden = !unable;
    $('able').textContent = unable ? `${said}; the report leaves out what needs more than ${100 * ABLE} %.` : '';
  }
}
