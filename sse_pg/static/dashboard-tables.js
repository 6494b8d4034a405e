// The tables of the statistics: channels, servers, consumers, published tables, channels with their own retention.

import { ago, full, short, span } from './dashboard-units.js'
import { element } from './rows.js'

const COUNTED = 10000 // from this lag on, the server may have stopped counting
const READS = { asleep: 'notified', awake: 'always', polling: 'by polling', silent: 'no' }
const $ = (id) => document.getElementById(id)

export function showChannels (channels, selection, now) {
  rows('t-channels', channels, ({ channel }) => channel, (row, each) => {
    if (!row.cells.length) row.insertCell().append(button(each.channel, () => selection.toggle(each.channel)))
    cells(row, [undefined, short(each.rate), each.last.eventType, ago(now - Date.parse(each.last.createdAt) / 1000)], [, 'n', 'cut', 'n'])
    row.cells[2].title = `${each.last.eventType}, id ${each.last.id}, ${each.last.createdAt}`
    const followed = selection.follows(each.channel)
    const alone = followed && !selection.names.includes(each.channel)
    row.cells[0].firstChild.setAttribute('aria-pressed', followed)
    row.cells[0].firstChild.ariaLabel = `${alone ? 'Follow only' : followed ? 'Stop following' : 'Follow'} ${each.channel}`
  })
  const known = channels.map(({ channel }) => channel).sort()
  if (known.join() !== [...$('known').options].map(({ value }) => value).join()) {
    $('known').replaceChildren(...known.map((name) => Object.assign(element('option'), { value: name })))
  }
}

export function showServers (servers, own) {
  rows('t-servers', servers, ({ id }) => id, (row, each) => {
    cells(row, [`${each.name} · ${each.pid}`, full(each.activeConnections), full(each.position), full(each.lag), READS[each.bell] ?? each.bell], [, 'n', 'n', 'n'])
    row.ariaCurrent = each.id === own ? 'true' : null
    row.cells[0].title = `${each.id === own ? 'The server that this page reads: ' : ''}server ${each.id}, version ${each.version}, since ${each.startedAt}`
    row.cells[0].className = 'cut'
  })
}

export function showConsumers (consumers, now) {
  $('consumers').hidden = !consumers.length
  rows('t-consumers', consumers, ({ name }) => name, (row, each) => {
    const names = named(each)
    const behind = each.oldestAt === null ? '–' : ago(now - Date.parse(each.oldestAt) / 1000)
    cells(row, [each.name, names, full(each.lag) + (each.lag < COUNTED ? '' : '+'), behind], ['cut', 'cut', 'n', 'n'])
    row.cells[0].title = `${each.name}, cursor written ${each.updatedAt}`
    row.cells[1].title = names
  })
}

export function showTables (tables) {
  $('tables').hidden = !tables.length
  rows('t-tables', tables, ({ table }) => table, (row, each) => {
    cells(row, [each.table, each.channel, each.problem ?? 'published'], ['cut', 'cut', each.problem === null ? 'cut' : 'cut warn'])
    row.cells[0].title = `${each.table}, owner ${each.owner}: ${each.operations.join(', ')}`
    row.cells[1].title = each.channel
    row.cells[2].title = each.problem ?? ''
  })
}

export function showKept (channels) {
  $('kept').hidden = !channels.length
  rows('t-kept', channels, ({ channel }) => channel, (row, each) => {
    cells(row, [each.channel, span(each.keepHours * 3600), full(each.expiredTo), each.lateSeconds ? span(each.lateSeconds) : '–'], ['cut', 'n', 'n', 'n'])
    row.cells[0].title = each.channel
  })
}

/** The channels that are named of a consumer or a stream, and how many there are besides. */
export function named ({ channels, channelCount }) {
  const rest = channelCount - channels.length
  return channels.join(', ') + (rest ? ` and ${full(rest)} more` : '')
}

export function button (text, onClick) {
  const made = element('button', 'plain', text)
  made.type = 'button'
  made.title = text
  made.addEventListener('click', onClick)
  return made
}

/** Update the rows of a table in place, so that focus and selection are kept. */
export function rows (id, items, keyOf, fill) {
  const body = $(id).tBodies[0]
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

export function cells (row, texts, classes) {
  texts.forEach((text, place) => {
    const cell = row.cells[place] ?? row.insertCell()
    if (text !== undefined && cell.textContent !== text) cell.textContent = text
    if (classes[place]) cell.className = classes[place]
  })
}
