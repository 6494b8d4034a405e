// Searches the stored events, page by page.

import { request } from './dashboard-api.js'
import { eventRow, spaced } from './rows.js'

export class History {
  #form = document.getElementById('search')
  #list = document.getElementById('pages')
  #found = document.getElementById('found')
  #previous = document.getElementById('previous')
  #next = document.getElementById('next')
  /** The parameters of the pages up to the current one, and those of the next page. */
  #trail = []
  #following
  #asked = 0

  constructor () {
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault()
      this.search()
    })
    this.#next.addEventListener('click', () => this.#show([...this.#trail, this.#following]))
    this.#previous.addEventListener('click', () => this.#show(this.#trail.slice(0, -1)))
  }

  /** The parameters of the form. */
  get parameters () {
    return new URLSearchParams([...new FormData(this.#form)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value))
  }

  /** When the tab opens: fill in the channels of the feed and show their first page. */
  suggest (channels) {
    const field = this.#form.elements.channel
    if (!field.value) field.value = channels.join(',')
    if (field.value && !this.#asked) this.search()
  }

  search () {
    return this.#show([this.parameters])
  }

  async #show (trail) {
    const mine = ++this.#asked
    this.#previous.disabled = this.#next.disabled = true
    const parameters = trail.at(-1)
    try {
      const page = await request(`api/events/history?${parameters}`, { exact: true })
      if (mine !== this.#asked) return
      this.#trail = trail
      this.#list.replaceChildren(...page.events.map((event) => eventRow({ ...event, json: spaced(JSON.stringify(event.payload)) })))
      const count = page.events.length
      this.#say(`Page ${trail.length}: ${count} ${count === 1 ? 'event' : 'events'}${page.hasMore ? ', more follow' : ', last page'}.` +
        (page.gap ? ` Events up to ${page.gap.before} have been purged.` : ''))
      this.#following = new URLSearchParams(parameters)
      if (page.hasMore) this.#following.set(parameters.get('order') === 'asc' ? 'after' : 'before', page.nextCursor)
      this.#next.disabled = !page.hasMore
    } catch (error) {
      if (mine !== this.#asked) return
      this.#say(error.message, 'bad')
    }
    this.#previous.disabled = this.#trail.length < 2
  }

  #say (text, kind = '') {
    this.#found.className = `note ${kind}`
    this.#found.textContent = text
  }
}
