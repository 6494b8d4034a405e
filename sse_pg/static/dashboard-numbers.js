// The numbers at the top.

import { counted, full, milliseconds, short } from './dashboard-units.js'

const MANY = 1000 // from this lag on, it is a warning
// How a server learns of new events, in plain words.
const READS = { asleep: 'when notified', awake: 'all the time', polling: 'by polling', silent: 'not at all' }

export function put (id, text, warn = false) {
  const at = document.getElementById(id)
  if (at.textContent !== text) at.textContent = text
  at.classList.toggle('warn', warn)
}

export function showTraffic ({ rate, p50, p99 }) {
  put('v-rate', rate === undefined ? '–' : short(rate))
  put('v-delay', milliseconds(p50))
  put('v-delay-note', p99 === undefined ? 'no events in 10 s' : `p50; p99 ${milliseconds(p99)}`)
}

export function showNumbers ({ log, server, servers, publishersInFlight, openGaps }) {
  put('v-streams', full(servers.reduce((sum, each) => sum + each.activeConnections, 0)))
  put('v-servers', `on ${counted(servers.length, 'server')}`)
  put('v-lag', server.lag ? counted(server.lag, 'id') : 'nothing', server.lag > MANY)
  put('v-lag-note', server.notReady ?? (server.secondsSinceRead === null ? '' : `read ${server.secondsSinceRead.toFixed(1)} s ago`), server.notReady !== null)
  const own = servers.find(({ id }) => id === server.id)
  put('v-bell', READS[own?.bell] ?? '–', own?.bell === 'polling' || own?.bell === 'silent')
  put('v-flight', full(publishersInFlight))
  put('v-gaps', openGaps ? `${counted(openGaps, 'id')} may still appear` : 'no id is missing', openGaps > 0)
  put('v-ids', log.oldestId === null ? 'nothing' : `${full(log.oldestId)} – ${full(log.newestId)}`)
  const limits = [log.keepEvents ? `keeps ${short(log.keepEvents)} events` : '', log.keepHours ? `${log.keepHours} h` : ''].filter(Boolean)
  put('v-retention', [
    limits.join(', ') || 'keeps everything', counted(log.partitions, 'partition'), log.bytes ? `${(log.bytes / 2 ** 20).toFixed(1)} MiB` : '',
    log.purgedTo ? `purged up to ${full(log.purgedTo)}` : ''
  ].filter(Boolean).join(' · '))
}
