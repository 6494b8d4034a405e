// The dashboard: shows the statistics and handles the controls.

import { Refused, leave, request } from './dashboard-api.js'
import { Charts, short } from './dashboard-chart.js'
import { Feed } from './dashboard-feed.js'
import { History } from './dashboard-history.js'
import { element } from './rows.js'
import './theme.js'

const AUTOMATIC = 8
const COUNTED = 10000 // from this lag on, the server may have stopped counting
const STREAMS = 20 // how many are listed
const STREAMS_EVERY = 5 // looks
const $ = (id) => document.getElementById(id)
const feed = new Feed()
const charts = new Charts()
const history = new History()
let answering
let offset = 0 // of the server's clock, in seconds
let chosen = false
let looks = 0
let observes = true // whether the token allows us to read the statistics

// ---------------------------------------------------------------- numbers

async function look () {
  try {
    const first = charts.seconds.size === 0
    const stats = await request(`api/events/stats?seconds=${first ? 300 : 15}`)
    if (answering !== undefined && answering !== stats.server.id) charts.clear() // another server's seconds
    answering = stats.server.id
    offset = Date.parse(stats.time) / 1000 - Date.now() / 1000
    charts.add(stats.recent, now())
    observes = true
    show(stats)
    document.body.classList.remove('stale')
  } catch (error) {
    observes &&= !(error instanceof Refused && error.status === 403)
    document.body.classList.add('stale')
  }
  if (observes && looks++ % STREAMS_EVERY === 0) await lookAtStreams()
  $('charts').hidden = !observes
  if (observes) draw()
  else put('database', 'To see the statistics you need a token made with --observe.')
  setTimeout(look, !observes ? 60000 : document.hidden ? 5000 : 1000)
}

function now () {
  return Date.now() / 1000 + offset
}

function draw () {
  charts.draw(now())
  const { rate, p50, p99 } = charts.lately(now())
  put('v-rate', short(rate))
  put('v-delay', p50 === undefined ? '–' : milliseconds(p50))
  put('v-delay-note', p99 === undefined ? 'no events in 10 s' : `p50; p99 ${milliseconds(p99)}`)
}

function show ({ log, server, servers, publishersInFlight, openGaps, channels, database, consumers, tables, keptChannels }) {
  const streams = servers.reduce((sum, each) => sum + each.activeConnections, 0)
  put('v-streams', streams.toLocaleString('en'))
  put('v-servers', `on ${servers.length} ${servers.length === 1 ? 'server' : 'servers'}`)
  put('v-lag', server.lag.toLocaleString('en'), server.lag > 1000)
  put('v-lag-note', server.notReady ?? (server.secondsSinceRead === null ? 'ids' : `ids; read ${server.secondsSinceRead.toFixed(1)} s ago`))
  const own = servers.find(({ id }) => id === server.id)
  put('v-bell', own?.bell ?? '–')
  put('v-bell-note', own?.bell === 'awake' || own?.bell === 'polling' ? 'this server polls' : own?.bell === 'asleep' ? 'publishers wake it' : '')
  put('v-flight', publishersInFlight.toLocaleString('en'))
  put('v-gaps', openGaps ? `${openGaps} open ${openGaps === 1 ? 'gap' : 'gaps'}` : 'no open gaps', openGaps > 0)
  put('v-ids', log.oldestId === null ? 'nothing' : `${log.oldestId.toLocaleString('en')} – ${log.newestId.toLocaleString('en')}`)
  const limits = [log.keepEvents ? `keeps ${short(log.keepEvents)} events` : '', log.keepHours ? `${log.keepHours} h` : ''].filter(Boolean)
  put('v-retention', [limits.join(', ') || 'keeps everything', `${log.partitions} partitions`, log.bytes ? `${(log.bytes / 2 ** 20).toFixed(1)} MiB` : '', log.purgedTo ? `purged up to ${log.purgedTo.toLocaleString('en')}` : ''].filter(Boolean).join(' · '))
  put('database', `PostgreSQL ${database.version}`)
  rows($('t-servers').tBodies[0], servers, ({ id }) => id, (row, each) => {
    cells(row, [`${each.name} · ${each.pid}${each.id === server.id ? ' (this)' : ''}`, each.activeConnections.toLocaleString('en'), each.position.toLocaleString('en'), each.lag.toLocaleString('en'), each.bell], [, 'n', 'n', 'n'])
    row.cells[0].title = `server ${each.id}, version ${each.version}, since ${each.startedAt}`
    row.cells[0].className = 'cut'
  })
  showConsumers(consumers)
  showTables(tables)
  showKept(keptChannels)
  if (!chosen && channels.length) {
    chosen = true
    feed.follow(channels.slice(0, AUTOMATIC).map(({ channel }) => channel))
  }
  rows($('t-channels').tBodies[0], channels, ({ channel }) => channel, (row, each) => {
    if (!row.cells.length) {
      const button = element('button', 'plain', each.channel)
      button.type = 'button'
      button.title = each.channel
      button.addEventListener('click', () => toggle(each.channel))
      row.insertCell().append(button)
    }
    cells(row, [undefined, short(each.rate), each.last.eventType, ago(now() - Date.parse(each.last.createdAt) / 1000)], [, 'n', 'cut', 'n'])
    row.cells[2].title = `${each.last.eventType}, id ${each.last.id}, ${each.last.createdAt}`
    const followed = feed.channels.includes(each.channel)
    row.cells[0].firstChild.setAttribute('aria-pressed', followed)
    row.cells[0].firstChild.ariaLabel = `${followed ? 'Stop following' : 'Follow'} ${each.channel}`
  })
  const known = channels.map(({ channel }) => channel).sort()
  if (known.join() !== [...$('known').options].map(({ value }) => value).join()) {
    $('known').replaceChildren(...known.map((name) => Object.assign(element('option'), { value: name })))
  }
}

