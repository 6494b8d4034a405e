// The live feed: one stream of the followed channels, its rows, and the state of the connection.

import { StreamError, listen } from '../sse-pg.js'
import { Refused, access, address, request } from './dashboard-api.js'
import { counted } from './dashboard-units.js'
import { eventRow, markRow, spaced } from './rows.js'

const ROWS = 400
const WAITING = 2000
const STORED = 20 // events that are shown of what begins to be followed

export class Feed {
  channels = []
  paused = false
  onState = () => {}
  onLost = () => {}
  onDenied = () => {}
  #list = document.getElementById('feed')
  #empty = document.getElementById('empty')
  #filter = ''
  #waiting = []
  #skipped = 0
  #drawing = false
  #stream
  #cursor = ''
  #lostAt
  #replay
  #ended = false
  #owed = new Set() // channels of which the last stored events are to be shown
  #stored = new Set() // ids of the rows that were read from the log

  /**
   * Follow these channels from now on. Channels that were followed before continue where they are. Of the others, the
   * last stored events are shown, unless they have just appeared: then the stream has all their events.
   */
  follow (channels, { appeared = false } = {}) {
    const added = channels.filter((name) => !this.channels.includes(name))
    if (!added.length && channels.length === this.channels.length) return this.#say()
    this.channels = channels
    if (!appeared || !this.#cursor) for (const name of added) this.#owed.add(name)
    this.#open()
  }

  /** Try again now. */
  reconnect () {
    if (this.#lostAt !== undefined || this.#ended) this.#open(this.#lostAt)
  }

  pause (paused) {
    this.paused = paused
    this.#drawSoon()
  }

  filter (text) {
    this.#filter = text.trim().toLowerCase()
    for (const row of this.#list.children) this.#sift(row)
    this.#say()
  }

  clear () {
    this.#waiting = []
    this.#skipped = 0
    this.#list.replaceChildren()
    this.#say()
  }

  get waiting () {
    return this.#waiting.filter((row) => !row.lasting).length + this.#skipped
  }

  #open (lostAt) {
    this.#stream?.close()
    this.#stream = this.#replay = undefined
    this.#lostAt = lostAt
    this.#ended = false
    this.#say()
    if (!this.channels.length) return this.onState('waiting', 'not following any channel')
    this.onState('waiting', 'connecting')
    const mine = this.#stream = listen(address('api/events/stream'), {
      channels: this.channels,
      envelope: true,
      from: this.#cursor,
      token: () => access.token, // without a token the browser sends the cookie
      onOpen: ({ id }) => {
        if (mine !== this.#stream) return
        this.#opened(id)
        this.#recall([...this.#owed].filter((name) => this.channels.includes(name)), mine)
        this.#owed.clear()
      },
      onLost: (lost) => { if (mine === this.#stream) this.#lost(lost) },
      onGap: (gap) => { if (mine === this.#stream) this.#gap(gap) },
      onDenied: (channels) => { if (mine === this.#stream) this.#denied(channels) },
      onEnd: () => {} // said below
    }, (event) => { if (mine === this.#stream) this.#event(event) })
    mine.done.catch(async (error) => {
      if (mine !== this.#stream) return
      this.#ended = true
      this.onState('lost', error.message)
      if (error instanceof StreamError && error.status === 401) {
        await access.ask(error.message)
        if (mine === this.#stream) this.#open()
      } else {
        if (error.status === 403) this.onDenied(this.channels)
        this.#mark(`The stream ended: ${error.message}`, 'bad')
      }
    })
  }

  #opened (id) {
    this.#cursor = id
    this.onState('live', `live, ${counted(this.channels.length, 'channel')}`)
    if (this.#lostAt === undefined) return
    const seconds = ((performance.now() - this.#lostAt) / 1000).toFixed(1)
    this.#lostAt = undefined
    const row = this.#mark('', 'good')
    const replay = this.#replay = { row, seconds, rows: [], count: 0, upTo: undefined }
    this.#tellReplay()
    // Events that existed when the connection came back are replayed; newer ones are live.
    request('api/events/stats?seconds=0').then(({ log, server }) => {
      // The position is current; the newest id may be half a second old.
      replay.upTo = Math.max(log.newestId, Number.parseInt(server.position))
      for (const [row, number] of replay.rows) if (number > replay.upTo) row.classList.remove('replayed')
      replay.rows = replay.rows.filter(([, number]) => number <= replay.upTo)
      replay.count = replay.rows.length
      replay.rows = undefined
      this.#tellReplay(replay)
    }, () => { // without the right to see the statistics it is not known where the replay ends
      for (const [row] of replay.rows) row.classList.remove('replayed')
      row.firstChild.textContent = `Reconnected after ${seconds} s; the events that were missed follow.`
      if (replay === this.#replay) this.#replay = undefined
    })
  }

  /**
   * Show the last stored events of some channels. The stream is open already, so what is committed from now on comes
   * there; what comes on both ways is shown once.
   */
  async #recall (channels, mine) {
    let names = channels
    let events
    while (!events && names.length) {
      const parameters = new URLSearchParams({ channel: names.join(','), order: 'desc', limit: STORED })
      try {
        ({ events } = await request(`api/events/history?${parameters}`, { exact: true }))
      } catch (error) {
        const refused = new Set(error instanceof Refused && error.status === 403 ? error.problem?.errors?.map(({ detail }) => detail) : [])
        if (!refused.size) return this.#mark(`The last events are not shown: ${error.message}`, 'bad')
        names = names.filter((name) => !refused.has(name))
      }
    }
    if (mine !== this.#stream || !events) return
    const shown = new Set([...this.#list.children, ...this.#waiting].map((row) => row.number))
    const rows = events.filter(({ id }) => !shown.has(id)).map((event) => this.#row(event, spaced(JSON.stringify(event.payload))))
    if (rows.length && !this.#stored.size) rows.unshift(Object.assign(markRow('Live from here on. Below are the last stored events.'), { number: rows[0].number }))
    for (const row of rows) {
      if (!row.lasting) this.#stored.add(row.number)
      this.#sift(row)
      this.#list.insertBefore(row, [...this.#list.children].find((each) => each.number < row.number) ?? null)
    }
    this.#say()
  }

  #tellReplay (replay = this.#replay) {
    replay.row.firstChild.textContent = `Reconnected after ${replay.seconds} s; ${counted(replay.count, 'event')} replayed.`
  }

  #lost ({ error, pause }) {
    if (this.#lostAt === undefined) {
      this.#lostAt = performance.now()
      this.#mark(`Connection lost: ${error.message}. Reconnecting automatically.`, 'bad')
      this.onLost()
    }
    this.onState('lost', `connection lost, next attempt in ${(pause / 1000).toFixed(1)} s`)
  }

  #gap ({ reason, after, before }) {
    const from = Number.parseInt(after)
    const to = Number.parseInt(before)
    this.#mark(reason === 'expired'
      ? `Events between the ids ${from} and ${to} are missing: they were deleted by retention before this page had them.`
      : `Events before the id ${to} may be missing: the log was restored, or another database took over.`, 'bad')
  }

  #denied (channels) {
    this.onState('live', `live, ${counted(this.channels.length - channels.length, 'channel')}; ${channels.length} not allowed`)
    this.onDenied(channels)
  }

  #event ({ id, data, text }) {
    this.#cursor = id
    if (this.#stored.has(data.id)) return
    const row = this.#row(data, payloadOf(text, data.headers !== undefined))
    const replay = this.#replay
    if (replay && (replay.upTo === undefined || data.id <= replay.upTo)) {
      replay.rows?.push([row, data.id])
      replay.count++
      row.classList.add('replayed')
      this.#tellReplay()
    }
    this.#put(row)
  }

  #row (event, json) {
    return eventRow({ ...event, json })
  }

  #mark (text, kind) {
    const row = markRow(text, kind)
    this.#put(row)
    return row
  }

  #put (row) {
    this.#waiting.push(row)
    if (this.#waiting.length > WAITING) {
      this.#waiting.shift()
      this.#skipped++
    }
    this.#drawSoon()
  }

  #drawSoon () {
    if (this.#drawing) return
    this.#drawing = true
    // A hidden page draws no frames; its rows wait in a list of bounded length.
    requestAnimationFrame(() => {
      this.#drawing = false
      if (!this.paused) {
        const rows = this.#waiting.splice(0).slice(-ROWS).reverse()
        rows.forEach((row) => this.#sift(row))
        this.#skipped = 0
        this.#list.prepend(...rows)
        while (this.#list.children.length > ROWS) this.#list.lastChild.remove()
      }
      this.#say()
    })
  }

  #sift (row) {
    row.hidden = !row.lasting && this.#filter !== '' && !row.searched.includes(this.#filter)
  }

  #say () {
    const rows = [...this.#list.children].filter((row) => !row.hidden)
    this.#empty.hidden = rows.length > 0
    this.#empty.textContent = !this.channels.length
      ? 'There is no channel to show yet. Channels appear here with their first event; you can also add one above.'
      : this.#filter ? 'No event matches the filter.' : `Waiting for events on ${this.channels.join(', ')}.`
    this.onCount?.(this.paused ? this.waiting : 0)
  }
}

/** The payload's text in an envelope, unchanged: parsing would alter numbers that a double cannot hold. */
function payloadOf (text, hasHeaders) {
  const start = text.indexOf(',"payload":') + 11
  if (!hasHeaders) return text.slice(start, text.lastIndexOf(',"createdAt":"'))
  const places = text.matchAll(/,"headers":/g)
  // The payload may have a key of that name, too, but what stands before that is not a whole JSON value.
  for (const { index } of places) if (isJson(text.slice(start, index))) return text.slice(start, index)
}

function isJson (text) {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
