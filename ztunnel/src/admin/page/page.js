'use strict';
// Names come from the cluster: they reach the document as text only, never as markup.
const INTERVAL = 2000, ROWS = 200, STALE = 3 * INTERVAL;
let before = null, answered = null;

const at = (id) => document.getElementById(id);

function element(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = String(text);
  if (name) node.className = name;
  return node;
}

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return count.toFixed(unit && count < 100 ? 1 : 0) + ' ' + units[unit];
}

function span(seconds) {
  if (seconds < 0) return 'ended ' + span(-seconds) + ' ago';
  if (seconds < 60) return Math.floor(seconds) + ' s';
  if (seconds < 3600) return Math.floor(seconds / 60) + ' min';
  if (seconds < 86400) return Math.floor(seconds / 3600) + ' h ' + Math.floor(seconds % 3600 / 60) + ' min';
  return Math.floor(seconds / 86400) + ' d ' + Math.floor(seconds % 86400 / 3600) + ' h';
}

// A cell is a text, or { text, note, kind }.
function table(place, columns, rows, nothing) {
  if (!rows.length) { at(place).replaceChildren(element('p', nothing, 'none')); return; }
  const head = element('tr');
  columns.forEach((column, index) => head.append(element('th', column, rows[0][index]?.kind === 'number' ? 'number' : '')));
  const body = element('tbody');
  for (const row of rows) {
    const line = element('tr');
    row.forEach((cell, index) => {
      const { text, note, kind } = typeof cell === 'object' && cell ? cell : { text: cell };
      const box = element('td', null, kind);
      box.dataset.label = columns[index];
      const inside = element('div', text);
      if (note) inside.append(element('small', note));
      box.append(inside);
      line.append(box);
    });
    body.append(line);
  }
  const top = element('thead'), all = element('table');
  top.append(head);
  all.append(top, body);
  at(place).replaceChildren(all);
}

const number = (text, note) => ({ text, note, kind: 'number' });
const party = (end) => ({
  text: end.name || end.address,
  note: (end.name ? end.address : '') + (end.identity ? ' ' + end.identity : ''),
});

// Bytes per second since the last look; nothing the first time.
function rate(now, key, sent, received) {
  now.bytes.set(key, [sent, received]);
  const then = before && before.bytes.get(key);
  if (!before) return ['', ''];
  const [one, two] = then || [0, 0], seconds = (now.at - before.at) / 1000;
  return [bytes(Math.max(0, sent - one) / seconds) + '/s', bytes(Math.max(0, received - two) / seconds) + '/s'];
}

function tile(title, value, notes, share) {
  const box = element('div', null, 'tile');
  box.append(element('span', title), element('b', value));
  if (share !== undefined) {
    const bar = element('div', null, 'bar'), part = element('i');
    part.style.width = Math.round(share * 100) + '%';
    bar.append(part);
    box.append(bar);
  }
  for (const note of notes) if (note) box.append(element('span', note));
  return box;
}

function problems(list) {
  const boxes = list.map((problem) => {
    const box = element('div', null, 'problem');
    box.append(element('p', problem.what), element('p', problem.fix));
    return box;
  });
  at('problems').replaceChildren(...(boxes.length ? boxes : [element('p', 'No problems.', 'fine')]));
}

function tiles(status) {
  const { mode, fastpath, sessions, mesh, pods } = status;
  const sum = (pick) => pods.reduce((total, pod) => total + pick(pod), 0);
  const ebpf = sum((pod) => pod.paths.ebpf), tcp = sum((pod) => pod.paths.tcp);
  const reasons = {};
  for (const pod of pods)
    for (const [reason, count] of Object.entries(pod.paths.reasons)) reasons[reason] = (reasons[reason] || 0) + count;
  const why = Object.entries(reasons).sort((a, b) => b[1] - a[1]).slice(0, 4).map(([reason, n]) => reason + ' ' + n);
  const carried = fastpath.redirected_bytes, passed = fastpath.passed_bytes;
  const session = (one) => one.state + (one.error ? ': ' + one.error : '');
  at('tiles').replaceChildren(
    tile('Fast path', mode.on ? 'on (' + mode.effective + ')' : 'off', ['configured ' + mode.configured, mode.reason]),
    tile('Open connections in the kernel', ebpf + ' of ' + (ebpf + tcp), why.length ? ['by TCP: ' + why.join(', ')] : [],
      ebpf + tcp ? ebpf / (ebpf + tcp) : 0),
    tile('Bytes of paired connections', bytes(carried), [carried + passed ?
      (100 * carried / (carried + passed)).toFixed(1) + ' % redirected, ' + bytes(passed) + ' by TCP' : 'none yet']),
    tile('Control plane', sessions.xds.state, [sessions.xds.error, mesh.workloads + ' workloads, ' + mesh.services +
      ' services, ' + mesh.policies + ' policies']),
    tile('Node agent', sessions.agent.state, [sessions.agent.error, pods.length + ' pods']),
  );
}

