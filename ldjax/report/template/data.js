// The content of the page, and its arrays.
function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function textOf(id) {
  const bytes = bytesOf(document.getElementById(id).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const { constants, runs } = JSON.parse(await textOf("data"));
const several = runs.length > 1;

const ARRAYS = { f4: Float32Array, i4: Int32Array, i2: Int16Array, u2: Uint16Array };
const unpacked = new WeakMap();

function numbers(packed) {
  if (!unpacked.has(packed)) {
    unpacked.set(packed, new ARRAYS[packed.dtype](bytesOf(packed.bdata).buffer));
  }
  return unpacked.get(packed);
}

const shape = (packed) => packed.shape.split(",").map(Number);

function column(packed, place) {
  const [rows, columns] = shape(packed);
  const all = numbers(packed);
  return Float32Array.from({ length: rows }, (_, row) => all[row * columns + place]);
}

function row(packed, place) {
  const columns = shape(packed)[1];
  return numbers(packed).subarray(place * columns, (place + 1) * columns);
}

const anyRun = (has) => runs.some(has);
const filled = (content) => content && Object.keys(content).length > 0;
const ofRun = (name, run) => several ? `${name} · ${run.name}` : name;

