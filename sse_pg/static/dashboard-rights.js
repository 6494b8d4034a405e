// What a user may read and publish to, by the access rule.

import { request } from './dashboard-api.js'
import { cells, rows } from './dashboard-tables.js'
import { counted } from './dashboard-units.js'

const MOST = 100 // channels in a question

export class Rights {
  /** Returns the channels that are asked about if the user of the page names none. */
  channels = () => []
  #form = document.getElementById('ask-rights')
  #note = document.getElementById('rights-note')
  #table = document.getElementById('t-rights')
  #asked = 0

  constructor () {
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault()
      this.#ask()
    })
  }

  about (user) {
    this.#form.elements.user.value = user
    this.#form.elements.channels.value = ''
    this.#form.scrollIntoView({ block: 'nearest' })
    return this.#ask()
  }

  async #ask () {
    const mine = ++this.#asked
    const user = this.#form.elements.user.value.trim()
    const typed = this.#form.elements.channels.value.split(/[\s,]+/).filter(Boolean)
    try {
      const { channels: subscribed } = await request(`api/events/channels?${new URLSearchParams({ userId: user })}`)
      const channels = typed.length ? typed : [...new Set([...subscribed, ...this.channels()])].slice(0, MOST)
      const found = channels.length
        ? await request(`api/events/rights?${new URLSearchParams({ userId: user, channels: channels.join(',') })}`)
        : { subscribe: [], publish: [] }
      if (mine === this.#asked) this.#show(user, channels, subscribed, found)
    } catch (error) {
      if (mine !== this.#asked) return
      this.#table.hidden = true
      this.#say(error.message, 'bad')
    }
  }

  #show (user, channels, subscribed, { subscribe, publish }) {
    this.#table.hidden = !channels.length
    const word = (yes) => yes ? 'yes' : 'no'
    rows('t-rights', channels, (name) => name, (row, name) => {
      const reads = subscribe.includes(name)
      cells(row, [name, word(reads), word(publish.includes(name)), word(subscribed.includes(name))], ['cut', reads ? '' : 'soft', publish.includes(name) ? '' : 'soft', subscribed.includes(name) ? '' : 'soft'])
      row.cells[0].title = name
    })
    this.#say(channels.length
      ? `User ${user} may read ${subscribe.length} of ${counted(channels.length, 'channel')}. That is the access rule; the user's token may allow less.`
      : 'No channel is known yet. Name one.')
  }

  #say (text, kind = '') {
    this.#note.className = `note ${kind}`
    this.#note.textContent = text
  }
}
