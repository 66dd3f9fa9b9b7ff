// A moving target as the policy is shown it, by two numbers that each flight finds for itself: raptor_nb.sim.lead
import { DT, clamp } from './physics.js';

const RATE = 0.3, LOW = [-0.15, -0.05], HIGH = [0.15, 0.12], FLOOR = 0.01, FURTHEST = 0.5, MEMORY = 10 / DT, AROUND = 0.05; // as the package's

// Acceleration and jerk at time t of a path: a function from a time to position and velocity
export function motion(path, t) {
  const [before, now, after] = [-AROUND, 0, AROUND].map((h) => path(Math.max(t + h, 0))[1]);
  return [now.map((_, i) => (after[i] - before[i]) / (2 * AROUND)), now.map((v, i) => (after[i] - 2 * v + before[i]) / AROUND ** 2)];
}

export class Lead {
  constructor(numbers = [0, 0]) { // s, s^2: where they begin
    this.numbers = [...numbers];
    this.square = [0, 0];
    this.count = 0;
  }

  // Both follow the error that is left, position minus the target's
  learn(velocity, acceleration, error) {
    this.count = Math.min(this.count + 1, MEMORY);
    this.numbers = [velocity, acceleration].map((along, k) => {
      const now = along.reduce((sum, x) => sum + x * x, 0), slope = along.reduce((sum, x, i) => sum + x * clamp(error[i], -FURTHEST, FURTHEST), 0);
      this.square[k] += (now - this.square[k]) / this.count;
      return clamp(this.numbers[k] - RATE * DT * slope / Math.max(FLOOR, this.square[k], now), LOW[k], HIGH[k]);
    });
  }

  // The target as the policy is to see it: position and velocity
  shown(position, velocity, acceleration, jerk) {
    const [time, more] = this.numbers;
    return [position.map((x, i) => x + time * velocity[i] + more * acceleration[i]), velocity.map((v, i) => v + time * acceleration[i] + more * jerk[i])];
  }
}
