// What runs beside the page. The first worker of a training drives it: it tells the others the weights of the moment, flies
// its own share of the flights, adds up everybody's gradients and takes the step. Another worker judges.
import { prepare } from './physics.js';
import { Judge, Kernels } from './kernels.js';
import { Learner } from './learner.js';
import { starts } from './starts.js';
import { stream } from './world.js';

const REPORT = 150; // ms between two messages to the page

const share = (blocks, workers, k) => [Math.floor(blocks * k / workers), Math.floor(blocks * (k + 1) / workers)];
const kernelsOf = (bytes) => new Kernels(new WebAssembly.Module(bytes));

function answer(port) { // the next message of a port
  return new Promise((resolve) => { port.onmessage = (event) => resolve(event.data); });
}

function pause() { // lets messages in, such as that one wants to stop
  return new Promise((resolve) => { const { port1, port2 } = new MessageChannel(); port1.onmessage = () => { port1.close(); resolve(); }; port2.postMessage(0); });
}

function help({ kernels, settings, workers, index, port }) {
  const learner = new Learner(kernelsOf(kernels), settings), [first, last] = share(learner.blocks, workers, index);
  port.onmessage = (event) => {
    learner.load(event.data);
    learner.segment(first, last);
    const done = learner.results(first, last);
    port.postMessage(done, Object.values(done).map((x) => x.buffer));
  };
}

let wanted = true;
async function drive({ kernels, settings, workers, ports, log }) {
  const learner = new Learner(kernelsOf(kernels), settings), [first, last] = share(learner.blocks, workers, 0);
  const lists = log ? [] : null;
  let spent = 0, told = 0;
  while (wanted && learner.updates < settings.updates) {
    const begun = performance.now(), state = learner.state();
    const answers = ports.map((port) => { const coming = answer(port); port.postMessage(state); return coming; });
    learner.segment(first, last);
    (await Promise.all(answers)).forEach((done, k) => learner.take(share(learner.blocks, workers, k + 1), done));
    const about = learner.step();
    spent += performance.now() - begun;
    if (lists) lists.push({ ...about, weights: Array.from(learner.weights()) });
    const over = learner.updates >= settings.updates, now = performance.now();
    if (now - told > REPORT || over) {
      told = now;
      postMessage({ kind: 'progress', update: learner.updates, seconds: spent / 1000, flown: learner.flown * learner.updates, ...about, weights: learner.weights(), over });
    }
    await pause();
  }
  postMessage({ kind: 'end', update: learner.updates, seconds: spent / 1000, weights: learner.weights(), log: lists });
}

function judge({ kernels, drones, seed, hidden }) {
  const fleet = drones.map((dynamics) => prepare(dynamics)), court = new Judge(kernelsOf(kernels), fleet, starts(fleet, stream(seed)), { hidden });
  onmessage = (event) => postMessage({ kind: 'score', ...event.data, ...court.score(event.data.weights) });
  postMessage({ kind: 'ready' });
}

onmessage = async (event) => {
  const { role } = event.data;
  try {
    if (role === 'stop') wanted = false;
    else if (role === 'help') help(event.data);
    else if (role === 'judge') judge(event.data);
    else await drive(event.data);
  } catch (error) { postMessage({ kind: 'error', sentence: error.message }); }
};
