"use strict";
// Shows one mesh that nerf packed (see pack.py), in WebGL 2. The page's frame is upright, y is up; lengths are those of
// the photos' poses. A view is { target, azimuth, elevation, distance }: what is looked at, and the way back to the eye.

const find = (id) => document.getElementById(id);
const settings = JSON.parse(find("settings").textContent);
const canvas = document.querySelector("canvas"), picture = find("texture");
const bytes = unpacked(find("data"));

function unpacked(element) {
  const text = atob(element.textContent), data = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) data[i] = text.charCodeAt(i);
  element.textContent = "";  // several times as large as what it holds
  return data;
}
function part(name, Kind) {
  return settings.layout[name] && new Kind(bytes.buffer, ...settings.layout[name]);
}

// ---- the mesh, its colours

const VERTEX = `#version 300 es
precision highp float;
precision highp int;
in vec3 position; in vec2 normal; in vec2 uv; in vec3 color;
uniform mat4 clip; uniform vec3 eye; uniform mat3 turn; uniform bool changing; uniform float steps[9];
uniform highp sampler2D harmonics;  // nine texels a vertex
out vec3 n; out vec3 p; out vec2 t; out vec3 c; out vec3 change;
void main() {
  n = vec3(normal, 1.0 - abs(normal.x) - abs(normal.y));  // an octahedron, unfolded
  if (n.z < 0.0) n.xy = (1.0 - abs(n.yx)) * vec2(n.x < 0.0 ? -1.0 : 1.0, n.y < 0.0 ? -1.0 : 1.0);
  p = position; t = uv; c = color; change = vec3(0.0);
  if (changing) {  // real spherical harmonics up to degree 2, as in harmonics.py
    vec3 d = turn * normalize(eye - p);
    float basis[9] = float[9](0.28209479, 0.48860251 * d.y, 0.48860251 * d.z, 0.48860251 * d.x,
      1.09254843 * d.x * d.y, 1.09254843 * d.y * d.z, 0.31539157 * (3.0 * d.z * d.z - 1.0),
      1.09254843 * d.x * d.z, 0.54627422 * (d.x * d.x - d.y * d.y));
    int width = textureSize(harmonics, 0).x;
    for (int k = 0; k < 9; k++) {
      int at = gl_VertexID * 9 + k;
      change += steps[k] * basis[k] * texelFetch(harmonics, ivec2(at % width, at / width), 0).rgb;
    }
  }
  gl_Position = clip * vec4(p, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 n; in vec3 p; in vec2 t; in vec3 c; in vec3 change;
uniform sampler2D picture; uniform int source; uniform vec3 eye;  // source: 0 texture, 1 vertex colours, 2 shape
out vec4 shown;
void main() {
  vec3 rgb = source == 0 ? texture(picture, t).rgb : c;
  if (source == 2) rgb = vec3(0.25 + 0.65 * abs(dot(normalize(n), normalize(eye - p))));
  else if (gl_FrontFacing) rgb += change;  // no camera saw the other side
  shown = vec4(rgb, 1.0);
}`;

const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
let program;
const places = {};
const at = (name) => places[name] ??= gl.getUniformLocation(program, name);

