// Events as rows that can be opened. Everything is inserted as text, because payloads may come from anybody.

const SHORT = 300
const WHOLE = 200000

/** A row of an event: {id, channel, eventType, createdAt, headers, json}; `json` is the payload's text. */
export function eventRow ({ id, channel, eventType, createdAt, headers, json }) {
  const row = element('li')
  const details = row.appendChild(element('details'))
  const summary = details.appendChild(element('summary'))
  const today = createdAt.slice(0, 10) === new Date().toISOString().slice(0, 10)
  const time = element('time', 'time', today ? createdAt.slice(11, 23) : `${createdAt.slice(5, 10)} ${createdAt.slice(11, 19)}`)
  time.dateTime = createdAt
  time.title = createdAt
  const channelCell = element('span', 'channel', channel)
  channelCell.title = channel
  const typeCell = element('span', 'type', eventType)
  typeCell.title = eventType
  summary.append(time, element('span', 'id', String(id)), channelCell, typeCell, element('span', 'short', json.slice(0, SHORT)))
  details.addEventListener('toggle', () => {
    if (!details.open || details.children.length > 1) return
    const whole = details.appendChild(element('div', 'whole'))
    const text = pretty(json)
    whole.append(element('pre', '', text.length > WHOLE ? `${text.slice(0, WHOLE)}\n… ${text.length - WHOLE} more characters` : text))
    if (headers !== undefined) whole.append(element('pre', 'headers', `headers ${pretty(JSON.stringify(headers))}`))
    const copy = whole.appendChild(element('button', '', 'Copy'))
    copy.type = 'button'
    copy.addEventListener('click', async () => {
      try {
        await navigator.clipboard.writeText(json)
        copy.textContent = 'Copied'
      } catch {
        copy.textContent = 'Not allowed'
      }
      setTimeout(() => { copy.textContent = 'Copy' }, 1500)
    })
  })
  row.number = Number(id)
  row.searched = `${id} ${channel} ${eventType} ${json}`.toLowerCase()
  return row
}

export function markRow (text, kind = '') {
  const row = element('li')
  row.append(element('div', `mark ${kind}`, text))
  row.lasting = true
  return row
}

export function element (name, className = '', text) {
  const made = document.createElement(name)
  if (className) made.className = className
  if (text !== undefined) made.textContent = text
  return made
}

/** JSON with line breaks. The tokens are kept unchanged: parsing would alter numbers that a double cannot hold. */
export function pretty (json) {
  let depth = 0
  const parts = []
  const line = () => parts.push('\n', '  '.repeat(depth))
  const tokens = tokensOf(json)
  tokens.forEach((token, place) => {
    if (token === '}' || token === ']') {
      depth--
      if (!'{['.includes(tokens[place - 1])) line()
      parts.push(token)
    } else if (token === '{' || token === '[') {
      parts.push(token)
      depth++
      if (!'}]'.includes(tokens[place + 1])) line()
    } else if (token === ',') {
      parts.push(token)
      line()
    } else parts.push(token === ':' ? ': ' : token)
  })
  return parts.join('')
}

/** The same in one line, with spaces as PostgreSQL writes them. */
export function spaced (json) {
  return tokensOf(json).map((token) => token === ',' || token === ':' ? `${token} ` : token).join('')
}

function tokensOf (json) {
  return json.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) ?? []
}
