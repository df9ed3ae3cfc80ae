// Stores KV in a depot and gets the same bytes back: an engine that shares no memory with it, in another language.
//
//   node client.js [ADDRESS]     default: 127.0.0.1:50051; also unix:/path

'use strict';

const { randomUUID } = require('node:crypto');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const ADDRESS = process.argv[2] ?? '127.0.0.1:50051';
const PROTOS = path.join(__dirname, '..', '..', 'protos');
const MAX_PIECE_BYTES = 1024 * 1024;
const DEADLINE_MS = 10_000;

// One group of 4 layers with 2 heads of 64 bytes. Nothing of it is mapped, so strides and offsets only describe.
const GROUP = {
  numLayers: 4,
  numBlocks: 64,
  blockSize: 16,
  numHeads: 2,
  headBytes: 64,
  dtype: 'bfloat16',
  blockStrideBytes: 16 * 2 * 64,
  tokenStrideBytes: 2 * 64,
  headStrideBytes: 64,
  planes: [0, 1, 2, 3].flatMap((layer) => [
    { layer, kind: 'PLANE_KIND_K' },
    { layer, kind: 'PLANE_KIND_V' },
  ]),
};

const deadline = () => new Date(Date.now() + DEADLINE_MS);

function connect(address) {
  const definition = protoLoader.loadSync('kvdepot/v1/cache.proto', {
    includeDirs: [PROTOS],
    longs: Number,
    enums: String,
    defaults: true,
  });
  const { CacheService } = grpc.loadPackageDefinition(definition).kvdepot.v1;
  return new CacheService(address, grpc.credentials.createInsecure());
}

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: deadline() }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

// Resolves with the acknowledgement. The rank stays attached for as long as the stream is open.
function attach(client, instanceId) {
  const stream = client.attachInstance({
    instanceId,
    modelName: 'node-example',
    modelRevision: '1',
    worldSize: 1,
    rank: 0,
    groups: [GROUP],
    regions: [],
  });
  const timer = setTimeout(() => stream.cancel(), DEADLINE_MS);
  return new Promise((resolve, reject) => {
    stream.on('data', (acknowledgement) => resolve({ stream, acknowledgement }));
    stream.on('end', () => reject(new Error('the depot ended the attachment')));
    stream.on('error', reject); // has no effect once the promise is settled, as when we cancel the stream ourselves
  }).finally(() => clearTimeout(timer));
}

function storeInline(client, header, bytes) {
  return new Promise((resolve, reject) => {
    const stream = client.storeInline({ deadline: deadline() }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
    stream.write({ header });
    for (let start = 0; start < bytes.length; start += MAX_PIECE_BYTES) {
      stream.write({ data: bytes.subarray(start, start + MAX_PIECE_BYTES) });
    }
    stream.end();
  });
}

// The bytes of the leased chunks. The stream counts only once it has ended without an error.
async function retrieveInline(client, request) {
  const pieces = [];
  for await (const { data } of client.retrieveInline(request, { deadline: deadline() })) {
    pieces.push(data);
  }
  return Buffer.concat(pieces);
}

// KV is a function of the prompt, and so are these bytes: another run of this script finds what this one stored.
function kvBytes(numBytes) {
  const bytes = Buffer.alloc(numBytes);
  let state = 1;
  for (let i = 0; i + 4 <= numBytes; i += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes.writeUInt32LE(state, i);
  }
  return bytes;
}

async function main() {
  const client = connect(ADDRESS);
  const instanceId = `node-${randomUUID()}`;
  const { stream, acknowledgement } = await attach(client, instanceId);
  try {
    const { chunkSize, chunkBytes, serverVersion, transferBackend } = acknowledgement;
    console.log(
      `attached to kvdepot ${serverVersion} at ${ADDRESS}: chunks of ${chunkSize} tokens, ${chunkBytes} bytes, ` +
        `moved ${transferBackend}`,
    );

    const numChunks = 3;
    const tokenIds = Array.from({ length: numChunks * chunkSize + 7 }, (_, i) => (i * 7919) % 128_000);
    const rank0 = { instanceId, rank: 0, sessionId: 'request-1' };
    const bytes = kvBytes(numChunks * chunkBytes);

    const stored = await storeInline(client, { ...rank0, prefix: { tokenIds }, startToken: 0 }, bytes);
    console.log(
      `stored ${stored.storedTokens} tokens (${stored.storedBytes} bytes); ${stored.residentTokens} were there ` +
        `already, ${stored.tailTokens} are less than a chunk`,
    );

    const found = await call(client, 'lookup', { instanceId, sessionId: 'request-1', prefix: { tokenIds } });
    console.log(`looked up ${tokenIds.length} tokens: ${found.matchedTokens} matched`);
    if (!found.lease) throw new Error('nothing to retrieve');

    const retrieved = await retrieveInline(client, { ...rank0, leaseId: found.lease.leaseId, skipTokens: 0 });
    const identical = retrieved.equals(bytes);
    console.log(`retrieved ${retrieved.length} bytes: ${identical ? 'the same' : 'NOT THE SAME'}`);

    const { summary } = await call(client, 'endSession', { instanceId, sessionId: 'request-1' });
    const kinds = summary.operations.map(({ kind }) => kind.replace('OPERATION_KIND_', '').toLowerCase());
    console.log(`ended the session: ${kinds.join(', ')}`);
    return identical ? 0 : 1;
  } finally {
    stream.cancel();
    client.close();
  }
}

main().then(
  (exitCode) => {
    process.exitCode = exitCode;
  },
  (error) => {
    console.error(`error: ${error.details ?? error.message}`); // a gRPC error has details
    process.exitCode = 1;
  },
);
