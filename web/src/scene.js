// The picture: drones, targets, paths and wind in three.js, with z up as in the physics
import {
  AmbientLight, BoxGeometry, BufferAttribute, BufferGeometry, CircleGeometry, Color, CylinderGeometry, DirectionalLight, DoubleSide, GridHelper,
  Group, Line, LineBasicMaterial, LineSegments, Mesh, MeshBasicMaterial, MeshLambertMaterial, PerspectiveCamera, Scene, SphereGeometry, Vector2, Vector3, WebGLRenderer, Plane, Raycaster,
} from 'three';
import { OrbitControls } from 'three/examples/jsm/controls/OrbitControls.js';
import { mergeGeometries } from 'three/examples/jsm/utils/BufferGeometryUtils.js';
import { thrust } from './physics.js';
import { TRAIL } from './world.js';

export const COLOURS = { student: 0x1f77b4, real: 0xd62728, real64: 0x9467bd, published: 0xff7f0e, trained: 0x2ca02c };
const STREAKS = 60, SMALLEST = 0.09, TOUCH = 36; // lines, m of arm below which a drone is drawn larger, px

// Body and arms as one mesh along the rotors' places, at true size; the front arms are lighter
function frame(dynamics, arm) {
  const parts = dynamics.rotor_positions.map(([x, y, z]) => {
    const beam = new BoxGeometry(Math.hypot(x, y), arm * 0.09, arm * 0.06);
    beam.translate(Math.hypot(x, y) / 2, 0, 0);
    beam.rotateZ(Math.atan2(y, x));
    beam.translate(0, 0, z);
    const motor = new CylinderGeometry(arm * 0.09, arm * 0.1, arm * 0.16, 12);
    motor.rotateX(Math.PI / 2);
    motor.translate(x, y, z + arm * 0.03);
    return [beam, motor];
  }).flat();
  parts.push(new BoxGeometry(arm * 0.62, arm * 0.42, arm * 0.2));
  return mergeGeometries(parts);
}

class Body { // one drone, its target and its path
  constructor(flight, scene) {
    const arm = flight.about.arm, colour = COLOURS[flight.policy.name];
    this.scale = Math.max(1, SMALLEST / arm);
    this.flight = flight;
    this.group = new Group();
    this.model = new Group();
    this.model.add(new Mesh(frame(flight.drone.dynamics, arm), new MeshLambertMaterial({ color: colour })));
    const nose = new Mesh(new BoxGeometry(arm * 0.14, arm * 0.3, arm * 0.12), new MeshLambertMaterial({ color: 0xffffff }));
    nose.position.set(arm * 0.34, 0, 0);
    this.model.add(nose);
    const nearest = Math.min(...flight.drone.dynamics.rotor_positions.map((p, i, all) => Math.min(...all.filter((_, k) => k !== i).map((q) => Math.hypot(p[0] - q[0], p[1] - q[1])))));
    this.discs = flight.drone.dynamics.rotor_positions.map(([x, y, z]) => {
      const disc = new Mesh(new CircleGeometry(nearest * 0.46, 24), new MeshBasicMaterial({ color: colour, transparent: true, opacity: 0.3, side: DoubleSide, depthWrite: false }));
      disc.position.set(x, y, z + arm * 0.13);
      this.model.add(disc);
      return disc;
    });
    this.model.scale.setScalar(this.scale);
    const size = Math.max(0.028, arm * 0.16);
    this.target = new Mesh(new SphereGeometry(size, 16, 10), new MeshBasicMaterial({ color: 0x2ca02c, transparent: true, opacity: 0.75, depthWrite: false }));
    this.path = new Line(new BufferGeometry().setAttribute('position', new BufferAttribute(new Float32Array(3 * TRAIL), 3)), new LineBasicMaterial({ color: colour, transparent: true, opacity: 0.8 }));
    this.path.frustumCulled = false;
    this.shadow = new Mesh(new CircleGeometry(arm * this.scale, 20), new MeshBasicMaterial({ color: 0x000000, transparent: true, opacity: 0.25, depthWrite: false }));
    this.group.add(this.model, this.target, this.path, this.shadow);
    this.group.position.set(...flight.home);
    scene.add(this.group);
  }

