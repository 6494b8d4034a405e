// Who uses the page: asks for a token, keeps it in memory and in a cookie that no script can read, shows whose it is.

import { access, address } from './dashboard-api.js'
import { element } from './rows.js'

const $ = (id) => document.getElementById(id)
let asking

/** Whether the server requires tokens. */
export let closed = false
/** The patterns of the channels that the token allows to read. */
export let readable = ['*']

access.ask = (why = '') => {
  asking ??= ask(why).finally(() => { asking = undefined })
  return asking
}

async function ask (why) {
  for (;;) {
    const typed = await entered(why)
    const headers = { Authorization: `Bearer ${typed}` }
    const response = await fetch(address('api/events/session'), { method: 'POST', headers }).catch(() => undefined)
    const answer = await response?.json().catch(() => undefined)
    if (response?.ok) {
      access.token = typed
      return show(answer)
    }
    why = answer?.detail ?? 'The server does not respond.'
  }
}

function entered (why) {
  const dialog = $('ask')
  const field = $('token').elements.token
  $('ask-why').textContent = why
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

/** Show a session, as the server describes it. */
export function show ({ open, userId, publish, subscribe, actFor, observe, expiresIn }) {
  closed = !open
  readable = subscribe
  $('who').hidden = $('leave').hidden = open
  if (open) return
  $('who').textContent = userId
  const rights = [
    ['May read', subscribe], ['May publish to', publish], ['May act for', actFor], ['May see the statistics', [observe ? 'yes' : 'no']],
    ['Valid until', [new Date(Date.now() + expiresIn * 1000).toLocaleString()]]
  ]
  $('who-user').textContent = `User ${userId}`
  $('who-rights').replaceChildren(...rights.flatMap(([name, values]) =>
    [element('dt', '', name), element('dd', '', values.join(', ') || 'nothing')]))
}

$('leave').addEventListener('click', async () => {
  await fetch(address('api/events/session'), { method: 'DELETE' })
  location.reload()
})
