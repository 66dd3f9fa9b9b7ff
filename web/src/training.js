// A training as the page sees it: its workers, and what they report. Everything happens in this browser.
export const HIDDEN = 16;
const EVERY = 2500; // ms from one judgement to the next
export const support = () => typeof Worker === 'function' && typeof WebAssembly === 'object' && WebAssembly.validate(SIMD);
// (module (func (result v128) (i32x4.splat (i32.const 0)))): whether this browser has instructions on four numbers
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 17, 11]);

export class Training {
  // tell: { progress, score, end, error }, functions of a message
  constructor({ source, kernels, settings, drones, seed, workers, tell, log = false }) {
    Object.assign(this, { tell, waiting: [], idle: false }); // waiting: what the judge has not seen yet
    this.url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
    this.workers = [];
    const make = () => {
      const worker = new Worker(this.url);
      worker.onerror = (event) => { event.preventDefault?.(); this.fail(event.message || 'a worker of the training could not be started'); };
      worker.onmessage = (event) => this.hear(event.data, worker);
      this.workers.push(worker);
      return worker;
    };
    this.judge = make();
    this.judge.postMessage({ role: 'judge', kernels, drones, seed, hidden: settings.hidden });
    this.driver = make();
    const ports = [];
    for (let index = 1; index < workers; index++) {
      const { port1, port2 } = new MessageChannel();
      make().postMessage({ role: 'help', kernels, settings, workers, index, port: port1 }, [port1]);
      ports.push(port2);
    }
    this.driver.postMessage({ role: 'drive', kernels, settings, workers, ports, log }, ports);
  }

  hear(message) {
    if (message.kind === 'error') return this.fail(message.sentence);
    if (message.kind === 'ready') { this.idle = true; this.next(); }
    if (message.kind === 'progress') { this.tell.progress(message); this.look(message); }
    if (message.kind === 'end') { this.final = message; this.score('trained', message, true); }
    if (message.kind === 'score') {
      this.idle = true;
      this.tell.score(message);
      if (message.last) { this.close(); this.tell.end(this.final); } else this.next();
    }
    return undefined;
  }

  score(name, { weights, update, seconds }, last = false) {
    this.waiting.push({ name, weights, update, seconds, last });
    this.next();
  }

  look(message) { // now and then, so that judging takes little from training
    const now = performance.now();
    if (!this.idle || this.waiting.length || now - (this.looked ?? -Infinity) < EVERY) return;
    this.looked = now;
    this.score('trained', message);
  }

  next() {
    if (!this.idle || !this.waiting.length) return;
    this.idle = false;
    this.judge.postMessage(this.waiting.shift());
  }

  fail(sentence) {
    if (this.failed) return;
    this.failed = true;
    this.close();
    this.tell.error(sentence);
  }

  stop() { this.driver.postMessage({ role: 'stop' }); }

  close() {
    for (const worker of this.workers) worker.terminate();
    URL.revokeObjectURL(this.url);
  }
}
