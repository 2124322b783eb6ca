// The official TypeScript clients: `typescript.cjs URL v1`, `… v2-legacy`, `… v2-2026-07-28`. NODE_PATH names node_modules.
// The same steps as steps.py, each reported as a JSON line.
'use strict';

const [url, which] = process.argv.slice(2);

function load() {
  const info = { name: 'typescript', version: '1.0.0' };
  if (which === 'v1') {
    const { Client } = require('@modelcontextprotocol/sdk/client/index.js');
    const { StreamableHTTPClientTransport } = require('@modelcontextprotocol/sdk/client/streamableHttp.js');
    const client = new Client(info);
    return { client, transport: new StreamableHTTPClientTransport(new URL(url)), resumes: true,
      call: (params, options) => client.callTool(params, undefined, options) };
  }
  const { Client, StreamableHTTPClientTransport } = require('@modelcontextprotocol/client');
  const revision = which.slice('v2-'.length);
  const mode = revision === 'legacy' ? 'legacy' : { pin: revision };
  const client = new Client(info, { versionNegotiation: { mode } });
  return { client, transport: new StreamableHTTPClientTransport(new URL(url)), resumes: revision === 'legacy',
    call: (params, options) => client.callTool(params, options) };
}

const report = (step, found = {}) => console.log(JSON.stringify({ step, ...found }));

async function main() {
  const { client, transport, resumes, call } = load();
  await client.connect(transport);
  const ask = async (name, args, options) => {
    const result = await call({ name, arguments: args }, options);
    return [result.content.filter((block) => block.type === 'text').map((block) => block.text).join(''), result.isError === true];
  };
  report('list', { tools: (await client.listTools()).tools.map((tool) => tool.name) });
  report('allow', { answer: await ask('get_sum', { a: 1, b: 2 }) });
  report('deny', { answer: await ask('delete_everything', {}) });
  const answers = [];
  for (let count = 0; count < 3; count += 1) answers.push(await ask('echo', { value: 'ok' }));
  report('limit', { answers });

  const seen = [];
  const onprogress = ({ progress }) => { seen.push(progress); report('stream-waits', { progress }); };
  report('stream', { answer: await ask('wait_for_gate', { gate: 'stream' }, { onprogress }), progress: seen });

  const abort = new AbortController();
  const cancelled = ask('wait_for_gate', { gate: 'cancel' }, { signal: abort.signal, onprogress: () => abort.abort('gave up') });
  await cancelled.then(() => { throw new Error('the cancelled call was answered'); }, () => undefined);
  report('cancel');

  if (resumes) report('resume', { answer: await ask('test_reconnection', {}) });
  report('end');
  await client.close();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
