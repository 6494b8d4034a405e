// Requests to the server that this page came from, with the token that the session has, if any.

const TIMEOUT_MS = 15000

/** A response other than 2xx; `status` is the HTTP status, `problem` the problem document. */
export class Refused extends Error {
  constructor (status, problem) {
    super(problem?.detail ?? `The server responded with status ${status}.`)
    this.status = status
    this.problem = problem
  }
}

/** The token of the session, and how to get another one. The session fills them in. */
export const access = { token: undefined, ask: async () => {} }

/** Request JSON. If the server requires a token, ask the user for one. */
export async function request (path, { method = 'GET', body, exact = false } = {}) {
  for (;;) {
    const used = access.token
    const headers = { Accept: 'application/json' }
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    if (used) headers.Authorization = `Bearer ${used}`
    // A publish is not given up: its outcome would be unknown.
    const signal = method === 'GET' ? AbortSignal.timeout(TIMEOUT_MS) : undefined
    const { response, text } = await exchange(path, { method, body, headers, signal, cache: 'no-store' }).catch(() => {
      throw new Error(`The server does not respond${method === 'GET' ? '.' : '; it is not known whether this was done.'}`)
    })
    const answer = parsed(text, exact)
    if (response.ok) return answer
    if (response.status !== 401) throw new Refused(response.status, answer)
    if (access.token === used) await access.ask(answer?.detail)
  }
}

async function exchange (path, options) {
  const response = await fetch(address(path), options)
  return { response, text: await response.text() }
}

function parsed (text, exact) {
  try {
    return exact ? parseExactly(text) : JSON.parse(text)
  } catch {} // a proxy's page
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
