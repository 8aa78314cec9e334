// The main operations with grpc-js, over TCP and over the local socket. Where the daemon is comes in the
// environment: LIBRORUM_TCP, LIBRORUM_SOCKET, LIBRORUM_TOKEN, LIBRORUM_PROTO.
const assert = require('node:assert');
const crypto = require('node:crypto');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const { LIBRORUM_TCP, LIBRORUM_SOCKET, LIBRORUM_TOKEN, LIBRORUM_PROTO } = process.env;
const schema = grpc.loadPackageDefinition(
  loader.loadSync(
    ['file.proto', 'node.proto', 'log.proto', 'librorum/v1/files.proto', 'librorum/v1/admin.proto'],
    { includeDirs: [LIBRORUM_PROTO], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true },
  ),
);

const metadata = new grpc.Metadata();

const call = (client, method, request) =>
  new Promise((done, failed) =>
    client[method](request, metadata, (error, answer) => (error ? failed(error) : done(answer))),
  );

async function fails(code, promise) {
  await assert.rejects(promise, (error) => error.code === code);
}

// Calls a method that takes a stream, and waits where the connection is full.
function send(client, method, messages) {
  return new Promise((done, failed) => {
    const stream = client[method](metadata, (error, answer) => (error ? failed(error) : done(answer)));
    const next = () => {
      for (;;) {
        const { value, done: end } = messages.next();
        if (end) return stream.end();
        if (!stream.write(value)) return stream.once('drain', next);
      }
    };
    next();
  });
}

async function receive(client, method, request) {
  const messages = [];
  for await (const message of client[method](request, metadata)) messages.push(message);
  return messages;
}

function* upload(name, path, content, more) {
  yield { metadata: { name, path, size: content.length, ...more } };
  for (let at = 0; at < content.length; at += 65536) yield { chunk: content.subarray(at, at + 65536) };
}

async function everything(address, base) {
  const credentials = grpc.credentials.createInsecure();
  const file = new schema.file.FileService(address, credentials);
  const content = crypto.randomBytes(3 << 20);
  const checksum = crypto.createHash('sha256').update(content).digest('hex');
  await call(file, 'CreateDirectory', { path: `/${base}` });
  const sent = await send(file, 'UploadFile', upload('a.txt', `/${base}`, content, { checksum }));
  assert(sent.success && sent.bytes_uploaded === content.length);
  const downloaded = await receive(file, 'DownloadFile', { path: `/${base}/a.txt` });
  assert.equal(downloaded[0].file_info.path, `/${base}/a.txt`);
  assert(Buffer.concat(downloaded.slice(1).map((message) => message.chunk)).equals(content));
  const listed = await call(file, 'ListFiles', { path: `/${base}` });
  assert.equal(listed.total_count, 1);
  assert.equal(listed.files[0].mime_type, 'text/plain');
  await fails(grpc.status.INVALID_ARGUMENT, call(file, 'GetFileInfo', { path: '/../x' }));

  const files = new schema.librorum.v1.Files(address, credentials);
  const { upload: id } = await call(files, 'OpenWrite', { path: Buffer.from(`${base}/big`) });
  const parts = (function* () {
    for (let offset = 0; offset < content.length; offset += 300000) {
      yield { upload: id, offset, data: content.subarray(offset, offset + 300000) };
    }
  })();
  assert.equal((await send(files, 'Write', parts)).written_bytes, content.length);
  await call(files, 'Commit', { upload: id, path: Buffer.from(`${base}/big`), len: content.length });
  const read = await receive(files, 'Read', { path: Buffer.from(`${base}/big`) });
  assert(Buffer.concat(read.map((message) => message.data)).equals(content));
  assert.equal(read[0].entry.size_bytes, content.length);
  const gone = await call(file, 'DeleteFile', { path: `/${base}`, recursive: true });
  assert(gone.success && gone.deleted_count === 3);

  const node = new schema.node.NodeService(address, credentials);
  assert((await call(node, 'GetSystemHealth', {})).total_storage > 0);
  const log = new schema.log.LogService(address, credentials);
  assert((await call(log, 'GetLogs', {})).total_count >= 0);
  const admin = new schema.librorum.v1.Admin(address, credentials);
  assert((await call(admin, 'Status', {})).pid > 0);
  for (const client of [file, files, node, log, admin]) client.close();
}

async function main() {
  const stranger = new schema.file.FileService(LIBRORUM_TCP, grpc.credentials.createInsecure());
  await fails(grpc.status.UNAUTHENTICATED, call(stranger, 'ListFiles', {}));
  stranger.close();
  metadata.set('authorization', `Bearer ${LIBRORUM_TOKEN}`);
  await everything(LIBRORUM_TCP, 'tcp');
  metadata.remove('authorization');
  await everything(`unix:${LIBRORUM_SOCKET}`, 'uds');
  console.log('grpc-js did everything');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