function build() {
  program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  attribute("position", positions(), 3, gl.FLOAT, false);
  attribute("normal", part("normal", Int16Array), 2, gl.SHORT, true);
  attribute("uv", part("uv", Uint16Array), 2, gl.UNSIGNED_SHORT, true);
  attribute("color", part("color", Uint8Array), 3, gl.UNSIGNED_BYTE, true);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, part("index", Uint32Array), gl.STATIC_DRAW);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  if (settings.layout.uv) paint();
  if (settings.harmonics) change();
  gl.enable(gl.DEPTH_TEST);
}
function positions() {  // steps that grow away from the middle: see quantised_positions
  const bend = settings.bend, size = settings.half / Math.sinh(bend);
  return Float32Array.from(part("position", Uint16Array), (q) => size * Math.sinh(bend * (q / 32767.5 - 1)));
}
function attribute(name, values, size, type, normalised) {
  const place = gl.getAttribLocation(program, name);
  if (!values || place < 0) return;
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, size, type, normalised, 0, 0);
}
function texture(unit, name, filter) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.uniform1i(at(name), unit);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, filter);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
}
function paint() {
  texture(0, "picture", gl.LINEAR_MIPMAP_LINEAR);
  const most = gl.getParameter(gl.MAX_TEXTURE_SIZE), longest = Math.max(picture.naturalWidth, picture.naturalHeight);
  let source = picture;
  if (longest > most) {  // than this graphics card holds
    source = document.createElement("canvas");
    source.width = picture.naturalWidth * most / longest; source.height = picture.naturalHeight * most / longest;
    source.getContext("2d").drawImage(picture, 0, 0, source.width, source.height);
  }
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, gl.RGB, gl.UNSIGNED_BYTE, source);
  gl.generateMipmap(gl.TEXTURE_2D);
  const sharper = gl.getExtension("EXT_texture_filter_anisotropic");
  if (sharper) gl.texParameterf(gl.TEXTURE_2D, sharper.TEXTURE_MAX_ANISOTROPY_EXT, 8);
}
function change() {  // filled up to whole rows
  const values = part("harmonics", Int8Array), width = Math.min(4096, gl.getParameter(gl.MAX_TEXTURE_SIZE));
  const height = Math.ceil(values.length / 3 / width), rows = new Int8Array(3 * width * height);
  rows.set(values);
  texture(1, "harmonics", gl.NEAREST);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8_SNORM, width, height, 0, gl.RGB, gl.BYTE, rows);
  gl.uniform1fv(at("steps"), settings.harmonics);
  gl.uniformMatrix3fv(at("turn"), false, settings.turn);
}

// ---- where it is seen from

const STEEPEST = 1.55;  // radians: straight down, left and right would have no meaning
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const within = (x, low, high) => Math.min(high, Math.max(low, x));
const viewOf = ([x, y, z, azimuth, elevation, distance]) =>
  ({ target: [x, y, z], azimuth, elevation: within(elevation, -STEEPEST, STEEPEST), distance });

const views = settings.views.map(([name, ...numbers]) => ({ name, ...viewOf(numbers) }));
const frames = settings.path.frames.map(viewOf), home = views[0];
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let view = structuredClone(home), flying = false;
let look = 2;  // 0: colours that change with the direction of view, 1: that do not, 2: the shape alone
let playing = false, time = 0, journey = null;  // seconds on the path; a jump under way
const held = new Set();  // keys

function axes({ azimuth, elevation }) {
  const ce = Math.cos(elevation), se = Math.sin(elevation);
  const back = [ce * Math.sin(azimuth), se, ce * Math.cos(azimuth)], right = [Math.cos(azimuth), 0, -Math.sin(azimuth)];
  return { right, up: cross(back, right), back };
}
function eyeOf(some) {
  const { back } = axes(some);
  return some.target.map((x, k) => x + some.distance * back[k]);
}
function mix(a, b, s) {  // turning the shorter way
  const turn = Math.atan2(Math.sin(b.azimuth - a.azimuth), Math.cos(b.azimuth - a.azimuth)), m = (x, y) => x + s * (y - x);
  return { target: a.target.map((x, k) => m(x, b.target[k])), azimuth: a.azimuth + s * turn,
           elevation: m(a.elevation, b.elevation), distance: m(a.distance, b.distance) };
}
function onPath(seconds) {  // round, or to and fro
  const { closed, seconds: whole } = settings.path, n = frames.length;
  const share = seconds / whole, place = closed ? (share % 1) * n : (1 - Math.abs(1 - share % 2)) * (n - 1);
  const i = Math.min(n - 1, Math.floor(place));
  return mix(frames[i], frames[closed ? (i + 1) % n : Math.min(i + 1, n - 1)], place - i);
}
function turnBy(right, down) {  // radians that the eye turns
  const eye = eyeOf(view);
  view.azimuth -= right;
  view.elevation = within(view.elevation + down, -STEEPEST, STEEPEST);
  if (flying) { const { back } = axes(view); view.target = eye.map((x, k) => x - view.distance * back[k]); }
}
function moveBy(right, up, ahead) {  // lengths
  const a = axes(view);
  view.target = view.target.map((x, k) => x + right * a.right[k] + up * a.up[k] - ahead * a.back[k]);
}
function zoomBy(factor) {
  if (!(factor > 0 && isFinite(factor))) return;
  if (flying) moveBy(0, 0, view.distance * (1 - factor));
  else view.distance = within(view.distance * factor, home.distance / 50, Math.max(20 * home.distance, 3 * settings.half));
}
function goTo(some) {
  setPlaying(false);
  if (calm) view = structuredClone(some);
  else journey = { from: view, to: some, share: 0 };
  redraw();
}

