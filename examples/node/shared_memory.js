// An engine in Node.js whose KV lies in shared memory: the depot copies its blocks, and no KV is in a call.
//
//   node shared_memory.js [ADDRESS]     default: 127.0.0.1:50051. Serves a request for each line of the standard input.

'use strict';

const { randomUUID } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const { setTimeout: sleep } = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const ADDRESS = process.argv[2] ?? '127.0.0.1:50051';
const DEADLINE_MS = 10_000;
const RETRY_MS = 200;

// [layers][K and V][blocks][tokens][heads][bytes of a head]
const LAYERS = 2, BLOCKS = 128, BLOCK_SIZE = 16, HEADS = 2, HEAD_BYTES = 32;
const TOKEN_BYTES = HEADS * HEAD_BYTES;
const BLOCK_BYTES = BLOCK_SIZE * TOKEN_BYTES;
const PLANE_BYTES = BLOCKS * BLOCK_BYTES;

// A file in /dev/shm is POSIX shared memory. Node.js has no mmap, so it reads and writes the file; a native add-on maps it.
const NAME = `kvdepot-node-${process.pid}`;
const memory = fs.openSync(`/dev/shm/${NAME}`, 'wx+', 0o600);
process.on('exit', () => fs.unlinkSync(`/dev/shm/${NAME}`));
fs.writeSync(memory, Buffer.alloc(LAYERS * 2 * PLANE_BYTES), 0, undefined, 0); // with all of its pages

const planes = Array.from({ length: LAYERS }, (_, layer) => [
  { layer, kind: 'PLANE_KIND_K', region: 0, offsetBytes: 2 * layer * PLANE_BYTES },
  { layer, kind: 'PLANE_KIND_V', region: 0, offsetBytes: (2 * layer + 1) * PLANE_BYTES },
]).flat();

const ATTACH = {
  instanceId: `node-${randomUUID()}`,
  modelName: 'node-shared-memory',
  modelRevision: '1', // of the weights: chunks outlive this engine
  worldSize: 1,
  rank: 0,
  groups: [
    {
      numLayers: LAYERS,
      numBlocks: BLOCKS,
      blockSize: BLOCK_SIZE,
      numHeads: HEADS,
      headBytes: HEAD_BYTES,
      dtype: 'int8',
      blockStrideBytes: BLOCK_BYTES,
      tokenStrideBytes: TOKEN_BYTES,
      headStrideBytes: HEAD_BYTES,
      planes,
    },
  ],
  regions: [{ sizeBytes: LAYERS * 2 * PLANE_BYTES, posixShm: { name: NAME } }],
};
const RANK = { instanceId: ATTACH.instanceId, rank: 0 };

const definition = protoLoader.loadSync('kvdepot/v1/cache.proto', {
  includeDirs: [path.join(__dirname, '..', '..', 'protos')],
  longs: Number,
  enums: String,
  defaults: true,
});
const { CacheService } = grpc.loadPackageDefinition(definition).kvdepot.v1;
const depot = new CacheService(ADDRESS, grpc.credentials.createInsecure(), { 'grpc.max_reconnect_backoff_ms': 1000 });

function call(method, request) {
  const deadline = new Date(Date.now() + DEADLINE_MS);
  return new Promise((resolve, reject) => {
    depot[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

// The stream is the attachment. While the depot is away or drains, every prompt is a miss.
let attached = null;
let stopping = false;

async function keepAttached() {
  while (!stopping) {
    const stream = depot.attachInstance(ATTACH);
    await new Promise((ended) => {
      stream.on('data', (message) => {
        attached = message.notice === 'NOTICE_DRAINING' ? null : message;
      });
      stream.on('end', ended);
      stream.on('error', ended);
    });
    attached = null;
    await sleep(RETRY_MS);
  }
}

// The KV of a token, in every plane. A real engine computes it.
const kvByte = (token, plane, index) => (token * 31 + plane * 7 + index) & 0xff;

function eachToken(tokenIds, blockIds, from, visit) {
  for (let position = from; position < tokenIds.length; position += 1) {
    const block = blockIds[Math.floor(position / BLOCK_SIZE)];
    for (let plane = 0; plane < 2 * LAYERS; plane += 1) {
      const start = plane * PLANE_BYTES + block * BLOCK_BYTES + (position % BLOCK_SIZE) * TOKEN_BYTES;
      const kv = Buffer.from(Array.from({ length: TOKEN_BYTES }, (_, index) => kvByte(tokenIds[position], plane, index)));
      visit(start, kv);
    }
  }
}

function prefill(tokenIds, blockIds, from) {
  eachToken(tokenIds, blockIds, from, (start, kv) => fs.writeSync(memory, kv, 0, kv.length, start));
}

function isRight(tokenIds, blockIds) {
  let right = true;
  const found = Buffer.alloc(TOKEN_BYTES);
  eachToken(tokenIds, blockIds, 0, (start, kv) => {
    fs.readSync(memory, found, 0, kv.length, start);
    right &&= found.equals(kv);
  });
  return right;
}

async function serve(sessionId, tokenIds, blockIds) {
  if (attached === null) {
    prefill(tokenIds, blockIds, 0);
    return 'computed all tokens: no depot';
  }
  const { chunkSize } = attached;
  const whole = Math.floor(tokenIds.length / chunkSize) * chunkSize;
  try {
    const found = await call('lookup', { ...RANK, sessionId, prefix: { tokenIds } });
    const matched = found.lease ? found.matchedTokens : 0; // a whole number of chunks
    if (matched) {
      const blockTables = [{ blockIds: blockIds.slice(0, matched / BLOCK_SIZE) }];
      await call('retrieve', { ...RANK, sessionId, leaseId: found.lease.leaseId, blockTables });
    }
    prefill(tokenIds, blockIds, matched);
    if (matched < whole) {
      const blockTables = [{ blockIds: blockIds.slice(matched / BLOCK_SIZE) }];
      await call('store', { ...RANK, sessionId, prefix: { tokenIds }, startToken: matched, blockTables });
    }
    await endSession(sessionId);
    return `retrieved ${matched} of ${tokenIds.length} tokens`;
  } catch (error) {
    // If even this fails, and the attachment is not lost, the blocks must not be used: the depot may write to them.
    await endSession(sessionId);
    prefill(tokenIds, blockIds, 0);
    return `computed all tokens: ${error.details ?? error.message}`;
  }
}

// Until this has answered, the depot may use the blocks. A session that is not there any more has ended.
async function endSession(sessionId) {
  try {
    await call('endSession', { instanceId: RANK.instanceId, sessionId });
  } catch (error) {
    if (error.code !== grpc.status.NOT_FOUND && attached !== null) throw error;
  }
}

async function main() {
  keepAttached();
  const tokenIds = Array.from({ length: 600 }, (_, index) => (index * 7919) % 128_000);
  const numBlocks = Math.ceil(tokenIds.length / BLOCK_SIZE);
  let requests = 0;
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    requests += 1;
    const blockIds = Array.from({ length: numBlocks }, (_, index) => (index * 3 + requests * 40) % BLOCKS); // anywhere
    const done = await serve(`request-${requests}`, tokenIds, blockIds);
    console.log(`${done}; the blocks are ${isRight(tokenIds, blockIds) ? 'right' : 'WRONG'}`);
  }
  stopping = true;
  if (attached !== null) await call('detachInstance', RANK).catch(() => {}); // the stream ends with it
  process.exit(0);
}

main().catch((error) => {
  console.error(`error: ${error.details ?? error.message}`);
  process.exit(1);
});