function showConsumers (consumers) {
  $('consumers').hidden = !consumers.length
  rows($('t-consumers').tBodies[0], consumers, ({ name }) => name, (row, each) => {
    const rest = each.channelCount - each.channels.length
    const names = each.channels.join(', ') + (rest ? ` and ${rest.toLocaleString('en')} more` : '')
    const behind = each.oldestAt === null ? '–' : ago(now() - Date.parse(each.oldestAt) / 1000)
    cells(row, [each.name, names, each.lag.toLocaleString('en') + (each.lag < COUNTED ? '' : '+'), behind], ['cut', 'cut', 'n', 'n'])
    row.cells[0].title = `${each.name}, cursor written ${each.updatedAt}`
    row.cells[1].title = names
  })
}

async function lookAtStreams () {
  const found = await request(`api/events/streams?limit=${STREAMS}`).catch(() => undefined)
  if (found) showStreams(found)
}

function showStreams ({ server, otherServers, count, streams }) {
  $('streams').hidden = !count
  const shown = count > streams.length ? `the ${streams.length} worst readers of ${count.toLocaleString('en')}` : 'the worst readers first'
  put('streams-note', `${shown}, on ${server?.name ?? 'this server'}${otherServers.length ? ` · ${server?.pid}, one of ${otherServers.length + 1} servers` : ''}`)
  rows($('t-streams').tBodies[0], streams, ({ number }) => number, (row, each) => {
    if (!row.cells.length) {
      for (let cell = 0; cell < 6; cell++) row.insertCell()
      if (each.userId !== null) {
        const button = element('button', 'plain', '✕')
        button.type = 'button'
        button.title = button.ariaLabel = `Disconnect user ${each.userId}`
        button.addEventListener('click', () => disconnect(each.userId))
        row.cells[5].append(button)
      }
    }
    const rest = each.channelCount - each.channels.length
    const names = each.channels.join(', ') + (rest ? ` and ${rest.toLocaleString('en')} more` : '')
    cells(row, [each.userId ?? '–', each.address, names, ago(now() - Date.parse(each.since) / 1000), each.unreadBytes.toLocaleString('en')], ['cut', 'cut', 'cut', 'n', each.unreadBytes ? 'n warn' : 'n'])
    row.cells[2].title = names
    row.cells[3].title = `${each.since}, ${each.sentBytes.toLocaleString('en')} bytes sent`
  })
}

async function disconnect (user) {
  if (!window.confirm(`End all streams of user ${user}, on all servers? The client reconnects if it may.`)) return
  try {
    await request(`api/events/streams?userId=${encodeURIComponent(user)}`, { method: 'DELETE' })
    await lookAtStreams()
  } catch (error) {
    put('streams-note', error.message, true)
  }
}

function showTables (tables) {
  $('tables').hidden = !tables.length
  rows($('t-tables').tBodies[0], tables, ({ table }) => table, (row, each) => {
    cells(row, [each.table, each.channel, each.problem ?? 'published'], ['cut', 'cut', each.problem === null ? 'cut' : 'cut warn'])
    row.cells[0].title = `${each.table}, owner ${each.owner}: ${each.operations.join(', ')}`
    row.cells[1].title = each.channel
    row.cells[2].title = each.problem ?? ''
  })
}

function showKept (channels) {
  $('kept').hidden = !channels.length
  rows($('t-kept').tBodies[0], channels, ({ channel }) => channel, (row, each) => {
    const keeps = span(each.keepHours * 3600)
    cells(row, [each.channel, keeps, each.expiredTo.toLocaleString('en'), each.lateSeconds ? span(each.lateSeconds) : '–'], ['cut', 'n', 'n', 'n'])
    row.cells[0].title = each.channel
  })
}

/** Update the rows of a table in place, so that focus and selection are kept. */
function rows (body, items, keyOf, fill) {
  const there = new Map([...body.rows].map((row) => [row.key, row]))
  items.forEach((item, place) => {
    const key = keyOf(item)
    const row = there.get(key) ?? Object.assign(element('tr'), { key })
    there.delete(key)
    fill(row, item)
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null)
  })
  for (const row of there.values()) row.remove()
}

