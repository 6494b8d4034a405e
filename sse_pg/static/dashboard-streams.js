// The list of open streams, and disconnecting a user.

import { request } from './dashboard-api.js'
import { put } from './dashboard-numbers.js'
import { button, cells, named, rows } from './dashboard-tables.js'
import { ago, full } from './dashboard-units.js'

const MOST = 20

/** `onUser` is called with the user that is clicked. */
export class Streams {
  onUser = () => {}
  #clock
  #all = document.getElementById('all-servers')

  /** `clock` returns the server's time, in seconds. */
  constructor (clock) {
    this.#clock = clock
    this.#all.addEventListener('change', () => this.look())
  }

  /** Ask the server that answers, or, if the user of the page wants that, all servers: they write answers. */
  async look () {
    const all = this.#all.checked
    const found = await request(`api/events/streams?limit=${MOST}${all ? '&servers=all' : ''}`).catch(() => undefined)
    if (found && all === this.#all.checked) this.#show(found, all)
  }

  #show ({ server, otherServers, count, streams }, all) {
    document.getElementById('streams').hidden = !count && !otherServers.length
    document.getElementById('of-all').hidden = !otherServers.length
    const shown = count > streams.length ? `the ${streams.length} worst readers of ${full(count)}` : 'the worst readers first'
    const silent = all ? [server, ...otherServers].filter(({ answered }) => !answered).map(({ name, pid }) => `${name} · ${pid}`) : []
    const where = all ? `on ${otherServers.length + 1} servers` : `on ${server?.name ?? 'this server'}${otherServers.length ? ` · ${server?.pid}` : ''}`
    put('streams-note', `${shown}, ${where}${silent.length ? `; no answer from ${silent.join(', ')}` : ''}`, silent.length > 0)
    rows('t-streams', streams, ({ serverId, number }) => `${serverId} ${number}`, (row, each) => {
      if (!row.cells.length) this.#fill(row, each.userId)
      const names = named(each)
      const age = this.#clock() - Date.parse(each.since) / 1000
      cells(row, [undefined, each.address, names, ago(age), full(each.unreadBytes)], ['cut', 'cut', 'cut', 'n', each.unreadBytes ? 'n warn' : 'n'])
      row.cells[2].title = names
      row.cells[3].title = `${each.since}, ${full(each.sentBytes)} bytes sent`
    })
  }

  #fill (row, user) {
    for (let cell = 0; cell < 6; cell++) row.insertCell()
    if (user === null) {
      row.cells[0].textContent = '–'
      return
    }
    const ask = button(user, () => this.onUser(user))
    ask.title = ask.ariaLabel = `What may user ${user} read?`
    row.cells[0].append(ask)
    const end = button('✕', () => this.#disconnect(user))
    end.title = end.ariaLabel = `Disconnect user ${user}`
    row.cells[5].append(end)
  }

  async #disconnect (user) {
    if (!window.confirm(`End all streams of user ${user}, on all servers? The client reconnects if it may.`)) return
    try {
      await request(`api/events/streams?userId=${encodeURIComponent(user)}`, { method: 'DELETE' })
      await this.look()
    } catch (error) {
      put('streams-note', error.message, true)
    }
  }
}
