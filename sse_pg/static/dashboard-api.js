// Requests to the server that this page came from. A token is kept in memory, and in a cookie that no script can read.

let token
let asking

/** An answer other than 2xx; `status` is that of HTTP. */
export class Refused extends Error {
  constructor (status, problem) {
    super(problem?.detail ?? `The server answered ${status}.`)
    this.status = status
  }
}

/** Ask for JSON; asks the user for a token where the server wants one. */
export async function request (path, { method = 'GET', body, exact = false } = {}) {
  for (;;) {
    const used = token
    const headers = { Accept: 'application/json' }
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    if (used) headers.Authorization = `Bearer ${used}`
    const response = await fetch(address(path), { method, body, headers, cache: 'no-store' }).catch(() => {
      throw new Error(`The server does not answer${method === 'GET' ? '.' : '; whether this was done is not known.'}`)
    })
    const answer = await response.text().then((text) => exact ? parseExactly(text) : JSON.parse(text)).catch(() => undefined)
    if (response.ok) return answer
    if (response.status !== 401) throw new Refused(response.status, answer)
    if (token === used) await askForToken(answer?.detail)
  }
}

/** JSON; numbers that a double cannot hold stay as they were written, where the browser can do that. */
function parseExactly (text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === 'number' && context?.source !== undefined && String(value) !== context.source && JSON.rawJSON
      ? JSON.rawJSON(context.source)
      : value)
}

export function address (path) {
  return new URL(path, document.baseURI)
}

/** For the stream, which asks before each connection; without one the browser sends the cookie. */
export function currentToken () {
  return token
}

/** Ask the user for a token until the server takes one. It goes into a cookie that no script can read, too. */
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
    why = (await response?.json().catch(() => undefined))?.detail ?? 'The server does not answer.'
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
      if (!field.value.trim()) return dialog.showModal() // without one, there is nothing to see here
      dialog.removeEventListener('close', end)
      resolve(field.value.trim())
    })
  })
}

/** Forget the token, here and in the cookie. */
export async function leave () {
  await fetch(address('api/events/session'), { method: 'DELETE' })
  location.reload()
}
