// The live feed: one stream of the chosen channels, its rows, and the state of the connection.

import { StreamError, listen } from '../sse-pg.js'
import { address, askForToken, currentToken, request } from './dashboard-api.js'
import { eventRow, markRow } from './rows.js'

const ROWS = 400
const WAITING = 2000

export class Feed {
  channels = []
  paused = false
  onState = () => {}
  onLost = () => {}
  onChannels = () => {}
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

  /** Follow these channels from now on. Channels that were followed before continue where they are. */
  follow (channels) {
    this.channels = [...new Set(channels)]
    this.onChannels(this.channels)
    this.#open()
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

  #open () {
    this.#stream?.close()
    this.#replay = this.#lostAt = undefined
    this.#say()
    if (!this.channels.length) return this.onState('waiting', 'not following any channel')
    this.onState('waiting', 'connecting')
    const mine = this.#stream = listen(address('api/events/stream'), {
      channels: this.channels,
      envelope: true,
      from: this.#cursor,
      token: currentToken,
      onOpen: ({ id }) => { if (mine === this.#stream) this.#opened(id) },
      onLost: (lost) => { if (mine === this.#stream) this.#lost(lost) },
      onGap: (gap) => { if (mine === this.#stream) this.#gap(gap) },
      onEnd: () => {} // said below
    }, (event) => { if (mine === this.#stream) this.#event(event) })
    mine.done.catch(async (error) => {
      if (mine !== this.#stream) return
      this.onState('lost', error.message)
      if (error instanceof StreamError && error.status === 401) {
        await askForToken(error.message)
        if (mine === this.#stream) this.#open()
      } else this.#mark(`The stream ended: ${error.message}${error.status === 403 ? ' Remove the channel above to continue.' : ''}`, 'bad')
    })
  }

  #opened (id) {
    this.#cursor = id
    this.onState('live', `live, ${this.channels.length} ${this.channels.length === 1 ? 'channel' : 'channels'}`)
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
    }, () => {})
  }

  #tellReplay (replay = this.#replay) {
    const { count } = replay
    replay.row.firstChild.textContent = `Reconnected after ${replay.seconds} s; ${count} ${count === 1 ? 'event' : 'events'} replayed.`
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
    this.#mark(`Gap (${reason}): the events between ${after} and ${before} can no longer be delivered.`, 'bad')
  }

  #event ({ id, data, text }) {
    this.#cursor = id
    const json = text.slice(text.indexOf(',"payload":') + 11, text.lastIndexOf(',"createdAt":"'))
    const row = eventRow({ ...data, json })
    const replay = this.#replay
    if (replay && (replay.upTo === undefined || data.id <= replay.upTo)) {
      replay.rows?.push([row, data.id])
      replay.count++
      row.classList.add('replayed')
      this.#tellReplay()
    }
    this.#put(row)
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
      ? 'You are not following any channel yet. Add one above, or choose one from the list of channels.'
      : this.#filter ? 'No event matches the filter.' : `Waiting for events on ${this.channels.join(', ')}.`
    this.onCount?.(this.paused ? this.waiting : 0)
  }
}
