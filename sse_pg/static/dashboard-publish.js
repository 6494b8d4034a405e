// The form that publishes an event.

import { request } from './dashboard-api.js'

const form = document.getElementById('publish')

form.addEventListener('submit', async (event) => {
  event.preventDefault()
  const { channel, eventType, payload } = form.elements
  const button = event.submitter ?? form.querySelector('button')
  try {
    JSON.parse(payload.value)
  } catch (error) {
    say(`The payload is not JSON: ${error.message}`, 'bad')
    return payload.focus()
  }
  // The payload is sent as typed, because its numbers may have more digits than a double can hold.
  const body = `{"channel":${JSON.stringify(channel.value)},"eventType":${JSON.stringify(eventType.value)},"payload":${payload.value}}`
  button.disabled = true
  try {
    const { id } = await request('api/events/publish', { method: 'POST', body })
    say(`Published, id ${id}.`, 'good')
  } catch (error) {
    say(error.message, 'bad')
  }
  button.disabled = false
})
form.elements.payload.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit()
})

function say (text, kind) {
  const at = document.getElementById('published')
  at.className = `note ${kind}`
  at.textContent = text
}