function show(status, live) {
  const now = { at: performance.now(), bytes: new Map() };
  at('node').textContent = status.node || '';
  at('version').textContent = status.version;
  problems(status.problems);
  tiles(status);
  table('denials', ['Pod', 'Direction', 'From', 'To', 'Why', 'Policy', 'Times', 'Last'], status.denials.map((denial) => [
    denial.pod, denial.direction, party(denial.source), party(denial.destination),
    { text: denial.error, note: denial.verdict && !denial.error.includes(denial.verdict) ? denial.verdict : '' },
    denial.policy ? { text: denial.policy, kind: 'bad' } :
      denial.allow_policies ? { text: 'not allowed by any', note: denial.allow_policies.join(', '), kind: 'bad' } : '',
    number(denial.count), number(span(denial.seconds_ago) + ' ago'),
  ]), 'Nobody.');
  table('pods', ['Pod', 'Fast path', 'Listens on', 'Open', 'By path', 'Sent', 'Received', 'Certificate'],
    status.pods.map((pod) => {
      const certificate = status.certificates.find((one) => one.identity === pod.identity);
      const [sent, received] = rate(now, pod.uid, pod.sent, pod.received);
      return [
        { text: pod.namespace + '/' + pod.name, note: pod.identity },
        { text: pod.on ? pod.level : 'off', note: pod.reason },
        pod.listeners.join(' '),
        number(pod.connections, pod.opened + ' since start'),
        { text: pod.paths.ebpf + ' ebpf, ' + pod.paths.tcp + ' tcp',
          note: Object.entries(pod.paths.reasons).map(([reason, count]) => reason + ' ' + count).join(', ') },
        number(bytes(pod.sent), sent), number(bytes(pod.received), received),
        life(certificate),
      ];
    }), 'No pod is served yet.');
  const rows = live.connections.map((one) => {
    const [sent, received] = rate(now, one.pod + ' ' + one.id, one.sent, one.received);
    return [
      { text: one.pod, note: one.direction + ' ' + one.protocol },
      party(one.source), party(one.destination),
      { text: one.path, note: one.reason, kind: one.path === 'ebpf' ? 'good' : '' },
      number(bytes(one.sent), sent), number(bytes(one.received), received), number(span(one.age_ms / 1000)),
    ];
  });
  table('connections', ['Pod', 'From', 'To', 'Path', 'Sent', 'Received', 'Age'], rows, 'None is open.');
  if (live.total > rows.length)
    at('connections').prepend(element('p', 'The ' + rows.length + ' of ' + live.total +
      ' that carried most.', 'none'));
  table('certificates', ['Identity', 'State', 'Ends in', 'Ends at'], status.certificates.map((one) => [
    one.identity, { text: one.state, note: one.error, kind: one.state === 'available' ? 'good' : 'warn' },
    life(one), one.not_after || '',
  ]), 'None.');
  before = now;
}

function life(certificate) {
  if (!certificate) return '';
  if (certificate.remaining_seconds === null) return { text: certificate.state, kind: 'warn' };
  const low = certificate.remaining_seconds < certificate.life_seconds / 5;
  return { text: span(certificate.remaining_seconds), kind: low ? 'bad' : 'good' };
}

async function ask(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(STALE) });
  if (!answer.ok) throw new Error(path + ': ' + answer.status);
  return answer.json();
}

async function refresh() {
  if (!document.hidden || !answered) {
    try {
      const [status, live] = await Promise.all([ask('/status'), ask('/connections?limit=' + ROWS)]);
      show(status, live);
      answered = new Date();
      at('state').className = '';
      at('state').textContent = 'as of ' + answered.toLocaleTimeString();
    } catch (error) {
      at('state').className = 'bad';
      at('state').textContent = 'no answer' + (answered ? ' since ' + answered.toLocaleTimeString() : '') + ': ' + error.message;
    }
  }
  setTimeout(refresh, INTERVAL);
}
refresh();
