// Reads the streams of an sse-pg server with fetch. What it does and when: docs/clients.md. Types: sse-pg.d.ts.

/** A response that is not a stream. `status` is the HTTP status, `problem` the problem document. */
export class StreamError extends Error {
  name = 'StreamError'
}

/** Follow a stream until the signal aborts, the loop ends, or its channels do (`until`): `for await (const event of subscribe(url, options))`. */
export async function * subscribe (url, options = {}) {
  const { key, signal, silence = 45000, onOpen, onLost, onGap, onDenied, onFinished, snapshot } = options
  if (snapshot && (key ?? options.from) !== undefined) throw new TypeError('a snapshot has its own position: leave out key and from')
  const request = prepared(url, options)
  const storage = key === undefined ? undefined : options.storage ?? globalThis.sessionStorage
  let cursor = options.from ?? storage?.getItem(key) ?? ''
  let retry = 2000
  let pause = 0
  let failures = 0 // number of consecutive connections that received nothing
  let refused = false // whether the last token was refused
  let outdated = snapshot !== undefined // whether the snapshot is to be taken
  let unproven = false // whether no stream has gone on from the position of the last snapshot yet

  while (!signal?.aborted) {
    const attempt = new AbortController()
    signal?.addEventListener('abort', () => attempt.abort(), { signal: attempt.signal })
    const timed = (promise) => {
      const timer = setTimeout(() => attempt.abort(new Error(`no data for ${silence / 1000} s`)), silence)
      return promise.finally(() => clearTimeout(timer))
    }
    try {
      if (pause > 0) await sleep(pause, attempt.signal)
      if (outdated) {
        const { state, position } = await timed((async () => snapshot(attempt.signal))())
        if (signal?.aborted) return
        outdated = false
        unproven = true
        cursor = String(position)
        yield { id: cursor, number: 0, type: 'sse-pg.snapshot', data: state, text: '' }
      }
      const response = await timed(open(request, options, cursor, attempt.signal))
      if (response.status === 204) return // each of the channels is finished
      refused = false
      let finished = false // whether the last event was the end of a channel
      for await (const block of blocks(response.body.getReader(), timed)) {
        const { id = cursor, event: type = 'message', data: text } = block
        failures = 0
        retry = Number(block.retry) || retry
        if (type === 'sse-pg.hello') onOpen?.({ id, resumed: cursor })
        else if (type === 'sse-pg.gap') onGap?.(JSON.parse(text))
        else if (type === 'sse-pg.denied') onDenied?.(JSON.parse(text).channels)
        else if (type === 'sse-pg.end') onFinished?.(JSON.parse(text).channel)
        finished = type === 'sse-pg.end' || (finished && type === 'sse-pg.position')
        if (type === 'sse-pg.gap' && snapshot) { // what follows the gap is part of the next snapshot
          outdated = true
          break
        }
        unproven &&= type === 'sse-pg.hello' || type === 'sse-pg.denied'
        if (text && !type.startsWith('sse-pg.')) yield { id, number: Number(block.number ?? id.split('~')[0]), type, data: JSON.parse(text), text }
        if (signal?.aborted) return // the rest of what has arrived is for nobody
        // Only now: if the page is closed while it handles an event, it gets that event again.
        cursor = id
        if (cursor) storage?.setItem(key, cursor)
      }
      if (!outdated && !(options.until && finished)) throw new Error('the stream ended')
      // A position that gets a gap at once may be an old one, from a cache.
      pause = unproven ? retry * (0.5 + Math.random() / 2) : 0
    } catch (error) {
      if (signal?.aborted) return
      const stale = error.status === 401 && typeof options.token === 'function' && !refused
      const passing = error.status >= 500 || [408, 425, 429].includes(error.status)
      if (error instanceof StreamError && !stale && !passing) throw error
      const longer = Math.min(30000, retry * 2 ** failures) * (0.5 + Math.random() / 2)
      pause = stale ? 0 : Math.max(retry, longer, error.retryAfter ?? 0)
      refused ||= stale
      failures++
      onLost?.({ error: attempt.signal.reason ?? error, pause })
    } finally {
      attempt.abort()
    }
  }
}

/** The same with a callback for each event. Returns `close()` and `done`, a promise that rejects if it ended with an error. */
export function listen (url, options, onEvent) {
  const { onEnd = console.error } = options
  const own = new AbortController()
  const close = () => own.abort()
  options.signal?.addEventListener('abort', close, { signal: own.signal })
  if (options.signal?.aborted) close()
  const follow = async () => {
    for await (const event of subscribe(url, { ...options, signal: own.signal })) await onEvent(event)
  }
  const done = follow().finally(close)
  done.catch(onEnd) // so that the rejection is handled, and seen, if nobody awaits `done`
  return { close, done }
}

/** What is wrong here stays wrong, so it is an error before the first attempt. */
function prepared (url, options) {
  const { channels = [], userId, envelope, latest, onDenied, until } = options
  if (!Array.isArray(channels) || channels.some((name) => typeof name !== 'string')) throw new TypeError('channels must be an array of strings')
  const target = new URL(url, globalThis.document?.baseURI)
  if (channels.length) target.searchParams.set('channels', channels.join(','))
  if (userId !== undefined) target.searchParams.set('userId', userId)
  if (latest !== undefined) target.searchParams.set('latest', latest)
  if (envelope) target.searchParams.set('envelope', envelope)
  if (onDenied) target.searchParams.set('denied', 'skip')
  if (until) target.searchParams.set('until', until)
  return { target, fixed: new Headers(options.headers) }
}

async function open ({ target, fixed }, options, cursor, signal) {
  const { token, credentials = 'same-origin', fetch = globalThis.fetch } = options
  const headers = new Headers(fixed)
  const bearer = typeof token === 'function' ? await token() : token
  if (bearer) headers.set('Authorization', `Bearer ${bearer}`)
  headers.set('Accept', 'text/event-stream')
  if (cursor) headers.set('Last-Event-ID', cursor)
  const response = await fetch(target, { headers, signal, cache: 'no-store', credentials })
  const type = response.headers.get('Content-Type') ?? ''
  if (response.status === 204 || (response.status === 200 && type.startsWith('text/event-stream'))) return response
  const problem = type.includes('json') ? await response.json().catch(() => undefined) : undefined
  const message = problem?.detail ?? `expected an event stream, got ${type || 'no content type'} (${response.status}) at ${target}`
  const after = response.headers.get('Retry-After') // seconds, or a date
  const retryAfter = after * 1000 || Date.parse(after) - Date.now() || 0
  throw Object.assign(new StreamError(message), { status: response.status, problem, retryAfter })
}

/** The blocks of a body, each as an object with its fields. */
async function * blocks (reader, timed) {
  const decoder = new TextDecoder()
  let text = ''
  for (;;) {
    const { value, done } = await timed(reader.read())
    if (done) return
    // A CR at the end waits: the LF of a CRLF may be in the next chunk.
    text = (text + decoder.decode(value, { stream: true })).replace(/\r\n|\r(?!$)/g, '\n')
    const complete = text.split('\n\n')
    text = complete.pop()
    yield * complete.map(parse)
  }
}

function parse (text) {
  const block = {}
  for (const line of text.split('\n')) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line)
    block[name] = name === 'data' && name in block ? `${block.data}\n${value}` : value
  }
  return block
}

const sleep = (time, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, time)
  signal.addEventListener('abort', () => reject(clearTimeout(timer)))
})
