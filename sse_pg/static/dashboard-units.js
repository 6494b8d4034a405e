// Numbers as people read them.

export function short (value) {
  if (value >= 1e6) return `${+(value / 1e6).toFixed(1)}M`
  if (value >= 1e4) return `${+(value / 1e3).toFixed(1)}k`
  return value.toLocaleString('en', { maximumFractionDigits: value < 10 ? 1 : 0 })
}

/** A number with all its digits. */
export function full (value) {
  return value.toLocaleString('en')
}

/** A number and its noun: `1 server`, `2 servers`. */
export function counted (value, noun) {
  return `${full(value)} ${noun}${value === 1 ? '' : 's'}`
}

export function milliseconds (value) {
  if (value === null || value === undefined) return '–'
  return value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`
}

export function ago (seconds) {
  return seconds < 1.5 ? 'now' : span(seconds)
}

export function span (seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`
}
