// Requests to the server that this page came from. A token is kept here, in memory, and nowhere else.

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
export async function request (path, { method = 'GET', body, signal } = {}) {
  for (;;) {
    const used = token
    const headers = { Accept: 'application/json' }
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    if (used) headers.Authorization = `Bearer ${used}`
    const response = await fetch(address(path), { method, body, headers, signal, cache: 'no-store' })
    const answer = await response.json().catch(() => undefined)
    if (response.ok) return answer
    if (response.status !== 401) throw new Refused(response.status, answer)
    if (token === used) await askForToken(answer?.detail)
  }
}

export function address (path) {
  return new URL(path, document.baseURI)
}

/** For the stream, which asks before each connection. A token that was just refused is asked for anew. */
export function currentToken () {
  return token
}

export function askForToken (why = '') {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById('ask')
    const form = document.getElementById('token')
    document.getElementById('ask-why').textContent = why
    form.elements.token.value = ''
    const end = () => {
      if (!form.elements.token.value) return dialog.showModal() // without one, there is nothing to see here
      token = form.elements.token.value.trim()
      dialog.removeEventListener('close', end)
      asking = undefined
      resolve(token)
    }
    dialog.addEventListener('close', end)
    dialog.showModal()
  })
  return asking
}
