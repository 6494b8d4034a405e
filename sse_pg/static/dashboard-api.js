// Requests to the server that this page came from. A token is kept in memory, and in a cookie that no script can read.

let token
let asking

/** A response other than 2xx; `status` is the HTTP status. */
export class Refused extends Error {
  constructor (status, problem) {
    super(problem?.detail ?? `The server responded with status ${status}.`)
    this.status = status
  }
}

/** Request JSON. If the server requires a token, ask the user for one. */
export async function request (path, { method = 'GET', body, exact = false } = {}) {
  for (;;) {
    const used = token
    const headers = { Accept: 'application/json' }
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    if (used) headers.Authorization = `Bearer ${used}`
    const response = await fetch(address(path), { method, body, headers, cache: 'no-store' }).catch(() => {
      throw new Error(`The server does not respond${method === 'GET' ? '.' : '; it is not known whether this was done.'}`)
    })
    const answer = await response.text().then((text) => exact ? parseExactly(text) : JSON.parse(text)).catch(() => undefined)
    if (response.ok) return answer
    if (response.status !== 401) throw new Refused(response.status, answer)
    if (token === used) await askForToken(answer?.detail)
  }
}

/** Parse JSON. Numbers that a double cannot hold stay as they were written, if the browser supports that. */
function parseExactly (text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === 'number' && context?.source !== undefined && String(value) !== context.source && JSON.rawJSON
      ? JSON.rawJSON(context.source)
      : value)
}

export function address (path) {
  return new URL(path, document.baseURI)
}

/** For the stream, which calls this before each connection. Without a token the browser sends the cookie. */
export function currentToken () {
  return token
}

/** Ask the user for a token until the server accepts one. It is also stored in a cookie that scripts cannot read. */
export function askForToken (why = '') {
  asking ??= ask(why).finally(() => { asking = undefined })
  return asking
}

async function ask (why) {
  for (;;) {
    const typed = await entered(why)
    const headers = { Authorization: `Bearer ${typed}` }
    const response = await fetch(address('api/events/session'), { method: 'POST', headers }).catch(() => undefined)
    if (response?.ok) {
      token = typed
      return
    }
    why = (await response?.json().catch(() => undefined))?.detail ?? 'The server does not respond.'
  }
}

function entered (why) {
  const dialog = document.getElementById('ask')
  const field = document.getElementById('token').elements.token
  document.getElementById('ask-why').textContent = why
  field.value = ''
  dialog.showModal()
  return new Promise((resolve) => {
    dialog.addEventListener('close', function end () {
      if (!field.value.trim()) return dialog.showModal() // without a token there is nothing to show
      dialog.removeEventListener('close', end)
      resolve(field.value.trim())
    })
  })
}

/** Forget the token, in memory and in the cookie. */
export async function leave () {
  await fetch(address('api/events/session'), { method: 'DELETE' })
  location.reload()
}
