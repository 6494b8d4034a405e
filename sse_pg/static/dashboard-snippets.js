// What the page shows, as a command and as code: to copy.

import { address } from './dashboard-api.js'
import { element } from './rows.js'

/** Show what can be copied of a request: `[{ name, text }]`. */
export function showSnippets (snippets) {
  document.getElementById('snippets').replaceChildren(...snippets.flatMap(({ name, text }) => {
    const head = element('h3', '', name)
    const code = element('pre', '', text)
    code.tabIndex = 0 // it scrolls
    head.append(copier(() => text, code))
    return [head, code]
  }))
}

/** A button that copies a text. Pages without TLS have no clipboard: there the text is selected. */
export function copier (textOf, shownIn) {
  const button = element('button', '', 'Copy')
  button.type = 'button'
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(textOf())
      button.textContent = 'Copied'
    } catch {
      window.getSelection().selectAllChildren(shownIn)
      button.textContent = 'Selected: Ctrl+C'
    }
    setTimeout(() => { button.textContent = 'Copy' }, 1500)
  })
  return button
}

export function streamSnippets (channels, closed) {
  const url = addressOf('api/events/stream', { channels: channels.join(','), envelope: true })
  return [
    { name: 'curl', text: curl(url, closed, '-N ') },
    { name: 'EventSource', text: `const source = new EventSource(${JSON.stringify(url)});\nsource.onmessage = ({ data }) => console.log(JSON.parse(data));` }
  ]
}

export function historySnippets (parameters, closed) {
  return [{ name: 'curl', text: curl(addressOf('api/events/history', parameters), closed) }]
}

function addressOf (path, parameters) {
  const url = address(path)
  url.search = new URLSearchParams(parameters).toString().replaceAll('%2C', ',')
  return url.href
}

/** URLSearchParams encodes quotes, so a URL needs no escapes within those of a shell. */
function curl (url, closed, options = '') {
  return `curl ${options}${closed ? '-H "Authorization: Bearer $TOKEN" ' : ''}'${url}'`
}