// ---- drawing, when something has changed

let asked = 0, before = 0, ready = false;
function redraw() { if (ready && !asked) { before = 0; asked = requestAnimationFrame(tick); } }
function tick(now) {
  const seconds = before ? Math.min(0.1, (now - before) / 1000) : 0;
  before = now; asked = 0;
  if (journey) {
    journey.share = Math.min(1, journey.share + seconds / 0.8);
    view = mix(journey.from, journey.to, journey.share ** 2 * (3 - 2 * journey.share));
    if (journey.share === 1) journey = null;
  } else if (playing) view = onPath(time += seconds);
  if (held.size) steer(seconds);
  draw();
  if (journey || playing || held.size) asked = requestAnimationFrame(tick);
}
function draw() {
  const scale = devicePixelRatio || 1;
  const w = Math.max(1, Math.round(canvas.clientWidth * scale)), h = Math.max(1, Math.round(canvas.clientHeight * scale));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const { right, up, back } = axes(view), eye = eyeOf(view);
  const far = 2 * settings.half + Math.hypot(...eye), near = Math.max(Math.min(view.distance, home.distance) / 100, far / 1e5);
  const focal = Math.min(w, h) / Math.tan(settings.fov / 2), sx = focal / w, sy = focal / h;
  const a = (far + near) / (near - far), b = 2 * far * near / (near - far), clip = [];
  for (let k = 0; k < 3; k++) clip.push(sx * right[k], sy * up[k], a * back[k], -back[k]);
  clip.push(-sx * dot(right, eye), -sy * dot(up, eye), -a * dot(back, eye) + b, dot(back, eye));
  gl.viewport(0, 0, w, h);
  gl.clearColor(0, 0, 0, 0);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.uniformMatrix4fv(at("clip"), false, clip);
  gl.uniform3fv(at("eye"), eye);
  gl.uniform1i(at("changing"), look === 0);
  gl.uniform1i(at("source"), look === 2 ? 2 : settings.layout.uv ? 0 : settings.layout.color ? 1 : 2);
  gl.drawElements(gl.TRIANGLES, settings.layout.index[1], gl.UNSIGNED_INT, 0);
}

// ---- hands: mouse, fingers, keys, buttons

