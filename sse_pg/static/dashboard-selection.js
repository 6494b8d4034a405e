// What the feed follows: channels and patterns, as chips, in the form, in the page's address.

import { element } from './rows.js'

export const ALL = '**'
const MOST = 100 // channels that patterns may choose: they are all named in the stream's address
const $ = (id) => document.getElementById(id)

export class Selection {
  /** Channels and patterns, as the user chose them. */
  names = []
  onChange = () => {}
  #known = []
  #denied = new Set()

  constructor () {
    $('follow').addEventListener('submit', (event) => {
      event.preventDefault()
      const names = $('channels').value.split(/[\s,]+/).filter(Boolean)
      $('channels').value = ''
      if (names.length) this.set([...this.names.filter((name) => name !== ALL), ...names])
    })
    $('all').addEventListener('click', () => this.set([ALL]))
    window.addEventListener('hashchange', () => {
      const names = fromAddress()
      if (names && names.join() !== this.names.join()) this.set(names)
    })
  }

  /** Begin with what the address says, or else with all channels. */
  start () {
    this.set(fromAddress() ?? [ALL], false)
  }

  set (names, chosen = true) {
    this.names = [...new Set(names)]
    this.#denied.clear()
    if (chosen) {
      const text = this.names.map(encodeURIComponent).join(',')
      window.history.replaceState(null, '', `#channels=${text}`)
    }
    this.#show()
    this.onChange(false)
  }

  /** Follow a channel, or stop following it. While all are followed, a channel is followed alone. */
  toggle (name) {
    if (this.names.includes(ALL)) this.set([name])
    else this.set(this.names.includes(name) ? this.names.filter((each) => each !== name) : [...this.names, name])
  }

  /** The channels to follow now. */
  get channels () {
    const patterns = this.names.filter(isPattern)
    const chosen = this.names.filter((name) => !isPattern(name))
    const matched = this.#known.filter((name) => patterns.some((pattern) => matches(pattern, name)))
    return [...new Set([...chosen, ...matched.slice(0, MOST)])]
  }

  follows (channel) {
    return this.names.some((name) => name === channel || (isPattern(name) && matches(name, channel)))
  }

  /** Note the channels that exist. New ones may match a pattern. */
  know (channels) {
    const before = this.#known.length
    this.#known = [...new Set([...this.#known, ...channels])]
    if (this.#known.length > before && this.names.some(isPattern)) this.onChange(true)
  }

  /** Mark what the user may not read. */
  deny (channels) {
    for (const name of channels) this.#denied.add(name)
    this.#show()
  }

  #show () {
    $('all').hidden = this.names.includes(ALL)
    $('chips').replaceChildren(...this.names.map((name) => {
      const chip = element('span', this.#denied.has(name) ? 'chip denied' : 'chip', name === ALL ? 'all channels' : name)
      if (this.#denied.has(name)) chip.append(element('span', '', ': not allowed'))
      const button = element('button', 'plain', '✕')
      button.type = 'button'
      button.ariaLabel = `Stop following ${name === ALL ? 'all channels' : name}`
      button.addEventListener('click', () => this.set(this.names.filter((each) => each !== name)))
      chip.append(button)
      return chip
    }))
  }
}

function fromAddress () {
  const found = /^#channels=(.*)$/.exec(location.hash)
  return found?.[1].split(',').filter(Boolean).map(decodeURIComponent)
}

function isPattern (name) {
  return name.includes('*')
}

/** `*` stands for one level of a channel's name, `**` at the end for one or more. */
function matches (pattern, channel) {
  const levels = pattern.split('.')
  const parts = channel.split('.')
  if (levels.at(-1) === ALL) {
    levels.pop()
    if (parts.length <= levels.length) return false
  } else if (parts.length !== levels.length) return false
  return levels.every((level, place) => level === '*' || level === parts[place])
}
