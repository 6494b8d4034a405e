// Two small charts of the last minutes, drawn by hand.

const SPAN = 300
const NAMESPACE = document.getElementById('c-events').namespaceURI
const LEFT = 42

/** The known seconds, by Unix time; `cuts` are the times at which the connection was lost. */
export class Charts {
  seconds = new Map()
  cuts = []

  add (recent, now) {
    for (const second of recent) this.seconds.set(second.at, second)
    for (const at of this.seconds.keys()) if (at < now - SPAN - 5) this.seconds.delete(at)
    this.cuts = this.cuts.filter((at) => at > now - SPAN)
  }

  clear () {
    this.seconds.clear()
  }

  /** Events per second over the last whole seconds, and the median delay in them. */
  lately (now, span = 10) {
    let events = 0
    const delays = []
    for (let at = Math.floor(now) - span; at < Math.floor(now); at++) {
      const second = this.seconds.get(at)
      events += second?.events ?? 0
      if (second) delays.push([second.delayP50Ms, second.delayP99Ms])
    }
    const middle = (place) => delays.map((pair) => pair[place]).sort((a, b) => a - b)[delays.length >> 1]
    return { rate: events / span, p50: middle(0), p99: delays.length ? Math.max(...delays.map((pair) => pair[1])) : undefined }
  }

  draw (now) {
    const end = Math.floor(now) - 1
    const events = document.getElementById('c-events')
    const values = []
    for (let at = end - SPAN; at <= end; at++) values.push([at, this.seconds.get(at)?.events ?? 0])
    const most = Math.max(...values.map(([, value]) => value))
    const top = nice(Math.max(most, 4))
    document.getElementById('c-events-note').textContent = `at most ${most.toLocaleString('en')} in 5 minutes`
    draw(events, end, this.cuts, [[0, '0'], [top / 2, short(top / 2)], [top, short(top)]], (value) => value / top, [
      { kind: 'area', points: values }, { kind: 'line', points: values }])

    const scale = (ms) => Math.log10(Math.min(Math.max(ms, 1), 10000)) / 4
    const delays = [...this.seconds.values()].filter(({ at }) => at > end - SPAN && at <= end).sort((a, b) => a.at - b.at)
    draw(document.getElementById('c-delay'), end, this.cuts, [[1, '1 ms'], [10, '10 ms'], [100, '100 ms'], [1000, '1 s'], [10000, '10 s']], scale, [
      { kind: 'line p99', points: delays.map((second) => [second.at, second.delayP99Ms]), dots: true },
      { kind: 'line', points: delays.map((second) => [second.at, second.delayP50Ms]), dots: true }])
  }
}

function draw (svg, end, cuts, grid, scale, series) {
  const { width, height } = svg.getBoundingClientRect()
  if (!width) return
  const x = (at) => LEFT + (1 - (end - at) / SPAN) * (width - LEFT - 2)
  const y = (value) => height - 16 - scale(value) * (height - 26)
  const parts = []
  for (const [value, name] of grid) {
    parts.push(part('line', { class: 'grid', x1: LEFT, x2: width, y1: y(value), y2: y(value) }))
    parts.push(part('text', { x: LEFT - 6, y: y(value) + 3, 'text-anchor': 'end' }, name))
  }
  for (const ago of [300, 240, 180, 120, 60, 0]) {
    const anchor = ago === 0 ? 'end' : ago === 300 ? 'start' : 'middle'
    parts.push(part('text', { x: x(end - ago), y: height - 3, 'text-anchor': anchor }, ago ? `−${ago / 60} min` : 'now'))
  }
  for (const at of cuts) parts.push(part('line', { class: 'cut', x1: x(at), x2: x(at), y1: 4, y2: height - 16 }))
  for (const { kind, points, dots } of series) {
    if (!points.length) continue
    let path = ''
    let before
    for (const [at, value] of points) {
      const here = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`
      // Seconds without events have no delay; a line across a long silence would suggest one.
      if (before === undefined || (dots && at - before > 5)) path += `M${here}h.01`
      else path += `L${here}`
      before = at
    }
    if (kind === 'area') path += `L${x(points.at(-1)[0])} ${y(0)}L${x(points[0][0])} ${y(0)}Z`
    parts.push(part('path', { class: kind, d: path }))
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

export function short (value) {
  if (value >= 1e6) return `${+(value / 1e6).toFixed(1)}M`
  if (value >= 1e4) return `${+(value / 1e3).toFixed(1)}k`
  return value.toLocaleString('en', { maximumFractionDigits: value < 10 ? 1 : 0 })
}