  show(target, floor) {
    const { state, drone } = this.flight;
    this.model.visible = this.flight.over <= 0;
    this.model.position.set(...state.position);
    this.model.quaternion.set(state.orientation[1], state.orientation[2], state.orientation[3], state.orientation[0]);
    this.discs.forEach((disc, i) => { disc.material.opacity = 0.12 + 0.7 * thrust(drone, i, state.rotor[i]) / thrust(drone, i, drone.high); });
    this.target.position.set(...target);
    this.shadow.position.set(state.position[0], state.position[1], floor + 0.002);
    const array = this.path.geometry.attributes.position;
    this.flight.path.forEach((p, i) => array.setXYZ(i, ...p));
    array.needsUpdate = true;
    this.path.geometry.setDrawRange(0, this.flight.path.length);
  }

  dispose() {
    this.group.traverse((part) => { part.geometry?.dispose(); part.material?.dispose(); });
    this.group.removeFromParent();
  }
}

export class Picture {
  constructor(canvas, world, act) { // act: { drag(displacement), poke(flights) }
    Object.assign(this, { canvas, world, act, bodies: [], floor: -0.8 });
    this.renderer = new WebGLRenderer({ canvas, antialias: true, powerPreference: 'low-power' });
    this.scene = new Scene();
    this.camera = new PerspectiveCamera(42, 1, 0.02, 100);
    this.camera.up.set(0, 0, 1);
    this.controls = new OrbitControls(this.camera, canvas);
    Object.assign(this.controls, { enableDamping: false, minDistance: 0.3, maxDistance: 30, enablePan: true });
    this.scene.add(new AmbientLight(0xffffff, 1.4));
    const sun = new DirectionalLight(0xffffff, 2);
    sun.position.set(-2, 1, 4);
    this.scene.add(sun);
    this.air();
    this.listen();
  }

  air() { // streaks that drift with the wind
    const geometry = new BufferGeometry().setAttribute('position', new BufferAttribute(new Float32Array(6 * STREAKS), 3));
    this.streaks = new LineSegments(geometry, new LineBasicMaterial({ transparent: true, opacity: 0.5 }));
    this.streaks.frustumCulled = false;
    this.scene.add(this.streaks);
    this.drift = Array.from({ length: STREAKS }, () => [Math.random(), Math.random(), Math.random()]);
  }

  theme(dark) {
    this.scene.background = new Color(dark ? 0x14181e : 0xf3f6f9);
    this.grid?.removeFromParent();
    this.grid?.dispose();
    this.grid = new GridHelper(20, 40, dark ? 0x56606c : 0x9aa5b1, dark ? 0x2a313a : 0xd3dae1);
    this.grid.rotation.x = Math.PI / 2;
    this.grid.position.z = this.floor;
    this.scene.add(this.grid);
    this.streaks.material.color.set(dark ? 0x9fb4c8 : 0x62809c);
  }

  rebuild(look = true) { // after other flights were put into the world
    this.bodies.forEach((body) => body.dispose());
    this.bodies = this.world.flights.map((flight) => new Body(flight, this.scene));
    const size = Math.max(...this.world.flights.map((f) => f.about.arm)), homes = this.world.flights.map((f) => f.home);
    this.floor = -Math.max(0.6, 3.2 * size);
    if (this.grid) this.grid.position.z = this.floor;
    this.extent = Math.max(0.45, 2.6 * size, ...homes.map((h) => Math.hypot(h[0], h[1]) + 0.35));
    if (look) this.look();
  }

  look() { // from behind and above, all drones in sight
    const extent = Math.max(this.extent, this.world.eightSince === null ? 0 : 1.5);
    const far = extent / Math.tan(this.camera.fov * Math.PI / 360) * 1.15 / Math.min(1, this.camera.aspect * (innerWidth > 760 ? 1 - 330 / (this.width || 940) : 1));
    this.camera.position.set(-far * 0.88, -far * 0.14, far * 0.42);
    this.controls.target.set(0, 0, 0);
    this.controls.update();
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    if (this.width === width && this.height === height) return;
    const first = this.width === undefined;
    Object.assign(this, { width, height });
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    const beside = innerWidth > 760 ? 160 : 0; // px: the drones stand beside the readings, not behind them
    this.camera.setViewOffset(width, height, -beside, 0, width, height);
    if (first) this.look();
  }

