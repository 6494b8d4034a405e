// Two small charts of the last minutes, drawn by hand. A second of which nothing is known is a hole in both.

import { full, short } from './dashboard-units.js'

export const SPAN = 300
const NAMESPACE = document.getElementById('c-events').namespaceURI
const LEFT = 42
const LATE = 4 // seconds after which the end of what is known is the beginning of a hole

/** The known seconds, by Unix time; `cuts` are the times at which the connection was lost. */
export class Charts {
  seconds = new Map()
  cuts = []
  last = -Infinity

  /** Add the seconds from that of `from` up to that of `to`, which is not over yet. Seconds without events are left out. */
  add (recent, from, to) {
    const given = new Map(recent.map((second) => [second.at, second]))
    for (let at = Math.max(Math.floor(from), this.last + 1, Math.floor(to) - SPAN); at < Math.floor(to); at++) {
      this.seconds.set(at, given.get(at) ?? { events: 0, delayP50Ms: null, delayP99Ms: null })
      this.last = at
    }
    for (const at of this.seconds.keys()) if (at < to - SPAN - 5) this.seconds.delete(at)
    this.cuts = this.cuts.filter((at) => at > to - SPAN)
  }

  /** The rate of events and the delays over the last seconds. */
  lately (now, span = 10) {
    const known = []
    for (let at = this.#end(now); at > this.#end(now) - span; at--) if (this.seconds.has(at)) known.push(this.seconds.get(at))
    const rate = known.length ? known.reduce((sum, { events }) => sum + events, 0) / known.length : undefined
    const delays = known.filter(({ delayP50Ms }) => delayP50Ms !== null)
    const p50 = delays.map(({ delayP50Ms }) => delayP50Ms).sort((a, b) => a - b)[delays.length >> 1]
    return { rate, p50, p99: delays.length ? Math.max(...delays.map(({ delayP99Ms }) => delayP99Ms)) : undefined }
  }

  #end (now) {
    return now - this.last < LATE ? this.last : Math.floor(now) - 1
  }

  draw (now) {
    const end = this.#end(now)
    const events = []
    const p50 = []
    const p99 = []
    const holes = []
    for (let at = end - SPAN; at <= end; at++) {
      const second = this.seconds.get(at)
      events.push([at, second?.events])
      p50.push([at, second?.delayP50Ms])
      p99.push([at, second?.delayP99Ms])
      if (second) continue
      if (holes.at(-1)?.[1] === at - 1) holes.at(-1)[1] = at
      else holes.push([at, at])
    }
    const most = Math.max(0, ...events.map(([, value]) => value ?? 0))
    const top = nice(Math.max(most, 4))
    document.getElementById('c-events-note').textContent = `at most ${full(most)} in 5 minutes`
    const frame = { end, holes, cuts: this.cuts }
    draw('c-events', frame, [[0, '0'], [top / 2, short(top / 2)], [top, short(top)]], (value) => value / top, [
      { kind: 'area', lines: unbroken(events) }, { kind: 'line', lines: unbroken(events) }])
    const scale = (ms) => Math.log10(Math.min(Math.max(ms, 1), 10000)) / 4
    draw('c-delay', frame, [[1, '1 ms'], [10, '10 ms'], [100, '100 ms'], [1000, '1 s'], [10000, '10 s']], scale, [
      { kind: 'line p99', lines: unbroken(p99) }, { kind: 'line', lines: unbroken(p50) }])
  }
}

/**
 * Cut points into lines. What is not known (undefined) ends a line. Seconds without events have no delay (null): a line
 * goes over a few of them, but one across a long silence would suggest delays.
 */
function unbroken (points) {
  const lines = []
  let before
  for (const [at, value] of points) {
    if (value === undefined) before = undefined
    if (value === undefined || value === null) continue
    if (before === undefined || at - before > 5) lines.push([])
    lines.at(-1).push([at, value])
    before = at
  }
  return lines
}

function draw (id, { end, holes, cuts }, grid, scale, series) {
  const svg = document.getElementById(id)
  const { width, height } = svg.getBoundingClientRect()
  if (!width) return
  const x = (at) => LEFT + (1 - (end - at) / SPAN) * (width - LEFT - 2)
  const y = (value) => height - 16 - scale(value) * (height - 26)
  const parts = []
  for (const [from, to] of holes) {
    const left = Math.max(LEFT, x(from - 1))
    parts.push(part('rect', { class: 'hole', x: left, width: Math.max(0, x(to + 1) - left), y: 10, height: height - 26, 'data-seconds': to - from + 1 }))
  }
  for (const [value, name] of grid) {
    parts.push(part('line', { class: 'grid', x1: LEFT, x2: width, y1: y(value), y2: y(value) }))
    parts.push(part('text', { x: LEFT - 6, y: y(value) + 3, 'text-anchor': 'end' }, name))
  }
  for (const ago of [300, 240, 180, 120, 60, 0]) {
    const anchor = ago === 0 ? 'end' : ago === 300 ? 'start' : 'middle'
    parts.push(part('text', { x: x(end - ago), y: height - 3, 'text-anchor': anchor }, ago ? `−${ago / 60} min` : 'now'))
  }
  for (const at of cuts) parts.push(part('line', { class: 'cut', x1: x(at), x2: x(at), y1: 4, y2: height - 16 }))
  for (const { kind, lines } of series) {
    let path = ''
    for (const line of lines) {
      path += line.map(([at, value], place) => `${place ? 'L' : 'M'}${x(at).toFixed(1)} ${y(value).toFixed(1)}${place ? '' : 'h.01'}`).join('')
      if (kind === 'area') path += `L${x(line.at(-1)[0])} ${y(0)}L${x(line[0][0])} ${y(0)}Z`
    }
    if (path) parts.push(part('path', { class: kind, d: path }))
  }
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
  svg.replaceChildren(...parts)
}

function part (name, attributes, text) {
  const made = document.createElementNS(NAMESPACE, name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  if (text !== undefined) made.textContent = text
  return made
}

function nice (value) {
  const unit = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 4, 5, 10].find((step) => step * unit >= value) * unit
}
