// The 3D viewer: a mesh where there is one, else a coloured point cloud.
import {
  BufferAttribute, BufferGeometry, Color, DirectionalLight, GLTFLoader, Group, HemisphereLight, OrbitControls,
  PerspectiveCamera, Points, PointsMaterial, Scene, Sphere, Box3, SRGBColorSpace, WebGLRenderer,
} from "./vendor/three.min.js";

const STEP = Math.PI / 18; // of an arrow key

/** Shows one object at a time on a canvas. */
export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.outputColorSpace = SRGBColorSpace;
    this.scene = new Scene();
    this.camera = new PerspectiveCamera(40, 4 / 3, 0.01, 100);
    const sky = new HemisphereLight(0xffffff, 0x999999, 2.2);
    const lamp = new DirectionalLight(0xffffff, 1.6);
    lamp.position.set(1, 2, 3);
    this.scene.add(sky, lamp);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.addEventListener("change", () => this.draw());
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  key(event) {
    const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const turn = turns[event.key];
    if (turn && this.object) {
      this.object.rotation.y += turn[0] * STEP;
      this.object.rotation.x += turn[1] * STEP;
    } else if (event.key === "+" || event.key === "=") this.camera.position.multiplyScalar(0.9);
    else if (event.key === "-") this.camera.position.multiplyScalar(1.1);
    else return;
    event.preventDefault();
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(2, window.devicePixelRatio));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.renderer.render(this.scene, this.camera);
    this.canvas.dataset.turn = this.object ? [this.object.rotation.y, this.camera.position.x].map((x) => x.toFixed(3)).join() : "";
  }

  /** Load an object of the index; resolves to what is shown. */
  async show(row, kind) {
    this.clear();
    const wanted = (this.wanted = Symbol());
    const shape = kind === "mesh" ? await mesh(row) : await cloud(row);
    if (wanted !== this.wanted) return "";
    const group = new Group();
    const ball = new Box3().setFromObject(shape).getBoundingSphere(new Sphere());
    const scale = ball.radius > 0 ? 1 / ball.radius : 1;
    shape.position.sub(ball.center);
    group.add(shape);
    group.scale.setScalar(scale);
    this.object = group;
    this.scene.add(group);
    this.camera.position.set(1.3, 0.95, 2.25);
    this.controls.target.set(0, 0, 0);
    this.controls.update();
    this.draw();
    return kind;
  }

  clear() {
    this.wanted = null;
    if (!this.object) return;
    this.scene.remove(this.object);
    this.object.traverse((part) => {
      part.geometry?.dispose();
      for (const material of [part.material ?? []].flat()) material.dispose();
    });
    this.object = null;
    this.draw();
  }
}

async function mesh(row) {
  const loaded = await new GLTFLoader().loadAsync(`/api/objects/${row}/model.glb`);
  return loaded.scene;
}

async function cloud(row) {
  const answer = await fetch(`/api/objects/${row}/cloud.bin`);
  if (!answer.ok) throw new Error((await answer.json()).error);
  const data = await answer.arrayBuffer();
  const count = new DataView(data).getInt32(0, true);
  const places = new Float32Array(data, 4, 3 * count);
  const bytes = new Uint8Array(data, 4 + 12 * count, 3 * count);
  const colors = new Float32Array(3 * count);
  const color = new Color();
  for (let i = 0; i < count; i++) {
    color.setRGB(bytes[3 * i] / 255, bytes[3 * i + 1] / 255, bytes[3 * i + 2] / 255, SRGBColorSpace);
    color.toArray(colors, 3 * i);
  }
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(places, 3));
  geometry.setAttribute("color", new BufferAttribute(colors, 3));
  return new Points(geometry, new PointsMaterial({ size: 0.04, vertexColors: true }));
}