const fingers = new Map();
function apart() { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); }
canvas.addEventListener("pointerdown", (e) => {
  canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, { x: e.clientX, y: e.clientY });
  setPlaying(false); journey = null;
});
canvas.addEventListener("pointermove", (e) => {
  const last = fingers.get(e.pointerId);
  if (!last) return;
  const dx = e.clientX - last.x, dy = e.clientY - last.y, gap = fingers.size === 2 ? apart() : 0;
  const pixel = 2 * Math.tan(settings.fov / 2) / Math.min(canvas.clientWidth, canvas.clientHeight);
  const drag = (share) => moveBy(-dx * pixel * view.distance * share, dy * pixel * view.distance * share, 0);
  fingers.set(e.pointerId, { x: e.clientX, y: e.clientY });
  if (fingers.size === 2) { zoomBy(gap / apart()); drag(0.5); }
  else if (e.buttons & 6 || e.shiftKey) drag(1);
  else if (flying) turnBy(-dx * pixel, -dy * pixel);
  else turnBy(dx * 0.008, dy * 0.008);
  redraw();
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => fingers.delete(e.pointerId));
canvas.addEventListener("wheel", (e) => {
  e.preventDefault(); setPlaying(false); journey = null;
  zoomBy(Math.exp(e.deltaY * 0.001)); redraw();
}, { passive: false });
canvas.addEventListener("contextmenu", (e) => e.preventDefault());

// key -> what it does for one second: turned right, down (radians); moved right, up, ahead (home distances)
const KEYS = { w: [0, 0, 0, 0, 0.5], s: [0, 0, 0, 0, -0.5], a: [0, 0, -0.5, 0, 0], d: [0, 0, 0.5, 0, 0],
               e: [0, 0, 0, 0.5, 0], q: [0, 0, 0, -0.5, 0] };
const ARROWS = { ArrowLeft: ["a", [1, 0]], ArrowRight: ["d", [-1, 0]], ArrowUp: ["w", [0, 1]], ArrowDown: ["s", [0, -1]] };
function steer(seconds) {
  for (const key of held) {
    const [letter, turn] = ARROWS[key] || [key];
    const step = turn && !flying ? [...turn, 0, 0, 0] : KEYS[letter];
    turnBy(step[0] * seconds, step[1] * seconds);
    moveBy(...step.slice(2).map((x) => x * seconds * home.distance));
  }
}
addEventListener("keydown", (e) => {
  const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
  if (key === "+" || key === "-") { zoomBy(key === "+" ? 0.9 : 1 / 0.9); redraw(); }
  else if (KEYS[key] || ARROWS[key]) {
    e.preventDefault(); setPlaying(false); journey = null;
    if (!held.has(key)) { held.add(key); redraw(); }
  }
});
addEventListener("keyup", (e) => { held.delete(e.key.length === 1 ? e.key.toLowerCase() : e.key); });
addEventListener("blur", () => held.clear());
addEventListener("resize", redraw);

function setPlaying(on) {
  playing = on && frames.length > 1;
  find("play").setAttribute("aria-pressed", on);
  find("play").textContent = on ? "\u275a\u275a Pause" : "\u25b6 Play";
  if (playing) redraw();
}
function setFlying(on) {
  flying = on;
  find("fly").setAttribute("aria-pressed", on);
  find("help").textContent = on ? "Drag to look around, arrow keys or wheel to go ahead, Q and E down and up."
    : "Drag or arrow keys to turn, wheel or pinch to zoom, right button or two fingers to move.";
}
function setLook(k) { look = k; find("look").value = k; redraw(); }
find("play").onclick = () => {
  if (playing) return setPlaying(false);
  goTo(onPath(time));
  setPlaying(true);
};
find("fly").onclick = () => setFlying(!flying);
find("look").onchange = (e) => setLook(Number(e.target.value));
find("views").onchange = (e) => { goTo(views[e.target.value]); e.target.selectedIndex = 0; canvas.focus(); };

function start() {
  if (!gl) throw new Error("this browser has WebGL 2 switched off");
  build();
  canvas.addEventListener("webglcontextlost", (e) => e.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => location.reload());
  find("play").hidden = frames.length < 2;
  const looks = { 2: "Shape only" };
  if (settings.layout.uv || settings.layout.color) looks[1] = settings.harmonics ? "Fixed colours" : "Colours";
  if (settings.harmonics) looks[0] = "Colours";
  for (const [k, name] of Object.entries(looks)) find("look").add(new Option(name, k));  // in the order of the numbers
  views.forEach(({ name }, k) => find("views").add(new Option(name, k)));
  const wish = new URLSearchParams(location.hash.slice(1));  // page.html#view=2&look=2&fly&play&bare
  if (views[wish.get("view")]) view = structuredClone(views[wish.get("view")]);
  find("words").hidden = find("bar").hidden = wish.has("bare");  // in a frame of another page
  find("words").open = innerWidth > 600;
  setFlying(wish.has("fly"));
  setLook(Number(wish.get("look") ?? find("look").value));
  ready = true;
  setPlaying(wish.has("play"));
  draw();
}
function begin() {
  try { start(); } catch (error) { fail(error.message); }
}
function fail(why) { find("error").textContent = `The scene cannot be shown: ${why}`; }
// The window's load event waits for the picture, so whoever draws the loaded page sees it.
if (!settings.layout.uv || picture.complete) begin();
else { picture.onload = begin; picture.onerror = () => fail("its texture cannot be decoded"); }
