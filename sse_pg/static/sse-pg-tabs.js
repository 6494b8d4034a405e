// One stream for all tabs of a browser. What it does and when: docs/javascript.md. Types: sse-pg-tabs.d.ts.

/**
 * A `fetch` for subscribe(): tabs that ask for the same URL share one connection.
 *
 * The tab that holds the lock leads: it passes on everything that its stream receives. Another tab follows it only from
 * a cursor at which both have been. At any other cursor it reads a stream of its own, until it is at one at which the
 * leader has been, or leads itself. So nothing is lost or doubled, whichever tab is closed at whatever moment.
 */
export async function acrossTabs (target, init) {
  const { locks } = globalThis.navigator ?? {}
  if (!locks || !globalThis.BroadcastChannel) return fetch(target, init) // not a secure context, or Node.js
  init.signal?.throwIfAborted()
  const requested = new Headers(init.headers)
  const name = `sse-pg ${target}`
  const tabs = new BroadcastChannel(name)
  const over = new AbortController()
  const encoder = new TextEncoder()
  let last = requested.get('Last-Event-ID') ?? '' // the cursor after what was handed on
  const isFirst = new URL(target).searchParams.has('latest') // without a cursor, it begins before the leader's place
  let own // the AbortController of this tab's own stream, if it reads one
  let term // when this tab began to lead
  let release // stops leading
  let place // of the leading tab: the cursor from which others may follow
  let denied = '' // of the leading tab: what its stream has said of channels that it does not carry
  let before // of the leading tab: the cursor of the block before
  let leader = { term: 0 } // the first message of the tab that leads
  let joined = false
  let seen = [] // what the leader has sent while this tab is not at one of its cursors
  let size = 0
  let body, respond, fail

  const response = new Promise((resolve, reject) => { [respond, fail] = [resolve, reject] })
  const stream = new ReadableStream({
    start: (controller) => { body = controller },
    cancel: () => end()
  }, new ByteLengthQueuingStrategy({ highWaterMark: 32e6 }))

  const streaming = new Response(stream, { headers: { 'Content-Type': 'text/event-stream' } })

  const end = (error) => {
    if (over.signal.aborted) return
    over.abort()
    own?.abort()
    tabs.close()
    release?.()
    fail(error)
    try { body.error(error) } catch {} // the reader has left
  }
  const hand = ({ text, id }) => {
    if (over.signal.aborted) return
    respond(streaming)
    body.enqueue(encoder.encode(text))
    last = id ?? last
    if (body.desiredSize < 0) end(new Error('the events are not read fast enough'))
  }

  /** Pass on to the other tabs what this one, which leads, has received. */
  const tell = (text, id) => {
    // A cursor that does not fit into its length stays the same over several events: nobody may begin there.
    if (id !== undefined && id !== before) place = before = id
    else if (id !== undefined && !/^event: sse-pg\./m.test(text)) place = undefined
    if (text.includes('event: sse-pg.denied\n')) denied += text.replace(/^id:.*\n/m, '')
    tabs.postMessage({ term, text, id, place, denied })
  }
  /** Follow the leader, if it has been where this tab is. */
  const meet = () => {
    const at = seen.findIndex((piece) => piece.place === last)
    if (at < 0) return
    const { denied } = seen[at]
    const rest = seen.slice(at + 1)
    joined = true
    own?.abort()
    own = undefined
    seen = []
    hand({ text: `retry: 1000\nid: ${last}\nevent: sse-pg.hello\ndata: {}\n\n${denied}` })
    rest.forEach(hand)
  }
  const read = async () => {
    own?.abort()
    joined = false
    const attempt = own = new AbortController()
    const { signal } = attempt
    const headers = new Headers(requested)
    if (last) headers.set('Last-Event-ID', last)
    try {
      const answer = await fetch(target, { ...init, headers, signal })
      if (answer.status !== 200 || !answer.headers.get('Content-Type')?.startsWith('text/event-stream')) {
        own = undefined // the answer is still to be read
        respond(answer)
        return end(new Error(`the response was ${answer.status}`))
      }
      const reader = answer.body.getReader()
      const decoder = new TextDecoder()
      let text = ''
      for (;;) {
        const { value, done } = await reader.read()
        if (done) throw new Error('the stream ended')
        text += decoder.decode(value, { stream: true })
        const complete = text.split(/(?<=\n\n)/)
        text = /\n\n$|^:\n$/.test(complete.at(-1)) ? '' : complete.pop()
        for (const piece of complete) {
          if (signal.aborted) return
          const id = /^id: ?(.*)$/m.exec(piece)?.[1]
          hand({ text: piece, id })
          if (signal.aborted) return
          if (term) tell(piece, id)
          else meet()
        }
      }
    } catch (error) {
      if (!signal.aborted) end(error)
    }
  }

  tabs.onmessage = ({ data }) => {
    if (data.ask) {
      if (place) tell('')
      return
    }
    if (term || data.term < leader.term) return
    if (data.term > leader.term) { // it has just begun to lead, or this tab is new
      leader = data
      joined = false
      seen = []
      size = 0
      if (!own && !isFirst) last ||= data.place ?? '' // a stream from now on
      if (!own && last !== data.place) read()
    }
    if (joined) {
      if (data.text) hand(data)
      return
    }
    seen.push(data)
    size += data.text.length
    while (size > 1e6 && seen.length > 1) size -= seen.shift().text.length
    meet()
  }

  init.signal?.addEventListener('abort', () => end(init.signal.reason), { signal: over.signal })
  locks.request(name, { signal: over.signal }, () => new Promise((resolve) => {
    release = resolve
    term = Date.now()
    read() // also if this tab has a stream already: the others begin at the first block of this one
  })).catch(() => {}) // it was closed while it waited
  tabs.postMessage({ ask: true })
  // A leader that does not respond, such as a tab that is stopped in a debugger, must not keep the others waiting.
  setTimeout(() => { if (!own && !joined && !over.signal.aborted) read() }, 3000)
  return response
}