function cells (row, texts, classes) {
  texts.forEach((text, place) => {
    const cell = row.cells[place] ?? row.insertCell()
    if (text !== undefined && cell.textContent !== text) cell.textContent = text
    if (classes[place]) cell.className = classes[place]
  })
}

function put (id, text, warn = false) {
  const at = $(id)
  if (at.textContent !== text) at.textContent = text
  at.classList.toggle('warn', warn)
}

function milliseconds (value) {
  if (value === null) return '–'
  return value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`
}

function ago (seconds) {
  return seconds < 1.5 ? 'now' : span(seconds)
}

function span (seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`
}

// ---------------------------------------------------------------- feed

feed.onState = (is, text) => {
  $('state').dataset.is = is
  if ($('state').textContent !== text) $('state').textContent = text
}
feed.onLost = () => charts.cuts.push(now())
feed.onCount = (count) => {
  $('pause').textContent = feed.paused ? (count ? `Resume (${count} new)` : 'Resume') : 'Pause'
}
feed.onChannels = (channels) => {
  const names = channels.map(encodeURIComponent).join(',')
  window.history.replaceState(null, '', names ? `#channels=${names}` : location.pathname + location.search)
  $('chips').replaceChildren(...channels.map((name) => {
    const chip = element('span', 'chip', name)
    const button = element('button', 'plain', '✕')
    button.type = 'button'
    button.ariaLabel = `Stop following ${name}`
    button.addEventListener('click', () => toggle(name))
    chip.append(button)
    return chip
  }))
}

function toggle (name) {
  chosen = true
  feed.follow(feed.channels.includes(name) ? feed.channels.filter((each) => each !== name) : [...feed.channels, name])
}

function fromAddress () {
  const found = /^#channels=(.+)$/.exec(location.hash)
  if (!found) return
  const names = found[1].split(',').map(decodeURIComponent)
  chosen = true
  if (names.join() !== feed.channels.join()) feed.follow(names)
}

$('follow').addEventListener('submit', (event) => {
  event.preventDefault()
  const names = $('channels').value.split(/[\s,]+/).filter(Boolean)
  $('channels').value = ''
  if (!names.length) return
  chosen = true
  feed.follow([...feed.channels, ...names])
})
$('filter').addEventListener('input', () => feed.filter($('filter').value))
$('clear').addEventListener('click', () => feed.clear())
$('pause').addEventListener('click', pause)

function pause () {
  feed.pause(!feed.paused)
  $('pause').setAttribute('aria-pressed', feed.paused)
}

// ---------------------------------------------------------------- tabs, publish, keys

const tabs = [$('tab-live'), $('tab-history')]

function select (tab) {
  for (const each of tabs) {
    each.setAttribute('aria-selected', each === tab)
    each.tabIndex = each === tab ? 0 : -1
    $(each.getAttribute('aria-controls')).hidden = each !== tab
  }
  if (tab === tabs[1]) history.suggest(feed.channels)
}

for (const tab of tabs) {
  tab.addEventListener('click', () => select(tab))
  tab.addEventListener('keydown', ({ key }) => {
    if (key !== 'ArrowRight' && key !== 'ArrowLeft') return
    const other = tabs[1 - tabs.indexOf(tab)]
    select(other)
    other.focus()
  })
}

$('publish').addEventListener('submit', async (event) => {
  event.preventDefault()
  const { channel, eventType, payload } = event.target.elements
  const button = event.submitter ?? event.target.querySelector('button')
  const say = (text, kind) => {
    $('published').className = `note ${kind}`
    $('published').textContent = text
  }
  try {
    JSON.parse(payload.value)
  } catch (error) {
    say(`The payload is not JSON: ${error.message}`, 'bad')
    return payload.focus()
  }
  // The payload is sent as typed, because its numbers may have more digits than a double can hold.
  const body = `{"channel":${JSON.stringify(channel.value)},"eventType":${JSON.stringify(eventType.value)},"payload":${payload.value}}`
  button.disabled = true
  try {
    const { id } = await request('api/events/publish', { method: 'POST', body })
    say(`Published, id ${id}.`, 'good')
  } catch (error) {
    say(error.message, 'bad')
  }
  button.disabled = false
})
$('publish').elements.payload.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit()
})

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, textarea, select, dialog')) return
  if (event.key === 'p') pause()
  else if (event.key === '/') {
    event.preventDefault()
    select(tabs[0])
    $('filter').focus()
  }
})
$('leave').addEventListener('click', leave)
window.addEventListener('hashchange', fromAddress)
window.addEventListener('resize', () => { if (observes) draw() })

feed.onState('waiting', 'not following any channel')
// This comes first, so that no other request is made before there is a token, if one is required.
const who = await request('api/events/session').catch(() => undefined)
if (who && !who.open) {
  $('leave').hidden = false
  $('leave').title = `Signed in as ${who.userId}`
}
fromAddress()
look()
