// Reads the streams of an sse-pg server with fetch: header fields (tokens), a cursor that outlives the page, gaps that
// are told, silence that is noticed. Types: sse-pg.d.ts. Without any of these needs, EventSource does.

const FINAL = 'the server refused the stream'
const LONGEST_PAUSE = 30000

/** An answer after which there is no use in coming back. `status` is that of HTTP, `problem` the problem document. */
export class StreamError extends Error {
  constructor (status, problem, message = problem?.detail ?? `${FINAL} (${status})`) {
    super(message)
    this.name = 'StreamError'
    this.status = status
    this.problem = problem
  }
}

/** Follow a stream until the signal aborts or the loop is left: `for await (const event of subscribe(url, options))`. */
export async function * subscribe (url, options = {}) {
  const { key, signal, silence = 45000, onOpen, onLost, onGap } = options
  const storage = key === undefined ? undefined : options.storage ?? globalThis.sessionStorage
  let cursor = storage?.getItem(key) ?? options.from ?? ''
  let retry = 2000
  let failures = 0 // in a row, of connections that brought nothing
  let refused = false
  const reach = (id) => {
    cursor = id
    storage?.setItem(key, id)
  }

  while (!signal?.aborted) {
    const attempt = new AbortController()
    const stop = () => attempt.abort()
    let timer
    const rest = () => clearTimeout(timer)
    const watch = () => {
      rest()
      timer = setTimeout(() => attempt.abort(new Error(`nothing came for ${silence / 1000} s`)), silence)
    }
    signal?.addEventListener('abort', stop)
    let pause = 0
    try {
      watch()
      const response = await open(url, options, cursor, attempt.signal)
      refused = false
      for await (const block of blocks(response.body.getReader(), watch, rest)) {
        failures = 0
        if (block.retry !== undefined) retry = block.retry
        if (block.type === undefined) continue
        if (block.type === 'sse-pg.hello') onOpen?.({ id: block.id, resumed: cursor })
        else if (block.type === 'sse-pg.gap') onGap?.(JSON.parse(block.data))
        else if (!block.type.startsWith('sse-pg.')) {
          yield { id: block.id ?? cursor, type: block.type, data: JSON.parse(block.data), text: block.data }
        }
        // Only now: who leaves the page while an event is being handled gets that event again.
        if (block.id !== undefined) reach(block.id)
      }
      throw new Error('the stream ended')
    } catch (error) {
      if (signal?.aborted) return
      if (error instanceof StreamError) {
        // A token that has run out is asked for once more; then, or where there is nobody to ask, that is the end.
        if (error.status !== 401 || typeof options.token !== 'function' || refused) throw error
        refused = true
      } else {
        pause = failures === 0 ? retry : Math.max(retry, Math.min(LONGEST_PAUSE, retry * 2 ** failures))
        if (failures > 0) pause *= 0.5 + Math.random()
        pause = Math.max(pause, error.retryAfter ?? 0)
        failures = Math.min(failures + 1, 10)
      }
      onLost?.({ error: attempt.signal.reason ?? error, pause })
    } finally {
      rest()
      signal?.removeEventListener('abort', stop)
      attempt.abort()
    }
    await sleep(pause, signal)
  }
}

/** The same with a function for each event. Returns `close()` and `done`, a promise that rejects with a StreamError. */
export function listen (url, options, onEvent) {
  const own = new AbortController()
  const stop = () => own.abort()
  if (options.signal?.aborted) stop()
  options.signal?.addEventListener('abort', stop)
  const done = (async () => {
    try {
      for await (const event of subscribe(url, { ...options, signal: own.signal })) await onEvent(event)
    } finally {
      options.signal?.removeEventListener('abort', stop)
    }
  })()
  return { close: stop, done }
}

async function open (url, options, cursor, signal) {
  const target = new URL(url, globalThis.document?.baseURI)
  if (options.channels?.length) target.searchParams.set('channels', options.channels.join(','))
  if (options.userId !== undefined) target.searchParams.set('userId', options.userId)
  if (options.envelope) target.searchParams.set('envelope', 'true')
  const headers = new Headers(options.headers)
  const token = typeof options.token === 'function' ? await options.token() : options.token
  if (token) headers.set('Authorization', `Bearer ${token}`)
  headers.set('Accept', 'text/event-stream')
  if (cursor) headers.set('Last-Event-ID', cursor)
  const request = { headers, signal, cache: 'no-store', credentials: options.credentials ?? 'same-origin' }
  const response = await (options.fetch ?? globalThis.fetch)(target, request)
  const type = response.headers.get('Content-Type') ?? ''
  if (response.status === 200 && type.startsWith('text/event-stream')) return response
  const problem = type.includes('json') ? await response.json().catch(() => undefined) : undefined
  await response.body?.cancel().catch(() => {})
  if (response.status === 200) throw new StreamError(200, problem, `no event stream but ${type || 'nothing'} at ${target}`)
  if (response.status < 500 && ![408, 425, 429].includes(response.status)) throw new StreamError(response.status, problem)
  const error = new Error(problem?.detail ?? `the server answered ${response.status}`)
  error.status = response.status
  error.retryAfter = milliseconds(response.headers.get('Retry-After'))
  throw error
}

/** The blocks of a body: {id, type, data, retry}; type is missing where a block is no event. */
async function * blocks (reader, watch, rest) {
  const decoder = new TextDecoder()
  let text = ''
  let block = {}
  let data = []
  try {
    for (;;) {
      watch()
      const { value, done } = await reader.read()
      rest() // the time that the reader of the events takes is no silence
      if (done) return
      text += decoder.decode(value, { stream: true })
      const held = text.endsWith('\r') ? '\r' : '' // the LF of a CRLF may be in the next chunk
      const lines = text.slice(0, text.length - held.length).split(/\r\n|\n|\r/)
      text = lines.pop() + held
      for (const line of lines) {
        const [, name, field] = /^([^:]*):? ?(.*)$/s.exec(line)
        if (line === '') {
          if (data.length) Object.assign(block, { type: block.event || 'message', data: data.join('\n') })
          yield block
          block = {}
          data = []
        } else if (name === 'data') data.push(field)
        else if (name === 'event') block.event = field
        else if (name === 'id' && !field.includes('\0')) block.id = field
        else if (name === 'retry' && /^\d+$/.test(field)) block.retry = Number(field)
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

function milliseconds (retryAfter) {
  if (!retryAfter) return 0
  const time = /^\d+$/.test(retryAfter) ? retryAfter * 1000 : Date.parse(retryAfter) - Date.now()
  return Number.isFinite(time) ? Math.max(0, time) : 0
}

function sleep (time, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(end, time)
    signal?.addEventListener('abort', end)
    function end () {
      clearTimeout(timer)
      signal?.removeEventListener('abort', end)
      resolve()
    }
    if (signal?.aborted) end()
  })
}
