// The dashboard: reads the statistics once a second, and connects the parts of the page.

import { Refused, request } from './dashboard-api.js'
import { Charts, SPAN } from './dashboard-chart.js'
import { Feed } from './dashboard-feed.js'
import { History } from './dashboard-history.js'
import { put, showNumbers, showTraffic } from './dashboard-numbers.js'
import './dashboard-publish.js'
import { Rights } from './dashboard-rights.js'
import { Selection } from './dashboard-selection.js'
import * as session from './dashboard-session.js'
import { copier, historySnippets, showSnippets, streamSnippets } from './dashboard-snippets.js'
import { Streams } from './dashboard-streams.js'
import { showChannels, showConsumers, showKept, showServers, showTables } from './dashboard-tables.js'
import './theme.js'

const STREAMS_EVERY = 5 // looks
const OLD = 4 // seconds after which the numbers are no longer those of now
const $ = (id) => document.getElementById(id)
const now = () => Date.now() / 1000 + offset
const feed = new Feed()
const charts = new Charts()
const history = new History()
const selection = new Selection()
const streams = new Streams(now)
const rights = new Rights()
let offset = 0 // of the server's clock, in seconds
let looks = 0
let looking = false
let next // timer of the next look
let seenAt // when the numbers on the page were read
let blind = false // whether the server did not read the log when it was last asked
let observes = true // whether the token allows us to read the statistics
let known = []

// ---------------------------------------------------------------- statistics

async function look () {
  if (looking) return
  looking = true
  clearTimeout(next)
  try {
    const missing = Math.ceil(now() - charts.last) + 2
    const stats = await request(`api/events/stats?seconds=${Math.min(SPAN, missing)}`)
    offset = Date.parse(stats.time) / 1000 - Date.now() / 1000
    observes = true
    seenAt = now()
    chart(stats)
    show(stats)
  } catch (error) {
    observes &&= !(error instanceof Refused && error.status === 403)
    // A server that answers with an error has no connection to its database: it does not know what was published.
    blind ||= error instanceof Refused
    stale(error.message)
  }
  if (observes && looks++ % STREAMS_EVERY === 0) await streams.look()
  $('charts').hidden = !observes
  if (!observes) put('database', 'To see the statistics you need a token made with --observe.')
  tick()
  looking = false
  next = setTimeout(look, !observes ? 60000 : document.hidden ? 5000 : 1000)
}

/** Add to the charts what the server knows: what it read since it started, and since it last could not read. */
function chart ({ time, recent, server, servers }) {
  const at = Date.parse(time) / 1000
  const started = Date.parse(servers.find(({ id }) => id === server.id)?.startedAt ?? time) / 1000
  if (server.notReady === null) charts.add(recent, blind ? at : started, at)
  blind = server.notReady !== null
}

function show (stats) {
  document.body.classList.remove('stale')
  $('stale').textContent = ''
  showTraffic(charts.lately(now()))
  showNumbers(stats)
  put('database', `PostgreSQL ${stats.database.version}`)
  known = stats.channels.map(({ channel }) => channel)
  selection.know(known)
  showChannels(stats.channels, selection, now())
  showServers(stats.servers, stats.server.id)
  showConsumers(stats.consumers, now())
  showTables(stats.tables)
  showKept(stats.keptChannels)
}

function stale (why) {
  if (seenAt === undefined || document.body.classList.contains('stale')) return
  document.body.classList.add('stale')
  $('stale').textContent = `The grey numbers are from ${new Date(seenAt * 1000).toISOString().slice(11, 19)} UTC. ${why}`
}

function tick () {
  if (!observes) return
  charts.draw(now())
  if (looking && now() - seenAt > OLD) stale('The server does not respond.')
}

function lookNow () {
  feed.reconnect()
  look()
}

// ---------------------------------------------------------------- feed

feed.onState = (is, text) => {
  $('state').dataset.is = is
  $('again').hidden = is !== 'lost'
  if ($('state').textContent !== text) $('state').textContent = text
}
feed.onLost = () => charts.cuts.push(now())
feed.onCount = (count) => {
  $('pause').textContent = feed.paused ? (count ? `Resume (${count} new)` : 'Resume') : 'Pause'
}
feed.onDenied = (channels) => selection.deny(channels)
selection.onChange = (appeared) => feed.follow(selection.channels, { appeared })
streams.onUser = (user) => rights.about(user)
rights.channels = () => [...new Set([...feed.channels, ...known])]

$('filter').addEventListener('input', () => feed.filter($('filter').value))
$('clear').addEventListener('click', () => feed.clear())
$('pause').addEventListener('click', pause)
$('again').addEventListener('click', lookNow)
window.addEventListener('online', lookNow)
document.addEventListener('visibilitychange', () => { if (!document.hidden) look() })

function pause () {
  feed.pause(!feed.paused)
  $('pause').setAttribute('aria-pressed', feed.paused)
}

// ---------------------------------------------------------------- tabs, keys

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

$('copy-as').addEventListener('beforetoggle', ({ newState }) => {
  if (newState !== 'open') return
  showSnippets($('live').hidden
    ? historySnippets(history.parameters, session.closed)
    : streamSnippets(feed.channels, session.closed))
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
window.addEventListener('resize', tick)

$('ask-command').after(copier(() => $('ask-command').textContent, $('ask-command')))
feed.onState('waiting', 'connecting')
// This comes first, so that no other request is made before there is a token, if one is required.
const who = await request('api/events/session').catch(() => undefined)
if (who) session.show(who)
selection.know(session.readable.filter((name) => !name.includes('*')))
selection.start()
look()
setInterval(tick, 1000)
