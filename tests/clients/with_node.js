// Plain Node.js clients against a server: bytes in, bytes out. Usage: PACKAGE PORT MODELS, where PACKAGE is redis or ioredis.
"use strict";
const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");

const [name, port, models] = process.argv.slice(2);

// One function per package: (words) -> reply, with bulk strings as Buffers.
const open = {
  async redis() {
    const { createClient, RESP_TYPES } = require("redis");
    const client = await createClient({ socket: { port: Number(port) } }).connect();
    const bytes = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
    return [(words) => bytes.sendCommand(words), () => client.close()];
  },
  async ioredis() {
    const { Redis } = require("ioredis");
    const client = new Redis({ port: Number(port) });
    return [([command, ...words]) => client.callBuffer(command, ...words), () => client.quit()];
  },
};

function floats(reply) {
  const copy = Uint8Array.from(reply); // a Buffer may begin anywhere in its pool
  return Array.from(new Float32Array(copy.buffer));
}

async function main() {
  const [call, close] = await open[name]();
  const text = (reply) => reply.toString();
  const blob = (numbers) => Buffer.from(Float32Array.from(numbers).buffer);

  assert.equal(text(await call(["AI.TENSORSET", "a", "FLOAT", "2", "2", "BLOB", blob([1, 2, 3, 4])])), "OK");
  assert.equal(text(await call(["AI.TENSORSET", "b", "FLOAT", "2", "2", "BLOB", blob([5, 6, 7, 8])])), "OK");
  const model = fs.readFileSync(path.join(models, "two_inputs.onnx"));
  assert.equal(text(await call(["AI.MODELSTORE", "m", "ONNX", "CPU", "TAG", "v1", "BLOB", model])), "OK");
  assert.equal(text(await call(["AI.MODELEXECUTE", "m", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "c"])), "OK");
  const [, dtype, , shape, , data] = await call(["AI.TENSORGET", "c", "META", "BLOB"]);
  assert.equal(text(dtype), "FLOAT");
  assert.deepEqual(shape, [2, 2]);
  assert.deepEqual(floats(data), [5, 12, 21, 32]);
  assert.ok(model.equals(await call(["AI.MODELGET", "m", "BLOB"])));

  const dag = ["AI.DAGEXECUTE", "LOAD", "2", "a", "b", "|>", "AI.MODELEXECUTE", "m", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "y"];
  const replies = await call([...dag, "|>", "AI.TENSORGET", "y", "BLOB"]);
  assert.equal(text(replies[0]), "OK");
  assert.deepEqual(floats(replies[1]), [5, 12, 21, 32]);

  await assert.rejects(call(["AI.MODELEXECUTE", "no", "INPUTS", "1", "a", "OUTPUTS", "1", "c"]), /model key is empty/);
  const many = await Promise.all(Array.from({ length: 20 }, () => call(["AI.MODELEXECUTE", "m", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "c"])));
  assert.ok(many.every((reply) => text(reply) === "OK"));
  const info = await call(["AI.INFO", "m"]);
  assert.equal(text(info[14]), "calls");
  assert.equal(info[15], 22);
  await close();
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