  draw(seconds) {
    this.fit();
    const [target] = this.world.goal();
    for (const body of this.bodies) body.show(target, this.floor);
    this.blow(seconds);
    this.renderer.render(this.scene, this.camera);
  }

  blow(seconds) {
    const [x, y] = this.world.blowing, speed = Math.hypot(x, y), size = 2 * this.extent;
    this.streaks.visible = speed > 0;
    if (!speed) return;
    const array = this.streaks.geometry.attributes.position, reach = 0.25 + speed;
    this.drift.forEach((p, i) => {
      p[0] = (p[0] + 4 * x * seconds + 1) % 1;
      p[1] = (p[1] + 4 * y * seconds + 1) % 1;
      const at = [(p[0] - 0.5) * 2 * size, (p[1] - 0.5) * 2 * size, this.floor + p[2] * size];
      array.setXYZ(2 * i, ...at);
      array.setXYZ(2 * i + 1, at[0] + x / speed * reach * 0.5, at[1] + y / speed * reach * 0.5, at[2]);
    });
    array.needsUpdate = true;
  }

  place(point) { // world -> pixels of the canvas
    const p = new Vector3(...point).project(this.camera);
    return p.z > 1 ? null : [(p.x + 1) / 2 * this.width, (1 - p.y) / 2 * this.height];
  }

  at(x, y) { // what lies under the pointer: the nearest target, else the nearest drone
    const [target] = this.world.goal();
    const far = (body, point) => {
      const q = this.place(point.map((c, i) => c + body.flight.home[i]));
      return q ? Math.hypot(q[0] - x, q[1] - y) : Infinity;
    };
    const nearest = (point, kind) => this.bodies.map((body) => ({ kind, body, far: far(body, point(body)) })).sort((a, b) => a.far - b.far)[0];
    const [goal, drone] = [nearest(() => target, 'target'), nearest((body) => body.flight.state.position, 'drone')];
    const hit = goal.far <= drone.far + 6 ? goal : drone;
    return hit.far < TOUCH ? hit : null;
  }

  pointer(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  listen() {
    const plane = new Plane(), ray = new Raycaster(), spot = new Vector3();
    let held = null;
    const reach = ([x, y]) => {
      ray.setFromCamera(new Vector2(2 * x / this.width - 1, 1 - 2 * y / this.height), this.camera);
      return ray.ray.intersectPlane(plane, spot);
    };
    this.canvas.addEventListener('pointerdown', (event) => {
      this.canvas.focus({ preventScroll: true });
      const [x, y] = this.pointer(event), hit = event.isPrimary && event.button === 0 ? this.at(x, y) : null;
      if (!hit) return;
      event.stopImmediatePropagation();
      this.controls.enabled = false;
      this.canvas.setPointerCapture(event.pointerId);
      const home = new Vector3(...hit.body.flight.home).add(new Vector3(...this.world.goal()[0]));
      plane.setFromNormalAndCoplanarPoint(this.camera.getWorldDirection(new Vector3()), home);
      const begin = reach([x, y])?.clone();
      held = begin && { ...hit, begin, from: [...this.world.goal()[0]], moved: 0, x, y };
    }, { capture: true });
    this.canvas.addEventListener('pointermove', (event) => {
      const [x, y] = this.pointer(event);
      if (!held) { if (event.pointerType === 'mouse' && !event.buttons) this.canvas.style.cursor = this.at(x, y) ? 'pointer' : 'grab'; return; }
      held.moved = Math.max(held.moved, Math.hypot(x - held.x, y - held.y));
      if (held.moved < 5) return;
      const now = reach([x, y]);
      if (now) this.act.drag([0, 1, 2].map((i) => held.from[i] + now.getComponent(i) - held.begin.getComponent(i)));
    });
    const release = (event) => {
      if (!held) return;
      if (held.moved < 5 && event.type === 'pointerup') this.act.poke([held.body.flight]);
      held = null;
      this.controls.enabled = true;
    };
    this.canvas.addEventListener('pointerup', release);
    this.canvas.addEventListener('pointercancel', release);
  }
}
